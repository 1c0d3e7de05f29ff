"""How e, the error of the network's output, reaches one layer: what fits, M e, and what B learns from it.

Legend as in broadcast.py: e [n, C] or [n, ..., C], or [n, C, *space] of a convolution; x a layer's input; B [C, ...].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UntiedError
from ..geometry import Geometry
from .autograd import no_view

__all__ = ["Mark", "Port", "Source", "example_of"]


def example_of(x: torch.Size, geometry: Geometry) -> torch.Size:
    """The shape of one example of x [n, ..., i] or [n, i, *space]: [i] or [i, *space].

    >>> from untied.geometry import DENSE
    >>> example_of(torch.Size((5, 7, 4)), DENSE)
    torch.Size([4])
    """
    return x[-1 - geometry.dims :] if geometry.positional else x[-1:]  # type: ignore[attr-defined]


class Mark(torch.autograd.Function):
    """A place in the graph at which an error may enter: of x's shape, and without memory.

    >>> x = torch.randn(5, 4, requires_grad=True)
    >>> Mark.apply(x).shape, Mark.apply(x).untyped_storage().nbytes()
    (torch.Size([5, 4]), 4)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@dataclass(frozen=True)
class Port:
    """A layer that waits for e. x and y are its input and output.

    Attributes:
        kernel, signal: of its route. geometry, name: of the layer. copies: how much of its pseudogradient B takes.
        x, y: their shapes. learns: whether B takes any.
        batch_first: whether x has the batch first, whatever the network has.

    >>> from untied.geometry import DENSE
    >>> port = Port(None, "error", DENSE, "fc", torch.Size((5, 4)), torch.Size((5, 8)), 0.0, False)
    >>> port.error(torch.ones(5, 3), torch.ones(3, 4))[0]
    tensor([3., 3., 3., 3.])
    """

    kernel: str | None
    signal: str
    geometry: Geometry
    name: str
    x: torch.Size
    y: torch.Size
    copies: float
    learns: bool
    batch_first: bool = False

    def check(self, e: torch.Size, B: Tensor, source: str, by: Geometry, second: str | None) -> None:
        """Refuse before the backward pass what cannot be sent.

        Args:
            e: the shape of the source's output. B: the kernel. source: its name. by: its geometry.
            second: the name of a module with ``batch_first=False``, if the network has one.

        Raises:
            UntiedError: B has another number of outputs than e, or e's positions are not those of the layer.
        """
        C, x, given = B.shape[0], self.x, tuple(e)
        e = _laid(e, self.geometry, by)
        spatial = self.geometry.positional and len(e) > 2
        outputs = e[1] if spatial else e[-1] if len(e) else None
        if outputs != C:
            self._refuse(
                f"B is for {C} outputs, and the output of {source} is {given}: name the layer that B was made for, as "
                "in untie_(model, 'dfa(source=NAME)')"
            )
        if second is not None and len(x) > 2 and not self.geometry.positional and (len(e) == 2) != self.batch_first:
            self._refuse(
                f"{second or 'the network'} has batch_first=False, so nothing says which examples the rows of the "
                f"input {tuple(x)} are, beside the output {given} of {source}: build the network with batch_first=True"
            )
        if self.geometry.positional and self.kernel == "dense" and B.shape[1:] != example_of(x, self.geometry):
            self._refuse(
                f"B was drawn for inputs {tuple(B.shape[1:])} and this one is {tuple(x)}: give images of one size, or "
                "kernel=position"
            )
        fits = len(e) == 1 or (len(e) > 1 and e[0] == x[0])
        if fits and spatial and self.kernel == "position":
            fits = e[2:] == self.y[2:]
        elif fits and not self.geometry.positional and min(len(e), len(x)) > 2:
            fits = e[:-1] == x[:-1]
        if not fits:
            self._refuse(
                f"its input is {tuple(x)} and the output of {source} is {given}, whose errors are neither one for each "
                "example nor one for each of its positions: name a layer of the same positions with source=NAME"
            )

    def _refuse(self, why: str) -> None:
        raise UntiedError(f"layer {self.name}: {why}, or leave it out with untie_(..., filter=...)")

    def error(self, e: Tensor, B: Tensor) -> Tensor:
        """M e, in x's shape."""
        if not self.geometry.positional:
            if e.dim() > len(self.x):
                e = e.flatten(1, -2).sum(1)
            sent = e @ B
            if sent.dim() < len(self.x):  # one error for all of an example's tokens
                sent = sent.view(self.x[0], *(1,) * (len(self.x) - 2), -1)
            return sent.expand(self.x)
        if e.dim() > 2 and self.kernel == "position":
            return self._at_each().reconstruct(e, self._laid_out(B), like=e.new_empty(self.x))
        e = self._one(e)
        if self.kernel == "dense":
            return (e @ B.flatten(1)).view(self.x)
        taps = self._taps(B).flatten(1)  # B first: M, of C times an example's size, is never made
        return ((e @ B.flatten(1)).view(-1, taps.shape[0]) @ taps).view(self.x)

    def gradient(self, e: Tensor, x: Tensor, B: Tensor) -> Tensor:
        """The outer product of e and the layer's activity: d<e, M x> / dB."""
        if not self.geometry.positional:
            if e.dim() > x.dim():
                e = e.flatten(1, -2).sum(1)
            elif 1 < e.dim() < x.dim():
                x = x.flatten(1, -2).sum(1)
            return e.reshape(-1, e.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        if e.dim() > 2 and self.kernel == "position":
            G = self._at_each().correlate(x, e)
            return G.transpose(0, 1) if self.geometry.transposed else G  # type: ignore[attr-defined]
        e = self._one(e).reshape(-1, B.shape[0])
        if self.kernel == "dense":
            return (e.T @ x.reshape(e.shape[0], -1)).view(B.shape)
        heard = x.reshape(-1, math.prod(example_of(self.x, self.geometry)[1:])) @ self._taps(x).flatten(1).T
        return (e.T @ heard.view(e.shape[0], -1)).view(B.shape)

    def _one(self, e: Tensor) -> Tensor:
        """The error of an example: of all positions together."""
        return e.flatten(2).sum(2) if e.dim() > 2 else e

    def _at_each(self) -> Geometry:
        return replace(self.geometry, groups=1)  # type: ignore[type-var]

    def _laid_out(self, B: Tensor) -> Tensor:
        return B.transpose(0, 1) if self.geometry.transposed else B  # type: ignore[attr-defined]

    def _taps(self, like: Tensor) -> Tensor:
        """[taps, *space]: 1 where the tap of a kernel, applied at every position, reaches this place of the input."""
        geometry: Any = self._at_each()
        count = math.prod(geometry.kernel_size)
        eye = torch.eye(count, dtype=like.dtype, device=like.device)
        K = eye.view(*((count, 1) if geometry.transposed else (1, count)), *geometry.kernel_size)
        space = example_of(self.x, self.geometry)[1:]
        ones = like.new_ones(1, 1, *self.y[-len(space) :])
        return geometry.reconstruct(ones, K, like=like.new_empty(1, count, *space))[0]  # type: ignore[no-any-return]


def _laid(e: torch.Size, geometry: Geometry, by: Geometry) -> torch.Size:
    """The shape that `_lay` gives."""
    if len(e) <= 2 or geometry.positional == by.positional:
        return e
    return torch.Size((e[0], e[-1]) if geometry.positional else (e[0], *e[2:], e[1]))


def _lay(e: Tensor, geometry: Geometry, by: Geometry) -> Tensor:
    """The error of a source ``by`` as a layer of another geometry takes it: a map's features last for a dense layer,
    and the sum over tokens for a convolution.
    """
    if e.dim() <= 2 or geometry.positional == by.positional:
        return e
    return e.flatten(1, -2).sum(1) if geometry.positional else e.movedim(1, -1)


class Source(torch.autograd.Function):
    """The identity on the source's output, whose backward pass sends e to every port.

    tensors: the marks, the kernels, and the inputs where B learns (None elsewhere), in the ports' order.

    >>> from untied.geometry import DENSE
    >>> x, y = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    >>> port = Port(None, "error", DENSE, "fc", x.shape, torch.Size((5, 8)), 0.0, False)
    >>> Source.apply(y, None, (port,), DENSE, Mark.apply(x), torch.ones(3, 4), None).sum().backward()
    >>> x.grad[0]
    tensor([3., 3., 3., 3.])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, targets: Tensor | None, ports: tuple[Port, ...], by: Geometry, *tensors: Tensor | None
    ) -> Tensor:
        return no_view(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, targets, ctx.ports, ctx.by, *tensors = inputs
        ctx.save_for_backward(targets, *tensors[len(ctx.ports) :])

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        targets, *saved = ctx.saved_tensors
        count = len(ctx.ports)
        errors: list[Tensor | None] = []
        gradients: list[Tensor | None] = []
        for at, port in enumerate(ctx.ports):
            B, x = saved[at].detach(), saved[count + at]
            x = None if x is None else x.detach()
            sent = e.sign() if port.signal == "sign" else targets if port.signal == "target" else e
            sent = _lay(sent.to(B.dtype), port.geometry, ctx.by)
            errors.append(port.error(sent, B) if ctx.needs_input_grad[4 + at] else None)
            gradients.append((port.copies * port.gradient(sent, x, B)).contiguous() if port.learns else None)
        return e, None, None, None, *errors, *gradients, *(None,) * count
