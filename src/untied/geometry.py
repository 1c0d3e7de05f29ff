"""A layer as a linear map T_K, in the three functions that every learning rule is written with.

Legend
    x   layer input       dense [n, ..., i]   convolution [n, i, *space]
    y   layer output      dense [n, ..., o]   convolution [n, o, *space']
    K   kernel, in W's layout
                          dense [o, i]        convolution [o, i/groups, *k]
                                              transposed convolution [i, o/groups, *k]
    n   batch; absent for a dense layer given one vector, or a convolution given one image

    project(x, K)      T_K x               send activity forward through K
    reconstruct(y, K)  T_K* y              send activity back through K (the adjoint)
    correlate(x, y)    d<y, T_K x> / dK    the Hebbian outer product, summed over n and positions

The identity that ties them, <T_K x, y> = <x, T_K* y> = <K, correlate(x, y)>, holds for every layer type and is
a test. A new layer type is a subclass of `Geometry` with these three methods; `untied.register_layer` makes it
known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import UntiedError

__all__ = ["DENSE", "Convolution", "Dense", "Geometry", "correlate", "inner", "project", "reconstruct"]


@contextmanager
def ordinary_autograd() -> Iterator[None]:
    """Autograd for a small graph of our own, which activation checkpointing must not see: it counts saved tensors."""
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        yield


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of two tensors of one shape [...]: 0-dim, summed in float32 at least, in one pass that copies neither.

    >>> import torch
    >>> inner(torch.ones(2, 3), torch.ones(2, 3))
    tensor(6.)
    """
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    if torch.compiler.is_compiling() or a.dtype != b.dtype or a.numel() == 0:  # a compiler fuses this by itself
        return (a * b).sum(dtype=wide)
    if a.dtype == wide:
        return torch.dot(*_lines(a, b))
    if a.dtype == torch.bfloat16 and a.device.type == "cpu" and a.numel() % BLOCK == 0:
        x, y = _lines(a, b)  # summed in float32 within a block too, and rounded once there
        return torch.bmm(x.view(-1, 1, BLOCK), y.view(-1, BLOCK, 1)).sum(dtype=wide)
    return (a * b).sum(dtype=wide)


BLOCK = 1024


