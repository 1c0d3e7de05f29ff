"""Coefficients that change over training: linear, exponential, triangular and stepped, as in the paper's code.

A coefficient is a number, a schedule, or any function of training progress t, 0 at the start and 1 at the
end. A schedule is written as it is printed, ``linear(0, 1, stop=0.1)``, in Python with a capital, and stands
wherever a coefficient's number does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from .errors import UntiedError
from .statistics import Statistic

__all__ = ["SCHEDULES", "Coefficient", "Exponential", "Linear", "Schedule", "Steps", "Triangular", "parse"]

Coefficient = float | Callable[[float], float] | Statistic
"""A number, a function of training progress (0 at the start, 1 at the end), or a statistic of the layer."""


class Schedule:
    """A coefficient as a function of progress: call it. It multiplies with numbers, compares, hashes and pickles;
    ``str`` is the text that `parse` reads back.

    Attributes:
        name: in the text form. usage: what can be written.
        shifts: whether adding a number to its values adds it to the whole course.
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


@dataclass(frozen=True, repr=False)
class Linear(Schedule):
    """From ``first`` to ``last`` on a straight line between ``start`` and ``stop``, shares of training. A jump at
    ``start`` if they agree.

    Raises:
        UntiedError: a value is not finite, or not 0 <= start <= stop <= 1.
    """

    name, usage = "linear", "linear(first, last, start=0, stop=1)"

    first: float
    last: float
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        _settle(self)
        _check_places(self, self.start, self.stop)

    def value_at(self, t: float) -> float:
        s = _share(t, self.start, self.stop)
        return (1 - s) * self.first + s * self.last

    def with_values(self, function: Callable[[float], float]) -> Linear:
        return replace(self, first=function(self.first), last=function(self.last))

    def __str__(self) -> str:
        return _written(self, [number_text(self.first), number_text(self.last)], start=0.0, stop=1.0)


@dataclass(frozen=True, repr=False)
class Exponential(Schedule):
    """From ``first`` to ``last`` by equal factors in equal times: first^(1−s) · last^s, s the share of the way from
    ``start`` to ``stop``.

    Raises:
        UntiedError: the values are not finite, nonzero and of one sign, or not 0 <= start <= stop <= 1.
    """

    name, usage, shifts = "exponential", "exponential(first, last, start=0, stop=1)", False

    first: float
    last: float
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        _settle(self)
        _check_places(self, self.start, self.stop)
        if self.first == 0 or self.last == 0 or (self.first > 0) != (self.last > 0):
            raise UntiedError(
                f"exponential from {number_text(self.first)} to {number_text(self.last)} is not possible: "
                "give two values of one sign, neither of them 0, or use linear"
            )

    def value_at(self, t: float) -> float:
        s = _share(t, self.start, self.stop)
        a, b = abs(self.first), abs(self.last)
        size = min(max(a ** (1 - s) * b**s, min(a, b)), max(a, b))  # rounding must not lead beyond either
        return math.copysign(size, self.first)

    def with_values(self, function: Callable[[float], float]) -> Exponential:
        return replace(self, first=function(self.first), last=function(self.last))

    def __str__(self) -> str:
        return _written(self, [number_text(self.first), number_text(self.last)], start=0.0, stop=1.0)


@dataclass(frozen=True, repr=False)
class Triangular(Schedule):
    """``low`` at the start, up to ``high`` and back on straight lines, ``cycles`` times.

    Raises:
        UntiedError: a value is not finite, or ``cycles`` is not a whole number from 1.
    """

    name, usage = "triangular", "triangular(low, high, cycles=1)"

    low: float
    high: float
    cycles: int = 1

    def __post_init__(self) -> None:
        _settle(self)
        if self.cycles < 1 or self.cycles != int(self.cycles):
            raise UntiedError(f"cycles={number_text(self.cycles)} is not possible: give a whole number, 1 or more")
        object.__setattr__(self, "cycles", int(self.cycles))

    def value_at(self, t: float) -> float:
        s = 1 - abs(2 * (t * self.cycles % 1) - 1)
        return (1 - s) * self.low + s * self.high

    def with_values(self, function: Callable[[float], float]) -> Triangular:
        return replace(self, low=function(self.low), high=function(self.high))

    def __str__(self) -> str:
        return _written(self, [number_text(self.low), number_text(self.high)], cycles=1)


