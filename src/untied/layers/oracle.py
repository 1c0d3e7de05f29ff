"""The gradients that rules ask for, by constructions that share nothing with the untied operation: `verify` compares
a network's own with them.

Legend, as in geometry.py and broadcast.py: J the task's loss; e ∂J/∂(output of the source layer); M e what a broadcast
rule sends to a layer; x a layer's input.

    through     y = T_B̄ x + (T_W x̄ - T_B̄ x̄)      forward T_W x, errors through B; a bar marks what is a constant
                y = T_W x                          where the rule is backpropagation: to every order of derivative
    broadcast   y = T_W x̄,  J + Σ <e, M* x>      the layer's input is a constant to J, and gets M e from the sum
    copy        y + (T_B x̄ - the same, constant)  B gets W's pseudogradient; under broadcast <e, M* x̄> gives it its own

M* is the map that M is the adjoint of: activity to the source's outputs. So nothing is sent back by hand here: autograd
makes every adjoint out of `Geometry.project` and products. e is a constant, of a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Geometry
from .layer import Untied

__all__ = ["Sent", "connecting", "plainly", "straight_through"]

Apply = Callable[[Untied, Tensor, Tensor, Tensor, Tensor | None, Geometry], Tensor]
"""A layer, its input, W, B, bias and geometry -> its output."""


@contextmanager
def connecting(layers: dict[str, Untied], apply: Apply) -> Iterator[None]:
    """Let every layer of one model connect by another operation for a while.

    B is the kernel that carries errors: in W's layout, or as a rule that broadcasts keeps it.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa")
    >>> x = torch.ones(5, 4, requires_grad=True)
    >>> with connecting({"": model}, plainly):
    ...     model(x).sum().backward()
    >>> torch.allclose(x.grad[0], model.weight.sum(0))
    True
    """

    def connect_of(layer: Untied) -> Callable[..., Tensor]:
        def connect(
            x: Tensor,
            geometry: Geometry,
            weight: str = "weight",
            bias: str | None = "bias",
            part: slice | None = None,
        ) -> Tensor:
            W, b = getattr(layer, weight), None if bias is None else getattr(layer, bias)
            B = layer.backward_kernel(weight, W)
            if part is not None:
                W, b = W[part], None if b is None else b[part]
                B = B[part] if layer.rule.route.like_weight else B
            return apply(layer, x, W, B, b, geometry)

        return connect

    for layer in layers.values():
        layer.__dict__["connect"] = connect_of(layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["connect"]


def plainly(layer: Untied, x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Backpropagation: T_W x + bias.

    >>> import torch, untied
    >>> from untied.geometry import DENSE
    >>> layer, x, W = torch.nn.Linear(4, 3), torch.ones(5, 4), torch.ones(3, 4)
    >>> plainly(layer, x, W, W, None, DENSE)[0]
    tensor([4., 4., 4.])
    """
    y = geometry.project(x, W)
    return y if bias is None else geometry.add_bias(y, bias)


