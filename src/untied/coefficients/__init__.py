"""Coefficients: numbers, functions of progress, and what a layer measures."""

from __future__ import annotations

from .coefficient import (
    STATISTICS,
    Coefficient,
    Composed,
    Schedule,
    Statistic,
    add,
    coefficient_text,
    mean_power,
    multiply,
    number_text,
    power,
    value,
)

__all__ = [
    "STATISTICS",
    "Coefficient",
    "Composed",
    "Schedule",
    "Statistic",
    "add",
    "coefficient_text",
    "mean_power",
    "multiply",
    "number_text",
    "power",
    "value",
]
