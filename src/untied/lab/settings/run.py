"""One run: a network, a rule, a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from untied.errors import UntiedError
from untied.initial import angle_of
from untied.lab import tasks
from untied.lab.data import DataConfig
from untied.lab.reading.edges import INTEGER, bounded
from untied.lab.reading.fields import Rare
from untied.lab.rules.signs import trained_as
from untied.lab.rules.targets import ByTargets
from untied.lab.settings.devices import DeviceConfig
from untied.lab.settings.entries import TUNED, parse_entry
from untied.lab.settings.optimizer import OptimizerConfig, backward_default
from untied.lab.settings.phases import PhaseConfig, weight
from untied.rules import parse
from untied.rules.rule import Rule
from untied.schedules import value

__all__ = ["TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """Train one network with one learning rule."""

    command: ClassVar[str] = "train"

    rule: str = "sa"
    """The learning rule, such as sa, "ia(amp=1, null=2)" or "amp + 0.5*decay", perhaps with its backward weights'
    optimizer, as in "aa @ Adam(lr=0.003)". Write tuned:ia for the settings that we have tuned. The command untied rules
    lists what there is."""
    model: str = "resnet18"
    """The network: mlp-256-128-tanh, cnn, resnet18-w16, resnet50v2, torchvision:NAME, timm:NAME, ..."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits"))
    """The data; --data NAME is short for --data.name NAME. data.batch_size counts the images of all processes."""
    task: str = ""
    """The task: classification, regression, multi-label, next-token, autoencoding, or your own as package.module:Task.
    By default it is what the data are for."""
    epochs: int = 10
    """How many passes over the training data are made."""
    seed: int = 0
    """The seed of initial weights, the order of examples, augmentation and noise."""
    init: str = "like"
    """Where the backward weights start: like (drawn as the forward weights are), copy (of them), or "angle(30)", which
    is so many degrees from the forward weight, and as long."""
    forward: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(weight_decay=1e-4, schedule="cosine", warmup=0.05)
    )
    """The optimizer of the forward weights. It also moves the backward weights of Kolen-Pollack, which have to take the
    same steps, and whose decay takes the place of the forward weight decay."""
    backward: OptimizerConfig = field(default_factory=backward_default)
    """The optimizer of the backward weights."""
    phases: PhaseConfig = field(default_factory=PhaseConfig)
    """When the task is trained and when the backward weights align."""
    label_smoothing: Rare[float] = 0.0
    """The label smoothing of cross-entropy, in classification."""
    ema: Rare[float | None] = None
    """The decay, in each step, of an exponential moving average of all weights, which is then what is evaluated."""
    accumulate: Rare[int] = 1
    """In how many parts a batch is computed, one after the other, to save memory."""
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    """Where the run computes."""
    verify: bool = True
    """Whether the network is looked at by number before the first step, as untied check does. It costs a few passes."""
    angles: Rare[Literal["all", "weights"]] = "all"
    """What is measured after each epoch: all angles, or weight angles and the whole gradient's angle."""
    evaluate_on: Literal["test", "validation"] = "test"
    """The split that is evaluated once, at the end. Choose settings on validation."""
    checkpoint_minutes: Rare[float] = 10.0
    """How many minutes pass between two checkpoints within an epoch. There is one after each epoch too."""
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    """Where metrics go besides the run folder: Weights & Biases or MLflow, if installed."""
    out: Path | None = None
    """The run folder. By default it is runs/train-TIME."""
    overwrite: bool = False
    """Whether an earlier run in that folder is replaced."""

    def __post_init__(self) -> None:
        if "@" in self.rule or TUNED in self.rule:  # read once, here: what follows has a rule and an optimizer
            rule, backward = parse_entry(self.rule, self.backward)
            if self.backward not in (backward, backward_default()):
                raise UntiedError(
                    f"rule {self.rule!r} brings its backward weights' optimizer, and backward says another: "
                    "leave one out"
                )
            object.__setattr__(self, "rule", str(rule))
            object.__setattr__(self, "backward", backward)
        bounded(self, epochs=10**9, seed=INTEGER, accumulate=10**9)
        checked_init(self.init)
        if self.init != "like" and not trained_as(self.parsed).takes_init:
            raise UntiedError(f"init is {self.init!r}, and rule {self.rule} has no B that could start so: leave it out")
        for name, least in (("epochs", 1), ("seed", 0), ("accumulate", 1), ("checkpoint_minutes", 0)):
            if not getattr(self, name) >= least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        tasks.check_name(self.task)
        if not 0 <= self.label_smoothing < 1:
            raise UntiedError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UntiedError(f"ema is {self.ema}: it must be between 0 and 1, such as 0.999, or left out")
        if self.parsed.mirrors and self.devices.strategy == "fsdp":
            raise UntiedError(
                f"rule is {self.rule} and devices.strategy is fsdp: the rule needs the whole of W between two steps, "
                "and fsdp shards it; use ddp, or a rule that an optimizer moves, such as kp or sa"
            )
        if self.ema is not None and self.devices.strategy == "fsdp":
            raise UntiedError(
                "ema is set and devices.strategy is fsdp: the average would need every weight on every device; "
                "leave ema out, or use ddp"
            )
        if self.data.batch_size % self.accumulate:
            raise UntiedError(
                f"accumulate is {self.accumulate} but data.batch_size is {self.data.batch_size}: "
                "the first must divide the second"
            )
        if self.evaluate_on == "validation" and not self.data.validation:
            raise UntiedError(
                "evaluate_on is validation but data.validation is 0: hold some images out, or use the test split"
            )
        rule = self.parsed
        if rule.copies_gradient and self.phases.kind != "simultaneous":
            raise UntiedError(
                f"rule is {self.rule} but phases.kind is {self.phases.kind}: Kolen-Pollack's backward weights move "
                "with the forward ones, in every step; use simultaneous"
            )
        if rule.copies_gradient and self.phases.align_steps > 1:
            raise UntiedError(
                f"rule is {self.rule} but phases.align_steps is {self.phases.align_steps}: Kolen-Pollack's backward "
                "weights move with the forward ones, once a batch; leave it at 1"
            )
        if rule.forward_decay is not None and str(self.phases.align) not in ("1", "1.0"):
            raise UntiedError(
                f"rule is {self.rule} but phases.align is {self.phases.align}: its decay is W's weight decay "
                "too, which no weight of R scales; leave it at 1"
            )
        if rule.motion == ByTargets.motion and (self.devices.precision == "16" or self.devices.compile):
            given = "precision is 16" if self.devices.precision == "16" else "compile is set"
            raise UntiedError(
                f"rule is {self.rule} but devices.{given}: targets are made in the backward pass, from an error that "
                "is not scaled, outside of any graph; use 32 or bf16, not compiled"
            )
        if max(value(weight("task", self.phases.task), at / 20) for at in range(21)) == 0:
            raise UntiedError(f"phases.task is {self.phases.task}: the task would never be trained; give it a weight")

    @cached_property
    def parsed(self) -> Rule:
        """The rule as an object."""
        return parse(self.rule)


def checked_init(given: str) -> None:
    """Refuse a start that is none.

    Raises:
        UntiedError: it is neither like, nor copy, nor an angle.
    """
    if given not in ("like", "copy") and angle_of(given) is None:
        raise UntiedError(f"init is {given!r}: possible are like, copy, and angle(30), 0 to 180 degrees from W")
