"""Whether network, data and task go together: tried out on two examples before anything is trained."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.data import Dataset
from untied.lab.models import build, is_own
from untied.lab.reading import own
from untied.lab.settings.run import TrainConfig
from untied.lab.tasks.trees import first, shapes, to
from untied.lab.training.setup import plain_network, task_of

__all__ = ["check_fit"]

COPIES = 3  # a step holds W, B and at least one gradient


def check_fit(config: TrainConfig, data: Dataset) -> None:
    """Send two examples through a fresh network, and take their loss.

    Our own networks and images with their classes fit each other by the way they are made, and are not tried.

    Raises:
        UntiedError: the task does not fit the data, or the outputs not the targets; the user's network raised.
    """
    task = task_of(config, data)
    if not is_own(config.model):
        check_size(config, task.outputs(data), data)
    if task.name == data.task == "classification" and not (is_own(config.model) or config.data.is_own):
        return
    inputs, targets = (to(first(part, 2), "cpu") for part in task.batch(next(iter(data.train.epoch(0)))))
    task.expect(targets, data)
    model = plain_network(config, data).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            outputs = model(inputs)
    except Exception as error:
        raise own.blame(f"model {config.model}, given inputs of {shapes(inputs)},", error) from error
    if not isinstance(outputs, Tensor) or not outputs.dim() or not outputs.is_floating_point():
        raise UntiedError(f"model {config.model} gives a {type(outputs).__name__}: it must give one tensor of numbers")
    if len(outputs) != 2:
        raise UntiedError(
            f"model {config.model} gives {len(outputs)} outputs for 2 examples: examples come first, (n, ...)"
        )
    task.fit(outputs, targets)


def check_size(config: TrainConfig, outputs: int, data: Dataset) -> None:
    """Raise UntiedError if the network's weights alone cannot lie in this machine's memory; nothing is allocated."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return
    with torch.device("meta"):
        model = build(config.model, input_shape=data.input_shape, classes=outputs, vocabulary=data.vocabulary)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if COPIES * size > memory:
        raise UntiedError(
            f"model {config.model} has {size / 4:.3g} weights: with backward weights and gradients they take "
            f"{COPIES * size / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f}: choose a smaller one"
        )
