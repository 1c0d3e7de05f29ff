"""torchmetrics: the mean angle over updates, added up over processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from .. import metrics

__all__ = ["GradientAngle", "WeightAngle"]


class _MeanAngle(Metric):
    """Mean of the angles that were added, in degrees. A NaN, the angle with a zero vector, does not count."""

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, angles: list[float]) -> None:
        known = [a for a in angles if not math.isnan(a)]
        self.total += sum(known)
        self.count += len(known)

    def compute(self) -> Tensor:
        """The mean, 0-dim; NaN where nothing was added."""
        return self.total / self.count


class WeightAngle(_MeanAngle):
    """The angle between W and B, averaged over layers and updates: ``metric.update(model)``."""

    def update(self, model: nn.Module) -> None:
        """Add the angle of every untied layer."""
        self._add(list(metrics.weight_angles(model).values()))


class GradientAngle(_MeanAngle):
    """The angle between the network's pseudogradient and its gradient: ``metric.update(model, closure)``."""

    @torch.enable_grad()
    def update(self, model: nn.Module, closure: Callable[[], Tensor]) -> None:
        """Add the angle on one batch; the closure returns the task loss (see `untied.metrics.measure`)."""
        self._add([metrics.gradient_angle(model, closure)])
