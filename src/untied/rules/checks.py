"""What may stand as the coefficient of a primitive, and how it is written."""

from __future__ import annotations

from typing import Any

from ..coefficients.coefficient import Coefficient, Statistic, coefficient_text, multiply, power
from ..errors import UntiedError
from ..primitives.primitive import KNOWN, Primitive, amp, copy, decay

__all__ = ["balanced", "checked", "primitive_of", "text_of"]


def text_of(v: object) -> str:
    """An option's value as rules are written.

    >>> text_of(True), text_of(0.5), text_of("normal")
    ('true', '0.5', 'normal')
    """
    if isinstance(v, bool) or v is None:
        return str(v).lower()
    return coefficient_text(v) if isinstance(v, int | float | Statistic) or callable(v) else str(v)


def primitive_of(given: Primitive | str) -> Primitive:
    """The primitive itself, or the one of this name.

    Raises:
        UntiedError: no primitive has it.

    >>> primitive_of("amp")
    amp
    """
    if isinstance(given, Primitive):
        return given
    if given not in KNOWN:
        raise UntiedError(f"unknown primitive {given!r}: possible are {', '.join(KNOWN)}")
    return KNOWN[given]


def balanced(c: Any) -> Coefficient:
    """The decay that balances amp, whose coefficient is given.

    Raises:
        UntiedError: that is 0, or impossible.

    >>> balanced(2)
    2*power
    """
    if c == 0:
        raise UntiedError(
            "decay=balanced balances amp, and the rule has none: give amp a coefficient, or decay a number"
        )
    return multiply(checked(amp, c), power)


def checked(primitive: Primitive, c: Coefficient) -> Coefficient:
    """The coefficient, if this primitive may have it.

    Raises:
        UntiedError: it may not.

    >>> checked(amp, 0.5)
    0.5
    """
    if primitive == copy and (callable(c) or isinstance(c, Statistic)):
        raise UntiedError(f"copy={coefficient_text(c)} is not possible: it acts in the backward pass, so give a number")
    if isinstance(c, Statistic):
        if primitive != decay:
            raise UntiedError(f"{primitive}={c} is not possible: a statistic is the coefficient of decay alone")
        return c
    if callable(c) or (isinstance(c, int | float) and not isinstance(c, bool) and c == c and abs(c) != float("inf")):
        return c
    raise UntiedError(
        f"coefficient {primitive}={c!r} is not possible: give a finite number, a schedule such as linear(0, 1), "
        "or a function of training progress; or decay=balanced, power, mean_power"
    )
