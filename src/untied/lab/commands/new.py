"""Write a package for a learning rule of one's own, with its tests: untied new rule NAME."""

from __future__ import annotations

import keyword
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import tyro

from untied.errors import UntiedError
from untied.lab.arguments import read_config
from untied.primitives.primitive import KNOWN
from untied.rules import NAMED

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "rule.py": "src/untied_{name}/__init__.py",
    "test_rule.py": "tests/test_{name}.py",
}
"""Each template, and where it goes in the package."""


@dataclass(frozen=True)
class New:
    """Write a package that offers a learning rule: the rule, its tests, and the entry point that untied looks for."""

    what: Annotated[Literal["rule"], tyro.conf.Positional]
    """What to write."""
    name: Annotated[str, tyro.conf.Positional]
    """Its short name, as texts and --rule will have it."""
    out: Path | None = None
    """The folder to make; untied-NAME by default."""


def run(words: list[str]) -> int:
    """Write it, and say how to go on."""
    c = read_config(New, words, "untied new")
    folder = write(c.name, c.out)
    print(f"{folder}: the rule {c.name} and its tests")
    print(f"go on with:  pip install -e {folder} && pytest {folder}; untied train --rule {c.name}")
    return 0


def write(name: str, out: Path | None = None) -> Path:
    """Write the package of a rule. Returns its folder.

    Raises:
        UntiedError: the name is no word, or taken; the folder is there already.
    """
    if not (name.isidentifier() and name.isascii() and name.islower()) or keyword.iskeyword(name) or name[0] == "_":
        raise UntiedError(f"{name!r} cannot name a rule: give a word of small letters, digits and _, such as half_of_w")
    if name in (*NAMED, *KNOWN, "align", "transport"):
        raise UntiedError(f"a rule or primitive {name} is known already: choose another name")
    folder = out or Path(f"untied-{name.replace('_', '-')}")
    if folder.exists():
        raise UntiedError(f"{folder} is there already: choose another name, or another folder with --out")
    words = {
        "name": name, "dashed": name.replace("_", "-"), "title": name.replace("_", " "),
        "kind": "".join(part.capitalize() for part in name.split("_")),
    }  # fmt: skip
    templates = Path(__file__).parent / "new_rule"
    for template, place in FILES.items():
        path = folder / place.format(name=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (templates / f"{template}.tmpl").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(words), encoding="utf-8")
    return folder
