"""What a user decides, as frozen dataclasses: from the command line, from YAML, and written back as YAML."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from untied import schedules
from untied.calibrate import measurable
from untied.errors import UntiedError
from untied.initial import angle_of
from untied.lab import tasks
from untied.lab.data import DataConfig
from untied.lab.reading.edges import INTEGER, bounded, load_yaml, shown
from untied.lab.reading.fields import Rare, from_mapping
from untied.lab.rules.signs import FROZEN, trained_as
from untied.lab.rules.targets import ByTargets
from untied.rules import parse
from untied.rules.rule import Rule
from untied.schedules import Coefficient, value

__all__ = [
    "PRESETS",
    "TUNED",
    "CompareConfig",
    "DeviceConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "TrainConfig",
    "is_called",
    "label",
    "parse_entry",
    "written_out",
]

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


@dataclass(frozen=True)
class PhaseConfig:
    """When the task is trained and when the backward weights align. Rules with nothing to align skip all of it."""

    kind: Literal["simultaneous", "alternating", "mirror"] = "simultaneous"
    """How the two take turns. In simultaneous, both are trained in every step. In alternating, one step of alignment
    alone comes before task_steps of the task alone. In mirror, mirror_epochs of alignment alone come before
    engaged_epochs of the task alone, as weight mirror has it."""
    delay: int = 0
    """How many epochs of alignment alone come first. They are not counted in epochs."""
    calibrate: int = 0
    """How many noise measurements of W are averaged into B before the first step, as untied.mirror_ does. It takes no
    data, and 16 leave an angle of about 14 degrees."""
    align_steps: int = 1
    """How many steps of alignment each batch gets: all but the last are of alignment alone, before the task's."""
    task_steps: Rare[int] = 1
    """How many task steps follow each alignment step, where kind is alternating."""
    mirror_epochs: Rare[int] = 1
    """How many epochs of alignment alone each cycle has, where kind is mirror. They are counted in epochs."""
    engaged_epochs: Rare[int] = 1
    """How many epochs of the task alone each cycle has, where kind is mirror."""
    task: Rare[str] = "1"
    """The weight of the task loss J: a number, or a schedule such as "linear(0, 1, stop=0.1)"."""
    align: Rare[str] = "1"
    """The weight of the penalty R: a number or a schedule."""

    def __post_init__(self) -> None:
        for name, least in (
            ("delay", 0),
            ("calibrate", 0),
            ("align_steps", 1),
            ("task_steps", 1),
            ("mirror_epochs", 1),
            ("engaged_epochs", 1),
        ):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
            bounded(self, **{name: 10**9})
        for kind, names in (("alternating", ["task_steps"]), ("mirror", ["mirror_epochs", "engaged_epochs"])):
            for name in names:
                if self.kind != kind and getattr(self, name) != 1:
                    raise UntiedError(f"phases.{name} is {getattr(self, name)} but phases.kind is {self.kind}: {name} "
                                      f"is for {kind}; change one of the two")  # fmt: skip
        for name in ("task", "align"):
            weight(name, getattr(self, name))


def weight(name: str, text: str) -> Coefficient:
    """The weight of a loss term from its text.

    Raises:
        UntiedError: it cannot be read, or is negative.
    """
    try:
        given = schedules.parse(text)
        values = [value(given, at / 20) for at in range(21)]
    except UntiedError as error:
        raise UntiedError(f"phases.{name}: {error}") from None
    if not all(0 <= number < math.inf for number in values):
        raise UntiedError(f"phases.{name} is {text}: a loss term's weight must not be negative, nor infinite")
    return given


