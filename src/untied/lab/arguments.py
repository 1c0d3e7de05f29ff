"""The parser: from the words of a command line to a configuration, or to one line that says what was meant."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from untied.errors import UntiedError
from untied.lab.keeping.record import plain
from untied.lab.reading.fields import is_rare, nested_config, read_yaml, set_in, settings_of
from untied.lab.showing.helptext import print_help

__all__ = ["columns", "flags_of", "last_read", "read_config", "take_option"]

T = TypeVar("T")
_settings = ""  # the last ones that were read, as YAML, for a crash file
OPTIMIZER = ("forward.name", "backward.name")
MEANT = {
    "learning-rate": ("lr",), "optimizer": OPTIMIZER, "optim": OPTIMIZER, "opt": OPTIMIZER, "wd": ("weight-decay",),
    "batch": ("batch-size",), "bs": ("batch-size",), "dataset": ("data.name",), "net": ("model",),
    "network": ("model",), "arch": ("model",), "output": ("out",), "output-dir": ("out",), "num-epochs": ("epochs",),
}  # fmt: skip
"""What others call our options: the ends of ours."""


def last_read() -> str:
    """The settings that were read last, as YAML; empty if none were."""
    return _settings


def read_config(kind: type[T], arguments: list[str], program: str, default: T | None = None) -> T:
    """A config from the command line, over ``default`` or the YAML file that --config names, over the defaults.

    Raises:
        UntiedError: an unknown flag (with the nearest known one), or an impossible value.
    """
    arguments = [re.sub(r"^--data(?==|$)", "--data.name", word) for word in arguments]
    arguments, pairs = take_pairs(comma_lists(kind, arguments))
    arguments, file = take_option(arguments, "--config")
    if file is not None and default is not None:
        raise UntiedError(f"a recipe and --config {file} are both given: name one of them")
    start = default if file is None else read_yaml(kind, Path(file))
    given: dict[str, Any] = {} if start is None else {"default": start}
    if "--help-all" in arguments:
        print(f"{program}: all settings, for --set path.to.field=value and for YAML\n")
        for path, value, text, _ in settings_of(kind):
            print(textwrap.fill(f"{path} = {value}: {text}", 100, initial_indent="  ", subsequent_indent="      "))
        raise SystemExit(0)
    if {"-h", "--help"} & set(arguments):
        about = f"Other settings: --set path.to.field=value, as often as you like. {program} --help-all lists them all."
        print_help(kind, f"{inspect.getdoc(kind)}\n\n{about if has_rare(kind) else ''}".strip(), program, start)
    said = io.StringIO()
    config: T
    try:
        with contextlib.redirect_stderr(said), columns(10_000):
            config, unknown = tyro.cli(kind, args=arguments, prog=program, return_unknown_args=True, **given)
    except SystemExit:
        raise UntiedError(f"{essence(said.getvalue())} ({program} --help says more)") from None
    if unknown:
        if (spelling := new_spelling(kind, unknown)) is not None:
            raise UntiedError(f"{unknown[0].partition('=')[0]} is not a flag any more: write  --set {spelling}")
        flags = flags_of(kind)
        word = unknown[0].partition("=")[0]
        name = word.lstrip("-").replace("_", "-")
        ends = tuple(end for meant in MEANT.get(name, (name,)) for end in (f"-{meant}", f".{meant}"))
        meant = [flag for flag in flags if flag != word and flag.endswith(ends)]
        near = [f"--{end}" for end in difflib.get_close_matches(name, [flag[2:] for flag in flags], n=2)]
        hint = f"did you mean {' or '.join(meant or near)}? " if meant or near else ""
        if word in flags:
            hint = f"give it without {word}, as in {program} VALUE; "
        raise UntiedError(f"unknown option {unknown[0]!r}: {hint}{program} --help lists all")
    config = set_in(config, pairs, plain(config)) if pairs else config
    global _settings
    _settings = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    return config


def take_pairs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take ``--set a.b=1 c=2`` out of the arguments."""
    rest: list[str] = []
    pairs: list[str] = []
    waiting = inside = False  # for the first pair, and for more of them
    for word in [*arguments, "--"]:  # the last one ends what is open
        pair = word.removeprefix("--set=") if word.startswith("--set=") else word if inside and "=" in word else ""
        if pair and (inside or pair != word) and not pair.startswith("-"):
            pairs.append(pair)
            waiting, inside = False, True
            continue
        if waiting:
            raise UntiedError("--set needs path.to.field=value, as in --set forward.lr=0.05")
        waiting = inside = word == "--set"
        rest += [] if waiting else [word]
    return rest[:-1], pairs


