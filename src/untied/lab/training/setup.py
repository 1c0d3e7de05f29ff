"""What a run begins with: data, task, and the network under its rule."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

import untied
from untied.lab import tasks
from untied.lab.data import DataConfig, Dataset, load
from untied.lab.models import build
from untied.lab.rules.signs import freeze
from untied.lab.settings.run import TrainConfig
from untied.lab.tasks import Task
from untied.lab.tasks.trees import first, to
from untied.lab.training.learners import made

__all__ = ["dataset", "network", "plain_network", "task_of"]


@lru_cache(maxsize=1)  # successive runs of a process mostly differ in their rule alone
def dataset(config: DataConfig, seed: int, device: str) -> Dataset:
    """The data, read once."""
    return load(config, seed=seed, device=device)


def task_of(config: TrainConfig, data: Dataset) -> Task:
    """What a run trains for: the task that is named, or the data's own.

    Raises:
        UntiedError: there is no such task.
    """
    return tasks.make(config.task, data, config.label_smoothing)


def plain_network(config: TrainConfig, data: Dataset) -> nn.Module:
    """The network as PyTorch has it, with the weights that every rule starts from.

    Raises:
        UntiedError: the model does not fit the data.
    """
    torch.manual_seed(config.seed)
    outputs = task_of(config, data).outputs(data)
    return build(config.model, input_shape=data.input_shape, classes=outputs, vocabulary=data.vocabulary)


def network(config: TrainConfig, data: Dataset) -> nn.Module:
    """The network under its rule: for one seed, W and B start the same under every rule.

    Raises:
        UntiedError: the model does not fit the data, or cannot be untied.
    """
    plain, task = plain_network(config, data), task_of(config, data)
    apart = config.seed + 1_000_003  # B is not to be drawn from the numbers that W was drawn from

    def inputs() -> Any:
        return task.batch(next(iter(data.train.epoch(0))))[0]

    model = made(plain, config.parsed, inputs, apart, config.init)
    if any(is_lazy(p) for p in model.parameters()):  # a B that takes its size from its layer's input
        sized(model, to(first(inputs(), 1), "cpu"))
    freeze(model, config.parsed)
    if config.phases.calibrate:
        with torch.random.fork_rng(devices=[]):  # what the run draws later is the same without it
            untied.mirror_(model, batches=config.phases.calibrate)
    return model


def sized(model: nn.Module, inputs: Any) -> nn.Module:
    """The model, called once without training, so that every B has its size (`untied.rules.broadcast`)."""
    with torch.no_grad():
        model.eval()(inputs)
    return model.train()
