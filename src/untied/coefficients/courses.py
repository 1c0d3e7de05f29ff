"""The four courses of a coefficient over training: linear, exponential, triangular and stepped, as in the paper's code.

A schedule is written as it is printed, ``linear(0, 1, stop=0.1)``, in Python with a capital.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from ..errors import UntiedError
from .coefficient import Schedule, number_text

__all__ = ["SCHEDULES", "Exponential", "Linear", "Steps", "Triangular"]


@dataclass(frozen=True, repr=False)
class Linear(Schedule):
    """From ``first`` to ``last`` on a straight line between ``start`` and ``stop``, shares of training. A jump at
    ``start`` if they agree.

    Raises:
        UntiedError: a value is not finite, or not 0 <= start <= stop <= 1.

    >>> Linear(0, 1, stop=0.5)(0.25)
    0.5
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

    >>> Exponential(1, 0.01)(0.5)
    0.1
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

    >>> Triangular(0, 1)(0.25)
    0.5
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

    >>> Steps(1, 0.1, at=(0.5,))(0.6)
    0.1
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
