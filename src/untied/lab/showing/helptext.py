"""What ``--help`` prints: tyro's boxes, in which paragraphs are wrapped by the terminal and not by our source files."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from untied.lab.reading.fields import docs_of, nested_config

__all__ = ["print_help"]

WORDS = {Path: "PATH", int: "INT", float: "FLOAT", str: "STR"}
"""How a value that may be left out is called; tyro would write {None}|PATH."""


class Page(io.StringIO):
    """A page for which tyro chooses the colours and letters of the terminal that it will go to."""

    def __init__(self) -> None:
        super().__init__()
        self.terminal = sys.stdout

    def isatty(self) -> bool:
        return self.terminal.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.terminal.encoding or "ascii"


def print_help(kind: type, about: str, program: str, start: Any = None) -> None:
    """Print a command's help, and leave.

    Args:
        kind: the settings. about: what the command does. program: what to type.
        start: settings that stand in place of the defaults, such as a recipe's; None for the defaults.

    Raises:
        SystemExit: always, with 0.
    """
    page = Page()
    try:
        with redirect_stdout(page):
            tyro.cli(shown(kind, start), args=["--help"], prog=program, description=about)
    finally:
        width = shutil.get_terminal_size().columns
        for line in page.getvalue().splitlines():
            plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
            print(textwrap.fill(plain, width, break_on_hyphens=False) if len(plain) > width else line.rstrip())


def shown(kind: type, start: Any = None) -> type:
    """The same settings, each text one paragraph: tyro alone would break it where the source does."""
    hints, docs = get_type_hints(kind, include_extras=True), docs_of(kind)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(kind):
        given = field.default if start is None else getattr(start, field.name)
        if start is None and field.default_factory is not dataclasses.MISSING:
            given = field.default_factory()
        text, hint = docs.get(field.name, ""), hints[field.name]
        if nested_config(field) is not None:
            inner = shown(type(given), given)
            fields.append(
                (field.name, Annotated[inner, tyro.conf.arg(help=text)], dataclasses.field(default_factory=inner))
            )
            continue
        looks: dict[str, Any] = {"help": text}
        if given is None or given == "":
            looks["help_behavior_hint"] = ""  # its text says what then happens
        if word := optional(hint):
            looks["metavar"] = word
        default = dataclasses.MISSING if given is dataclasses.MISSING else maker(given)
        made = dataclasses.field() if default is dataclasses.MISSING else dataclasses.field(default_factory=default)
        fields.append((field.name, Annotated[hint, tyro.conf.arg(**looks)], made))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def maker(value: Any) -> Callable[[], Any]:
    """Something that returns a default, whatever it is."""
    return lambda: value


def optional(hint: Any) -> str:
    """The word for the value of ``X | None``; empty for any other type."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    parts = [part for part in get_args(hint) if part is not types.NoneType]
    return WORDS.get(parts[0], "") if isinstance(hint, types.UnionType) and len(parts) == 1 else ""
