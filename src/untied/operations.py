"""What a rule sees of a layer, and the local operations that may change it before the primitives do.

Legend, as in geometry.py
    x  layer input        y  forward projection T_W x      p  backward projection T_B x
    reconstruction        T_B* y, or T_W* p where ``reverse`` says so

The operations are those of section 4, "Local Stabilizing Operations", as the paper's reference code has them
(docs/deviations.md). "Centre" and "normalise" are per example over all features and positions: subtract the
mean; subtract the mean and divide by the L2 norm. "Batch-centre" subtracts the mean over the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UntiedError
from .geometry import Geometry

__all__ = [
    "ACTIVATIONS",
    "Operations",
    "Signals",
    "batch_centre",
    "centre",
    "codes_like",
    "noise_like",
    "normalise",
    "over_mean_square",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "elu": F.elu,
    "leaky_relu": F.leaky_relu, "softplus": F.softplus, "silu": F.silu,
}  # fmt: skip
NOISE = ("normal", "uniform", "codes")


def centre(x: Tensor) -> Tensor:
    """Subtract each example's mean over its features and positions."""
    return x - x.mean(dim=tuple(range(1, x.dim())), keepdim=True)


def normalise(x: Tensor) -> Tensor:
    """Centre each example and divide it by its L2 norm; an example without variation becomes zero."""
    return F.normalize(centre(x).flatten(1), dim=1, eps=1e-6).view_as(x)


def batch_centre(x: Tensor) -> Tensor:
    """Subtract the mean over the batch."""
    return x - x.mean(dim=0, keepdim=True)


def noise_like(x: Tensor, kind: str, std: float) -> Tensor:
    """Noise of mean 0 and standard deviation ``std`` in the shape, dtype and memory format of x."""
    noise = torch.empty_like(x)  # without gaps, whatever its memory format
    flat = noise.as_strided((noise.numel(),), (1,))  # PyTorch draws much faster into what is contiguous
    if kind == "normal":
        flat.normal_(0.0, std)
    else:
        flat.uniform_(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)
    return noise


def codes_like(x: Tensor, features: int, std: float) -> Tensor:
    """Orthogonal noise in the form of x: each feature (a channel) emits a code of ±std over examples and positions.

    The codes are columns of a Hadamard matrix, as in code-division multiplexing, a part of its rows in a random order
    and with random signs: mean 0, covariance std² 1. With m examples times positions, a power of two and no fewer than
    there are features, the covariance *over the batch* is std² 1 too, where independent noise has it on average. Each
    feature needs no more than its own code, so this is as local as independent noise.

    Args:
        x: in whose shape, dtype and memory format.
        features: the dimension of x that holds them.
    """
    noise = torch.empty_like(x)
    shape = noise.movedim(features, -1).shape
    m, count = math.prod(shape[:-1]), shape[-1]
    bits = (max(m, count, 2) - 1).bit_length()
    low, high = bits // 2, bits - bits // 2
    rows = torch.randperm(1 << bits, device=x.device)[:m]
    columns = torch.randperm(1 << bits, device=x.device)[:count]
    signs = torch.randint(2, (m, 1), device=x.device).mul_(2).sub_(1).to(x.dtype)
    # an element of a Hadamard matrix is (-1) to the parity of row & column: that of the low bits times that of the high
    codes = _hadamard(low, columns, x.dtype)[rows & (1 << low) - 1] * (signs * std)
    codes *= _hadamard(high, columns >> low, x.dtype)[rows >> low]
    return noise.copy_(codes.view(shape).movedim(-1, features))


def _codes_where_read(x: Tensor, geometry: Geometry, std: float) -> Tensor:
    """Codes that are orthogonal over the positions which the layer reads: a stride can leave some out."""
    codes, read = codes_like(x, geometry.features, std), geometry.read(x)
    if read is None:
        return codes
    places = torch.meshgrid([torch.tensor(at, device=x.device) for at in read], indexing="ij")
    here: tuple[Any, ...] = (..., *places)
    codes[here] = codes_like(codes[here], -1 - len(read), std)
    return codes


