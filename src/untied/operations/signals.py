"""What a rule sees of a layer.

Legend, as in geometry.py
    x  layer input        y  forward projection T_W x      p  backward projection T_B x
    reconstruction        T_B* y, or T_W* p where ``reverse`` says so
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..geometry import Geometry
from .noise import codes_like, noise_like
from .switches import ACTIVATIONS, Operations, batch_centre, centre, normalise, over_mean_square

__all__ = ["Signals"]


@dataclass
class Signals:
    """One layer's activity as a rule sees it. Everything that needs B is computed when first asked for, and
    then kept.

    Attributes:
        x: [n, ...] the layer's input.
        W, B: the kernels. bias: [o] or None.
        linear_output: [n, ...] T_W x as the layer computed it in its forward pass; None makes it anew.
        error: [n, ...] the error g at the layer's output, for `copy`; None where no backward pass has given it.

    >>> import torch
    >>> from untied.geometry import DENSE
    >>> W = torch.ones(3, 4)
    >>> Signals(torch.ones(2, 4), W, 2 * W, DENSE, Operations()).p[0]
    tensor([8., 8., 8.])
    """

    x: Tensor
    W: Tensor
    B: Tensor
    geometry: Geometry
    operations: Operations
    bias: Tensor | None = None
    linear_output: Tensor | None = None
    error: Tensor | None = None
    # What has been computed. (functools.cached_property takes a lock, which torch.compile cannot trace.)
    _x_backward: Tensor | None = field(default=None, init=False)
    _x_correlated: Tensor | None = field(default=None, init=False)
    _power: Tensor | None = field(default=None, init=False)
    _raw_y: Tensor | None = field(default=None, init=False)
    _raw_p: Tensor | None = field(default=None, init=False)
    _y: Tensor | None = field(default=None, init=False)
    _p: Tensor | None = field(default=None, init=False)
    _reconstruction: Tensor | None = field(default=None, init=False)

    def with_input_operations(self) -> Signals:
        """Apply what is done to x itself; where x changes, the layer's own output no longer belongs to it."""
        x, do, geometry = self.x, self.operations, self.geometry
        if do.noise is not None:
            # Behind the padding: a border that is a copy of what lies inside would not be white.
            geometry = self.geometry.prepared()
            like = x if geometry is self.geometry else self.geometry.prepare(x)
            if do.noise == "codes":
                x = _codes_where_read(like, geometry, do.noise_std)
            else:
                x = noise_like(like, do.noise, do.noise_std)
        if do.centre_input:
            x = centre(x)
        if do.normalise_input:
            x = normalise(x)
        return self if x is self.x else Signals(x, self.W, self.B, geometry, do, self.bias)

    @property
    def x_backward(self) -> Tensor:
        """The input that the backward projection sees."""
        if self._x_backward is None:
            self._x_backward = batch_centre(self.x) if self.operations.batch_centre_backward_input else self.x
        return self._x_backward

    @property
    def x_correlated(self) -> Tensor:
        """The input that is correlated with outputs: one tensor for all, so that their products merge."""
        if self._x_correlated is None:
            self._x_correlated = self.over_input(self.x_backward)
        return self._x_correlated

    def over_input(self, z: Tensor) -> Tensor:
        """z divided by each example's mean square of x, where the rule is normalised."""
        return over_mean_square(z, self.x) if self.operations.normalised else z

    def over_output(self, z: Tensor) -> Tensor:
        """z divided by each example's mean square of T_W x, where the rule is normalised."""
        return over_mean_square(z, self.raw_y) if self.operations.normalised else z

    def release(self) -> tuple[Tensor, ...]:
        """What B has produced so far, to be overwritten: it would be computed anew if it were asked for again."""
        made = tuple(t for t in (self._p, self._reconstruction) if t is not None)
        self._raw_p = self._p = self._reconstruction = None
        return made

    @property
    def power(self) -> Tensor:
        """The squared input that each weight multiplies, summed over batch and positions: B's layout, or broadcasts."""
        if self._power is None:
            x = self.x_backward.to(torch.promote_types(self.x.dtype, torch.float32))
            self._power = self.geometry.per_weight(self.over_input(x.square()), self.raw_y)
        return self._power

    @property
    def raw_y(self) -> Tensor:
        """Forward projection with bias and activation, before the output operations."""
        if self._raw_y is None:
            y = self.geometry.project(self.x, self.W) if self.linear_output is None else self.linear_output
            self._raw_y = self._bias_and_activation(y, self.operations.forward_bias, self.operations.forward_activation)
        return self._raw_y

    @property
    def raw_p(self) -> Tensor:
        """Backward projection with bias and activation, before the output operations."""
        if self._raw_p is None:
            p = self.geometry.project(self.x_backward, self.B)
            self._raw_p = self._bias_and_activation(
                p, self.operations.backward_bias, self.operations.backward_activation
            )
        return self._raw_p

    def _bias_and_activation(self, z: Tensor, with_bias: bool, activation: str | None) -> Tensor:
        if with_bias and self.bias is not None:
            z = self.geometry.add_bias(z, self.bias)
        return ACTIVATIONS[activation](z) if activation else z

    @property
    def y(self) -> Tensor:
        """Forward projection."""
        if self._y is None:
            self._y = self.operations.forward_output(self.raw_y)
        return self._y

    @property
    def p(self) -> Tensor:
        """Backward projection."""
        if self._p is None:
            self._p = self.operations.backward_output(self.raw_p)
        return self._p

    @property
    def reconstruction(self) -> Tensor:
        """T_B* y, or T_W* p where the operations reverse it."""
        if self._reconstruction is None:
            do, g = self.operations, self.geometry
            if do.reverse:
                self._reconstruction = do.backward_output(g.reconstruct(self.raw_p, self.W, like=self.x))
            else:
                self._reconstruction = do.forward_output(g.reconstruct(self.raw_y, self.B, like=self.x))
        return self._reconstruction


def _codes_where_read(x: Tensor, geometry: Geometry, std: float) -> Tensor:
    """Codes that are orthogonal over the positions which the layer reads: a stride can leave some out."""
    codes, read = codes_like(x, geometry.features, std), geometry.read(x)
    if read is None:
        return codes
    places = torch.meshgrid([torch.tensor(at, device=x.device) for at in read], indexing="ij")
    here: tuple[Any, ...] = (..., *places)
    codes[here] = codes_like(codes[here], -1 - len(read), std)
    return codes