@dataclass(frozen=True)
class DeviceConfig:
    """Where a run computes, and in which numbers."""

    accelerator: str = "auto"
    """The kind of device: cpu, cuda, mps, tpu, or auto for the best there is."""
    devices: int | None = None
    """The number of processes on each machine, one a device. By default one, or as many as torchrun has started."""
    nodes: int = 1
    """The number of machines. Start the same command on each, with torchrun or srun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How processes share the network: ddp (auto) copies it to each, fsdp shards weights, gradients and optimizers."""
    precision: Literal["32", "bf16", "16"] = "32"
    """The numbers: 32 bits; or mixed with bfloat16 (bf16), or with float16 and loss scaling (16)."""
    tf32: Rare[bool] = False
    """Whether float32 products round to TF32 on GPUs that have it."""
    compile: bool = False
    """Whether torch.compile compiles the training pass (network, J and R). Evaluation is not compiled."""
    channels_last: Rare[bool] = False
    """Whether convolutions' tensors have channels last, which many devices prefer."""
    sync_batch_norm: Rare[bool] = False
    """Whether batch normalisation sees the whole batch rather than each process's part of it."""

    def __post_init__(self) -> None:
        bounded(self, devices=10**5, nodes=10**5)
        if self.devices is not None and self.devices < 1:
            raise UntiedError(f"devices is {self.devices}: it must be at least 1, or left out")
        if self.nodes < 1:
            raise UntiedError(f"nodes is {self.nodes}: it must be at least 1")


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


PRESETS = {
    "kp": "kp(decay=0.01)",
    "wm": "wm(positions=mean, noise=normal) @ Adam(lr=0.01)",
    "ia": "ia(null=0.1, positions=mean, noise=normal) @ Adam(lr=0.02)",
    "sa": "sa @ SGD(lr=0.5, momentum=0)",
    "aa": "aa @ Adam(lr=0.04)",
    "dfa": "dfa(kernel=position, scale=0.3)",
    "sdfa": "sdfa(kernel=position, scale=0.0003)",
    "drtp": "drtp(kernel=position, scale=0.003)",
    "dkp": "dkp(copy=0.00001, decay=0.001, kernel=position, scale=0.3)",
    "pfa": "pfa(decay=0.03)",
    "ldfa": "ldfa(rank=4, decay=0.01)",
}
"""What ``tuned:NAME`` stands for: coefficients and the optimizer of the backward weights, chosen from the grids of
benchmarks/tune_digits.py on the validation split of the default task. A bare name is exactly the rule, with
coefficients of 1 and the default optimizer, as in the library."""

TUNED = "tuned:"

DEFINED = {name: f"{name}(kernel=position)" for name in ("dfa", "sdfa", "drtp", "dkp")}
"""What a bare broadcast rule is in a comparison, which says so: the field has two definitions for convolutions."""


def written_out(entry: str) -> str:
    """An entry of ``rules`` with tuned settings in place of ``tuned:NAME``.

    Raises:
        UntiedError: no settings of this name were tuned.
    """
    entry = entry.strip()
    if not entry.startswith(TUNED):
        return entry
    name = entry.removeprefix(TUNED).strip()
    if name not in PRESETS:
        raise UntiedError(
            f"there are no tuned settings for {name!r}: tuned are {', '.join(PRESETS)}; or write the rule"
        )
    return PRESETS[name]


def checked_init(given: str) -> None:
    """Refuse a start that is none.

    Raises:
        UntiedError: it is neither like, nor copy, nor an angle.
    """
    if given not in ("like", "copy") and angle_of(given) is None:
        raise UntiedError(f"init is {given!r}: possible are like, copy, and angle(30), 0 to 180 degrees from W")


def label(entry: str) -> str:
    """The short form of an entry of ``rules``: ``tuned:NAME`` in place of its text."""
    short = {text: name for name, text in DEFINED.items()} | {t: TUNED + n for n, t in PRESETS.items() if t != n}
    return short.get(entry, entry)


def is_called(label_there: str, entry: str) -> bool:
    """Whether a table's row is of this entry; tables of version 0.1 have no ``tuned:`` before the name."""
    return label_there in (label(entry), label(entry).removeprefix(TUNED))


