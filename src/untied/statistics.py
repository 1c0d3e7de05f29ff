"""Coefficients that are measured: a local statistic of the layer, on the same batch that R sees.

    power        the mean square of the input that each weight multiplies: its own synapse's
    mean_power   the mean of that over the layer's weights: one number a layer

A statistic is the coefficient of ``decay``. ``amp · power`` is what balances ``amp``: weight mirror is then at its
stable point whatever its input is (docs/theory.md, section 7), and `wm(decay=balanced)` writes it. Nothing is stored:
B's own slow dynamics do the averaging.
"""

from __future__ import annotations

from .coefficients.coefficient import STATISTICS, Statistic, mean_power, power

__all__ = ["STATISTICS", "Statistic", "mean_power", "power"]
