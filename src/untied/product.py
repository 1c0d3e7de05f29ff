"""Rules whose backward weight is a product of two kernels: PFA and LDFA. See `untied.routes.Product` for the route."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .algebra import Alignment
from .checks import text_of
from .coefficients import Coefficient
from .errors import UntiedError
from .routes import Oja, Place, Product, Use

__all__ = ["LowRankFeedback", "ProductFeedback"]


class _Product(Alignment):
    """R = copy + decay for one factor; give W the weight decay ``decay`` too, as for `kp`."""

    ROUTE: ClassVar[dict[str, Any]] = {}

    @classmethod
    def possible(cls) -> list[str]:
        return [*cls.defaults, *cls.ROUTE]

    def __str__(self) -> str:
        given = {p.name: c for p, c in self.combination.items()}
        own = {**{n: given.get(n, 0.0) for n in self.defaults}, **{n: self.setting(n) for n in self.ROUTE}}
        words = [f"{n}={text_of(v)}" for n, v in own.items() if v != {**self.defaults, **self.ROUTE}[n]]
        return f"{self.name}({', '.join(words)})" if words else self.name

    def setting(self, name: str) -> Any:
        """One option."""
        return getattr(self.route, name)


class ProductFeedback(_Product):
    """The error passes a fixed random kernel, then one that copies (product feedback alignment, Ji-An and Benna 2024).

    Neither factor aligns with W; their product does. The *path angle* between the two is what
    `untied.metrics.weight_angles` gives under this rule.

    Args:
        expand: middle channels for each output of the layer. density: share of the fixed kernel that is not zero.
        copy, decay: of the factor that learns. W's optimizer needs the same weight decay.

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
    faster by their number. The published saving comes from passing errors through the factors one after the other;
    here their product is made once a pass, as `untied.routes.Product` has it.

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
        super().__init__({"copy": copy, "decay": decay}, route=Product(rank=rank))
        if isinstance(oja, bool) or not isinstance(oja, int | float) or not 0 <= oja < float("inf"):
            raise UntiedError(f"oja={oja!r} is not possible: give a finite number from 0")
        self.oja = float(oja)

    def setting(self, name: str) -> Any:
        return self.oja if name == "oja" else super().setting(name)

    def beside(self, at: Place) -> dict[str, Tensor | None]:
        kept = super().beside(at)
        if self.oja:
            kept["backward_factor"] = nn.Parameter(kept["backward_factor"])  # type: ignore[arg-type]
        return kept

    def send(self, use: Use) -> Tensor:
        """The layer's output [n, ...], whose graph also moves P by Oja's rule.

        Raises:
            UntiedError: float16, or a layer that uses some of a kernel's outputs alone, while P moves.
        """
        y, P = super().send(use), use.beside["backward_factor"]
        if not self.oja or not torch.is_grad_enabled() or not P.requires_grad:
            return y
        if y.dtype == torch.float16:
            raise UntiedError(f"{self}: P moves by gᵀ g, which a loss scale multiplies twice: use bfloat16, or oja=0")
        unbatched = use.geometry.positional and use.geometry.batch_size(use.x) is None
        at = 0 if unbatched else use.geometry.features
        features = y.movedim(at, -1)
        if features.shape[-1] != P.shape[0] * P.shape[1]:
            raise UntiedError(
                f"{self}: a layer used {features.shape[-1]} of {P.shape[0] * P.shape[1]} outputs of a kernel alone, as "
                "attention of different queries and keys does, and P belongs to all of them: give oja=0"
            )
        rows = Oja.apply(features.reshape(-1, P.shape[0], P.shape[1]), P, self.oja)
        return rows.view(features.shape).movedim(-1, at)  # type: ignore[no-any-return]
