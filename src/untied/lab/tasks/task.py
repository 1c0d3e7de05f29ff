"""A task: what a network is trained for, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.tasks.metric import Metric
from untied.lab.tasks.trees import shapes

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = ["Task"]


class Task:
    """Loss and metrics of outputs against targets. n is the number of examples of a batch.

    A task of one's own derives from this and gives ``name``, ``metrics``, ``loss`` and ``tally``. Its constructor gets
    those of ``classes``, ``outputs``, ``input_shape``, ``vocabulary`` and ``label_smoothing`` that it names.

    Attributes:
        name: short name. metrics: what it is judged by, first of all the first.

    >>> class Distance(Task):
    ...     name, metrics = "distance", (Metric("distance", "mean distance", higher=False),)
    ...     def loss(self, outputs, targets):
    ...         return (outputs - targets).norm(dim=1).mean()
    ...     def tally(self, outputs, targets):
    ...         return (outputs - targets).norm(dim=1).sum()[None]
    >>> task = Distance()
    >>> task.scores(task.tally(torch.ones(2, 4), torch.zeros(2, 4)).tolist(), count=2)
    {'distance': 2.0}
    """

    name: ClassVar[str]
    metrics: Sequence[Metric] = ()

    def outputs(self, data: Dataset) -> int:
        """How many outputs a network needs, where it can be made with any number."""
        return data.outputs

    def batch(self, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """Inputs and targets of a batch as the data have it."""
        return batch

    def loss(self, outputs: Tensor, targets: Any) -> Tensor:
        """The mean loss of a batch, a 0-dim tensor."""
        raise NotImplementedError(f"{type(self).__name__}.loss")

    def objective(self, outputs: Tensor, targets: Any) -> Tensor:
        """What training descends: the loss, unless a task says otherwise."""
        return self.loss(outputs, targets)

    @property
    def width(self) -> int:
        """How many numbers ``tally`` gives."""
        return len(self.metrics)

    def tally(self, outputs: Tensor, targets: Any) -> Tensor:
        """Sums over a batch, (width,), from which ``scores`` makes the metrics of a whole split."""
        raise NotImplementedError(f"{type(self).__name__}.tally")

    def scores(self, tally: Sequence[float], count: float) -> dict[str, float]:
        """The metrics by name, from sums over ``count`` examples. By default each sum over the count."""
        return {metric.name: total / count for metric, total in zip(self.metrics, tally, strict=True)}

    def chance(self, data: Dataset) -> float:
        """The first metric of a network that has learned nothing: what a run counts whose loss is not finite."""
        return 0.0

    def expect(self, targets: Any, data: Dataset) -> None:
        """Look at a batch's targets before anything is trained.

        Raises:
            UntiedError: the task does not fit the data.
        """

    def fit(self, outputs: Tensor, targets: Any) -> None:
        """Look at a network's outputs for a batch before anything is trained.

        Raises:
            UntiedError: the loss of these outputs against these targets is not possible.
        """
        try:
            loss = self.loss(outputs, targets)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            said = " ".join(str(error).split())[:200]
            raise UntiedError(
                f"task {self.name}: outputs of {shapes(outputs)} do not go with targets of {shapes(targets)}: {said}"
            ) from error
        if not isinstance(loss, Tensor) or loss.dim():
            raise UntiedError(f"task {self.name}: its loss must be a tensor without dimensions, the mean of a batch")

    def unfit(self, targets: Any, data: Dataset, needs: str) -> UntiedError:
        """The error of a task that does not fit the data."""
        return UntiedError(
            f"task {self.name} needs {needs}, and the targets of {data.name} are {shapes(targets)}: "
            "choose another --task"
        )


def wrong_outputs(task: str, outputs: Tensor, targets: Tensor, needs: str) -> UntiedError:
    """The error of outputs that have not the shape of targets."""
    return UntiedError(
        f"task {task}: the network gives {tuple(outputs.shape[1:])} for each example, where {needs} is needed "
        f"(targets are {shapes(targets)})"
    )


def is_whole(t: Tensor) -> bool:
    """Whether a tensor has whole numbers."""
    return not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool
