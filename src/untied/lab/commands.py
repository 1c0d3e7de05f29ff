"""The commands by name: what each does, and how it writes its run folder's page again.

A run folder says in environment.json which command made it, with which version. Folders of version 0.1 do not: their
configuration shows it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untied.errors import UntiedError
from untied.lab.record import RunFolder

__all__ = ["AGAIN", "Command", "again", "maker"]


@dataclass(frozen=True)
class Command:
    """A word after ``untied``.

    Attributes:
        run: takes the words after it, and returns the exit code; its docstring says what it does.
        help: for ``untied --help``: the docstring's first line.
    """

    run: Callable[[list[str]], int]

    @property
    def help(self) -> str:
        return (self.run.__doc__ or "").partition("\n")[0]  # python -OO has none

    def __call__(self, words: list[str]) -> int:
        return self.run(words)


AGAIN = {
    "compare": "untied.lab.compare:again",
    "train": "untied.lab.train:rewrite",
    "search": "untied.lab.study.run:again",
    "transfer": "untied.lab.study.run:again",
    "noise": "untied.lab.study.run:again",
    "neural": "untied.lab.neural.command:again",
    "bench": "untied.lab.bench:again",
    "dynamics": "untied.lab.dynamics:again",
    "diagnose": "untied.lab.diagnose:again",
}
"""By the command that makes a folder: the function that writes its tables, figures and page from what it holds."""


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again. Returns the exit code.

    Raises:
        UntiedError: it is no run folder, or of a command that this version does not have.
    """
    module, _, function = AGAIN[maker(RunFolder.open(path))].partition(":")
    return getattr(importlib.import_module(module), function)(path)  # type: ignore[no-any-return]


def maker(folder: RunFolder) -> str:
    """The command that made a folder.

    Raises:
        UntiedError: it is none that this version has.
    """
    environment = folder.environment() if (folder.path / "environment.json").is_file() else {}
    name = environment.get("command") or of_version_0_1(folder.config())
    if name not in AGAIN:
        version = (environment.get("packages") or {}).get("untied", "unknown")
        raise UntiedError(
            f"{folder.path} was made by untied {name or '(unknown)'} of version {version}, which this version cannot "
            f"read; it reads those of {', '.join(AGAIN)}"
        )
    return str(name)


SIGNS = {"kind": None, "rounds": "bench", "recording": "neural", "extent": "dynamics", "examples": "diagnose",
         "rule": "train", "rules": "compare"}  # fmt: skip
"""Fields that one command's configuration had in version 0.1, in the order in which they are looked for."""


def of_version_0_1(config: Mapping[str, Any]) -> str | None:
    """The command whose configuration this is, by its fields."""
    found = next((field for field in SIGNS if field in config), None)
    return str(config["kind"]) if found == "kind" else SIGNS.get(found or "")
