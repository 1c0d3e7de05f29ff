"""The settings of untied bench."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from untied.errors import UntiedError
from untied.lab.reading.edges import bounded
from untied.lab.settings.entries import parse_entry
from untied.lab.settings.optimizer import OptimizerConfig, backward_default
from untied.rules.rule import Rule

__all__ = ["BenchConfig", "Case"]

THREADS = 1024  # far beyond it the runtime of threads crashes


@dataclass(frozen=True)
class Case:
    """What all rules of a table have in common."""

    model: str
    batch: int
    precision: str
    compile: bool

    def __str__(self) -> str:
        precision = "float32" if self.precision == "32" else f"{self.precision} mixed"
        return f"{self.model}, batch {self.batch}, {precision}" + (", compiled" if self.compile else "")


@dataclass(frozen=True)
class BenchConfig:
    """Time training steps of each rule against the same network of plain PyTorch layers, interleaved.

    Every model is timed with every batch size, precision and so on; images are random.
    """

    command: ClassVar[str] = "bench"

    rules: tuple[str, ...] = ("bp", "fa", "kp", "usf", "sa", "wm", "aa", "ia")
    """The learning rules. A rule can bring its own optimizer for its backward weights: "aa @ Adam(lr=0.003)"."""
    models: tuple[str, ...] = ("resnet18",)
    """The networks: mlp-256-128, cnn, resnet18-w16, torchvision:NAME, timm:NAME, ..."""
    batches: tuple[int, ...] = (64,)
    """How many images a step has."""
    precisions: tuple[Literal["32", "bf16", "16"], ...] = ("32",)
    """The numbers: 32 bits; or mixed with bfloat16 (bf16) or float16 (16), by autocast and without loss scaling."""
    fractions: tuple[float, ...] = (1.0,)
    """The shares of the batch on which rules that see activity are evaluated. Each share is a row of its own."""
    align_steps: int = 1
    """How many steps of alignment each batch gets, as phases.align_steps of untied train has it."""
    compile: tuple[bool, ...] = (False,)
    """Whether torch.compile compiles the whole step, R included: False, True, or both."""
    backend: str = "inductor"
    """The backend of torch.compile."""
    rounds: int = 15
    """How many rounds are counted. A round has one step of each rule."""
    profile: int = 3
    """How many further rounds PyTorch's profiler watches, for the share of layer products in a step. 0 leaves it
    out."""
    clock: Literal["wall", "cpu"] = "wall"
    """What is measured: wall is the time that passes, and cpu is this process's CPU time. Take cpu, with --threads 1,
    on a machine that others use too."""
    threads: int | None = None
    """How many threads the CPU computes with. By default PyTorch chooses."""
    image_size: int = 32
    """The side of the images in pixels."""
    classes: int = 10
    """How many outputs the network has."""
    channels_last: bool = True
    """Whether convolutions' tensors have channels last."""
    forward: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(weight_decay=1e-4))
    """The optimizer of the forward weights, and of the plain network."""
    backward: OptimizerConfig = dataclasses.field(default_factory=backward_default)
    """The optimizer of the backward weights."""
    device: str = "cpu"
    """The device: cpu, cuda, cuda:1, mps."""
    out: Path | None = None
    """The run folder. By default it is runs/bench-TIME."""
    overwrite: bool = False
    """Whether an earlier run in that folder is replaced."""

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("align_steps", 1), ("profile", 0), ("image_size", 1), ("classes", 1)):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        for name in ("rules", "models", "batches", "precisions", "fractions", "compile"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise UntiedError(f"{name} is {' '.join(map(str, given)) or 'empty'}: name at least one, each once")
        if min(self.batches) < 1:
            raise UntiedError(f"batches has {min(self.batches)}: a step has at least 1 image")
        if not all(0 < f <= 1 for f in self.fractions):
            raise UntiedError(f"fractions is {' '.join(map(str, self.fractions))}: each is above 0 and at most 1")
        if self.threads is not None and self.threads < 1:
            raise UntiedError(f"threads is {self.threads}: it must be at least 1, or left out")
        bounded(self, threads=THREADS)
        if self.clock == "cpu" and torch.device(self.device).type != "cpu":
            raise UntiedError(f"clock is cpu and device {self.device}: CPU time says nothing of it; use wall")
        for rule in self.rules:
            parse_entry(rule, self.backward)

    @property
    def entries(self) -> dict[str, tuple[Rule, OptimizerConfig]]:
        """The rows: by label, rule and optimizer of the backward weights."""
        found = {}
        for text, fraction in itertools.product(self.rules, self.fractions):
            rule, backward = parse_entry(text, self.backward)
            if fraction < 1:
                if not rule.needs_data:
                    continue
                rule = rule.on(fraction)
                text = f"{text} on {fraction:g}"
            found[text] = rule, backward
        return found

    @property
    def cases(self) -> list[Case]:
        """Everything else that is varied, one after the other."""
        return list(
            itertools.starmap(Case, itertools.product(self.models, self.batches, self.precisions, self.compile))
        )
