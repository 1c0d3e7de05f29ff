"""Draw phase portraits of rules: who diverges, rests or collapses (Fig. 2a-c of the paper)."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.settings.dynamics import DynamicsConfig


def run(words: list[str]) -> int:
    """Read the settings, and do it."""
    config = read_config(DynamicsConfig, words, "untied dynamics")
    from untied.lab.experiments.dynamics import dynamics

    return dynamics(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.experiments.dynamics import again as write

    return write(path)
