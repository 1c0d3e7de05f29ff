"""What a user decides, as frozen dataclasses: from the command line, from YAML, and written back as YAML."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from untied.algebra import Rule
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.rules import KolenPollack, parse

__all__ = ["PRESETS", "CompareConfig", "OptimizerConfig", "from_mapping", "label", "parse_entry", "read_yaml"]

T = TypeVar("T")

UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")  # of torch.optim: they need a closure, or sparse gradients


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer and its learning rate over a run."""

    name: str = "SGD"
    """Any class of torch.optim."""
    lr: float = 0.1
    """Learning rate at its highest."""
    momentum: float = 0.9
    """For optimizers that have it."""
    weight_decay: float = 0.0
    """Pulls kernels (not biases, not scales) to zero. Backward weights have their rule's decay instead."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """step divides by 10 after a third, two thirds and eight ninths of the run (30, 60, 80 of 90 epochs)."""
    warmup: float = 0.0
    """Fraction of the run in which the learning rate rises linearly from 0."""
    clip: float | None = None
    """Largest norm of this group's gradient, or none."""

    def __post_init__(self) -> None:
        known = [
            name
            for name, kind in vars(torch.optim).items()
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in UNUSABLE
        ]
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UntiedError(f"unknown optimizer {self.name!r}: {hint}possible are {', '.join(sorted(known))}")
        if not self.lr > 0:
            raise UntiedError(f"lr is {self.lr}: it must be above 0")
        if not 0 <= self.momentum < 1:
            raise UntiedError(f"momentum is {self.momentum}: it must be at least 0 and below 1")
        if not self.weight_decay >= 0:
            raise UntiedError(f"weight_decay is {self.weight_decay}: it must be at least 0")
        if not 0 <= self.warmup <= 1:
            raise UntiedError(f"warmup is {self.warmup}: it is a fraction of the run, 0 to 1")
        if self.clip is not None and not self.clip > 0:
            raise UntiedError(f"clip is {self.clip}: it must be above 0, or left out")


PRESETS = {
    "kp": "kp(decay=0.01)",
    "wm": "wm(positions=mean)",
    "ia": "ia(null=0.1, positions=mean, noise=normal) @ Adam(lr=0.02)",
    "sa": "sa @ SGD(lr=0.5, momentum=0)",
    "aa": "aa @ Adam(lr=0.04)",
}
"""What a bare short name means in `CompareConfig.rules`: coefficients and the optimizer of the backward weights, tuned
on the validation split of the default task by benchmarks/tune_digits.py. Other names mean themselves; ``aa()`` is the
rule with its coefficients at 1 and the default optimizer."""


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
        settings[key] = float(word) if _EXPONENT.fullmatch(word) else yaml.safe_load(word)
    return rule, from_mapping(OptimizerConfig, {"name": match["name"], **settings}, f"the optimizer of {text!r}")


def from_mapping(kind: type[T], values: Any, what: str) -> T:
    """A config from plain values, such as YAML's.

    Raises:
        UntiedError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    _check_keys(kind, values, what, "")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        ours = first.get("ctx", {}).get("error")
        if isinstance(ours, UntiedError):
            raise UntiedError(f"{what}: {ours}") from None
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise UntiedError(f"{what}: {where} is {first['input']!r}: {first['msg']}") from None


def _check_keys(kind: type, values: Any, what: str, prefix: str) -> None:
    if not isinstance(values, dict):
        raise UntiedError(f"{what}: {prefix.rstrip('.') or 'it'} is {values!r}, where keys and values are needed")
    names = {f.name: f for f in dataclasses.fields(kind)}
    for key, inner in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UntiedError(f"{what}: unknown key {prefix}{key}: {hint}possible are {', '.join(names)}")
        nested = nested_config(names[key])
        if nested is not None:
            _check_keys(nested, inner, what, f"{prefix}{key}.")


def nested_config(of: dataclasses.Field[Any]) -> type | None:
    """The dataclass that a field holds, or None."""
    example = of.default_factory() if of.default_factory is not dataclasses.MISSING else None
    return type(example) if dataclasses.is_dataclass(example) else None


def read_yaml(kind: type[T], path: Path) -> T:
    """A config from a YAML file.

    Raises:
        UntiedError: the file cannot be read, or is not such a config.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UntiedError(f"cannot read config {path}: {' '.join(str(error).split())}") from None
    return from_mapping(kind, {} if values is None else values, f"config {path}")
