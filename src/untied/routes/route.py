"""Routes: how the error at a layer's output becomes the error at its input.

Legend, as in geometry.py: g is the error at a layer's output, e the error at the network's output, [n, ..., C].

    Through     T_B* g              one kernel B in W's layout
    Product     T_K* g, K = P R     two kernels: R in W's layout but for its outputs, P from those to W's outputs
    Broadcast   M e                 straight from the network's output, M [C, inputs of the layer] made of B

A route is a stateless value, part of the rule's text. W's and the bias's gradient are correlate(x, g) and the sum of g
under each of them. What moves the kernels is the rule's motion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import UntiedError
from ..geometry import DENSE, Geometry
from .autograd import cast_for_autocast, untied_operation
from .factored import Factored

__all__ = ["ROUTES", "THROUGH", "Place", "Product", "Route", "Through", "Use"]


@dataclass(frozen=True)
class Place:
    """Where a backward kernel is about to stand.

    Attributes:
        W: the forward weight. draw: gives an initial B in W's layout.
        geometry: how the layer uses W. name: of the layer, for errors.
        outputs: features of the network's output, where a route needs them; else None.
        moves: whether W learns.

    >>> import torch
    >>> W = torch.randn(3, 4)
    >>> Through().beside(Place(W, lambda: 2 * W), learns=False)["backward_weight"].shape
    torch.Size([3, 4])
    """

    W: Tensor
    draw: Callable[[], Tensor]
    geometry: Geometry = DENSE
    name: str = ""
    outputs: int | None = None
    moves: bool = True


@dataclass(frozen=True)
class Use:
    """One use of a kernel, about to be made: what a route gets.

    Attributes:
        x, W, B, bias: as the operation sees them, in autocast's dtype and cut to the rows in use.
        beside: what stands beside W. geometry: how the layer uses W.
            B is None where the route takes its kernels from there.
        layer: whose kernel it is, for its collector and its name. part: the rows of W that are used; None for all.

    >>> import torch
    >>> x, W, B = torch.ones(5, 4), torch.ones(3, 4), torch.zeros(3, 4)
    >>> Through().send(Use(x, W, B, None, DENSE, {"backward_weight": B}, None), copies=0.0)[0]
    tensor([4., 4., 4.])
    """

    x: Tensor
    W: Tensor
    B: Any
    bias: Tensor | None
    geometry: Geometry
    beside: Mapping[str, Any]
    layer: Any
    part: slice | None = None


class Route:
    """How the error at a layer's output becomes the error at its input.

    Attributes:
        name: in the text form.
        keeps: the names of what stands beside W.
        broadcasts: whether it takes the error of the network's output, and so needs `untied.record`.
        like_weight: whether the kernel that carries errors has W's layout, so that the two can be compared.
        whole: whether a part of W uses what stands beside all of it.
        factored: whether errors pass several kernels, whose product nobody needs but who asks for it.
        takes_init: whether B's first value is the one that ``untie_(init=...)`` gives.
        cost: multiplications of a step over backpropagation's, for a layer whose input needs a gradient.
        sends: in a word or two, what reaches a layer, and through what.

    >>> [name for name in sorted(ROUTES)]
    ['broadcast', 'product', 'through']
    """

    name: ClassVar[str]
    keeps: tuple[str, ...] = ("backward_weight",)
    broadcasts: ClassVar[bool] = False
    like_weight: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    factored: ClassVar[bool] = False
    takes_init: ClassVar[bool] = False
    cost: ClassVar[float] = 1.0
    sends: str = "g, through B"

    def beside(self, at: Place, learns: bool) -> dict[str, Tensor | None]:
        """What stands beside W from the conversion on. ``learns``: whether the motion moves it."""
        raise NotImplementedError(f"{type(self).__name__}.beside")

    def made(self, W: Tensor, beside: Mapping[str, Any], geometry: Geometry) -> Tensor:
        """What carries errors in this pass."""
        return beside["backward_weight"]  # type: ignore[no-any-return]

    def prepare(self, beside: Mapping[str, Any], x: Tensor, geometry: Geometry) -> None:
        """A layer is about to be called with x: what takes its size from there is made."""

    def send(self, use: Use, copies: float) -> Tensor:
        """The layer's output. ``copies``: how much of W's pseudogradient the kernel takes (`copy`)."""
        return untied_operation(use.x, use.W, use.B, use.bias, use.geometry, copies)

    def __str__(self) -> str:
        words = [f"{f.name}={word(v)}" for f in fields(self) if (v := getattr(self, f.name)) != f.default]  # type: ignore[arg-type]
        return f"{self.name}({', '.join(words)})" if words else self.name

    def __repr__(self) -> str:
        return str(self)


def word(v: object) -> str:
    """An option's value as texts have it; a name that is no word in quotes."""
    if isinstance(v, str) and not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", v):
        return f'"{v}"'
    return f"{v:g}" if isinstance(v, float) else str(v)


@dataclass(frozen=True, repr=False)
class Through(Route):
    """T_B* g: one kernel in W's layout, as in feedback alignment (Lillicrap et al. 2016) and the paper.

    >>> Through()
    through
    """

    name, takes_init = "through", True

    def beside(self, at: Place, learns: bool) -> dict[str, Tensor | None]:
        return {"backward_weight": nn.Parameter(at.draw(), requires_grad=learns)}


