"""The next word of a sequence, at each of its places: cross-entropy, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.tasks.metric import Metric
from untied.lab.tasks.task import Task, is_whole, wrong_outputs

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = ["NextToken"]


class NextToken(Task):
    """Outputs (n, length, vocabulary) are logits, targets (n, length) the tokens that come next.

    Perplexity is the exponential of the mean cross-entropy over all tokens: the size of the vocabulary for a guess.
    """

    name = "next-token"
    metrics = (Metric("perplexity", "perplexity", digits=2, higher=False), Metric("accuracy", "accuracy", "%", 100, 1))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    @property
    def width(self) -> int:
        return 3

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy, tokens that are guessed right, and tokens."""
        entropy = F.cross_entropy(outputs.float().flatten(0, 1), targets.flatten(), reduction="sum")
        right = (outputs.argmax(-1) == targets).sum()
        return torch.stack([entropy, right.to(entropy), entropy.new_tensor(targets.numel())])

    def scores(self, tally: Sequence[float], count: float) -> dict[str, float]:
        entropy, right, tokens = tally
        mean = entropy / tokens
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "accuracy": right / tokens}

    def chance(self, data: Dataset) -> float:
        return float(len(data.classes))

    def expect(self, targets: Any, data: Dataset) -> None:
        if not isinstance(targets, Tensor) or targets.dim() != 2 or not is_whole(targets):
            raise self.unfit(targets, data, "the next token at each place, whole numbers (n, length)")
        if not data.classes or int(targets.max()) >= len(data.classes):
            raise UntiedError(
                f"task {self.name}: {data.name} has tokens up to {int(targets.max())} and says {len(data.classes)} "
                "classes: classes must be the size of the vocabulary"
            )

    def fit(self, outputs: Tensor, targets: Tensor) -> None:
        if outputs.dim() != 3 or outputs.shape[:2] != targets.shape or outputs.shape[2] <= int(targets.max()):
            needs = f"({targets.shape[1]}, vocabulary), a logit for each token at each place,"
            raise wrong_outputs(self.name, outputs, targets, needs)
        super().fit(outputs, targets)
