"""From the rate of a difference to the time it takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import UntiedError
from .covered import double

__all__ = ["time_constant"]


def time_constant(rate: Tensor | float, lr: float | None = None, momentum: float = 0.0) -> Tensor:
    """The time in which a difference that decays at this rate falls to 1/e, float64, in the rate's shape.

    Args:
        rate: in flow time, such as an eigenvalue of A, a `following_rate`, or the `rates` of a layer.
        lr: learning rate. Without it the answer is in flow time, 1 / rate; with it in steps of SGD.
        momentum: of SGD, without dampening. With a = lr · rate, differences go with the roots of
            z² − (1 + m − a) z + m: for small a, (1 − m) / a steps.

    inf where the difference does not decay: a rate of 0 or less, or a learning rate too large for it.

    Raises:
        UntiedError: lr is not above 0, or momentum not in [0, 1).

    >>> float(time_constant(0.5))
    2.0
    """
    rate = double(rate)
    decays = rate > 0
    if lr is None:
        return torch.where(decays, 1 / torch.where(decays, rate, 1.0), math.inf)
    if not 0 < lr < math.inf or not 0 <= momentum < 1:
        raise UntiedError(f"lr={lr}, momentum={momentum} is not possible: lr is above 0, momentum in [0, 1)")
    half = ((1 + momentum - lr * rate) / 2).to(torch.complex128)
    root = (half.square() - momentum).sqrt()
    slowest = torch.maximum((half + root).abs(), (half - root).abs())
    return torch.where(decays & (slowest < 1), -1 / slowest.log(), math.inf)