@dataclass(frozen=True, repr=False, init=False)
class Steps(Schedule):
    """``values`` one after the other. The second begins at the first place of ``at``, and so on; without ``at`` each
    lasts equally long.

    Raises:
        UntiedError: fewer than two values, or one not finite; ``at`` is not one place fewer, in order, from 0 to 1.
    """

    name, usage = "steps", "steps(first, second, ..., at=(place, ...))"

    values: tuple[float, ...]
    at: tuple[float, ...]

    def __init__(self, *values: float, at: float | Sequence[float] | None = None) -> None:
        if len(values) < 2:
            raise UntiedError(f"steps needs two values or more: write {self.usage}")
        if at is None:
            at = [i / len(values) for i in range(1, len(values))]
        places = tuple(_finite("at", p) for p in (at if isinstance(at, Sequence) else (at,)))
        if len(places) != len(values) - 1 or not all(a <= b for a, b in zip((0, *places), (*places, 1), strict=True)):
            raise UntiedError(
                f"at={_places_text(places)} is not possible for {len(values)} values: "
                f"give {len(values) - 1} in order, from 0 to 1, one for each value but the first"
            )
        object.__setattr__(self, "values", tuple(_finite("value", v) for v in values))
        object.__setattr__(self, "at", places)

    def value_at(self, t: float) -> float:
        return self.values[sum(t >= place for place in self.at)]

    def with_values(self, function: Callable[[float], float]) -> Steps:
        return Steps(*map(function, self.values), at=self.at)

    def __str__(self) -> str:
        words = [number_text(v) for v in self.values]
        if self.at != Steps(*self.values).at:
            words.append(f"at={_places_text(self.at)}")
        return f"{self.name}({', '.join(words)})"


SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Linear, Exponential, Triangular, Steps)}
"""Every schedule by its name in the text form."""


@dataclass(frozen=True)
class Composed:
    """The sum or product of two coefficients where neither is a number or no schedule equals it. It has no text form,
    but compares, hashes and pickles as its parts do.
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
    """A + b: a number or a schedule where it is one."""
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
    """A * b: a number or a schedule where it is one."""
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
    """A coefficient as rules are written: it reads back as the same, unless it is a function of the user's own."""
    if isinstance(c, Schedule | Statistic):
        return str(c)
    if isinstance(c, Composed):
        return f"<{c}>"
    return f"<{getattr(c, '__name__', type(c).__name__)}>" if callable(c) else number_text(c)


def number_text(v: float) -> str:
    """A number with all the digits that it takes to read the same one back."""
    return f"{v:g}" if float(f"{v:g}") == v else repr(float(v))


def parse(text: str) -> Coefficient:
    """Read a coefficient: a number or a schedule, such as ``"0.5"``, ``"1/8"``, ``"linear(0, 1, stop=0.1)"`` or
    ``"steps(1, 0.1, 0.01, at=(1/3, 2/3))"``.

    Raises:
        UntiedError: what is wrong, where, and what is possible.
    """
    from .text import parse_coefficient

    return parse_coefficient(text)


def _share(t: float, start: float, stop: float) -> float:
    """How much of the way from start to stop lies behind t, 0 to 1; a jump at start where they agree."""
    if t >= stop:
        return 1.0
    return (t - start) / (stop - start) if t > start else 0.0


def _finite(name: str, v: object) -> float:
    if not isinstance(v, int | float) or isinstance(v, bool) or not math.isfinite(v):
        raise UntiedError(f"{name}={v!r} is not possible: give a finite number")
    return float(v) + 0.0  # −0 and 0 are one number, but would be two texts


def _settle(schedule: Linear | Exponential | Triangular) -> None:
    for f in fields(schedule):
        object.__setattr__(schedule, f.name, _finite(f.name, getattr(schedule, f.name)))


def _check_places(schedule: Schedule, start: float, stop: float) -> None:
    if not 0 <= start <= stop <= 1:
        raise UntiedError(
            f"start={number_text(start)}, stop={number_text(stop)} of {schedule.name} is not possible: "
            "give shares of training, 0 <= start <= stop <= 1"
        )


def _written(schedule: Schedule, words: list[str], **defaults: float) -> str:
    """Its text: all values, and what is not at its default."""
    options = {k: getattr(schedule, k) for k in defaults}
    words = words + [f"{k}={number_text(v)}" for k, v in options.items() if v != defaults[k]]
    return f"{schedule.name}({', '.join(words)})"


def _places_text(places: Sequence[float]) -> str:
    words = ", ".join(number_text(p) for p in places)
    return f"({words})" if len(places) != 1 else words