def comma_lists(kind: type[Any], arguments: list[str]) -> list[str]:
    """Write ``--rules bp,fa`` as ``--rules bp fa``, for every option that takes several; not inside of brackets."""
    several = {flag for flag in flags_of(kind, lists=True)}
    words: list[str] = []
    inside = False
    for word in arguments:
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = flag in several
            words += [flag, *split_commas(value)] if inside and equals else [word]
        else:
            words += split_commas(word) if inside else [word]
    return words


def split_commas(text: str) -> list[str]:
    """The parts between commas that stand in no brackets.

    >>> split_commas("bp,ia(amp=1, null=2),sa")
    ['bp', 'ia(amp=1, null=2)', 'sa']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()] or [text]


def has_rare(kind: type[Any]) -> bool:
    return any(rare for *_, rare in settings_of(kind))


def new_spelling(kind: type[Any], unknown: list[str]) -> str | None:
    """How a flag of version 0.1, with the words after it, is written now; None if it was none."""
    flag, equals, value = unknown[0].partition("=")
    path = flag.removeprefix("--").replace("-", "_")
    rare = {name for name, *_, is_rare in settings_of(kind) if is_rare}
    off = path.replace(".no_", ".").removeprefix("no_")
    if path not in rare and off in rare:
        return f"{off}=false"
    if path not in rare:
        return None
    after = [value] if equals else list(itertools.takewhile(lambda word: not word.startswith("--"), unknown[1:]))
    if path.endswith("arguments") and len(after) >= 2:
        return f"{path}.{after[0]}={after[1]}"
    return f"{path}={'true' if not after else after[0] if len(after) == 1 else '[' + ','.join(after) + ']'}"


def take_option(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Take ``--flag VALUE`` or ``--flag=VALUE`` out of the arguments."""
    for at, word in enumerate(arguments):
        if word.startswith(flag + "="):
            return arguments[:at] + arguments[at + 1 :], word.removeprefix(flag + "=")
        if word == flag:
            if at + 1 == len(arguments):
                needed = {
                    "--config": "a YAML file, such as the config.yaml of an earlier run",
                    "--resume": "the folder of the run or comparison that is to go on",
                }
                raise UntiedError(f"{flag} needs {needed[flag]}")
            return arguments[:at] + arguments[at + 2 :], arguments[at + 1]
    return arguments, None


def flags_of(kind: type[Any], prefix: str = "--", lists: bool = False) -> list[str]:
    """Every flag that a config dataclass gives rise to; or only those that take several values."""
    flags = ["--config", "--set"] if prefix == "--" and not lists else []
    for field in dataclasses.fields(kind):
        flag, nested = prefix + field.name.replace("_", "-"), nested_config(field)
        if nested is not None:
            flags += flags_of(nested, flag + ".", lists)
        elif not is_rare(kind, field.name) and (not lists or re.search(r"tuple\[(?!Path)", str(field.type))):
            flags.append(flag)
    return flags


@contextlib.contextmanager
def columns(width: int) -> Iterator[None]:
    """Let tyro write as wide as it wants, so that no word is broken."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def essence(box: str) -> str:
    """What tyro says in a box, in one line: without frame, title, and the help that follows."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in box.splitlines()]
    inside = [re.sub(r"^[│|]\s*|\s*[│|]$", "", line).strip() for line in lines if not re.match(r"^[╭╰+]", line)]
    framed = any(
        line.startswith("╭") for line in lines
    )  # where letters are ASCII there is no frame: the title is a line
    if not framed and len(inside) > 1 and re.fullmatch(r"[─-]{3,}", inside[1]):
        inside = inside[2:]
    text = []
    for line in inside:
        if re.match(r"^[─-]{3,}|^Argument helptext|^For full helptext", line):
            break
        text.append(line.strip())
    line = " ".join(" ".join(text).split())
    return (
        re.sub(r"^Error parsing (\w*Config|run|data|forward|backward): ", "", line) or "the command line cannot be read"
    )
