"""Recipes: training configurations under a name, for the paper's tables at full size and at smaller ones.

A file of the repository's folder ``recipes`` (in the installed package: beside this file) is a table of runs, every
model with every rule. The recipe ``table4/resnet50-sa`` is the file's ``base``, over it what ``models`` says of
resnet50,
over that what ``rules`` says of sa; what none of them says has its default.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from untied.errors import UntiedError
from untied.lab.reading.fields import from_mapping, read_mapping
from untied.lab.settings.run import TrainConfig

__all__ = ["folder", "print_recipes", "recipe", "recipes"]


def folder() -> Path:
    """Where the recipes are: in the installed package, or in the checkout that it is installed from."""
    here = Path(__file__).resolve().parents[1]
    return next((p for p in (here / "recipes", here.parents[2] / "recipes") if p.is_dir()), here / "recipes")


def recipes() -> dict[str, dict[str, Any]]:
    """Every recipe by name, as plain values."""
    found = {}
    for path in sorted(folder().glob("*.yaml")):
        table = read_mapping(path)
        for model, of_model in table["models"].items():
            for rule, of_rule in table["rules"].items():
                found[f"{path.stem}/{model}-{rule}"] = over(over(table.get("base", {}), of_model), of_rule)
    return found


def over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; the second one's values win."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = over(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def recipe(name: str) -> TrainConfig:
    """A recipe by name.

    Raises:
        UntiedError: there is none of this name.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UntiedError(f"unknown recipe {name!r}: {hint}untied recipes lists them; --config FILE takes any file")
    return from_mapping(TrainConfig, known[name], f"recipe {name}")


def print_recipes(console: Console | None = None) -> None:
    """Print every table of recipes: its title, its models, and its rules."""
    console = console or Console()
    known = recipes()
    for path in sorted(folder().glob("*.yaml")):
        models, rules = (list(read_mapping(path)[part]) for part in ("models", "rules"))
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        console.print(f"[bold]{path.stem}[/bold]  {title}", highlight=False)
        shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for rule in rules:
            example = from_mapping(TrainConfig, known[f"{path.stem}/{models[0]}-{rule}"], path.stem)
            shown.add_row(f"  {path.stem}/MODEL-{rule}", example.rule)
        shown.add_row("  MODEL", ", ".join(models))
        console.print(shown)
        console.print()
    console.print(
        "untied train table4/resnet50-sa --data.root DIR  trains one; any field can be set after it", highlight=False
    )
