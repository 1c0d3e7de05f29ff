"""Scores of a split, and how well B stands in for W."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from untied.errors import UntiedError
from untied.lab.data import Dataset, Loader
from untied.lab.devices.devices import summed
from untied.lab.devices.fabric import Fabric
from untied.lab.settings.run import TrainConfig
from untied.lab.tasks import Task
from untied.lab.tasks.trees import first, groups, size
from untied.lab.training.learners import learner
from untied.lab.training.setup import task_of

__all__ = ["Scores", "evaluate"]


@dataclass(frozen=True)
class Scores:
    """Of a split: the task's metrics by name, and mean loss."""

    metrics: dict[str, float]
    loss: float


def evaluate(
    model: nn.Module,
    loader: Loader,
    task: Task,
    fabric: Fabric | None = None,
    between: Callable[[], None] = lambda: None,
) -> Scores:
    """Score a split, in evaluation mode, each process its part. Images that cannot be read do not count.

    ``between`` is called before every batch.
    """
    rank, world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    precision = nullcontext() if fabric is None else fabric.autocast()
    model.eval()
    sums = torch.zeros(2 + task.width, dtype=torch.float64)
    with torch.no_grad(), precision:
        for images, labels in map(task.batch, loader.epoch(0, share=(rank, world))):
            between()
            outputs, n = model(images).float(), size(labels)
            loss = task.loss(outputs, labels).double().cpu()
            sums += torch.cat([task.tally(outputs, labels).double().cpu(), torch.stack([loss * n, loss.new_tensor(n)])])
    if fabric is not None:
        sums = summed(fabric, sums.to(fabric.device))
    *tally, loss, count = sums.tolist()
    if not count:
        raise UntiedError("the split that is to be evaluated has no images")
    return Scores(task.scores(tally, count), loss / count)


Look = tuple[Callable[[], Tensor], Tensor | None]
LOOKS = 4
"""Batches over which the gradient angle is looked at in the end."""


def losses(model: nn.Module, data: Dataset, fabric: Fabric, config: TrainConfig, count: int) -> list[Look]:
    """The task's loss on each of the first batches of training's size, in training mode, with the same random numbers
    each time."""
    task = task_of(config, data)
    batches = data.validation if data.validation.size else data.train
    torch.manual_seed(config.seed)
    model.train()

    def of(x: Any, y: Any) -> Look:
        def loss() -> Tensor:
            torch.manual_seed(config.seed)  # for dropout, and for rules whose B is drawn anew for each batch
            with fabric.autocast():
                return task.loss(model(x), y)

        return loss, y if isinstance(y, Tensor) else None

    n = min(config.data.batch_size, 256)
    several = (zip(*(groups(part, n) for part in task.batch(batch)), strict=True) for batch in batches)
    return [of(x, y) for x, y in islice(chain.from_iterable(several), count)]


def alignment(model: nn.Module, data: Dataset, fabric: Fabric, config: TrainConfig) -> dict[str, Any]:
    """How well B stands in for W, by layer and on one fixed batch in training mode: degrees, and ‖B‖ / ‖W‖.

    The weight angle is that of the weights that activity reaches: what sees padding alone, or pixels that are always 0,
    changes nothing.
    """
    torch.manual_seed(config.seed)  # a redrawn B and dropout are the same each time
    task = task_of(config, data)
    batch = task.batch(next(iter(data.validation if data.validation.size else data.train)))
    images, labels = (first(part, min(config.data.batch_size, 256)) for part in batch)
    model.train()
    torch.manual_seed(config.seed)  # for dropout, and for rules whose B is drawn anew for each batch

    def loss() -> Tensor:
        with fabric.autocast():
            return task.loss(model(images), labels)

    targets = labels if isinstance(labels, Tensor) else None  # for rules that send them
    about = learner(model)
    metrics: dict[str, Any] = {"norm_ratio": about.norm_ratios(model)}
    if config.angles == "weights":
        return metrics | {
            "weight_angle": about.weight_angles(model, loss),
            "gradient_angle": about.gradient_angle(model, loss, targets),
        }
    table = about.measure(model, loss, targets)
    for name in ("projection_angle", "local_gradient_angle", "gradient_norm", "growth"):
        metrics[name] = {layer: getattr(row, name) for layer, row in table.layers.items()}
    metrics["weight_angle"] = {layer: row.reached_angle for layer, row in table.layers.items()}
    metrics["layer_gradient_angle"] = {layer: row.gradient_angle for layer, row in table.layers.items()}
    return metrics | {"gradient_angle": table.gradient_angle}
