"""Cutting a network into blocks, and a feedback network for each block: its layers in reversed order, with weights of
their own. Only shapes and kinds of layers are taken over, no weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UntiedError

__all__ = ["REVERSED", "cut", "many_to_one", "quiet", "reverse"]

Reverse = Callable[[Any, Tensor, Tensor], nn.Module | None]


def linear(layer: nn.Linear, x: Tensor, y: Tensor) -> nn.Module:
    return nn.Linear(layer.out_features, layer.in_features)


def convolution(layer: Any, x: Tensor, y: Tensor) -> nn.Module:
    """The transposed convolution of the same kernel size, whose output has x's size."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return by_shape(layer, x, y)
    kind: Any = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[x.dim() - 2]
    sizes = zip(y.shape[2:], layer.stride, layer.padding, layer.dilation, layer.kernel_size, strict=True)
    reached = [(o - 1) * s - 2 * p + d * (k - 1) + 1 for o, s, p, d, k in sizes]
    rest = tuple(size - r for size, r in zip(x.shape[2:], reached, strict=True))
    made: nn.Module = kind(
        layer.out_channels, layer.in_channels, layer.kernel_size, layer.stride, layer.padding, rest, layer.groups,
        dilation=layer.dilation,
    )  # fmt: skip
    return made


def same(layer: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """An activation stands for itself: on y it opens and closes as it did on what y is made of."""
    return copy.deepcopy(layer)


def nothing(layer: nn.Module, x: Tensor, y: Tensor) -> None:
    """Normalisation rescales, which the weights beside it learn."""


def reshape(layer: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    return nn.Unflatten(1, tuple(x.shape[1:]))


def resize(layer: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    return nn.Upsample(tuple(x.shape[2:]))


def sequence(block: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    parts: list[nn.Module] = []
    for child in block.children():
        after = child(x)
        made = reverse(child, x, after)
        parts += [] if made is None else [made]
        x = after
    return nn.Sequential(*reversed(parts))


def by_shape(block: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """For a block that is not known: one linear layer from y's shape to x's, a 3×3 convolution between two images."""
    if x.dim() == y.dim() == 4:
        return nn.Sequential(nn.Upsample(tuple(x.shape[2:])), nn.Conv2d(y.shape[1], x.shape[1], 3, padding=1))
    parts: list[nn.Module] = [nn.Flatten()] if y.dim() > 2 else []
    parts.append(nn.Linear(y[0].numel(), x[0].numel()))
    return nn.Sequential(*parts, *([nn.Unflatten(1, tuple(x.shape[1:]))] if x.dim() > 2 else []))


REVERSED: dict[type[nn.Module], Reverse] = {
    nn.Sequential: sequence,
    nn.Linear: linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution),
    nn.Flatten: reshape,
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), resize),
    **dict.fromkeys(
        (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus), same
    ),
    **dict.fromkeys(
        (nn.Identity, nn.Dropout, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm), nothing
    ),
}  # fmt: skip
"""What stands for each kind of layer in its block's feedback, by exact type. Other kinds are made by shape."""


def reverse(block: nn.Module, x: Tensor, y: Tensor) -> nn.Module | None:
    """A feedback network from y's shape to x's, for a block that takes x to y. It has the block's type and device.

    >>> block = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    >>> x = torch.randn(5, 4)
    >>> print(described(reverse(block, x, block(x))))
    Tanh, Linear(16)
    """
    made = REVERSED.get(type(block), by_shape)(block, x, y)
    return None if made is None else made.to(y.device, y.dtype)


def cut(model: nn.Module, x: Tensor) -> list[nn.Module]:
    """A network's blocks in their order: a new one begins at each part that has a kernel. What has none, such as an
    activation, a pooling or a normalisation, belongs to the block before it.

    Args:
        model: an `nn.Sequential`; a module whose method ``in_blocks()`` gives its blocks; or one whose children are
            called one after the other. x: an example batch.

    Raises:
        UntiedError: running the parts one after the other is not the network; or there are fewer than two blocks.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> [described(block) for block in cut(model, torch.randn(5, 4))]
    ['Linear(40), Tanh', 'Linear(27)']
    """
    in_order: Callable[[], list[nn.Module]] | None = getattr(model, "in_blocks", None)
    made = _by_kernels(model) if in_order is None else in_order()
    why = _differs(model, made, x)
    if why:
        raise UntiedError(
            f"{type(model).__name__} cannot be cut into blocks: {why}. Give an nn.Sequential of its blocks, with what "
            "forward() does between them as modules, such as nn.Flatten"
        )
    if len(made) < 2:
        raise UntiedError(f"{type(model).__name__} is one block, and targets go from block to block: give two or more")
    return made


def _by_kernels(model: nn.Module) -> list[nn.Module]:
    parts = [p for child in model.children() for p in (child.children() if _holds_blocks(child, model) else [child])]
    blocks: list[list[nn.Module]] = []
    for part in parts:
        if not blocks or (any(p.dim() > 1 for p in part.parameters()) and _has_kernel(blocks[-1])):
            blocks.append([])
        blocks[-1].append(part)
    return [b[0] if len(b) == 1 else nn.Sequential(*b) for b in blocks]


def _holds_blocks(child: nn.Module, model: nn.Module) -> bool:
    """A stage: a sequence inside a network that is none itself."""
    return type(child) is nn.Sequential and type(model) is not nn.Sequential


def _has_kernel(parts: list[nn.Module]) -> bool:
    return any(p.dim() > 1 for part in parts for p in part.parameters())


def _differs(model: nn.Module, blocks: list[nn.Module], x: Tensor) -> str:
    training = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            wanted, y = model(x), x
            for block in blocks:
                y = block(y)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return f"its parts do not run one after the other ({str(error).splitlines()[0]})"
    finally:
        for module, mode in training.items():
            module.training = mode
    if not (isinstance(wanted, Tensor) and wanted.shape == y.shape and torch.allclose(wanted, y, atol=1e-6)):
        return "its parts, run one after the other, have another output"
    return ""


def many_to_one(block: nn.Module, y: Tensor) -> str:
    """What in a block gives one value for many, "" if nothing was seen: ReLU by type, and whatever leaves more than a
    tenth of the outputs at its smallest or largest value.

    >>> many_to_one(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(5, 3))
    'ReLU'
    """
    known = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Threshold, nn.Hardshrink, nn.Softshrink)
    for module in block.modules():
        if type(module) in known:
            return type(module).__name__
    share = max(float((y == edge).double().mean()) for edge in (y.min(), y.max()))
    return f"an activation that leaves {share:.0%} of its outputs at one value" if share > 0.1 else ""


class quiet:
    """Batch normalisation keeps its running statistics as they are: noise is no data.

    >>> norm = nn.BatchNorm1d(2)
    >>> with quiet(norm):
    ...     _ = norm(torch.ones(5, 2))
    >>> norm.running_mean
    tensor([0., 0.])
    """

    def __init__(self, model: nn.Module) -> None:
        self.norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.kept: list[float | None] = []

    def __enter__(self) -> None:
        self.kept = [m.momentum for m in self.norms]
        for m in self.norms:
            m.momentum = 0.0

    def __exit__(self, *error: Any) -> None:
        for m, momentum in zip(self.norms, self.kept, strict=True):
            m.momentum = momentum


def described(module: nn.Module) -> str:
    """In a line."""
    if type(module) is nn.Sequential:
        return ", ".join(described(child) for child in module)
    size = math.fsum(p.numel() for p in module.parameters())
    return f"{type(module).__name__}({size:.0f})" if size else type(module).__name__
