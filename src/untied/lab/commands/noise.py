"""Train with noise on every update: rules against backpropagation (Fig. 5 of the paper)."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.study.config import NoiseConfig


def run(words: list[str]) -> int:
    """Start a study, or go on with it."""
    config = read_config(NoiseConfig, words, "untied noise")
    from untied.lab.study.run import run

    return run(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.study.run import again as write

    return write(path)
