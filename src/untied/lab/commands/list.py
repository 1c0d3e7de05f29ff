"""List every rule, model, data set, task and layer type by name, and what installed packages offer."""

from __future__ import annotations

from dataclasses import dataclass

from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Everything:
    """List every rule, model, data set, task and layer type by name, and what installed packages offer."""


def run(words: list[str]) -> int:
    """Print them."""
    read_config(Everything, words, "untied list")
    from untied.lab.showing.listing import print_all

    print_all()
    return 0
