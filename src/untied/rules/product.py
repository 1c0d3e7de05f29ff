"""Rules whose backward weight is a product of two kernels: PFA and LDFA. See `untied.routes.Product` for the route."""

from __future__ import annotations

from typing import Any, ClassVar

from ..coefficients.coefficient import Coefficient
from ..routes.route import Product
from .algebra import Alignment
from .checks import text_of

__all__ = ["LowRankFeedback", "ProductFeedback"]


class _Product(Alignment):
    """R = copy + decay for one factor; give W the weight decay ``decay`` too, as for `kp`."""

    ROUTE: ClassVar[dict[str, Any]] = {}

    @classmethod
    def possible(cls) -> list[str]:
        return [*cls.defaults, *cls.ROUTE]

    def __str__(self) -> str:
        given = {p.name: c for p, c in self.combination.items()}
        own = {**{n: given.get(n, 0.0) for n in self.defaults}, **{n: getattr(self.route, n) for n in self.ROUTE}}
        words = [f"{n}={text_of(v)}" for n, v in own.items() if v != {**self.defaults, **self.ROUTE}[n]]
        return f"{self.name}({', '.join(words)})" if words else self.name


class ProductFeedback(_Product):
    """The error passes a fixed random kernel, then one that copies (product feedback alignment, Ji-An and Benna 2024).

    Neither factor aligns with W; their product does. The *path angle* between the two is what
    `untied.metrics.weight_angles` gives under this rule. It has a floor: when R has forgotten its start it is Pᵀ W, so
    that errors pass P Pᵀ W, at tan² = (o + 1) / (expand · o) to a W of o outputs. That is 27° for 4 and 18° for 10.

    Args:
        expand: middle channels for each output of the layer. density: share of the fixed kernel that is not zero.
        copy, decay: of the factor that learns. W's optimizer needs the same weight decay. Until the sum of learning
            rate times decay over the steps, over 1 − momentum, is some 4, R is mostly its start.

    Raises:
        UntiedError: an impossible value.

    >>> import torch, untied
    >>> model = torch.nn.Linear(6, 5)
    >>> _ = untied.untie_(model, "pfa(expand=2)")
    >>> tuple(model.backward_weight.shape), tuple(model.backward_factor.shape)
    ((10, 6), (1, 5, 10))
    """

    name, title, source = "pfa", "product feedback alignment", "Ji-An and Benna 2024"
    defaults: ClassVar[dict[str, float]] = {"copy": 1.0, "decay": 1e-3}
    ROUTE: ClassVar[dict[str, Any]] = {"expand": 4.0, "density": 1.0}

    def __init__(
        self, expand: float = 4.0, density: float = 1.0, copy: Coefficient = 1.0, decay: Coefficient = 1e-3
    ) -> None:
        super().__init__({"copy": copy, "decay": decay}, route=Product(expand=expand, density=density))


class LowRankFeedback(_Product):
    """Errors pass a space of few dimensions (Hanut and Kadmon 2025): B = P Q, Q copies, and Oja's rule turns P towards
    the errors that come.

    P's gradient is −(I − P Pᵀ) gᵀ g P, summed over batch and positions, times ``oja``. It is of second order in g: a
    loss that is scaled by s scales it by s². So float16's loss scale is refused, and under several processes P moves
    faster by their number.

    Args:
        rank: columns of P, for each group of a convolution. oja: how much of Oja's rule moves P; 0 keeps it.
        copy, decay: of Q. W's optimizer needs the same weight decay.

    Raises:
        UntiedError: an impossible value; later, a rank above a layer's number of outputs.

    >>> LowRankFeedback(rank=4)
    ldfa(rank=4)
    """

    name, title, source = "ldfa", "low-rank feedback", "Hanut and Kadmon 2025"
    defaults: ClassVar[dict[str, float]] = {"copy": 1.0, "decay": 1e-3}
    ROUTE: ClassVar[dict[str, Any]] = {"rank": 8, "oja": 1.0}

    def __init__(self, rank: int = 8, oja: float = 1.0, copy: Coefficient = 1.0, decay: Coefficient = 1e-3) -> None:
        super().__init__({"copy": copy, "decay": decay}, route=Product(rank=rank, oja=oja))
