"""Any number of labels for each example: binary cross-entropy, F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from untied.lab.tasks.metric import Metric
from untied.lab.tasks.task import Task, wrong_outputs

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = ["MultiLabel"]


class MultiLabel(Task):
    """Outputs (n, labels) are logits, targets (n, labels) are 0 or 1. A label is given where its logit is above 0.

    F1 is 2 TP / (2 TP + FP + FN) over all labels of all examples; a network that gives none has 0.

    Args:
        outputs: the number of labels.
    """

    name = "multi-label"
    metrics = (
        Metric("f1", "F1"),
        Metric("label_accuracy", "labels right", "%", 100, 1),
        Metric("exact", "examples with all labels right", "%", 100, 1),
    )

    def __init__(self, outputs: int) -> None:
        self.labels = outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs))

    @property
    def width(self) -> int:
        return 4

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Labels that are rightly given, given, and there; examples that are right in all."""
        given, there = outputs > 0, targets > 0.5
        return torch.stack([(given & there).sum(), given.sum(), there.sum(), (given == there).all(1).sum()])

    def scores(self, tally: Sequence[float], count: float) -> dict[str, float]:
        right, given, there, exact = tally
        wrong = given + there - 2 * right
        return {
            "f1": 2 * right / (given + there) if given + there else 1.0,
            "label_accuracy": 1 - wrong / (count * self.labels),
            "exact": exact / count,
        }

    def expect(self, targets: Any, data: Dataset) -> None:
        if not isinstance(targets, Tensor) or targets.dim() != 2:
            raise self.unfit(targets, data, "a 0 or 1 for each label, (n, labels)")
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise self.unfit(targets, data, "targets of 0 and 1 alone")

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.shape != targets.shape:
            raise wrong_outputs(self.name, outputs, targets, f"({targets.shape[1]},), a logit for each label,")
        super().fit(outputs, targets)
