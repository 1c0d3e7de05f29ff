"""Write a run's plain weights, as the stock model loads them, or a folder that untied.lab.load reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Export:
    """The forward weights of a run that untied train has made, as a plain state dict without backward weights; or, to a
    folder, the untied network with its card and what untied.verify says of it."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a run of untied train."""
    out: Path = Path("model.safetensors")
    """The file that is written, .safetensors; or the folder, a name without a suffix."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint is written: the last, or the best on validation."""


def run(words: list[str]) -> int:
    """Export a run's weights."""
    c = read_config(Export, words, "untied export")
    from untied.lab.experiments.evaluate import export

    return export(c.run, c.out, c.checkpoint)
