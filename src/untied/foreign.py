"""Layers of other packages: registered where their package is imported, so that this one needs none of them.

`Conv1D` of transformers is a dense layer with W in the other order. Some attention modules of torchvision and timm use
their children's weights without calling the children (``F.linear(x, self.qkv.weight, bias)``); in their ``forward``
such a product is sent through the child's own `connect`, so that they train with B like any other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .geometry import Geometry
from .layers import LAYERS, Untied, register_layer

__all__ = ["ATTENTION", "TransposedDense", "attend", "register", "release"]


@dataclass(frozen=True)
class TransposedDense(Geometry):
    """y [n, ..., o] = x [n, ..., i] K over the last dimension: K is [i, o].

    >>> import torch
    >>> TransposedDense().project(torch.ones(2, 4), torch.ones(4, 3)).shape
    torch.Size([2, 3])
    """

    def sizes(self, K: Tensor) -> tuple[int, int]:
        return K.shape[0], K.shape[1]

    def rows(self, K: Tensor) -> Tensor:
        return K.T.unsqueeze(0)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        return rows[0].T

    def project(self, x: Tensor, K: Tensor) -> Tensor:
        return x @ K

    def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
        return y @ K.T

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])

    def patch(self, K: Tensor) -> tuple[Geometry, tuple[int, ...], int]:
        return self, (K.shape[0],), K.shape[0]

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return self.project(x, W)
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), W).view(*x.shape[:-1], W.shape[1])


def _always(*names: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda module: names


def _with_a_bias_of_its_own(module: Any) -> tuple[str, ...]:
    """BEiT's way: queries and values have a bias and keys none, so qkv is used without being called."""
    own = getattr(module, "q_bias", None) is not None and not getattr(module, "qkv_bias_separate", False)
    return ("qkv",) if own and getattr(module, "qkv", None) is not None else ()


ATTENTION: dict[tuple[str, str], Callable[[Any], tuple[str, ...]]] = {
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): _always("qkv", "proj"),
    ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2"): _always("qkv", "proj"),
    ("timm.models.beit", "Attention"): _with_a_bias_of_its_own,
    ("timm.models.eva", "EvaAttention"): _with_a_bias_of_its_own,
    ("timm.models.swin_transformer_v2", "WindowAttention"): _with_a_bias_of_its_own,
}
"""Module and class of attention that uses weights directly: the names of the children whose weights those are."""

_wrapped: dict[type, type] = {}


def register() -> None:
    """Make known what the packages that are imported by now have. `untied.untie_` calls it.

    >>> register()
    """
    utilities = sys.modules.get("transformers.pytorch_utils")
    if utilities is None or utilities.Conv1D in LAYERS:
        return

    @register_layer(utilities.Conv1D)
    class UntiedConv1D(Untied, utilities.Conv1D):  # type: ignore[misc, name-defined]
        """``Conv1D`` of transformers with ``backward_weight`` [i, o]."""

        def geometry(self) -> Geometry:
            return TransposedDense()

    _public(UntiedConv1D, "UntiedConv1D")


def attend(model: nn.Module) -> None:
    """Let attention that uses the weights of untied children send such products through them. `untied.untie_` calls it.

    >>> import torch, untied
    >>> class Attention(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.qkv = torch.nn.Linear(4, 12)
    ...     def forward(self, x):
    ...         return torch.nn.functional.linear(x, self.qkv.weight, self.qkv.bias)
    >>> key = Attention.__module__, Attention.__qualname__
    >>> ATTENTION[key] = lambda module: ("qkv",)
    >>> model = Attention()
    >>> _ = untied.untie_(model, "fa")
    >>> type(model).__name__  # its product is qkv's own call now
    'UntiedAttention'
    >>> _ = untied.tie_(model)
    >>> del ATTENTION[key]
    """
    for module in model.modules():
        names_of = ATTENTION.get((type(module).__module__, type(module).__qualname__))
        if names_of is None:
            continue
        if any(isinstance(getattr(module, name), Untied) for name in names_of(module)):
            module.__class__ = _attending(type(module), names_of)


def release(model: nn.Module) -> None:
    """Undo `attend` where no child is untied any more. `untied.tie_` calls it.

    >>> import torch
    >>> release(torch.nn.Linear(4, 3))
    """
    plain = {wrapped: kind for kind, wrapped in _wrapped.items()}
    for module in model.modules():
        if type(module) in plain and not any(isinstance(child, Untied) for child in module.children()):
            module.__class__ = plain[type(module)]


def _attending(kind: type, names_of: Callable[[Any], tuple[str, ...]]) -> type:
    if kind not in _wrapped:

        class Attending(kind):  # type: ignore[misc, valid-type, unused-ignore]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                with _Through([child for name in names_of(self) if isinstance(child := getattr(self, name), Untied)]):
                    return super().forward(*args, **kwargs)

        _wrapped[kind] = _public(Attending, f"Untied{kind.__name__}")
    return _wrapped[kind]


def _public(kind: type, name: str) -> type:
    """Let pickle find a class that is made here."""
    kind.__name__ = kind.__qualname__ = name
    kind.__module__ = __name__
    globals()[name] = kind
    return kind


class _Through(TorchFunctionMode):
    """Sends each `F.linear` with the weight of one of these layers through the layer."""

    def __init__(self, layers: list[Untied]) -> None:
        super().__init__()
        self.layers = {id(layer.weight): layer for layer in layers}  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        layer: Any = self.layers.get(id(given["weight"]))
        if layer is None:
            return func(*args, **kwargs)
        bias = given.get("bias")
        if bias is None or bias is layer.bias:
            return layer.connect(given["input"], layer.geometry(), bias=None if bias is None else "bias")
        return layer.connect(given["input"], layer.geometry(), bias=None) + bias
