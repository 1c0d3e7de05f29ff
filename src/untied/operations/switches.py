"""The local operations that may change what a rule sees, as switches.

They are those of section 4, "Local Stabilizing Operations", as the paper's reference code has them
(docs/deviations.md). "Centre" and "normalise" are per example over all features and positions: subtract the
mean; subtract the mean and divide by the L2 norm. "Batch-centre" subtracts the mean over the batch.

Legend, as in signals.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UntiedError
from .noise import NOISE

__all__ = ["ACTIVATIONS", "Operations", "batch_centre", "centre", "normalise", "over_mean_square"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "gelu": F.gelu, "elu": F.elu,
    "leaky_relu": F.leaky_relu, "softplus": F.softplus, "silu": F.silu,
}  # fmt: skip
"""The functions that ``forward_activation`` and ``backward_activation`` may name."""


def centre(x: Tensor) -> Tensor:
    """Subtract each example's mean over its features and positions.

    >>> import torch
    >>> centre(torch.tensor([[1.0, 3.0]]))
    tensor([[-1.,  1.]])
    """
    return x - x.mean(dim=tuple(range(1, x.dim())), keepdim=True)


def normalise(x: Tensor) -> Tensor:
    """Centre each example and divide it by its L2 norm; an example without variation becomes zero.

    >>> import torch
    >>> normalise(torch.tensor([[1.0, 3.0]]))
    tensor([[-0.7071,  0.7071]])
    """
    return F.normalize(centre(x).flatten(1), dim=1, eps=1e-6).view_as(x)


def batch_centre(x: Tensor) -> Tensor:
    """Subtract the mean over the batch.

    >>> import torch
    >>> batch_centre(torch.tensor([[1.0], [3.0]]))
    tensor([[-1.],
            [ 1.]])
    """
    return x - x.mean(dim=0, keepdim=True)


def over_mean_square(z: Tensor, x: Tensor) -> Tensor:
    """z [n, ...] divided by each example's mean square of x [n, ...]; an example of zeros stays as it is, zero.

    >>> import torch
    >>> over_mean_square(torch.ones(1, 2), torch.full((1, 2), 2.0))
    tensor([[0.2500, 0.2500]])
    """
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

    >>> Operations(noise="normal", noise_std=0.5).changed()
    {'noise': 'normal', 'noise_std': 0.5}
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
