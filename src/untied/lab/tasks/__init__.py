"""Tasks: what a network is trained for, and how it is judged. One file a task.

classification   one class for each example: cross-entropy; accuracy, and top-5 with more than five classes
regression       numbers for each example: mean squared error; R², MSE
multi-label      any number of labels for each example: binary cross-entropy; F1
next-token       the next token at each place of a sequence: cross-entropy; perplexity
autoencoding     the input itself: mean squared error; R², MSE
package.module:Task   one's own, a `Task`
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from untied.errors import UntiedError
from untied.lab.reading import own
from untied.lab.tasks.autoencoding import Autoencoding
from untied.lab.tasks.classification import Classification
from untied.lab.tasks.metric import ACCURACY, TOP5, Metric, metric_of, metrics_of
from untied.lab.tasks.multilabel import MultiLabel
from untied.lab.tasks.next_token import NextToken
from untied.lab.tasks.regression import Regression
from untied.lab.tasks.task import Task

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = [
    "ACCURACY", "TASKS", "TOP5", "Autoencoding", "Classification", "Metric", "MultiLabel", "NextToken", "Regression",
    "Task", "check_name", "make", "metric_of", "metrics_of",
]  # fmt: skip

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (Classification, Regression, MultiLabel, NextToken, Autoencoding)
}


def check_name(name: str) -> None:
    """Raise UntiedError unless this names a task; nothing is imported."""
    if name and name not in TASKS and not own.is_own("task", name):
        known = (*TASKS, *own.offered("task"))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UntiedError(
            f"unknown task {name!r}: possible are {', '.join(known)}, and your own as package.module:Task{hint}"
        )


def make(name: str, data: Dataset, label_smoothing: float = 0.0) -> Task:
    """A task for a data set.

    Args:
        name: of the task, or an import path; the data's own if empty.
        data: which decides on the number of outputs.
        label_smoothing: for classification.

    Raises:
        UntiedError: there is no such task, or it is no `Task`.
    """
    name = name or data.task
    check_name(name)
    given: dict[str, Any] = {
        "classes": len(data.classes), "outputs": data.outputs, "input_shape": data.input_shape,
        "vocabulary": data.vocabulary, "label_smoothing": label_smoothing,
    }  # fmt: skip
    if name in TASKS:
        kind = TASKS[name]
        if label_smoothing and kind is not Classification:
            raise UntiedError(f"label_smoothing is {label_smoothing}, but the task is {name}: it is for classification")
        return own.called("task", f"{kind.__module__}:{kind.__name__}", **given)  # type: ignore[no-any-return]
    task = own.called("task", name, **given)
    if not isinstance(task, Task) or not getattr(task, "name", None) or not task.metrics:
        raise UntiedError(
            f"task {name} gave {own.a(task)}: it must be an untied.lab.tasks.Task with a name and metrics"
        )
    return task
