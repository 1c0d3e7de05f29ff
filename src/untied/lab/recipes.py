"""Recipes: training configurations under a name, for the paper's tables at full size and at smaller ones.

A recipe is a YAML file in the repository's folder ``recipes`` (in the installed package beside this file). Its first
comment line says what it is; fields that it leaves out have their defaults.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from untied.errors import UntiedError
from untied.lab.config import TrainConfig
from untied.lab.reading import read_yaml

__all__ = ["chosen", "folder", "print_recipes", "recipes"]


def folder() -> Path:
    """Where the recipes are: in the installed package, or in the checkout that it is installed from."""
    here = Path(__file__).resolve().parent
    return next((p for p in (here / "recipes", here.parents[2] / "recipes") if p.is_dir()), here / "recipes")


def recipes() -> dict[str, Path]:
    """The files by name: ``table4/resnet18-sa``."""
    root = folder()
    return {str(path.relative_to(root).with_suffix("")): path for path in sorted(root.rglob("*.yaml"))}


def chosen(words: list[str]) -> list[str]:
    """Arguments in which a recipe's name in the first place is --config and its file.

    Raises:
        UntiedError: there is no recipe of this name.
    """
    if not words or words[0].startswith("-"):
        return words
    known = recipes()
    name = words[0].removesuffix(".yaml")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UntiedError(f"unknown recipe {words[0]!r}: {hint}untied recipes lists them; --config FILE takes any file")
    if "--config" in words or any(word.startswith("--config=") for word in words):
        raise UntiedError(f"recipe {name} and --config are both given: name one of them")
    return ["--config", str(known[name]), *words[1:]]


def title(path: Path) -> str:
    """The first comment line."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def print_recipes(console: Console | None = None) -> None:
    """Print every recipe: name, model, rule, what it is."""
    console = console or Console()
    table = Table("recipe", "model", "epochs", "", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name, path in recipes().items():
        config = read_yaml(TrainConfig, path)
        table.add_row(name, config.model, str(config.epochs), title(path))
    console.print(table)
    console.print("untied train RECIPE --data.root DIR  trains one; any field can be set after it", highlight=False)
