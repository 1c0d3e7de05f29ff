"""`Call`: the one value that a layer hands to whoever listens: a recording, metrics, a probe, several at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from .geometry import Geometry

if TYPE_CHECKING:
    from .layers import Untied

__all__ = ["Call", "Listener"]


@dataclass(frozen=True)
class Call:
    """One use of one kernel. x, y, W, B and bias are as the operation saw them: in autocast's dtype, cut to ``part``.

    Attributes:
        layer: whose kernel it is.
        x: [n, ...] the layer's input. y: [n, ...] its output, bias included.
        W, B: the kernels, of one shape. bias: [o] or None.
        geometry: how the layer uses them.
        kernels: W and B themselves, as the layer holds them, that gradients go to.
        part: the rows of them that were used; None for all.
    """

    layer: Untied
    x: Tensor
    y: Tensor
    W: Tensor
    B: Tensor
    bias: Tensor | None
    geometry: Geometry
    kernels: tuple[Tensor, Tensor]
    part: slice | None = None


class Listener(Protocol):
    """Who wants to know of a layer's calls: put it into ``layer.listeners``."""

    def note(self, call: Call) -> None:
        """A layer was called."""