def _lines(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as vectors, in the order in which a lies in memory: without a copy where both lie alike."""
    order = sorted(range(a.dim()), key=a.stride, reverse=True)
    return a.permute(order).reshape(-1), b.permute(order).reshape(-1)


class Geometry:
    """What a layer type does with a kernel. Subclasses give the first three methods, each of which returns a new
    tensor; the others follow from them.

    Attributes:
        features: the dimension of x that holds its features (channels).
        positional: whether a kernel is applied at several positions of a space.

    >>> import torch
    >>> from untied.geometry import DENSE
    >>> x, y, K = torch.randn(5, 4), torch.randn(5, 3), torch.randn(3, 4)
    >>> torch.allclose((DENSE.project(x, K) * y).sum(), (K * DENSE.correlate(x, y)).sum(), atol=1e-5)
    True
    """

    features = -1
    positional = False

    def sizes(self, K: Tensor) -> tuple[int, int]:
        """(i, o): how many features x and y have, by a kernel in W's layout.

        Raises:
            UntiedError: the layer type does not say.
        """
        raise UntiedError(
            f"{type(self).__name__} does not say how its kernel's features are laid out: give it the methods sizes(K), "
            "rows(K) and from_rows(rows, shape), or use another rule for this layer"
        )

    def rows(self, K: Tensor) -> Tensor:
        """K, in W's layout, as [groups, outputs of a group, rest]: a row for each output."""
        return K.new_empty(self.sizes(K))

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `rows`: [groups, outputs of a group, rest] as a kernel of this ``shape``, outputs aside."""
        return rows.new_empty(self.sizes(rows))

    def project(self, x: Tensor, K: Tensor) -> Tensor:
        """T_K x: of x [n, ..., i], y [n, ..., o]; a convolution has [n, i, *space] and [n, o, *space']."""
        raise NotImplementedError(f"{type(self).__name__}.project")

    def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
        """T_K* y: of y [n, ..., o], [n, ..., i]; a convolution has [n, o, *space'] and [n, i, *space], the space of
        ``like`` (an input x) where y alone does not settle it."""
        raise NotImplementedError(f"{type(self).__name__}.reconstruct")

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of <y, T_K x> in K, in W's layout: of x [n, ..., i] and y [n, ..., o] it is [o, i]."""
        raise NotImplementedError(f"{type(self).__name__}.correlate")

    def per_weight(self, z: Tensor, y: Tensor) -> Tensor:
        """What each weight multiplies of z, an input [n, ..., i], summed over batch and positions: in K's layout up to
        broadcasting, [i] for a dense layer. ``y`` is an output [n, ..., o], for its shape."""
        return self.correlate(z, torch.ones_like(y, dtype=z.dtype))

    def patch(self, K: Tensor) -> tuple[Geometry, tuple[int, ...], int]:
        """The same map at a single position, without padding, for measuring K, in W's layout, with noise.

        Returns:
            the geometry there; the shape of one input, without n: (i,) or (i, *k); how many inputs reach one output.

        Raises:
            UntiedError: the layer type does not say.
        """
        raise UntiedError(
            f"{type(self).__name__} has no patch, so its kernel cannot be measured: "
            "give it a method patch(K), or use another rule for this layer"
        )

    def positions(self, x: Tensor, y: Tensor) -> int:
        """How many times K is applied to one example of x [n, ..., i], y [n, ..., o]: what "..." multiplies to."""
        return 1 if y.dim() < 2 else math.prod(y.shape[1:-1])

    def batch_size(self, x: Tensor) -> int | None:
        """n of x [n, ..., i] or [n, i, *space]; None where x is a single example, [i] or [i, *space]."""
        return x.shape[0] if x.dim() > 1 else None

    def add_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        """y [n, ..., o] or [n, o, *space'] plus the layer's bias [o], in y's shape."""
        return y + bias

    def prepare(self, x: Tensor) -> Tensor:
        """The part of T that has no kernel, such as padding: [n, i, *space] becomes [n, i, *larger space]. It stays
        outside the untied operation, for autograd."""
        return x

    def prepared(self) -> Geometry:
        """The layer behind `prepare`: noise input enters there, so that a copied border does not correlate it."""
        return self

    def read(self, x: Tensor) -> tuple[list[int], ...] | None:
        """The positions of x [n, i, *space] that some output reads, a list for each dimension of space; None if all."""
        return None

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, as `project` has it and with the bias [o], for a prepared input."""
        y = self.project(x, W)
        return y if bias is None else self.add_bias(y, bias)

    def backward(
        self, g: Tensor, x: Tensor, B: Tensor, bias_shape: list[int] | None, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Pseudogradients of a prepared input x [n, ..., i] (through B), of W in its layout, and of the bias [o], from
        the error ``g`` [n, ..., o] at the output; only the ones in ``needs``."""
        return (
            self.reconstruct(g, B, like=x) if needs[0] else None,
            self.correlate(x, g) if needs[1] else None,
            g.sum_to_size(bias_shape) if needs[2] and bias_shape is not None else None,
        )


@dataclass(frozen=True)
class Dense(Geometry):
    """`nn.Linear`: y [n, ..., o] = x [n, ..., i] Kᵀ over the last dimension, K [o, i].

    >>> import torch
    >>> Dense().project(torch.ones(2, 4), torch.ones(3, 4)).shape
    torch.Size([2, 3])
    """

    def sizes(self, K: Tensor) -> tuple[int, int]:
        return K.shape[1], K.shape[0]

    def rows(self, K: Tensor) -> Tensor:
        return K.unsqueeze(0)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        return rows[0]

    def project(self, x: Tensor, K: Tensor) -> Tensor:
        return F.linear(x, K)

    def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
        return y @ K

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        return y.reshape(-1, y.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    def per_weight(self, z: Tensor, y: Tensor) -> Tensor:
        return z.reshape(-1, z.shape[-1]).sum(0)

    def patch(self, K: Tensor) -> tuple[Geometry, tuple[int, ...], int]:
        return self, (K.shape[1],), K.shape[1]

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, W, bias)


@dataclass(frozen=True)
class Convolution(Geometry):
    """Convolutions and transposed convolutions of 1 to 3 dimensions, with every padding mode: x [n, i, *space],
    y [n, o, *space'], K [o, i/groups, *k], transposed [i, o/groups, *k].

    ``padding`` is zero padding that the kernel call itself does. ``explicit_padding`` (first and last side
    per dimension, last dimension first, as `F.pad` takes it) and ``padding_mode`` are the padding done
    before it: other modes, and an uneven 'same'.

    >>> import torch
    >>> layer = torch.nn.Conv2d(2, 4, 3, stride=2)
    >>> geometry = Convolution.of(layer)
    >>> geometry.project(torch.randn(1, 2, 7, 7), layer.weight).shape
    torch.Size([1, 4, 3, 3])
    """

    features, positional = 1, True

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    explicit_padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    @staticmethod
    def of(layer: nn.Module, output_padding: list[int] | None = None) -> Convolution:
        """Read the geometry off an `nn.ConvNd` or `nn.ConvTransposeNd`."""
        c: Any = layer
        dims = len(c.kernel_size)
        explicit: tuple[int, ...] = ()
        if c.padding_mode != "zeros":
            explicit, padding = tuple(c._reversed_padding_repeated_twice), (0,) * dims
        elif c.padding == "valid":
            padding = (0,) * dims
        elif c.padding == "same":
            total = [d * (k - 1) for d, k in zip(c.dilation, c.kernel_size, strict=True)]
            padding = tuple(t // 2 for t in total)
            if any(t % 2 for t in total):  # one more on the far side, which the kernel call cannot do
                explicit = tuple(side for t in reversed(total) for side in (t // 2, t - t // 2))
                padding = (0,) * dims
        else:
            padding = tuple(c.padding)
        return Convolution(
            kernel_size=tuple(c.kernel_size),
            stride=tuple(c.stride),
            padding=padding,
            dilation=tuple(c.dilation),
            groups=c.groups,
            transposed=c.transposed,
            output_padding=tuple(output_padding if output_padding is not None else c.output_padding),
            explicit_padding=explicit,
            padding_mode="constant" if c.padding_mode == "zeros" else c.padding_mode,
        )

    @property
    def dims(self) -> int:
        """How many dimensions *space has."""
        return len(self.kernel_size)

    def sizes(self, K: Tensor) -> tuple[int, int]:
        own, grouped = K.shape[0], K.shape[1] * self.groups
        return (own, grouped) if self.transposed else (grouped, own)

    def rows(self, K: Tensor) -> Tensor:
        K = K.unflatten(0, (self.groups, -1))  # transposed: [groups, inputs, outputs, *k]
        return (K.transpose(1, 2) if self.transposed else K).flatten(2)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        if not self.transposed:
            return rows.reshape(-1, *shape[1:])
        K: Tensor = rows.unflatten(2, (shape[0] // self.groups, *shape[2:])).transpose(1, 2).flatten(0, 1)
        return K

    def _call(
        self, x: Tensor, K: Tensor, bias: Tensor | None, transposed: bool, output_padding: tuple[int, ...]
    ) -> Tensor:
        return torch.convolution(
            x, K, bias, self.stride, self.padding, self.dilation, transposed, output_padding, self.groups
        )

    def _backward_call(
        self, g: Tensor, x: Tensor, K: Tensor, bias_shape: list[int] | None, mask: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            g, x, K, bias_shape, self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding or (0,) * self.dims, self.groups, mask,
        )  # fmt: skip
        return grads

    def prepare(self, x: Tensor) -> Tensor:
        if not any(self.explicit_padding):
            return x
        return F.pad(x, self.explicit_padding, mode=self.padding_mode).to(x.dtype)  # autocast pads in float32

    def prepared(self) -> Geometry:
        # Zeros are no copies: padding with them stays, whoever does it.
        return self if self.padding_mode == "constant" else replace(self, explicit_padding=(), padding_mode="constant")

    def read(self, x: Tensor) -> tuple[list[int], ...] | None:
        pads = self.explicit_padding or (0,) * (2 * self.dims)
        rest = self.output_padding or (0,) * self.dims
        found = []
        for i, size in enumerate(x.shape[-self.dims :]):
            stride, span = self.stride[i], self.dilation[i] * (self.kernel_size[i] - 1)
            taps = range(0, span + 1, self.dilation[i])
            first, last = self.padding[i] + pads[-2 * i - 2], self.padding[i] + pads[-2 * i - 1]
            if self.transposed:
                outputs = (size - 1) * stride - 2 * first + span + rest[i] + 1
                found.append([at for at in range(size) if any(0 <= at * stride - first + t < outputs for t in taps)])
            else:
                starts = range(0, size + first + last - span, stride)
                found.append([at for at in range(size) if any(at + first - t in starts for t in taps)])
        return None if all(len(f) == n for f, n in zip(found, x.shape[-self.dims :], strict=True)) else tuple(found)

    def project(self, x: Tensor, K: Tensor) -> Tensor:
        if x.dim() == self.dims + 1:
            return self.project(x.unsqueeze(0), K).squeeze(0)
        return self._call(self.prepare(x), K, None, self.transposed, self.output_padding or (0,) * self.dims)

    def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
        if y.dim() == self.dims + 1:
            return self.reconstruct(y.unsqueeze(0), K, None if like is None else like.unsqueeze(0)).squeeze(0)
        if self.transposed:
            full = self._call(y, K, None, False, (0,) * self.dims)
            for i, (padding, stride) in enumerate(zip(self.output_padding, self.stride, strict=False), start=2):
                full = full.narrow(i, 0, full.shape[i] - padding // stride)  # output padding of a stride or more
            return full
        size = self.smallest_input(y) if like is None else like.shape[2:]
        if not any(self.explicit_padding):
            return self._reconstruct(y, K, size)
        # Padding is linear, so its adjoint is its vector-Jacobian product at any point.
        template = y.new_zeros(y.shape[0], K.shape[1] * self.groups, *size)
        if torch.compiler.is_compiling():
            padded, adjoint = torch.func.vjp(self.prepare, template)[:2]
            x: Tensor = adjoint(self._reconstruct(y, K, padded.shape[2:]))[0]
            return x
        with ordinary_autograd():
            padded = self.prepare(template.requires_grad_())
        r = self._reconstruct(y, K, padded.shape[2:])
        return torch.autograd.grad(padded, template, r, create_graph=r.requires_grad)[0]

    def _reconstruct(self, y: Tensor, K: Tensor, size: Iterable[int]) -> Tensor:
        """The transposed convolution; rows of x that no stride reaches come back as output padding."""
        rest = tuple(x - r for x, r in zip(size, self._reached(y), strict=True))
        return self._call(y, K, None, True, rest)

    def _reached(self, y: Tensor) -> tuple[int, ...]:
        """The size of padded x, without zero padding, up to the last element that y depends on."""
        sizes = zip(y.shape[2:], self.stride, self.padding, self.dilation, self.kernel_size, strict=True)
        return tuple((o - 1) * s - 2 * p + d * (k - 1) + 1 for o, s, p, d, k in sizes)

    def smallest_input(self, y: Tensor) -> tuple[int, ...]:
        """The smallest space of x [n, i, *space] that gives the space' of y [n, o, *space']."""
        pads = self.explicit_padding or (0,) * (2 * self.dims)
        return tuple(r - pads[-2 * i - 2] - pads[-2 * i - 1] for i, r in enumerate(self._reached(y)))

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() == self.dims + 1:
            return self.correlate(x.unsqueeze(0), y.unsqueeze(0))
        first, second = (x, y) if self.transposed else (y, x)
        shape_only = y.new_empty(first.shape[1], second.shape[1] // self.groups, *self.kernel_size)
        return self._backward_call(y, self.prepare(x), shape_only, None, [False, True, False])[1]

    def per_weight(self, z: Tensor, y: Tensor) -> Tensor:
        if z.dim() == self.dims + 1:
            z, y = z.unsqueeze(0), y.unsqueeze(0)
        ones = z.new_ones(1, self.groups, *y.shape[2:])  # all outputs of a group see the same: one is enough
        seen = self.correlate(z.sum(0, keepdim=True), ones)
        return seen if self.transposed or self.groups == 1 else seen.repeat_interleave(y.shape[1] // self.groups, 0)

    def patch(self, K: Tensor) -> tuple[Geometry, tuple[int, ...], int]:
        ones, zeros = (1,) * self.dims, (0,) * self.dims
        bare = Convolution(self.kernel_size, ones, zeros, ones, self.groups, self.transposed, zeros)
        if self.transposed:
            return bare, (K.shape[0], *ones), K.shape[0] // self.groups
        return bare, (K.shape[1] * self.groups, *self.kernel_size), K[0].numel()

    def positions(self, x: Tensor, y: Tensor) -> int:
        return math.prod((x if self.transposed else y).shape[-self.dims :])

    def batch_size(self, x: Tensor) -> int | None:
        return x.shape[0] if x.dim() == self.dims + 2 else None

    def add_bias(self, y: Tensor, bias: Tensor) -> Tensor:
        return y + bias.view(-1, *(1,) * self.dims)

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        if x.dim() == self.dims + 1:
            return self.forward(x.unsqueeze(0), W, bias).squeeze(0)
        return self._call(x, W, bias, self.transposed, self.output_padding or (0,) * self.dims)

    def backward(
        self, g: Tensor, x: Tensor, B: Tensor, bias_shape: list[int] | None, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if x.dim() == self.dims + 1:
            dx, dW, db = self.backward(g.unsqueeze(0), x.unsqueeze(0), B, bias_shape, needs)
            return (None if dx is None else dx.squeeze(0)), dW, db
        mask = [needs[0], needs[1], needs[2] and bias_shape is not None]
        grads = self._backward_call(g, x, B, bias_shape, mask)
        return tuple(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))  # type: ignore[return-value]


DENSE = Dense()


def project(x: Tensor, K: Tensor, geometry: Geometry = DENSE) -> Tensor:
    """T_K x: send activity x [n, ..., i] forward through kernel K: [n, ..., o]. For a dense layer ``x @ K.T``.

    >>> import torch
    >>> project(torch.ones(2, 4), torch.ones(3, 4))[0]
    tensor([4., 4., 4.])
    """
    return geometry.project(x, K)


def reconstruct(y: Tensor, K: Tensor, geometry: Geometry = DENSE, like: Tensor | None = None) -> Tensor:
    """T_K* y: send activity y [n, ..., o] back through kernel K: [n, ..., i]. For a dense layer ``y @ K``.

    ``like`` is an input x whose spatial size the result takes; without it a strided convolution gives the
    smallest one possible.

    >>> import torch
    >>> reconstruct(torch.ones(2, 3), torch.ones(3, 4))[0]
    tensor([3., 3., 3., 3.])
    """
    return geometry.reconstruct(y, K, like)


def correlate(x: Tensor, y: Tensor, geometry: Geometry = DENSE) -> Tensor:
    """The gradient of <y, T_K x> in K, in W's layout, summed over batch and positions. For a dense layer ``y.T @ x``.

    >>> import torch
    >>> correlate(torch.ones(2, 4), torch.ones(2, 3))[0]
    tensor([2., 2., 2., 2.])
    """
    return geometry.correlate(x, y)
