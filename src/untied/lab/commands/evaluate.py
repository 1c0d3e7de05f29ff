"""Print a trained run's accuracy on a split, and every angle by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Evaluation:
    """Top-1, top-5, loss, and all angles by layer, of a run that untied train has made."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a run of untied train."""
    split: Literal["test", "validation", "train"] = "test"
    """The images that are evaluated."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint is evaluated: the last, or the best on validation."""
    root: Path | None = None
    """Where the data lies now. By default it is where it lay in training."""
    accelerator: str = "auto"
    """The kind of device: cpu, cuda, mps, or auto for the best there is."""


def run(words: list[str]) -> int:
    """Evaluate a run."""
    c = read_config(Evaluation, words, "untied evaluate")
    from untied.lab.experiments.evaluate import evaluate_run

    return evaluate_run(c.run, c.split, c.checkpoint, c.root, c.accelerator)
