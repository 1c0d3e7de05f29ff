"""Optimizers of forward and backward weights, each with its own learning rate over the run."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import untied
from untied.algebra import Rule
from untied.lab.config import OptimizerConfig

__all__ = ["Group", "Optimizers"]

STEPS = (1 / 3, 2 / 3, 8 / 9)  # epochs 30, 60 and 80 of 90


@dataclass
class Group:
    """Parameters that are clipped and moved together."""

    parameters: list[nn.Parameter]
    config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR

    @staticmethod
    def of(parameters: list[nn.Parameter], config: OptimizerConfig, steps: int) -> Group:
        """Set up the optimizer by name, with those of our settings that it has."""
        kind = getattr(torch.optim, config.name)
        known = inspect.signature(kind).parameters
        settings = {k: getattr(config, k) for k in ("lr", "momentum", "weight_decay") if k in known}
        optimizer = kind(parameters, **settings)
        return Group(parameters, config, optimizer, LambdaLR(optimizer, lambda step: factor(config, step / steps)))

    def move(self) -> None:
        """Clip this group's gradients, and step."""
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.schedule.step()


def factor(config: OptimizerConfig, progress: float) -> float:
    """The learning rate at a point of the run (0 to 1), relative to its highest."""
    if progress < config.warmup:
        return progress / config.warmup
    if config.schedule == "cosine":
        rest = (progress - config.warmup) / max(1 - config.warmup, 1e-12)
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
    return 0.1 ** sum(progress >= at for at in STEPS) if config.schedule == "step" else 1.0


class Optimizers:
    """Of a converted model. Weight decay reaches forward weights alone; feedback alignment's B is frozen anyway.

    Kolen-Pollack's B is in the forward group: B and W become equal because both take the same steps.
    """

    def __init__(
        self, model: nn.Module, rule: Rule, forward: OptimizerConfig, backward: OptimizerConfig, steps: int
    ) -> None:
        W, B = untied.parameter_groups(model)
        B = [b for b in B if b.requires_grad]
        self.forward = Group.of(W, forward, steps)
        self.backward = None
        if rule.copies_gradient and B:
            self.forward.optimizer.add_param_group({"params": B, "weight_decay": 0.0})
            self.forward.schedule.base_lrs.append(forward.lr)
            self.forward.schedule.lr_lambdas.append(self.forward.schedule.lr_lambdas[0])
        elif B:
            self.backward = Group.of(B, backward, steps)

    def zero(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            group.optimizer.zero_grad(set_to_none=True)

    @property
    def groups(self) -> list[Group]:
        return [self.forward, *([self.backward] if self.backward is not None else [])]
