"""Where a backward weight starts: drawn like W, at W, or at an angle to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from .errors import UntiedError

__all__ = ["Init", "angle_of", "at_angle", "initial", "like_weight"]

Init = str | torch.Generator | Callable[[Tensor], Tensor]
"""What `untied.untie_` takes as ``init``."""


def like_weight(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A normal draw of the weight's shape and standard deviation, so that B starts as W's initialisation would.

    Where W is constant (some layers start at zero) it is PyTorch's default, 1 / sqrt(3 fan_in).

    >>> import torch
    >>> like_weight(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """
    std = float(weight.detach().float().std(correction=0)) if weight.numel() else 0.0
    if not std > 0:
        std = 1 / math.sqrt(3 * max(weight[0].numel() if weight.dim() > 1 and weight.shape[0] else weight.numel(), 1))
    where = weight.device if generator is None else generator.device
    draw = torch.empty_like(weight, device=where, requires_grad=False).normal_(0.0, std, generator=generator)
    return draw.to(weight.device)


def at_angle(W: Tensor, degrees: float, generator: torch.Generator | None = None) -> Tensor:
    """A random B of W's shape and norm, at this angle to W: what is orthogonal to W is drawn as `like_weight` draws.

    Raises:
        UntiedError: nothing is orthogonal to W, since it is a single number.

    >>> import torch, untied
    >>> W = torch.randn(3, 4)
    >>> round(untied.metrics.angle(W, at_angle(W, 30)))
    30
    """
    V = like_weight(W, generator).double()
    W_ = W.detach().double()
    size = W_.norm()
    if not bool(size > 0):
        return like_weight(W, generator)
    V = V - (V * W_).sum() / size**2 * W_
    if not bool(V.norm() > 0):
        raise UntiedError(f"a weight of shape {tuple(W.shape)} has no direction at {degrees:g}° to it: give angle(0)")
    turn = math.radians(degrees)
    B: Tensor = math.cos(turn) * W_ + math.sin(turn) * size / V.norm() * V
    return B.to(W.dtype)


_ANGLE = re.compile(r"angle\((\d+(?:\.\d*)?)\)")


def angle_of(init: object) -> float | None:
    """The degrees of ``"angle(30)"``; None for anything else.

    >>> angle_of("angle(30)"), angle_of("like")
    (30.0, None)
    """
    match = _ANGLE.fullmatch(init.replace(" ", "")) if isinstance(init, str) else None
    return float(match[1]) if match and float(match[1]) <= 180 else None


def initial(W: Tensor, init: Init) -> Tensor:
    """B's initial value, of W's shape, without a graph; ``init`` as `untied.untie_` takes it.

    Raises:
        UntiedError: a function made something of another shape; or as `at_angle`.

    >>> import torch
    >>> initial(torch.ones(1, 2), lambda W: 2 * W)
    tensor([[2., 2.]])
    """
    W = W.detach()
    if (degrees := angle_of(init)) is not None:
        return at_angle(W, degrees)
    if init == "copy":
        return W.clone()
    if init == "like":
        return like_weight(W)
    if isinstance(init, torch.Generator):
        return like_weight(W, init)
    assert callable(init)
    B: object = init(W)
    if not isinstance(B, Tensor) or B.shape != W.shape:
        got = tuple(B.shape) if isinstance(B, Tensor) else type(B).__name__
        raise UntiedError(
            f"init gave {got} for a weight of shape {tuple(W.shape)}: return a tensor of the weight's shape"
        )
    return B.detach().to(W).clone()
