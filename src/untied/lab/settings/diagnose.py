"""The settings of untied diagnose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.optimizer import OptimizerConfig

__all__ = ["DiagnoseConfig"]


@dataclass(frozen=True)
class DiagnoseConfig:
    """Say of each layer whether its backward weights will diverge, stay or collapse under a rule; what to change."""

    command: ClassVar[str] = "diagnose"

    model: Annotated[str, tyro.conf.Positional] = "resnet18-w8"
    """The network, as untied train takes it, freshly initialised; or the folder of a run of untied train."""
    rule: str | None = None
    """The learning rule, perhaps with its backward weights' optimizer: "wm(decay=2) @ SGD(lr=0.01)". By default it is
    wm, or the rule of the run."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", batch_size=32, validation=0.2))
    """The data; --data NAME is short for --data.name NAME."""
    task: str = ""
    """The task. By default it is what the data are for."""
    batches: int = 2
    """How many training batches are run through the network."""
    examples: int = 32
    """How many examples of each batch each layer is probed with."""
    steps: int = 0
    """For how many steps the network is then trained, to show what became of B."""
    seed: int = 0
    """The seed of initial weights and the order of the data."""
    forward: OptimizerConfig = field(default_factory=lambda: CompareConfig().forward)
    """The optimizer of the forward weights, if there are steps."""
    backward: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer of the backward weights."""
    device: str = "cpu"
    """The device: cpu, cuda, cuda:1, ..."""
    out: Path | None = None
    """The run folder. By default it is runs/diagnose-TIME."""
    overwrite: bool = False
    """Whether what an earlier call has written there is replaced."""

    def __post_init__(self) -> None:
        for name, least in (("batches", 1), ("examples", 1), ("steps", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
