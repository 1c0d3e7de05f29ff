"""Regression discontinuity: B follows what spikes say of W, instead of W itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..coefficients.coefficient import Coefficient
from ..errors import UntiedError
from ..routes.route import Place
from ..spiking import estimate
from .algebra import Alignment
from .mirror import seeded
from .rule import Rule, Visit, whole

__all__ = ["RegressionDiscontinuity"]


class RegressionDiscontinuity(Alignment):
    """R = self + decay with a spiking estimate in W's place (Guerguiev et al. 2019; paper, section 5 and Fig. 4).

    The estimate (`untied.spiking`) is made when `untied.record` is entered, of every kernel that has moved since, and
    stands beside W between measurements. What it reads is local, unlike `self`: an input unit's own drive and trace,
    and what arrives at the output.

    Args:
        self_, decay: coefficients. every: as in `Alignment`.
        windows: of spiking, in one measurement.
        period: steps between measurements; `untied.record` then needs ``step``.
        average: measurements over which the estimate is a running mean. B is one too, of what it descends to.

    Raises:
        UntiedError: an impossible value.

    >>> import torch, untied
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "rdd(windows=4000)")
    >>> with untied.record(model) as tape:
    ...     loss = model(torch.randn(16, 4)).square().mean()
    >>> (loss + tape.penalty()).backward()
    >>> torch.allclose(model.backward_weight.grad, model.backward_weight - model.backward_estimate)
    True
    >>> bool(untied.metrics.angle(model.backward_estimate, model.weight) < 20)
    True
    """

    title, source = "regression discontinuity", "Guerguiev et al. 2019"
    name, motion, combines, moves_itself = "rdd", "estimate", False, True
    alone = "has an estimate in W's place, and other terms of R have W: use sa for both"
    defaults: ClassVar[dict[str, float]] = {"self": 1.0, "decay": 1.0}
    OPTIONS: ClassVar[dict[str, int]] = {"windows": 2000, "period": 20, "average": 1}
    local = True

    def __init__(
        self,
        self_: Coefficient = 1.0,
        decay: Coefficient = 1.0,
        *,
        windows: int = 2000,
        period: int = 20,
        average: int = 1,
        every: int = 1,
    ) -> None:
        super().__init__({"self": self_, "decay": decay}, every=every)
        self.windows, self.period = whole("windows", windows, 20), whole("period", period)
        self.average = whole("average", average)
        if self.needs_data:
            raise UntiedError(f"rdd's decay goes with an estimate of W, not with activity: give a number, not {decay}")

    @classmethod
    def possible(cls) -> list[str]:
        return [*cls.defaults, *cls.OPTIONS, "every"]

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("backward_weight", "backward_estimate", "backward_heard")

    @property
    def options(self) -> dict[str, Any]:
        own = {k: v for k, default in self.OPTIONS.items() if (v := getattr(self, k)) != default}
        return super().options | own

    def check(self) -> None:
        """Every option changes something."""

    def __mul__(self, factor: Coefficient) -> RegressionDiscontinuity:
        scaled = {p.name: c for p, c in (self.combination * factor).items()}
        return type(self)(scaled.get("self", 0.0), scaled.get("decay", 0.0), **self.options)

    __rmul__ = __mul__

    __add__, __radd__ = Rule.__add__, Rule.__radd__  # type: ignore[assignment]

    def beside(self, at: Place) -> dict[str, Tensor | None]:
        stand = super().beside(at)
        B = stand["backward_weight"]
        assert B is not None
        stream = torch.randint(1 << 31, (1,))
        return {
            **stand,
            "backward_estimate": B.detach().clone(),  # nothing pulls before the first measurement
            # the noise's stream; windows seen; measurements; patches of the task in a step, as the tape counts them
            "backward_heard": torch.cat([stream, torch.zeros(3, dtype=stream.dtype)]).to(at.W.device),
        }

    def compared(self, W: Tensor, beside: Any) -> Tensor:
        found: Tensor = beside["backward_estimate"]
        return found

    def visit(self, visit: Visit) -> None:
        """Measure W, if it is time to, and keep the running mean beside it, in W's layout.

        Raises:
            UntiedError: a period above 1, and no step given; or as `untied.spiking.estimate`.
        """
        if not visit.align:
            return
        stream, _, measurements, _ = visit.beside["backward_heard"].tolist()
        if self.period > 1 and measurements:
            if visit.step is None:
                raise UntiedError(
                    f"layer {visit.name}: rule {self} measures every {self.period} steps, and no step was given: use "
                    "untied.record(model, step=i), or period=1"
                )
            if visit.step % self.period:
                return
        kept = visit.beside["backward_estimate"]
        with torch.no_grad(), seeded(stream, measurements, visit.W.device):
            found = estimate(visit.W, visit.geometry, self.windows, name=visit.name)
            kept.lerp_(found.weight.to(kept.dtype), max(1 / (measurements + 1), 1 / self.average))
            visit.beside["backward_heard"][1:3].add_(torch.tensor([self.windows, 1], device=kept.device))
