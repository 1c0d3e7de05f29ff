"""`untied check`: is a network under a rule what it says? By number, on one batch, without training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import Tensor, nn

import untied
from untied.errors import UntiedError
from untied.lab.config import TrainConfig
from untied.lab.console import say
from untied.lab.data import DataConfig
from untied.lab.loop import dataset, network

__all__ = ["CheckConfig", "check"]


@dataclass(frozen=True)
class CheckConfig:
    """Say by number, on one batch, whether errors go through the backward weights alone, and what moves those."""

    model: Annotated[str, tyro.conf.Positional] = "resnet18-w8"
    """A network, as untied train takes it, freshly initialised."""
    rule: str = "sa"
    """The learning rule."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", batch_size=32, validation=0.2))
    """The data; --data NAME is short for --data.name NAME."""
    examples: int = 8
    """Images of the batch."""
    seed: int = 0
    """Of initial weights and the order of images."""

    def __post_init__(self) -> None:
        if self.examples < 2:
            raise UntiedError(f"examples is {self.examples}: it must be at least 2, for batch normalisation")


def check(config: CheckConfig, console: Console | None = None) -> int:
    """Print the table and the verdict. Returns the exit code: 0, or 1 if something is wrong.

    Raises:
        UntiedError: the data, the model or the rule is not possible.
    """
    data = dataset(config.data, config.seed, "cpu")
    model = network(TrainConfig(model=config.model, rule=config.rule, data=config.data, seed=config.seed), data)
    images, labels = next(iter(data.train.epoch(0)))
    x, y = images[: config.examples], labels[: config.examples]

    def task(copy: nn.Module) -> Tensor:
        with torch.enable_grad():
            return F.cross_entropy(copy(x), y)

    report = untied.verify(model, task)
    say(console or Console(), str(report))
    return 0 if report.verified else 1
