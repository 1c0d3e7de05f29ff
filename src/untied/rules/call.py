"""`Call`: the one value that a layer hands to whoever listens: a recording, metrics, a probe, several at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..geometry import Geometry
from .rule import Rule

__all__ = ["Call", "Layer", "Listener"]


class Layer(Protocol):
    """What a recording and a route ask of an untied layer, which `untied.layers.Untied` answers.

    Attributes:
        rule: of the layer. listeners: who hears of its calls.
        was_called: whether a recorded pass has called it.
        patches: of each weight, how often the task uses it in a step.
        history: what `untied.tape.audit` keeps between two recordings.
        collector: where it gives inputs that wait for an error; None outside a recording. is_source: whether it is its
            output's error that is broadcast.
    """

    rule: Rule
    listeners: tuple[Listener, ...]
    was_called: bool
    patches: Mapping[str, int]
    collector: Any
    is_source: bool
    history: Any

    def own_weights(self) -> list[str]:
        """The names of its kernels."""

    def geometry_of(self, weight: str) -> Geometry:
        """How it uses one of them."""

    def beside(self, weight: str) -> dict[str, Any]:
        """What its rule keeps beside a weight."""

    def backward_parameters(self) -> list[Any]:
        """Its backward weights."""

    @property
    def weight_device(self) -> torch.device:
        """Where its kernels are."""


@dataclass(frozen=True)
class Call:
    """One use of one kernel. x, y, W, B and bias are as the operation saw them: in autocast's dtype, cut to ``part``.

    Attributes:
        layer: whose kernel it is.
        x: [n, ...] the layer's input. y: [n, ...] its output, bias included.
        W: the kernel. bias: [o] or None.
        made: gives B, of W's shape; a product of two kernels is multiplied out for who asks alone.
        geometry: how the layer uses them.
        kernels: W and B themselves, as the layer holds them, that gradients go to.
        part: the rows of them that were used; None for all.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa")
    >>> class Watching:
    ...     def note(self, call):
    ...         print(tuple(call.x.shape), tuple(call.y.shape), tuple(call.B.shape))
    >>> model.listeners = (Watching(),)
    >>> _ = model(torch.randn(5, 4))
    (5, 4) (5, 3) (3, 4)
    """

    layer: Layer
    x: Tensor
    y: Tensor
    W: Tensor
    made: Callable[[], Tensor]
    bias: Tensor | None
    geometry: Geometry
    kernels: tuple[Tensor, Tensor]
    part: slice | None = None

    @property
    def B(self) -> Tensor:
        """The kernel that errors go through, of W's shape."""
        return self.made()


class Listener(Protocol):
    """Who wants to know of a layer's calls: put it into ``layer.listeners``."""

    def note(self, call: Call) -> None:
        """A layer was called."""
