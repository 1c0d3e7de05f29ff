"""Optimizers of forward and backward weights, each with its own learning rate over the run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import untied
from untied.errors import UntiedError
from untied.lab.settings.optimizer import ELSEWHERE, OptimizerConfig
from untied.lab.training.learners import learner
from untied.layers.layer import beside_name, untied_layers
from untied.operations import noise_like
from untied.primitives.primitive import decay
from untied.rules.rule import Rule
from untied.schedules import Coefficient, value

__all__ = ["Group", "Optimizers", "factor", "rings", "time_constant"]

STEPS = (1 / 3, 2 / 3, 8 / 9)  # epochs 30, 60 and 80 of 90


@dataclass
class Group:
    """Parameters that are clipped and moved together.

    Attributes:
        parameters: all of them. copies: those of them that take what the others take, clipped by the others' norm.
        steps: how often it will move, for its learning rate's schedule.
        moves: how often it has moved.
        decay: the weight decay over the run, where it has a course. decays: the optimizer's groups that it is for.
    """

    parameters: list[nn.Parameter]
    config: OptimizerConfig
    optimizer: torch.optim.Optimizer
    lr: float
    steps: int
    moves: int = 0
    copies: tuple[nn.Parameter, ...] = ()
    decay: Coefficient = 0.0
    decays: tuple[int, ...] = ()

    @staticmethod
    def of(
        parts: list[dict[str, Any]],
        config: OptimizerConfig,
        steps: int,
        batch_size: int | None = None,
        decay: Coefficient = 0.0,
    ) -> Group:
        """Set up the optimizer by name, with those of our settings that it has.

        Args:
            parts: as optimizers take them: {"params": ...}, perhaps with a weight decay of its own.
            steps: how often it will move.
            batch_size: for a learning rate that is given for another one.
            decay: the course of the weight decay over the run, of the parts that bring none of their own.

        Raises:
            UntiedError: the optimizer does not know an argument, or does not take these parameters.
        """
        kind = optimizer_class(config.name)
        known = inspect.signature(kind).parameters
        if unknown := [name for name in config.arguments if name not in known]:
            possible = ", ".join(n for n in known if n not in ("params", "kwargs"))
            raise UntiedError(f"optimizer {config.name} has no argument {unknown[0]!r}: possible are {possible}")
        scale = 1.0 if config.base_batch is None or batch_size is None else batch_size / config.base_batch
        settings = {k: getattr(config, k) for k in ("lr", "momentum", "weight_decay") if k in known}
        settings |= {name: argument(text) for name, text in config.arguments.items()}
        settings["lr"] = lr = config.lr * scale
        parts = [part for part in parts if part["params"]]
        decays = tuple(i for i, part in enumerate(parts) if callable(decay) and "weight_decay" not in part)
        try:
            optimizer = kind(parts, **settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UntiedError(f"optimizer {config.name} refuses: {error}; choose another, such as SGD") from error
        parameters = [p for part in parts for p in part["params"]]
        return Group(parameters, config, optimizer, lr, max(steps, 1), decay=decay, decays=decays)

    @torch.no_grad()
    def move(self) -> None:
        """Clip this group's gradients, add noise to them or to the weights, and step."""
        config, progress = self.config, self.moves / self.steps
        lr = self.lr * factor(config, progress)
        if config.clip is not None and config.clip_by == "norm":
            copied = {id(p) for p in self.copies}
            own = [p for p in self.parameters if id(p) not in copied]
            norm = nn.utils.get_total_norm([p.grad for p in own if p.grad is not None])
            nn.utils.clip_grads_with_norm_(self.parameters, config.clip, norm)
        elif config.clip is not None:
            nn.utils.clip_grad_value_(self.parameters, config.clip)
        if config.noise and config.noise_on == "gradient":
            for p in self.parameters:
                if p.grad is not None:
                    p.grad.add_(noise_like(p.grad, config.noise_kind, config.noise))
        for part in self.optimizer.param_groups:
            part["lr"] = lr
        for i in self.decays:
            self.optimizer.param_groups[i]["weight_decay"] = value(self.decay, progress)
        self.optimizer.step()
        if config.noise and config.noise_on == "variable":
            for p in self.parameters:
                if p.grad is not None:
                    p.add_(noise_like(p, config.noise_kind, config.noise), alpha=lr)
        self.moves += 1


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that a name of ``OptimizerConfig`` stands for.

    Raises:
        UntiedError: its package is not installed.
    """
    package = ELSEWHERE.get(name, "torch.optim")
    try:
        kind: type[torch.optim.Optimizer] = getattr(importlib.import_module(package), name)
    except ImportError as error:
        pip = package.replace("_", "-")
        raise UntiedError(f"optimizer {name} needs {pip}: run  pip install {pip},  or choose another") from error
    return kind


def argument(given: Any) -> Any:
    """An optimizer's argument from the command line, where everything is a word: 0.9,0.95 is a pair of numbers."""
    if not isinstance(given, str):
        return given
    if given.lower() in ("true", "false"):
        return given.lower() == "true"
    try:
        numbers = tuple(float(word) for word in given.strip("()[] ").split(","))
    except ValueError:
        return given
    return numbers if len(numbers) > 1 else numbers[0]