@dataclass(frozen=True)
class CompareConfig:
    """Train the same network from the same initial weights with each of several learning rules."""

    command: ClassVar[str] = "compare"

    rules: tuple[str, ...] = (
        "bp", "fa", "tuned:dfa", "tuned:kp", "tuned:wm", "tuned:ia", "tuned:sa", "tuned:aa", "mkp",
    )  # fmt: skip
    """The learning rules, such as sa, "ia(amp=1, null=2)" or "amp + 0.5*decay". A rule can bring its own optimizer for
    its backward weights: "aa @ Adam(lr=0.003)". Write tuned:ia for the settings that we have tuned. The command untied
    rules lists what there is."""
    model: str = "resnet18-w8"
    """The network: mlp-256-128, cnn, resnet18-w16, resnet50v2, torchvision:NAME, timm:NAME, ..."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", batch_size=32, validation=0.2))
    """The data; --data NAME is short for --data.name NAME."""
    task: str = ""
    """The task: classification, regression, multi-label, next-token, autoencoding, or your own as package.module:Task.
    By default it is what the data are for."""
    epochs: int = 7
    """How many passes over the training data are made."""
    seeds: int = 3
    """How often each rule is trained, each time from other weights and with another order of the data."""
    first_seed: int = 0
    """The first of these seeds."""
    delay: int = 0
    """How many epochs of alignment alone come before the task. They are not counted in epochs."""
    align_steps: int = 1
    """How many steps of alignment each batch gets: all but the last are of alignment alone, before the task's."""
    forward: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(weight_decay=1e-3, schedule="cosine", warmup=0.05, clip=5.0)
    )
    """The optimizer of the forward weights. It also moves the backward weights of Kolen-Pollack, which have to take the
    same steps, and whose decay takes the place of the forward weight decay."""
    backward: OptimizerConfig = field(default_factory=backward_default)
    """The optimizer of the backward weights. Rules that bring an optimizer of their own keep it."""
    init: str = "like"
    """Where the backward weights start: like (drawn as the forward weights are), copy (of them), or "angle(30)", which
    is so many degrees from the forward weight, and as long."""
    calibrate: int = 0
    """How many noise measurements of W are averaged into B before the first step, as untied.mirror_ does."""
    verify: bool = True
    """Whether the network is looked at by number before the first step, as untied check does. It costs a few passes."""
    frozen: bool = True
    """Whether the network with random, frozen hidden layers is trained too, as a baseline. Rules that are not above it
    are marked."""
    evaluate_on: Literal["test", "validation"] = "test"
    """The split whose scores the table shows, at the end of each run. Choose settings on validation."""
    device: str = "cpu"
    """The device: cpu, cuda, cuda:1, ..."""
    precision: Literal["32", "bf16", "16"] = "32"
    """The numbers: 32 bits; or mixed with bfloat16 (bf16), or with float16 and loss scaling (16)."""
    channels_last: bool = False
    """Whether convolutions' tensors have channels last, which many devices prefer."""
    workers: int = 2
    """How many runs are trained at a time, each in a process of its own. 0 trains in this process."""
    timing_steps: int = 12
    """How many interleaved steps measure each rule's cost at the end. 0 leaves it out."""
    out: Path | None = None
    """The run folder. By default it is runs/compare-TIME."""
    overwrite: bool = False
    """Whether an earlier run in that folder is replaced."""

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1), ("seeds", 1), ("first_seed", 0), ("delay", 0), ("align_steps", 1), ("calibrate", 0),
            ("workers", 0), ("timing_steps", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        checked_init(self.init)
        tasks.check_name(self.task)
        if not self.rules:
            raise UntiedError("no rules are given: name at least one, such as --rules bp sa")
        entries = self.entries
        twice = next((r for i, r in enumerate(self.rules) if entries[i] in entries[:i]), None)
        if twice is not None:
            raise UntiedError(f"rule {twice!r} is given twice: name each once, and set the number of runs with --seeds")
        assert self.entrants

    @cached_property
    def entrants(self) -> dict[str, tuple[Rule, OptimizerConfig]]:
        """By entry, as ``entries`` has it: the rule, and its backward weights' optimizer."""
        return {entry: parse_entry(entry, self.backward) for entry in self.entries}

    @property
    def entries(self) -> tuple[str, ...]:
        """The rules with presets written out, and the baseline."""
        rules = tuple(DEFINED.get(rule.strip()) or written_out(rule) for rule in self.rules)
        return (*rules, FROZEN) if self.frozen and FROZEN not in rules else rules

    @property
    def about_entries(self) -> list[str]:
        """In words, what is done with entries that one might expect to be another thing."""
        said = [
            f"{name} has two definitions for convolutions: this is {DEFINED[name]}, the other is kernel=dense"
            for name in map(str.strip, self.rules)
            if name in DEFINED
        ]
        own = [rule for rule in self.rules if "@" in written_out(rule)]
        without = [rule for rule, (r, _) in self.entrants.items() if not trained_as(r).takes_init]
        if self.init != "like" and without:
            said.append(f"init is {self.init}, and {', '.join(map(label, without))} have no B that could start so")
        unmeasured = [rule for rule, (r, _) in self.entrants.items() if not measurable(trained_as(r))]
        if self.calibrate and unmeasured:
            said.append(
                f"calibrate is {self.calibrate}, and {', '.join(map(label, unmeasured))} have no B to calibrate"
            )
        once = [rule for rule, (r, _) in self.entrants.items() if not r.aligns_alone]
        if self.align_steps > 1 and once:
            said.append(
                f"align_steps is {self.align_steps}, and {', '.join(map(label, once))} have nothing that could align "
                "apart from the task: they take one step a batch"
            )
        if own and self.backward != backward_default():
            said.append(f"backward is set, and {', '.join(own)} bring optimizers of their own, which they keep")
        return said

    def run(self, entry: str, seed: int) -> TrainConfig:
        """One of the runs: an entry of ``rules``, a seed."""
        rule, backward = self.entrants.get(entry) or parse_entry(entry, self.backward)
        return TrainConfig(
            rule=str(rule), model=self.model, data=self.data, task=self.task, epochs=self.epochs, seed=seed,
            init=self.init if trained_as(rule).takes_init else "like", forward=self.forward, backward=backward,
            phases=PhaseConfig(
                delay=self.delay, align_steps=self.align_steps if rule.aligns_alone else 1,
                calibrate=self.calibrate if measurable(trained_as(rule)) else 0,
            ),
            angles="weights", evaluate_on=self.evaluate_on,
            devices=DeviceConfig(precision=self.precision, channels_last=self.channels_last),
        )  # fmt: skip

    @property
    def all_seeds(self) -> range:
        """The seeds of each rule's runs."""
        return range(self.first_seed, self.first_seed + self.seeds)


_ENTRY = re.compile(r"(?P<rule>[^@]*)(@\s*(?P<name>\w+)\s*(\((?P<options>[^()]*)\))?\s*)?")
_EXPONENT = re.compile(r"[-+]?[\d.]+[eE][-+]?\d+")  # YAML 1.1 reads 1e-3 as a word


def parse_entry(text: str, backward: OptimizerConfig) -> tuple[Rule, OptimizerConfig]:
    """Read ``"aa @ Adam(lr=0.003)"``: a rule, and its backward weights' optimizer (``backward`` if there is none).

    Raises:
        UntiedError: an unknown rule, optimizer or setting.
    """
    text = written_out(text)
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise UntiedError(
            f"cannot read {text!r}: write a rule, perhaps with its optimizer, as in 'aa @ Adam(lr=0.003)'"
        )
    rule = parse(match["rule"])
    if rule.forward_decay is not None and "every" in rule.options:
        raise UntiedError(f"{text!r}: {rule.name}'s decay is W's weight decay too, in every step: leave out every")
    if match["name"] is None:
        return rule, backward
    if not rule.aligns or rule.copies_gradient:
        raise UntiedError(f"{text!r}: {rule.name} has no backward weights with an optimizer of their own: leave out @")
    settings: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in (match["options"] or "").split(","))):
        key, equals, word = (p.strip() for p in part.partition("="))
        if not equals or not word:
            raise UntiedError(f"cannot read {part!r} in {text!r}: settings of an optimizer are written key=value")
        settings[key] = (
            float(word) if _EXPONENT.fullmatch(word) else load_yaml(word, f"{key} of the optimizer in {shown(text)}")
        )
    return rule, from_mapping(OptimizerConfig, {"name": match["name"], **settings}, f"the optimizer of {text!r}")
