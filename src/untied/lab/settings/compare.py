"""Many runs beside each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from untied.calibrate import measurable
from untied.errors import UntiedError
from untied.lab import tasks
from untied.lab.data import DataConfig
from untied.lab.rules.signs import FROZEN, trained_as
from untied.lab.settings.devices import DeviceConfig
from untied.lab.settings.entries import DEFINED, label, parse_entry, written_out
from untied.lab.settings.optimizer import OptimizerConfig, backward_default
from untied.lab.settings.phases import PhaseConfig
from untied.lab.settings.run import TrainConfig, checked_init
from untied.rules.rule import Rule

__all__ = ["CompareConfig"]


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
