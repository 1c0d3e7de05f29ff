"""`untied check`: is a network under a rule what it says? By number, on one batch, without training."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from untied.errors import UntiedError
from untied.lab.console import say
from untied.lab.data import Dataset
from untied.lab.settings.check import CheckConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.tasks import Task
from untied.lab.tasks.trees import Tree, first, to
from untied.lab.training.fitting import check_fit
from untied.lab.training.learners import learner
from untied.lab.training.setup import dataset, network, task_of

__all__ = ["check", "verdict"]

WIDE = 3 * 64 * 64
"""Up to so many numbers an image, a network is looked at in float64."""


def check(config: CheckConfig, console: Console | None = None) -> int:
    """Print the table and the verdict. Returns the exit code: 0, or 1 if something is wrong.

    Raises:
        UntiedError: the data, the model or the rule is not possible.
    """
    data = dataset(config.data, config.seed, "cpu")
    run = TrainConfig(model=config.model, rule=config.rule, data=config.data, task=config.task, seed=config.seed)
    goal = task_of(run, data)
    check_fit(run, data)
    model = network(run, data)
    x, y = (first(part, config.examples) for part in goal.batch(next(iter(data.train.epoch(0)))))
    report = looked_at(model, goal, x, y)
    say(console or Console(), str(report))
    return 0 if report.verified else 1


def looked_at(model: nn.Module, goal: Task, x: Tree, y: Tree) -> Any:
    """`untied.verify` on inputs and targets: in float64, or for large images in the model's type."""

    def task(copy: nn.Module) -> Tensor:
        with torch.enable_grad():
            return goal.loss(copy(x), y)

    wide = sum(leaf[0].numel() for leaf in tree_leaves(x)) <= WIDE
    targets = y if isinstance(y, Tensor) else None
    found: Any = learner(model).verify(model, task, targets=targets, dtype=torch.float64 if wide else None)
    return found


def verdict(model: nn.Module, data: Dataset, goal: Task) -> str:
    """What `untied.verify` says of a network on two examples, in a line. It never stops a training."""
    try:
        x, y = (to(first(part, 2), "cpu") for part in goal.batch(next(iter(data.train.epoch(0)))))
        said: str = looked_at(model, goal, x, y).verdict
        return said
    except (RuntimeError, UntiedError) as error:
        return f"not verified: {' '.join(str(error).split())}"
