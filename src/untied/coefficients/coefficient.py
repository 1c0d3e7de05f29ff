"""The algebra of coefficients: numbers, functions of training progress, and statistics that a layer measures.

They add and multiply, `value` says what they are at a point of training, and `coefficient_text` writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import UntiedError

__all__ = [
    "STATISTICS", "Coefficient", "Composed", "Schedule", "Statistic", "add", "coefficient_text", "mean_power",
    "multiply", "number_text", "power", "value",
]  # fmt: skip


class Schedule:
    """A coefficient as a function of progress: call it. It multiplies with numbers, compares, hashes and pickles;
    ``str`` is the text that `parse` reads back.

    Attributes:
        name: in the text form. usage: what can be written.
        shifts: whether adding a number to its values adds it to the whole course.

    >>> from untied.schedules import Linear
    >>> 2 * Linear(0, 1)
    linear(0, 2)
    """

    name: ClassVar[str]
    usage: ClassVar[str]
    shifts: ClassVar[bool] = True

    def __call__(self, progress: float) -> float:
        """The value at this progress.

        Raises:
            UntiedError: progress is not a number from 0 to 1.
        """
        if not 0 <= progress <= 1:
            raise UntiedError(f"progress={progress!r} is not possible: give the share of training done, step / steps")
        return self.value_at(float(progress))

    def value_at(self, t: float) -> float:
        """The value at t, 0 to 1."""
        raise NotImplementedError(f"{type(self).__name__}.value_at")

    def with_values(self, function: Callable[[float], float]) -> Schedule:
        """The same course through the values that a function makes of its own."""
        raise NotImplementedError(f"{type(self).__name__}.with_values")

    def __mul__(self, factor: float) -> Coefficient:
        return multiply(self, factor) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Coefficient:
        return self * -1.0

    def __repr__(self) -> str:
        return str(self)


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

    >>> 0.5 * Statistic("power")
    0.5*power
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
        """This statistic times a number, a schedule or a function; 0 where that is 0.

        Raises:
            UntiedError: times a statistic.
        """
        if isinstance(other, Statistic):
            raise UntiedError(f"{self} times {other} is not possible: a coefficient has one statistic; leave one out")
        factor = multiply(self.factor, other)
        assert not isinstance(factor, Statistic)
        return 0.0 if factor == 0 else replace(self, factor=factor)

    def plus(self, other: Coefficient) -> Coefficient:
        """This statistic plus another multiple of the same, or plus 0.

        Raises:
            UntiedError: plus anything else.
        """
        if other == 0:
            return self
        if not isinstance(other, Statistic) or other.name != self.name:
            raise UntiedError(f"{self} and {coefficient_text(other)} do not add: give decay one of them")
        factor = add(self.factor, other.factor)
        assert not isinstance(factor, Statistic)
        return 0.0 if factor == 0 else replace(self, factor=factor)

    def __mul__(self, other: Coefficient) -> Coefficient:
        return self.times(other) if callable(other) or isinstance(other, int | float | Statistic) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Coefficient:
        return self.times(-1.0)

    def __str__(self) -> str:
        return self.name if self.factor == 1 else f"{coefficient_text(self.factor)}*{self.name}"

    __repr__ = __str__


Coefficient = float | Callable[[float], float] | Statistic
"""A number, a function of training progress (0 at the start, 1 at the end), or a statistic of the layer."""

power = Statistic("power")
mean_power = Statistic("mean_power")


@dataclass(frozen=True)
class Composed:
    """The sum or product of two coefficients where neither is a number or no schedule equals it. It has no text form,
    but compares, hashes and pickles as its parts do.

    >>> from untied.schedules import Linear
    >>> multiply(Linear(0, 1), Linear(0, 1))(0.5)
    0.25
    """

    sign: str
    a: Coefficient
    b: Coefficient

    def __call__(self, progress: float) -> float:
        a, b = value(self.a, progress), value(self.b, progress)
        return a + b if self.sign == "+" else a * b

    def __str__(self) -> str:
        parts = (f"({c})" if isinstance(c, Composed) else coefficient_text(c).strip("<>") for c in (self.a, self.b))
        return f" {self.sign} ".join(parts)


def add(a: Coefficient, b: Coefficient) -> Coefficient:
    """``a + b``: a number or a schedule where it is one.

    >>> add(2.0, 0.25)
    2.25
    """
    if isinstance(a, Statistic):
        return a.plus(b)
    if isinstance(b, Statistic):
        return b.plus(a)
    if callable(a) and not callable(b):
        a, b = b, a
    if not callable(a):
        if not callable(b):
            return a + b
        if a == 0:
            return b
        if isinstance(b, Schedule) and b.shifts:
            return b.with_values(lambda v: a + v)
    return Composed("+", a, b)


def multiply(a: Coefficient, b: Coefficient) -> Coefficient:
    """``a * b``: a number or a schedule where it is one.

    >>> multiply(2.0, 0.25)
    0.5
    """
    if isinstance(a, Statistic):
        return a.times(b)
    if isinstance(b, Statistic):
        return b.times(a)
    if callable(a) and not callable(b):
        a, b = b, a
    if not callable(a):
        if not callable(b):
            return a * b
        if a in (0, 1):
            return b if a else 0.0
        if isinstance(b, Schedule):
            return b.with_values(lambda v: a * v)
    return Composed("*", a, b)


def value(c: Coefficient, progress: float | None) -> float:
    """The coefficient's value at a point of training, 0 to 1.

    Raises:
        UntiedError: the coefficient is a function, and no progress was given; or it is measured in a layer.

    >>> value(lambda progress: 2 * progress, 0.25)
    0.5
    """
    if isinstance(c, Statistic):
        raise UntiedError(f"coefficient {c} has no value of its own: it is measured in each layer")
    if not callable(c):
        return float(c)
    if progress is None:
        raise UntiedError(
            f"coefficient {coefficient_text(c)} is a function of training progress, and none was given: "
            "use untied.record(model, progress=step / steps)"
        )
    return float(c(progress))


def coefficient_text(c: Coefficient) -> str:
    """A coefficient as rules are written: it reads back as the same, unless it is a function of the user's own.

    >>> coefficient_text(0.001)
    '0.001'
    """
    if isinstance(c, Schedule | Statistic):
        return str(c)
    if isinstance(c, Composed):
        return f"<{c}>"
    return f"<{getattr(c, '__name__', type(c).__name__)}>" if callable(c) else number_text(c)


def number_text(v: float) -> str:
    """A number with all the digits that it takes to read the same one back.

    >>> number_text(0.5)
    '0.5'
    """
    return f"{v:g}" if float(f"{v:g}") == v else repr(float(v))
