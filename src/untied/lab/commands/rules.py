"""Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Rules:
    """Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper)."""


def run(words: list[str]) -> int:
    """Print them."""
    read_config(Rules, words, "untied rules")
    from untied.lab.showing.listing import print_rules

    print_rules()
    return 0
