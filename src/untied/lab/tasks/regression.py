"""Numbers for each example: mean squared error, and the share of variance that is explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from untied.lab.tasks.metric import Metric
from untied.lab.tasks.task import Task, wrong_outputs

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = ["Regression"]


class Regression(Task):
    """Outputs and targets (n, ...) of one shape; or either flattened, (n, d).

    R² is 1 − Σ (y − ŷ)² / Σ (y − ȳ)², where ȳ is each output's mean over the split: 0 is as good as the mean.

    Args:
        outputs: numbers for each example, d.

    >>> task = Regression(outputs=1)
    >>> y = torch.tensor([1.0, 2.0, 3.0])
    >>> task.scores(task.tally(torch.full((3, 1), 2.0), y).tolist(), count=3)["r2"]
    0.0
    """

    name = "regression"
    metrics = (Metric("r2", "R²"), Metric("mse", "mean squared error", digits=4, higher=False))

    def __init__(self, outputs: int) -> None:
        self.d = outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten(1) - targets.reshape(len(targets), -1)).square().mean()

    @property
    def width(self) -> int:
        return self.d + 2

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Σ (y − ŷ)², Σ y², and Σ y of each output."""
        wide = torch.float32 if outputs.device.type == "mps" else torch.float64
        y = targets.reshape(len(targets), -1).to(wide)
        errors = (outputs.flatten(1).to(wide) - y).square().sum()
        return torch.cat([torch.stack([errors, y.square().sum()]), y.sum(0)])

    def scores(self, tally: Sequence[float], count: float) -> dict[str, float]:
        errors, squares, *sums = tally
        spread = squares - sum(total**2 for total in sums) / count
        return {"r2": 1 - errors / spread if spread > 0 else 0.0, "mse": errors / (count * self.d)}

    def expect(self, targets: Any, data: Dataset) -> None:
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            raise self.unfit(targets, data, "targets of floating point")
        if targets[:1].numel() != self.d:
            raise self.unfit(targets, data, f"{self.d} numbers for each example")

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        one, other = tuple(outputs.shape[1:]), tuple(targets.shape[1:])
        flat = (targets[:1].numel(),)
        if one != other and not (outputs[:1].numel() == flat[0] and flat in (one, other or flat)):
            raise wrong_outputs(self.name, outputs, targets, f"{other or '(1,)'}, or as many numbers in a row,")
        super().fit(outputs, targets)
