"""Short runs on the digits in a plain loop, for benchmarks that do to a network what no command does.

The network starts from the same W, and sees the images in the same order, under every rule of a seed.
"""

from __future__ import annotations

import csv
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import untied
from untied.lab import models
from untied.lab.data import load
from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset
from untied.lab.keeping.environment import environment
from untied.layers.layer import untied_layers
from untied.rules import Rule

END = "<!-- /tables -->"
Change = Callable[[nn.Module, int], None]


@cache
def digits(batch: int, seed: int) -> Dataset:
    return load(DataConfig("digits", batch_size=batch, validation=0.2), seed=seed)


def network(name: str, rule: str | Rule, seed: int) -> nn.Module:
    """A network by its name in the lab, untied."""
    torch.manual_seed(seed)
    model = models.build(name, input_shape=(1, 8, 8), classes=10)
    apart = torch.Generator().manual_seed(seed + 1_000_003)  # B is not drawn from the numbers that W was drawn from
    untied.untie_(model, rule, init="like" if rule == "bp" else apart)
    return model


def train(
    model: nn.Module,
    data: Dataset,
    epochs: int,
    optimizers: Sequence[torch.optim.Optimizer],
    rate: Callable[[float], float] = lambda progress: 1.0,
    before: Change = lambda model, step: None,
    after: Change = lambda model, step: None,
    clip: float = 5.0,
) -> None:
    """Train in place. ``rate``: of progress, times each optimizer's own. ``before`` is called when B has moved and the
    forward pass has not begun, ``after`` when W has moved; both with the step's number.
    """
    bases = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, steps = 0, epochs * len(data.train)
    W = untied.parameter_groups(model)[0]
    for epoch in range(epochs):
        for x, labels in data.train.epoch(epoch):
            for optimizer, base in zip(optimizers, bases, strict=True):
                for group, lr in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = lr * rate(step / steps)
                optimizer.zero_grad(set_to_none=True)
            with untied.record(model, step=step) as tape:
                before(model, step)
                loss = F.cross_entropy(model(x), labels)
            (loss + tape.penalty()).backward()
            nn.utils.clip_grad_norm_(W, clip)
            for optimizer in optimizers:
                optimizer.step()
            after(model, step)
            step += 1


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def accuracy(model: nn.Module, batches: Iterable[tuple[Any, Any]]) -> float:
    """Of a split, in percent."""
    model.eval()
    right = total = 0
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x, labels in batches:
            right, total = right + int((model(x).argmax(1) == labels).sum()), total + len(labels)
    model.train()
    return 100 * right / total


def angles(model: nn.Module, batches: Iterable[tuple[Any, Any]]) -> tuple[float, float]:
    """The mean weight angle of the layers that carry errors, and the gradient angle on a batch, in degrees."""
    names = list(untied_layers(model))[1:]
    found = untied.metrics.weight_angles(model)
    x, labels = next(iter(batches))
    angle = untied.metrics.gradient_angle(model, lambda: F.cross_entropy(model(x), labels))
    return statistics.fmean(found[n] for n in names), angle


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean of the paired differences, and half the width of Student's interval of 95 %."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), spread * float(stats.t.ppf(0.975, len(differences) - 1))


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def made() -> str:
    """Commit and machine of this process, in words."""
    here = environment()
    commit = ((here["git"] or {}).get("commit") or "unknown")[:9]
    machine, torch_version = here["machine"], here["packages"]["torch"]
    return f"commit {commit}, {machine['cpu']}, {machine['cores']} cores, torch {torch_version}"


def publish(path: Path, text: list[str]) -> None:
    """A page whose tables are these; what was written by hand below them stays."""
    below = path.read_text(encoding="utf-8").partition(END)[2] if path.is_file() else "\n"
    path.write_text("\n".join(text) + f"{END}{below}", encoding="utf-8")
    print(path)
