"""The commands of ``untied`` and their help, read from the first line of each one's file.

It lies beside the package, as whoever imports that waits for PyTorch, and a list of commands needs none.
"""

from __future__ import annotations

import ast
import shutil
import textwrap
from pathlib import Path

__all__ = ["commands", "usage"]

FOLDER = Path(__file__).parent / "untied" / "lab" / "commands"


def commands() -> dict[str, str]:
    """Every command with its line of help: the files of a folder, and their first lines.

    >>> commands()["rules"]
    'Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper).'
    """
    files = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    return {name: ast.get_docstring(tree) or "" for name, tree in trees.items()}


def usage() -> str:
    """What ``untied --help`` prints."""
    width = max(40, shutil.get_terminal_size().columns)
    lines = [
        textwrap.fill(line, width, initial_indent=f"  {name:<10} ", subsequent_indent=" " * 13, break_on_hyphens=False)
        for name, line in commands().items()
    ]
    return "\n".join(
        [
            "usage: untied COMMAND [OPTIONS]     (untied COMMAND --help lists them)\n",
            *lines,
            "\n  --version             the version",
            "  --debug               a traceback with every error",
            "  --print-completion    for bash, zsh or fish",
        ]
    )
