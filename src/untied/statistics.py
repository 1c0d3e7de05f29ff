"""Coefficients that are measured: a local statistic of the layer, on the same batch that R sees.

    power        the mean square of the input that each weight multiplies: its own synapse's
    mean_power   the mean of that over the layer's weights: one number a layer

A statistic is the coefficient of ``decay``. ``amp · power`` is what balances ``amp``: weight mirror is then at its
stable point whatever its input is (docs/theory.md, section 7), and `wm(decay=balanced)` writes it. Nothing is stored:
B's own slow dynamics do the averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import UntiedError

if TYPE_CHECKING:
    from .schedules import Coefficient

__all__ = ["STATISTICS", "Statistic", "mean_power", "power"]

STATISTICS = {
    "power": "mean over examples, sum over positions, of the squared input that the weight multiplies",
    "mean_power": "the mean of power over the weights of the layer",
}
"""Every statistic by name, and what it is; with ``positions="mean"`` the mean over positions."""


@dataclass(frozen=True, repr=False)
class Statistic:
    """A factor times a statistic: ``0.5 * power``. It multiplies, compares, hashes and pickles; ``str`` reads back.

    Attributes:
        name: one of `STATISTICS`.
        factor: a number, a schedule, or a function of training progress.

    Raises:
        UntiedError: an unknown name.
    """

    name: str
    factor: float | Callable[[float], float] = 1.0

    def __post_init__(self) -> None:
        if self.name not in STATISTICS:
            raise UntiedError(f"unknown statistic {self.name!r}: possible are {', '.join(STATISTICS)}")

    @property
    def formula(self) -> str:
        """What it is, in words."""
        return STATISTICS[self.name]

    def times(self, other: Coefficient) -> Coefficient:
        """This statistic times a number, a schedule or a function; 0 where that is 0."""
        from .schedules import multiply

        if isinstance(other, Statistic):
            raise UntiedError(f"{self} times {other} is not possible: a coefficient has one statistic; leave one out")
        factor = multiply(self.factor, other)
        assert not isinstance(factor, Statistic)
        return 0.0 if factor == 0 else replace(self, factor=factor)

    def plus(self, other: Coefficient) -> Coefficient:
        """This statistic plus another multiple of the same, or plus 0."""
        from .schedules import add

        if other == 0:
            return self
        if not isinstance(other, Statistic) or other.name != self.name:
            raise UntiedError(f"{self} and {_text(other)} do not add: give decay one of them")
        factor = add(self.factor, other.factor)
        assert not isinstance(factor, Statistic)
        return 0.0 if factor == 0 else replace(self, factor=factor)

    def __mul__(self, other: Coefficient) -> Coefficient:
        return self.times(other) if callable(other) or isinstance(other, int | float | Statistic) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Coefficient:
        return self.times(-1.0)

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{_text(self.factor)}*{self.name}"

    __repr__ = __str__


def _text(c: Coefficient) -> str:
    from .schedules import coefficient_text

    return coefficient_text(c)


power = Statistic("power")
mean_power = Statistic("mean_power")
