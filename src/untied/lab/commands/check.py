"""Say by number whether a network's errors go through its backward weights alone, and what moves those."""

from __future__ import annotations

from untied.lab.arguments import read_config
from untied.lab.settings.check import CheckConfig


def run(words: list[str]) -> int:
    """Read the settings, and look."""
    config = read_config(CheckConfig, words, "untied check")
    from untied.lab.experiments.check import check

    return check(config)
