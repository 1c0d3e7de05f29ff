"""Coefficients that change over training: linear, exponential, triangular and stepped, as in the paper's code.

A coefficient is a number, a schedule, or any function of training progress t, 0 at the start and 1 at the
end. A schedule is written as it is printed, ``linear(0, 1, stop=0.1)``, in Python with a capital, and stands
wherever a coefficient's number does.
"""

from __future__ import annotations

from .coefficients.coefficient import Coefficient, Composed, Schedule, coefficient_text, multiply, value
from .coefficients.courses import SCHEDULES, Exponential, Linear, Steps, Triangular
from .coefficients.reading import parse_coefficient as parse

__all__ = [
    "SCHEDULES", "Coefficient", "Composed", "Exponential", "Linear", "Schedule", "Steps", "Triangular",
    "coefficient_text", "multiply", "parse", "value",
]  # fmt: skip
