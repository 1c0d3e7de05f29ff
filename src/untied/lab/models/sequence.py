"""Small networks for sequences: a recurrent one, and a causal transformer.

Tokens (n, length) give logits at each place, (n, length, outputs). Values (n, length, features) give (n, outputs), from
the last place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from untied.errors import UntiedError

__all__ = ["Recurrent", "Transformer", "recurrent", "transformer"]

KINDS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def recurrent(
    input_shape: tuple[int, ...], classes: int, *, vocabulary: int = 0, kind: str = "gru", width: int = 64
) -> Recurrent:
    """``gru-64``, ``lstm-64``, ``rnn-64``: one recurrent layer.

    Args:
        input_shape: (length,) of tokens, or (length, features).
        classes: number of outputs. vocabulary: number of tokens; 0 where inputs are values.
        kind: rnn, lstm or gru. width: units.

    Raises:
        UntiedError: the inputs are no sequence.
    """
    features = _features(kind, input_shape, vocabulary)
    return Recurrent(KINDS[kind], features, vocabulary, width, classes)


def transformer(
    input_shape: tuple[int, ...], classes: int, *, vocabulary: int = 0, width: int = 64, blocks: int = 2
) -> Transformer:
    """``transformer-64-2``: width 64, two blocks.

    Args:
        input_shape: (length,) of tokens, or (length, features).
        classes: number of outputs. vocabulary: number of tokens; 0 where inputs are values.
        width: a multiple of 16, the width of a head. blocks: attention and a dense part each.

    Raises:
        UntiedError: the inputs are no sequence, or the width is not a multiple of 16.
    """
    if width % 16:
        raise UntiedError(f"transformer has width {width}: it must be a multiple of 16, the width of a head")
    features = _features("transformer", input_shape, vocabulary)
    return Transformer(input_shape[0], features, vocabulary, width, blocks, classes)


def _features(name: str, shape: tuple[int, ...], vocabulary: int) -> int:
    if len(shape) != (1 if vocabulary else 2):
        raise UntiedError(
            f"{name} takes sequences, (length,) of tokens or (length, features) of values, and the inputs are {shape}: "
            "choose another model, or data such as text and series"
        )
    return 0 if vocabulary else shape[1]


class Recurrent(nn.Module):
    """See ``recurrent``. Layers are named ``embed``, ``rnn`` and ``fc``."""

    def __init__(self, kind: type[nn.RNNBase], features: int, vocabulary: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width) if vocabulary else None
        self.rnn = kind(width if vocabulary else features, width, batch_first=True)  # type: ignore[call-arg, arg-type]
        self.fc = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(x if self.embed is None else self.embed(x))[0]
        y: Tensor = self.fc(h if self.embed is not None else h[:, -1])
        return y


class Block(nn.Module):
    """Attention to what came before, and a dense part, each with a layer norm and a shortcut. (n, length, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 16, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0]
        y: Tensor = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return y


class Transformer(nn.Module):
    """See ``transformer``. Layers are named ``embed``, ``place``, ``blocks.0`` and so on, ``norm``, ``fc``."""

    def __init__(self, length: int, features: int, vocabulary: int, width: int, blocks: int, outputs: int) -> None:
        super().__init__()
        self.tokens = bool(vocabulary)
        self.embed: nn.Module = nn.Embedding(vocabulary, width) if vocabulary else nn.Linear(features, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        h = self.embed(x) + self.place(torch.arange(length, device=x.device))
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        for block in self.blocks:
            h = block(h, mask)
        h = self.norm(h)
        y: Tensor = self.fc(h if self.tokens else h[:, -1])
        return y