def factor(config: OptimizerConfig, progress: float) -> float:
    """The learning rate at a point of the run (0 to 1), relative to its highest."""
    if progress < config.warmup:
        return progress / config.warmup
    if config.schedule == "cosine":
        rest = (progress - config.warmup) / max(1 - config.warmup, 1e-12)
        return 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
    return 0.1 ** sum(progress >= at for at in STEPS) if config.schedule == "step" else 1.0


class Optimizers(torch.optim.Optimizer):
    """Both optimizers of a converted model as one, so that loss scaling finds an overflow for both at once.

    Weight decay reaches forward kernels alone; feedback alignment's B is frozen anyway. A B that copies W's
    pseudogradient moves with W: they become equal because both take the same steps, so W's norm clips both. Where it
    copies and decays alone (Kolen-Pollack), its decay is W's own, a weight decay of the same optimizer for both: R's
    would be clipped and scaled as W's is not, and the steps leave R out.

    Args:
        model: converted.
        rule: of its layers.
        forward, backward: what moves W, and B.
        steps: in which the task is trained. align_steps: in which R is; by default the same.
        batch_size: images in a step, for learning rates that are given for another number.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        forward: OptimizerConfig,
        backward: OptimizerConfig,
        steps: int,
        align_steps: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        W, B = learner(model).groups(model)
        W = [w for w in W if w.requires_grad]
        B = [b for b in B if b.requires_grad]
        course = rule.forward_decay
        if course is not None:
            forward = dataclasses.replace(forward, weight_decay=value(course, 0.0))
            if course and "weight_decay" not in inspect.signature(optimizer_class(forward.name)).parameters:
                raise UntiedError(
                    f"rule {rule} needs W's weight decay, and optimizer {forward.name} has none: choose another, "
                    "such as SGD"
                )
        parts: list[dict[str, Any]] = [
            {"params": [w for w in W if w.dim() > 1]},
            {"params": [w for w in W if w.dim() <= 1], **_NO_DECAY},
        ]
        together: list[dict[str, Any]] = []
        if rule.copies_gradient:
            factors = {id(b) for b in _factors(model)}
            together = [
                {"params": [b for b in B if id(b) not in factors], **(_NO_DECAY if course is None else {})},
                {"params": [b for b in B if id(b) in factors], **_NO_DECAY},
            ]
        self.forward = Group.of(parts + together, forward, steps, batch_size, 0.0 if course is None else course)
        self.forward.copies = tuple(B) if together else ()
        self.backward = (
            Group.of([{"params": B}], backward, steps if align_steps is None else align_steps, batch_size)
            if B and not together
            else None
        )
        self.moving: list[Group] = self.all
        super().__init__([{"params": group.parameters} for group in self.all], {})

    @property
    def all(self) -> list[Group]:
        """The groups there are."""
        return [self.forward, *([self.backward] if self.backward is not None else [])]

    @property
    def named(self) -> dict[str, Group]:
        """The groups by name, for checkpoints."""
        return dict(zip(("forward", "backward"), self.all, strict=False))

    def choose(self, task: bool, align: bool) -> None:
        """Which groups the next steps move: momentum and weight decay would move W without a task."""
        self.moving = [
            group for group, moves in ((self.forward, task), (self.backward, align)) if group is not None and moves
        ]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the chosen groups."""
        for group in self.moving:
            group.move()


_NO_DECAY = {"weight_decay": 0.0}


def _factors(model: nn.Module) -> list[Any]:
    """What stands beside W and is not B, such as the other factor of a product: it neither copies nor decays."""
    return [
        getattr(layer, beside_name(weight, key), None)
        for layer in untied_layers(model).values()
        for weight in layer.own_weights()
        for key in layer.rule.keeps
        if key != "backward_weight"
    ]


def time_constant(rule: Rule, optimizer: OptimizerConfig) -> float | None:
    """Steps in which a difference between B and what it follows falls to 1/e, where that is simple: SGD, a rule of
    weights alone, at numbers for coefficients; None elsewhere. It should be small against the run.

    Differences decay at the rate of the rule's decay: see `untied.dynamics.time_constant`.
    """
    if not rule.aligns or rule.needs_data or optimizer.name != "SGD":
        return None
    if any(map(callable, rule.combination.values())):
        return None
    rate = value(rule.combination.get(decay, 0.0), 0.0)
    steps = float(untied.dynamics.time_constant(rate, optimizer.lr, optimizer.momentum))
    return steps if math.isfinite(steps) else None


def rings(rule: Rule, optimizer: OptimizerConfig) -> str:
    """In words, that B swings around what it follows, where that is simple to know; empty where it does not."""
    if time_constant(rule, optimizer) is None:
        return ""
    a = optimizer.lr * value(rule.combination.get(decay, 0.0), 0.0)
    tau = (1 - optimizer.momentum) / a
    if not (tau < 2 and (optimizer.momentum > 0 or a > 1)):
        return ""
    return (
        f"B swings around W: (1 - momentum) / (lr × decay) is {tau:.2g} steps, below 2; give B's optimizer "
        f"{'no momentum' if optimizer.momentum else 'a lower learning rate'}"
    )
