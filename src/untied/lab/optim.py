"""Optimizers of forward and backward weights, each with its own learning rate over the run."""

from __future__ import annotations

import cmath
import dataclasses
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import untied
from untied.algebra import Alignment, Rule
from untied.errors import UntiedError
from untied.lab.config import OptimizerConfig
from untied.primitives import decay
from untied.schedules import value

__all__ = ["Group", "Optimizers", "time_constant"]

STEPS = (1 / 3, 2 / 3, 8 / 9)  # epochs 30, 60 and 80 of 90


@dataclass
class Group:
    """Parameters that are clipped and moved together."""

    parameters: list[nn.Parameter]
    config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR

    @staticmethod
    def of(parts: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> Group:
        """Set up the optimizer by name, with those of our settings that it has.

        Args:
            parts: as optimizers take them: {"params": ...}, perhaps with a weight decay of its own.
            steps: how often it will move, for its learning rate's schedule.
        """
        kind = getattr(torch.optim, config.name)
        known = inspect.signature(kind).parameters
        settings = {k: getattr(config, k) for k in ("lr", "momentum", "weight_decay") if k in known}
        try:
            optimizer = kind([p for p in parts if p["params"]], **settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UntiedError(f"optimizer {config.name} refuses: {error}; choose another, such as SGD") from error
        schedule = LambdaLR(optimizer, lambda step: factor(config, step / steps))
        return Group([p for part in parts for p in part["params"]], config, optimizer, schedule)

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
    """Of a converted model. Weight decay reaches forward kernels alone; feedback alignment's B is frozen anyway.

    Kolen-Pollack's B moves with W: they become equal because both take the same steps, so its decay is W's weight
    decay too, and one norm clips both.

    Args:
        model: converted.
        rule: of its layers.
        forward, backward: what moves W, and B.
        steps: in which the task is trained. delay: steps of alignment alone before them.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        forward: OptimizerConfig,
        backward: OptimizerConfig,
        steps: int,
        delay: int = 0,
    ) -> None:
        W, B = untied.parameter_groups(model)
        B = [b for b in B if b.requires_grad]
        if rule.copies_gradient:
            assert isinstance(rule, Alignment)
            forward = dataclasses.replace(forward, weight_decay=value(rule.combination.get(decay, 0.0), 0.0))
        parts: list[dict[str, Any]] = [
            {"params": [w for w in W if w.dim() > 1]},
            {"params": [w for w in W if w.dim() <= 1], **_NO_DECAY},
        ]
        together = [{"params": B, **_NO_DECAY}] if rule.copies_gradient else []
        self.forward = Group.of(parts + together, forward, steps)
        self.backward = Group.of([{"params": B}], backward, steps + delay) if B and not together else None

    def zero(self) -> None:
        """Drop all gradients."""
        for group in self.groups:
            group.optimizer.zero_grad(set_to_none=True)

    @property
    def groups(self) -> list[Group]:
        return [self.forward, *([self.backward] if self.backward is not None else [])]


_NO_DECAY = {"weight_decay": 0.0}


def time_constant(rule: Rule, optimizer: OptimizerConfig) -> float | None:
    """Steps in which a difference between B and what it follows falls to 1/e, where that is simple: SGD, a rule of
    weights alone, at numbers for coefficients; None elsewhere.

    With a = learning rate × decay and momentum m, differences go with the roots of z² − (1 + m − a) z + m: for small
    a, (1 − m) / a steps. It should be small against the run.
    """
    if not isinstance(rule, Alignment) or rule.needs_data or optimizer.name != "SGD":
        return None
    if any(map(callable, rule.combination.values())):
        return None
    a = optimizer.lr * value(rule.combination.get(decay, 0.0), 0.0)
    half = (1 + optimizer.momentum - a) / 2
    root = cmath.sqrt(half**2 - optimizer.momentum)
    slowest = max(abs(half + root), abs(half - root))
    if a == 0 or slowest >= 1:
        return None
    return -1 / math.log(slowest) if slowest > 0 else 0.0
