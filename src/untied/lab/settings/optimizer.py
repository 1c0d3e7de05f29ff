"""The optimizer of the forward or of the backward weights."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from untied.errors import UntiedError
from untied.lab.reading.edges import bounded
from untied.lab.reading.fields import Rare

__all__ = ["OptimizerConfig"]

UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")  # of torch.optim: they need a closure, or sparse gradients
ELSEWHERE = {"SWATS": "pytorch_optimizer"}  # not in torch.optim: the package that has it
Argument = bool | float | str | tuple[float, ...]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its learning rate over a run."""

    name: str = "SGD"
    """The optimizer: any class of torch.optim, or SWATS if pytorch-optimizer is installed."""
    lr: float = 0.1
    """The learning rate at its highest."""
    base_batch: Rare[int | None] = None
    """The batch size that lr is for: the rate used is lr times batch size / base_batch. Without one, lr is used as it
    is."""
    momentum: float = 0.9
    """The momentum, for optimizers that have one."""
    weight_decay: float = 0.0
    """How strongly forward kernels are pulled to zero. Biases and scales are not pulled, and backward weights have
    their rule's decay."""
    arguments: Rare[dict[str, Argument]] = field(default_factory=dict)
    """What else the optimizer takes, such as nesterov=true, or betas=0.9,0.95."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How the learning rate changes. With step it is divided by 10 after a third, two thirds and eight ninths of the
    run."""
    warmup: float = 0.0
    """The fraction of the run in which the learning rate rises linearly from 0."""
    clip: float | None = None
    """The bound on this group's gradient. By default there is none."""
    clip_by: Rare[Literal["norm", "value"]] = "norm"
    """Whether clip bounds the norm of the whole group's gradient or each of its elements."""
    noise: Rare[float] = 0.0
    """The standard deviation of noise on each update. 0 adds none."""
    noise_on: Rare[Literal["gradient", "variable"]] = "gradient"
    """Where the noise goes: on the gradient (the paper, section 5), or, times the learning rate, on the variable after
    the update (the paper's reference code). The two are the same only under plain SGD."""
    noise_kind: Rare[Literal["normal", "uniform"]] = "normal"
    """The distribution of the noise."""

    def __post_init__(self) -> None:
        known = optimizer_names()
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UntiedError(f"unknown optimizer {self.name!r}: {hint}possible are {', '.join(sorted(known))}")
        bounded(self, base_batch=10**9)
        if not 0 < self.lr < math.inf:
            raise UntiedError(f"lr is {self.lr}: it must be above 0")
        if self.base_batch is not None and self.base_batch < 1:
            raise UntiedError(f"base_batch is {self.base_batch}: it must be at least 1, or left out")
        if not 0 <= self.momentum < 1:
            raise UntiedError(f"momentum is {self.momentum}: it must be at least 0 and below 1")
        for name in ("weight_decay", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if not 0 <= self.warmup <= 1:
            raise UntiedError(f"warmup is {self.warmup}: it is a fraction of the run, 0 to 1")
        if self.clip is not None and not self.clip > 0:
            raise UntiedError(f"clip is {self.clip}: it must be above 0, or left out")
        for name in ("lr", "momentum", "weight_decay"):
            if name in self.arguments:
                raise UntiedError(f"arguments has {name}, which is a setting of its own: give {name} itself")


def backward_default() -> OptimizerConfig:
    """Of the backward weights: without momentum, with which B overshoots where it follows W within tens of steps."""
    return OptimizerConfig(momentum=0.0)


def optimizer_names() -> list[str]:
    """The names that ``OptimizerConfig`` takes."""
    ours = [
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in UNUSABLE
    ]
    return [*ours, *ELSEWHERE]
