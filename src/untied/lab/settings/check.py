"""The settings of untied check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from untied.errors import UntiedError
from untied.lab.data import DataConfig

__all__ = ["CheckConfig"]


@dataclass(frozen=True)
class CheckConfig:
    """Say by number, on one batch, whether errors go through the backward weights alone, and what moves those."""

    model: Annotated[str, tyro.conf.Positional] = "resnet18-w8"
    """The network, as untied train takes it. It is freshly initialised."""
    rule: str = "sa"
    """The learning rule."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", batch_size=32, validation=0.2))
    """The data; --data NAME is short for --data.name NAME."""
    task: str = ""
    """The task. By default it is what the data are for."""
    examples: int = 8
    """How many examples the batch has."""
    seed: int = 0
    """The seed of initial weights and the order of the data."""

    def __post_init__(self) -> None:
        if self.examples < 2:
            raise UntiedError(f"examples is {self.examples}: it must be at least 2, for batch normalisation")