def _hadamard(bits: int, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """The columns of the Hadamard matrix of size 2 to the bits: [2**bits, columns], 1 and -1."""
    parity = torch.arange(1 << bits, device=columns.device)[:, None] & columns
    for shift in (16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return (1 - 2 * (parity & 1)).to(dtype)


def over_mean_square(z: Tensor, x: Tensor) -> Tensor:
    """Z [n, ...] divided by each example's mean square of x [n, ...]; an example of zeros stays as it is, zero."""
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.detach().to(wide).square().flatten(1).mean(1).clamp(min=1e-12)
    return (z / mean.view(-1, *(1,) * (z.dim() - 1))).to(z.dtype)


@dataclass(frozen=True)
class Operations:
    """Switches of the alignment circuit. All off by default: the plain primitives of Table 1.

    Attributes:
        noise: replace the layer's input by noise of standard deviation ``noise_std``: "normal", "uniform", or "codes",
            orthogonal over channels (`codes_like`). It enters behind padding that copies values.
        centre_input, normalise_input: of x.
        batch_centre_backward_input: the backward projection alone sees x minus its batch mean.
        forward_bias, backward_bias: add the layer's bias to y, to p.
        forward_activation, backward_activation: the name of a function (`ACTIVATIONS`) applied to y, to p.
        centre_forward_output, normalise_forward_output, batch_centre_forward_output: of y and of T_B* y.
        centre_backward_output, normalise_backward_output: of p and of T_W* p.
        reverse: the reconstruction is T_W* p instead of T_B* y.
        amp_on_reconstruction: amp is -<x, reconstruction> instead of -<p, y>.
        update_forward: R also moves W, symmetrically (each primitive's terms in W are added).
        normalised: each example's share in the primitives that see activity is divided by its own mean square, of x
            (amp, sparse) or T_W x (null), as in normalised LMS, so that one learning rate suits every layer.

    Raises:
        UntiedError: an unknown noise or activation.
    """

    noise: str | None = None
    noise_std: float = 1.0
    centre_input: bool = False
    normalise_input: bool = False
    batch_centre_backward_input: bool = False
    forward_bias: bool = False
    backward_bias: bool = False
    forward_activation: str | None = None
    backward_activation: str | None = None
    centre_forward_output: bool = False
    normalise_forward_output: bool = False
    batch_centre_forward_output: bool = False
    centre_backward_output: bool = False
    normalise_backward_output: bool = False
    reverse: bool = False
    amp_on_reconstruction: bool = False
    update_forward: bool = False
    normalised: bool = False

    def __post_init__(self) -> None:
        for switch in fields(self):
            given = getattr(self, switch.name)
            if isinstance(switch.default, bool) and not isinstance(given, bool):
                raise UntiedError(f"{switch.name}={given!r} is not possible: choose true or false")
        if self.noise is not None and self.noise not in NOISE:
            raise UntiedError(f"noise={self.noise!r} is not possible: choose one of {', '.join(NOISE)}, or None")
        if (
            isinstance(self.noise_std, bool)
            or not isinstance(self.noise_std, int | float)
            or not 0 < self.noise_std < math.inf
        ):
            raise UntiedError(f"noise_std={self.noise_std!r} is not possible: give a standard deviation above 0")
        for name in (self.forward_activation, self.backward_activation):
            if name is not None and name not in ACTIVATIONS:
                raise UntiedError(
                    f"activation {name!r} is not possible: choose one of {', '.join(ACTIVATIONS)}, or None"
                )

    def changed(self) -> dict[str, object]:
        """The switches that are not at their default, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @property
    def on_output(self) -> bool:
        """Whether something is done to what B has produced, so that the closed forms of Table 1 do not
        hold."""
        return bool(
            self.backward_bias
            or self.backward_activation
            or self.centre_backward_output
            or self.normalise_backward_output
            or self.reverse
            or self.amp_on_reconstruction
            or self.update_forward
        )

    @property
    def on_reconstruction(self) -> bool:
        """Whether something is done to T_B* y; matters to rules with `null` only."""
        return self.centre_forward_output or self.normalise_forward_output or self.batch_centre_forward_output

    def forward_output(self, z: Tensor) -> Tensor:
        """The operations on y and T_B* y."""
        if self.centre_forward_output:
            z = centre(z)
        if self.normalise_forward_output:
            z = normalise(z)
        return batch_centre(z) if self.batch_centre_forward_output else z

    def backward_output(self, z: Tensor) -> Tensor:
        """The operations on p and T_W* p."""
        if self.centre_backward_output:
            z = centre(z)
        return normalise(z) if self.normalise_backward_output else z


@dataclass
class Signals:
    """One layer's activity as a rule sees it. Everything that needs B is computed when first asked for, and
    then kept.

    Attributes:
        x: [n, ...] the layer's input.
        W, B: the kernels. bias: [o] or None.
        linear_output: [n, ...] T_W x as the layer computed it in its forward pass; None makes it anew.
        error: [n, ...] the error g at the layer's output, for `copy`; None where no backward pass has given it.
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
        """Z divided by each example's mean square of x, where the rule is normalised."""
        return over_mean_square(z, self.x) if self.operations.normalised else z

    def over_output(self, z: Tensor) -> Tensor:
        """Z divided by each example's mean square of T_W x, where the rule is normalised."""
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
