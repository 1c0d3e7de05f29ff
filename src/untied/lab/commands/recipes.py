"""List the recipes: the paper's tables at full size and at sizes for one GPU or two cores."""

from __future__ import annotations

from dataclasses import dataclass

from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Recipes:
    """List the recipes that untied train takes by name."""


def run(words: list[str]) -> int:
    """Print them."""
    read_config(Recipes, words, "untied recipes")
    from untied.lab.settings.recipes import print_recipes

    print_recipes()
    return 0
