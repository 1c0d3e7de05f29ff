"""One class for each example: cross-entropy, accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.tasks.metric import ACCURACY, TOP5, Metric
from untied.lab.tasks.task import Task, is_whole, wrong_outputs

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = ["Classification"]


class Classification(Task):
    """Outputs (n, classes) are logits, targets (n,) the numbers of classes.

    Args:
        classes: their number; with more than five, top-5 accuracy is measured too.
        label_smoothing: of the loss in training.

    >>> task = Classification(classes=10)
    >>> task.scores(task.tally(torch.eye(10), torch.arange(10)).tolist(), count=10)
    {'accuracy': 1.0, 'top5': 1.0}
    """

    name = "classification"

    def __init__(self, classes: int = 0, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self.metrics: tuple[Metric, ...] = (ACCURACY, TOP5) if classes > 5 else (ACCURACY,)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def objective(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many targets are the first guess, and, if that is measured, among the first five."""
        right = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == targets[:, None]
        return torch.stack([right[:, 0].sum(), right.sum()][: self.width])

    def chance(self, data: Dataset) -> float:
        return 1 / len(data.classes)

    def expect(self, targets: Any, data: Dataset) -> None:
        if not isinstance(targets, Tensor) or targets.dim() != 1 or not is_whole(targets):
            raise self.unfit(targets, data, "a class for each example, whole numbers (n,)")
        if targets.dtype != torch.int64:
            raise self.unfit(targets, data, "classes as int64, as torch's cross-entropy does")
        if int(targets.min()) < 0 or int(targets.max()) >= len(data.classes):
            raise UntiedError(
                f"task {self.name}: {data.name} has {len(data.classes)} classes, and targets from "
                f"{int(targets.min())} to {int(targets.max())}: they must be 0 to {len(data.classes) - 1}"
            )

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.dim() != 2 or outputs.shape[1] <= int(targets.max()):
            raise wrong_outputs(self.name, outputs, targets, "(classes,), a logit for each class,")
        super().fit(outputs, targets)
