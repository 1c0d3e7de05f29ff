"""Time a training step of each rule against plain PyTorch's: measured beside counted, memory, figure."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.settings.bench import BenchConfig


def run(words: list[str]) -> int:
    """Read the settings, and do it."""
    config = read_config(BenchConfig, words, "untied bench")
    from untied.lab.experiments.bench import bench

    return bench(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.experiments.bench import again as write

    return write(path)
