"""What a network is judged by, and how the number is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ACCURACY", "TOP5", "Metric", "metric_of", "metrics_of"]


@dataclass(frozen=True)
class Metric:
    """A score of a network on a split.

    Attributes:
        name: in files. title: in tables and figures.
        unit: of what is shown, such as %. scale: what is shown over what is stored. digits: after the point.
        higher: whether more is better.

    >>> Metric("accuracy", "accuracy", "%", 100, 1).shown(0.9375)
    '93.8'
    """

    name: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 3
    higher: bool = True

    def shown(self, value: float | None) -> str:
        """A value as tables have it; a dash where there is none."""
        return "–" if value is None or not math.isfinite(value) else f"{self.scale * value:.{self.digits}f}"

    @property
    def head(self) -> str:
        """Its title, with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        return value > than if self.higher else value < than


ACCURACY = Metric("accuracy", "accuracy", "%", 100, 1)
TOP5 = Metric("top5", "top-5 accuracy", "%", 100, 1)


def metric_of(rows: Sequence[Mapping[str, Any]]) -> Metric:
    """What the rows of a table are judged by: accuracy, unless they say otherwise."""
    said = rows[0].get("metric") if rows else None
    return Metric(**said) if said else ACCURACY


def metrics_of(result: Mapping[str, Any]) -> list[Metric]:
    """The metrics of a run's result, the one that judges first; results of version 0.1 do not name theirs."""
    said = result.get("metrics")
    return [Metric(**one) for one in said] if said else [ACCURACY, TOP5]