THROUGH = Through()


@dataclass(frozen=True, repr=False)
class Product(Route):
    """T_R* (T_P* g): errors pass two kernels, whose product K = P R stands where W's transpose would.

    P [groups, outputs, middle] is drawn once, R has W's layout with ``middle`` in place of its outputs. `copy` gives R
    the gradient Pᵀ correlate(x, g) = correlate(x, Pᵀ g), which is what passes at R (product feedback alignment, Ji-An
    and Benna 2024). With an orthonormal P of few columns it is low-rank feedback (Hanut and Kadmon 2025).

    Errors pass the two one after the other, or K, which is made for it: whichever takes fewer multiplications, see
    `untied.routes.factored`. Where the batch times the positions is many times W's outputs, that is K, and a step costs
    what backpropagation's does.

    Args:
        expand: middle channels for each output.
        rank: middle channels, in place of ``expand``; P's columns are orthonormal then.
        density: share of P's entries that are not zero.
        oja: how much of Oja's rule moves P; 0 keeps it.

    Raises:
        UntiedError: an impossible number; later, a rank above a layer's number of outputs (in one group).

    >>> Product(rank=4)
    product(rank=4)
    """

    name = "product"
    keeps = ("backward_weight", "backward_factor")
    whole = factored = True
    sends = "g, through two kernels"

    expand: float = 1.0
    rank: int | None = None
    density: float = 1.0
    oja: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.expand, int | float) or not 0 < self.expand < math.inf:
            raise UntiedError(f"expand={self.expand!r} is not possible: give middle channels for each output, above 0")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1 or self.expand != 1):
            raise UntiedError(f"rank={self.rank!r} is not possible: give a whole number from 1, without expand")
        if not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise UntiedError(f"density={self.density!r} is not possible: give a share above 0 and at most 1")
        if isinstance(self.oja, bool) or not isinstance(self.oja, int | float) or not 0 <= self.oja < math.inf:
            raise UntiedError(f"oja={self.oja!r} is not possible: give a finite number from 0")

    def beside(self, at: Place, learns: bool) -> dict[str, Tensor | None]:
        """R in W's layout with ``middle`` in place of its outputs, and P [groups, outputs, middle].

        Raises:
            UntiedError: ``rank`` is above the layer's number of outputs, or the layer type does not say how many.
        """
        rows = at.geometry.rows(at.draw())
        groups, outputs, _ = rows.shape
        middle = self.rank or max(1, round(self.expand * outputs))
        if self.rank is not None and self.rank > outputs:
            raise UntiedError(
                f"layer {at.name or '(the model)'} has {outputs} outputs{' a group' if groups > 1 else ''}, fewer than "
                f"rank={self.rank}: give at most {outputs}, or another rule for this layer with untie_(..., filter=...)"
            )
        P, std = self.factor(groups, outputs, middle, rows), rows.std(correction=0)
        R = torch.randn_like(rows[:, :1].expand(-1, middle, -1).contiguous()) * std
        return {
            "backward_weight": nn.Parameter(at.geometry.from_rows(R, at.W.shape), requires_grad=learns),
            "backward_factor": nn.Parameter(P, requires_grad=learns) if self.oja else P,
        }

    def factor(self, groups: int, outputs: int, middle: int, like: Tensor) -> Tensor:
        """P [groups, outputs, middle], so scaled that the product is of R's size."""
        P = torch.randn(groups, outputs, middle, dtype=like.dtype, device=like.device)
        if self.rank is not None:
            P = torch.linalg.qr(P.double())[0].to(like.dtype).contiguous()
        else:
            P = P / math.sqrt(middle * self.density)
        if self.density < 1:
            P = P * (torch.rand_like(P) < self.density)
        return P

    def made(self, W: Tensor, beside: Mapping[str, Any], geometry: Geometry) -> Tensor:
        rows = beside["backward_factor"].detach() @ geometry.rows(beside["backward_weight"])
        return geometry.from_rows(rows, W.shape)

    def send(self, use: Use, copies: float) -> Tensor:
        """The layer's output [n, ...], whose errors pass P and then R.

        Raises:
            UntiedError: P moves by Oja's rule, and it is float16, or a layer uses some of its outputs alone.
        """
        P, (R,) = use.beside["backward_factor"], cast_for_autocast(use.beside["backward_weight"])
        turns = bool(self.oja) and torch.is_grad_enabled() and P.requires_grad
        if turns and use.W.dtype == torch.float16:
            raise UntiedError(f"{self}: P moves by gᵀ g, which a loss scale multiplies twice: use bfloat16, or oja=0")
        if use.part is not None and P.shape[0] > 1:  # the part is of groups, such as one of several experts
            P, R = P[use.part], R[use.part]
        elif use.part is not None:
            rows = P[:, use.part]
            if turns and rows.shape[1] != P.shape[1]:
                raise UntiedError(
                    f"{self}: a layer used {rows.shape[1]} of {P.shape[1]} outputs of a kernel alone, as attention of "
                    "different queries and keys does, and P belongs to all of them: give oja=0"
                )
            P = rows
        x = use.geometry.prepare(use.x)
        return Factored.apply(x, use.W, R, P, use.bias, use.geometry, copies, self.oja)  # type: ignore[no-any-return]


ROUTES: dict[str, type[Route]] = {"through": Through, "product": Product}
"""Every route by its name in the text form."""
