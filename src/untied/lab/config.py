"""What a user decides, as frozen dataclasses: from the command line, from YAML, and written back as YAML."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from untied import schedules
from untied.algebra import Rule
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.edges import INTEGER, bounded, load_yaml, shown
from untied.lab.reading import from_mapping
from untied.rules import KolenPollack, parse
from untied.schedules import Coefficient, value

__all__ = [
    "PRESETS",
    "CompareConfig",
    "DeviceConfig",
    "OptimizerConfig",
    "PhaseConfig",
    "TrainConfig",
    "label",
    "parse_entry",
]

UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")  # of torch.optim: they need a closure, or sparse gradients
ELSEWHERE = {"SWATS": "pytorch_optimizer"}  # not in torch.optim: the package that has it

Argument = bool | float | str | tuple[float, ...]


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its learning rate over a run."""

    name: str = "SGD"
    """Any class of torch.optim; or SWATS, if pytorch-optimizer is installed."""
    lr: float = 0.1
    """Learning rate at its highest."""
    base_batch: int | None = None
    """The batch size that lr is for: it is used times batch size / base_batch. Without one, lr is used as it is."""
    momentum: float = 0.9
    """For optimizers that have it."""
    weight_decay: float = 0.0
    """Pulls kernels (not biases, not scales) to zero. Backward weights have their rule's decay instead."""
    arguments: dict[str, Argument] = field(default_factory=dict)
    """Further arguments of the optimizer, such as nesterov True, or betas 0.9,0.95."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """step divides by 10 after a third, two thirds and eight ninths of the run (30, 60, 80 of 90 epochs)."""
    warmup: float = 0.0
    """Fraction of the run in which the learning rate rises linearly from 0."""
    clip: float | None = None
    """Bound on this group's gradient, or none."""
    clip_by: Literal["norm", "value"] = "norm"
    """What clip bounds: the norm of the whole group's gradient, or each of its elements."""
    noise: float = 0.0
    """Standard deviation of the noise of each update; 0 adds none."""
    noise_on: Literal["gradient", "variable"] = "gradient"
    """Where the noise goes: on the gradient (the paper, section 5), or, times the learning rate, on the variable after
    the update (the paper's reference code). The same under plain SGD alone."""
    noise_kind: Literal["normal", "uniform"] = "normal"
    """Its distribution."""

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
    """simultaneous: both in every step. alternating: one step of alignment alone, then task_steps of the task alone.
    mirror: mirror_epochs of alignment alone, then engaged_epochs of the task alone, as weight mirror has it."""
    delay: int = 0
    """Epochs of alignment alone before everything else. They are not counted in epochs."""
    task_steps: int = 1
    """For alternating: task steps after each alignment step."""
    mirror_epochs: int = 1
    """For mirror: epochs of alignment alone in each cycle. They are counted in epochs."""
    engaged_epochs: int = 1
    """For mirror: epochs of the task alone in each cycle."""
    task: str = "1"
    """Weight of the task loss J: a number, or a schedule such as "linear(0, 1, stop=0.1)"."""
    align: str = "1"
    """Weight of the penalty R, likewise."""

    def __post_init__(self) -> None:
        for name, least in (("delay", 0), ("task_steps", 1), ("mirror_epochs", 1), ("engaged_epochs", 1)):
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
    """cpu, cuda, mps, tpu, or auto: the best there is."""
    devices: int | None = None
    """Processes on each machine, one for each device. By default one, or as many as torchrun has started."""
    nodes: int = 1
    """Machines. Start the same command on each, with torchrun or srun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """For several processes: ddp (auto) copies the network to each, fsdp shards weights, gradients and optimizers."""
    precision: Literal["32", "bf16", "16"] = "32"
    """32; or mixed with bfloat16, or with float16 and loss scaling."""
    tf32: bool = False
    """Let float32 products round to TF32 on GPUs that have it."""
    compile: bool = False
    """Compile the training pass (network, J and R) with torch.compile; evaluation is not compiled."""
    channels_last: bool = False
    """Keep convolutions' tensors with channels last, which many devices prefer."""
    sync_batch_norm: bool = False
    """Batch normalisation over the whole batch rather than over each process's part of it."""

    def __post_init__(self) -> None:
        bounded(self, devices=10**5, nodes=10**5)
        if self.devices is not None and self.devices < 1:
            raise UntiedError(f"devices is {self.devices}: it must be at least 1, or left out")
        if self.nodes < 1:
            raise UntiedError(f"nodes is {self.nodes}: it must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """Train one network with one learning rule."""

    rule: str = "sa"
    """The learning rule, such as sa, "ia(amp=1, null=2)" or "amp + 0.5*decay", as it is written; untied rules lists
    what there is. Its backward weights' optimizer is --backward."""
    model: str = "resnet18"
    """The network: mlp-256-128-tanh, cnn, resnet18-w16, resnet50v2, torchvision:NAME, timm:NAME, ..."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits"))
    """The data; --data NAME is short for --data.name NAME. data.batch_size counts the images of all processes."""
    epochs: int = 10
    """Passes over the training images."""
    seed: int = 0
    """Of initial weights, the order of images, augmentation and noise."""
    init: Literal["like", "copy"] = "like"
    """The backward weights' start: drawn like the forward weights, or a copy of them."""
    forward: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(weight_decay=1e-4, schedule="cosine", warmup=0.05)
    )
    """Of the forward weights, and of the backward weights of Kolen-Pollack, whose convergence needs the same steps
    and whose decay takes the place of the forward weight decay."""
    backward: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of the backward weights."""
    phases: PhaseConfig = field(default_factory=PhaseConfig)
    """When what is trained."""
    label_smoothing: float = 0.0
    """Of the task loss, cross-entropy."""
    ema: float | None = None
    """Decay, a step, of an exponential moving average of all weights, which is then what is evaluated."""
    accumulate: int = 1
    """Parts in which a batch is computed one after the other, to save memory."""
    devices: DeviceConfig = field(default_factory=DeviceConfig)
    """Where it runs."""
    angles: Literal["all", "weights"] = "all"
    """What is measured of the alignment after each epoch: all, or weight angles and the whole gradient's angle."""
    evaluate_on: Literal["test", "validation"] = "test"
    """The split that is evaluated once, at the end. Tune on validation."""
    checkpoint_minutes: float = 10.0
    """Save everything after each epoch, and within an epoch whenever so many minutes have passed."""
    tracker: Literal["none", "wandb", "mlflow"] = "none"
    """Send the metrics to Weights & Biases or MLflow too, if installed."""
    out: Path | None = None
    """The run folder; runs/train-TIME by default."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""

    def __post_init__(self) -> None:
        bounded(self, epochs=10**9, seed=INTEGER, accumulate=10**9)
        for name, least in (("epochs", 1), ("seed", 0), ("accumulate", 1), ("checkpoint_minutes", 0)):
            if not getattr(self, name) >= least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not 0 <= self.label_smoothing < 1:
            raise UntiedError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and below 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UntiedError(f"ema is {self.ema}: it must be between 0 and 1, such as 0.999, or left out")
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
        rule = parse(self.rule)
        if rule.copies_gradient and self.phases.kind != "simultaneous":
            raise UntiedError(
                f"rule is {self.rule} but phases.kind is {self.phases.kind}: Kolen-Pollack's backward weights move "
                "with the forward ones, in every step; use simultaneous"
            )
        if max(value(weight("task", self.phases.task), at / 20) for at in range(21)) == 0:
            raise UntiedError(f"phases.task is {self.phases.task}: the task would never be trained; give it a weight")


PRESETS = {
    "kp": "kp(decay=0.01)",
    "wm": "wm(positions=mean)",
    "ia": "ia(null=0.1, positions=mean, noise=normal) @ Adam(lr=0.02)",
    "sa": "sa @ SGD(lr=0.5, momentum=0)",
    "aa": "aa @ Adam(lr=0.04)",
}
"""What a bare short name means in `CompareConfig.rules`: coefficients and the optimizer of the backward weights, tuned
on the validation split of the default task by benchmarks/tune_digits.py, but for ``wm``: its settings are in that grid
and not chosen from it. Other names mean themselves; ``aa()`` has coefficients of 1 and the default optimizer."""


def label(entry: str) -> str:
    """The short form of an entry of ``rules``: the name of a preset in place of its text."""
    return next((name for name, text in PRESETS.items() if text == entry), entry)


@dataclass(frozen=True)
class CompareConfig:
    """Train the same network from the same initial weights with each of several learning rules."""

    rules: tuple[str, ...] = ("bp", "fa", "kp", "wm", "ia", "sa", "aa")
    """Learning rules, such as sa, "ia(amp=1, null=2)" or "amp + 0.5*decay". A rule can bring its own optimizer for its
    backward weights: "aa() @ Adam(lr=0.003)". untied rules lists what there is; bare names have tuned settings."""
    model: str = "resnet18-w8"
    """The network: mlp-256-128, cnn, resnet18-w16, resnet50v2, torchvision:NAME, timm:NAME, ..."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", batch_size=32, validation=0.2))
    """The data; --data NAME is short for --data.name NAME."""
    epochs: int = 7
    """Passes over the training images."""
    seeds: int = 3
    """How many times each rule is trained, each time from other weights and another order of the images."""
    first_seed: int = 0
    """The first of them."""
    delay: int = 0
    """Epochs of alignment alone before the task begins; they are not counted in epochs."""
    forward: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(weight_decay=1e-3, schedule="cosine", warmup=0.05, clip=5.0)
    )
    """Of the forward weights, and of the backward weights of Kolen-Pollack, whose convergence needs the same steps
    and whose decay takes the place of the forward weight decay."""
    backward: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of the backward weights."""
    init: Literal["like", "copy"] = "like"
    """The backward weights' start: drawn like the forward weights, or a copy of them."""
    evaluate_on: Literal["test", "validation"] = "test"
    """The split whose accuracy the table shows, at the end of each run. Tune on validation."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ..."""
    precision: Literal["32", "bf16", "16"] = "32"
    """32; or mixed with bfloat16, or with float16 and loss scaling."""
    channels_last: bool = False
    """Keep convolutions' tensors with channels last, which many devices prefer."""
    workers: int = 2
    """Runs at a time, each in a process of its own; 0 trains in this process."""
    timing_steps: int = 12
    """Interleaved steps by which each rule's cost is measured at the end; 0 leaves it out."""
    out: Path | None = None
    """Folder for everything that is written; runs/compare-TIME by default."""
    overwrite: bool = False
    """Replace an earlier run in that folder."""

    def __post_init__(self) -> None:
        for name, least in (
            ("epochs", 1), ("seeds", 1), ("first_seed", 0), ("delay", 0), ("workers", 0), ("timing_steps", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not self.rules:
            raise UntiedError("no rules are given: name at least one, such as --rules bp sa")
        entries = self.entries
        twice = next((r for i, r in enumerate(self.rules) if entries[i] in entries[:i]), None)
        if twice is not None:
            raise UntiedError(f"rule {twice!r} is given twice: name each once, and set the number of runs with --seeds")
        for entry in entries:
            parse_entry(entry, self.backward)

    @property
    def entries(self) -> tuple[str, ...]:
        """The rules with presets written out."""
        return tuple(PRESETS.get(rule.strip(), rule.strip()) for rule in self.rules)

    def run(self, entry: str, seed: int) -> TrainConfig:
        """One of the runs: an entry of ``rules``, a seed."""
        rule, backward = parse_entry(entry, self.backward)
        return TrainConfig(
            rule=str(rule), model=self.model, data=self.data, epochs=self.epochs, seed=seed, init=self.init,
            forward=self.forward, backward=backward, phases=PhaseConfig(delay=self.delay), angles="weights",
            evaluate_on=self.evaluate_on,
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
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise UntiedError(
            f"cannot read {text!r}: write a rule, perhaps with its optimizer, as in 'aa @ Adam(lr=0.003)'"
        )
    rule = parse(match["rule"])
    if isinstance(rule, KolenPollack) and any(map(callable, rule.combination.values())):
        raise UntiedError(f"{text!r}: kp's decay is W's weight decay too, which has no schedule here: give a number")
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
