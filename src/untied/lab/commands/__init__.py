"""A command is a file of this folder: `run` takes the words after it, and its first line is its help.

Where a command makes a run folder, `again` writes that folder's tables, figures and page again. A run folder says in
environment.json which command made it, with which version. Folders of version 0.1 do not: their configuration shows it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from untied.errors import UntiedError
from untied.lab.keeping.record import RunFolder
from untied_usage import commands

__all__ = ["NAMES", "Command", "again", "command", "maker", "makers"]

NAMES = commands()
"""Every command, and its line of help."""


class Command(Protocol):
    """What the file of a command has; ``again`` only if it makes folders."""

    def run(self, words: list[str]) -> int: ...

    def again(self, path: Path) -> int: ...


def command(name: str) -> Command:
    """The file of a command, imported."""
    return cast(Command, importlib.import_module(f"untied.lab.commands.{name}"))


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again. Returns the exit code.

    Raises:
        UntiedError: it is no run folder, or of a command that this version does not have.
    """
    return command(maker(RunFolder.open(path))).again(path)


def maker(folder: RunFolder) -> str:
    """The command that made a folder.

    Raises:
        UntiedError: it is none that this version has.
    """
    environment = folder.environment() if (folder.path / "environment.json").is_file() else {}
    name = environment.get("command") or of_version_0_1(folder.config())
    if name not in makers():
        version = (environment.get("packages") or {}).get("untied", "unknown")
        raise UntiedError(
            f"{folder.path} was made by untied {name or '(unknown)'} of version {version}, which this version cannot "
            f"read; it reads those of {', '.join(makers())}"
        )
    return str(name)


SIGNS = {"kind": None, "rounds": "bench", "recording": "neural", "extent": "dynamics", "examples": "diagnose",
         "rule": "train", "rules": "compare"}  # fmt: skip
"""Fields that one command's configuration had in version 0.1, in the order in which they are looked for."""


def makers() -> list[str]:
    """The commands that make folders."""
    return [name for name in NAMES if hasattr(command(name), "again")]


def of_version_0_1(config: Mapping[str, Any]) -> str | None:
    """The command whose configuration this is, by its fields."""
    found = next((field for field in SIGNS if field in config), None)
    return str(config["kind"]) if found == "kind" else SIGNS.get(found or "")