def straight_through(layer: Untied, x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The first construction of the legend, and the third where the rule copies.

    >>> import torch, untied
    >>> layer = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(layer, "fa")
    >>> x, W, B = torch.ones(5, 4, requires_grad=True), torch.ones(3, 4), 2 * torch.ones(3, 4)
    >>> straight_through(layer, x, W, B, None, layer.geometry()).sum().backward()
    >>> x.grad[0]
    tensor([6., 6., 6., 6.])
    """
    fixed = x.detach()
    y = geometry.project(x, B.detach())
    y = y + (geometry.project(fixed, W) - geometry.project(fixed, B.detach()))
    if layer.rule.copies:
        copied = geometry.project(fixed, B)
        y = y + layer.rule.copies * (copied - copied.detach())
    return y if bias is None else geometry.add_bias(y, bias)


@dataclass
class Sent:
    """The second construction of the legend, for layers whose rule broadcasts; the first for all others.

    Two passes: the first finds e at each call of the source, the second takes it.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "dfa")
    >>> layers, x = untied.layers.untied_layers(model), torch.randn(5, 4)
    >>> sent = Sent(layers)
    >>> with connecting(layers, sent):
    ...     sent.read(model(x).square().mean())
    >>> with connecting(layers, sent):
    ...     (model(x).square().mean() + sent.total).backward()
    >>> bool(model[0].weight.grad.any())
    True

    Attributes:
        layers: of the model, by name. targets: in the shape of the source's output or classes, for rules that send
            them.
        errors: e at each call of the source, after the first pass.
        total: Σ <e, M* x>, after the second.
    """

    layers: dict[str, Untied]
    targets: Tensor | None = None
    errors: list[Tensor] | None = None
    total: Any = 0.0
    outputs: list[Tensor] = field(default_factory=list)
    waiting: list[tuple[Untied, Tensor, Tensor, Geometry]] = field(default_factory=list)

    def __post_init__(self) -> None:
        named = [r.source for layer in self.layers.values() if (r := layer.rule.route).broadcasts]  # type: ignore[attr-defined]
        self.source = self.layers.get((named or [""])[0] or list(self.layers)[-1])

    def __call__(
        self, layer: Untied, x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        if not torch.is_grad_enabled():
            return plainly(layer, x, W, B, bias, geometry)
        exact = layer.rule.exact  # through W itself, in gradients of gradients too
        if layer.rule.route.broadcasts:
            self.waiting.append((layer, x, B, geometry))
            y = plainly(layer, x.detach(), W, B, bias, geometry)
        else:
            y = (plainly if exact else straight_through)(layer, x, W, B, bias, geometry)
        if layer is self.source and y.requires_grad:
            self.outputs.append(y)
            y = y.clone()  # so that an activation in place changes nothing of what e is taken at
            waiting, self.waiting = self.waiting, []
            if self.errors is not None:
                e, spatial = self.errors[len(self.outputs) - 1], geometry.positional
                for waits, x_, B_, of in waiting:
                    self.total = self.total + self._share(waits, e, spatial, x_, B_, of)
        return y

    def read(self, loss: Tensor) -> None:
        """The first pass is done."""
        e = torch.autograd.grad(loss, self.outputs, allow_unused=True) if self.outputs else ()
        pairs = zip(e, self.outputs, strict=True)
        self.errors = [torch.zeros_like(y) if g is None else g.detach() for g, y in pairs]
        self.outputs, self.waiting = [], []

    def _share(self, layer: Untied, e: Tensor, spatial: bool, x: Tensor, B: Tensor, geometry: Geometry) -> Tensor:
        """<e, M* x>, and for a B that copies its own share: the same with x constant and B not.

        e is [n, ..., C], or [n, C, *space] where the source is ``spatial``. Tokens are no places of a space, so that a
        convolution gets the sum over them.
        """
        sent = {"error": lambda: e, "sign": e.sign, "target": lambda: self._targets(e)}
        e = sent[layer.rule.route.signal]()  # type: ignore[attr-defined]
        if spatial and e.dim() > 2:
            e = e.movedim(1, -1)
        elif geometry.positional and e.dim() > 2:
            e = e.flatten(1, -2).sum(1)
        kernel = layer.rule.route.kernel  # type: ignore[attr-defined]
        share = _inner(e, _seen(x, B.detach(), geometry, kernel))
        copies = layer.rule.copies
        return share + copies * _inner(e, _seen(x.detach(), B, geometry, kernel)) if copies else share

    def _targets(self, e: Tensor) -> Tensor:
        t = self.targets
        assert t is not None  # a recording has asked for them
        return (t if t.is_floating_point() else F.one_hot(t.long(), e.shape[-1])).to(e)


def _seen(x: Tensor, B: Tensor, geometry: Geometry, kernel: str | None) -> Tensor:
    """M* x [n, ..., C]: for a dense layer at each token, for a convolution at each output position, or at none where
    B has a number for each input.
    """
    if not geometry.positional:
        return torch.einsum("...i,ci->...c", x, B)
    if kernel == "dense":
        return torch.einsum("...i,ci->...c", x.reshape(*x.shape[: x.dim() - B.dim() + 1], -1), B.flatten(1))
    whole: Any = replace(geometry, groups=1)  # type: ignore[type-var]  # each output of the source reaches every input
    seen = whole.project(x, B.transpose(0, 1) if whole.transposed else B)
    return seen.movedim(-1 - whole.dims, -1)  # type: ignore[no-any-return]


def _inner(e: Tensor, seen: Tensor) -> Tensor:
    """<e, seen>, place by place where both have the same places; else of each example's sums over places."""
    if e.shape != seen.shape:
        batch = min(e.dim() - 1, 1)
        e, seen = (t.sum(tuple(range(batch, t.dim() - 1))) if t.dim() - 1 > batch else t for t in (e, seen))
    return (e * seen).sum()
