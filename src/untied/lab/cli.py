"""The command line: subcommands, no logic."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import untied
from untied.errors import UntiedError

__all__ = ["main"]


def compare(arguments: list[str]) -> int:
    """Train the same network with each of several rules: table, figures and a page."""
    from untied.lab.compare import compare
    from untied.lab.config import CompareConfig

    return compare(read_config(CompareConfig, arguments, "untied compare"))


def rules(arguments: list[str]) -> int:
    """Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper)."""
    from untied.lab.listing import print_rules

    @dataclass(frozen=True)
    class Nothing:
        """Print the primitives, the named rules and how to write one (Tables 1 and 2 of the paper)."""

    read_config(Nothing, arguments, "untied rules")
    print_rules()
    return 0


def report(arguments: list[str]) -> int:
    """Write the tables, figures and page of a run folder again."""
    from untied.lab.compare import again

    @dataclass(frozen=True)
    class Where:
        """Write the tables, figures and page of a run folder again, without training."""

        run: Annotated[Path, tyro.conf.Positional]
        """A folder that untied compare has written."""

    return again(read_config(Where, arguments, "untied report").run)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"compare": compare, "rules": rules, "report": report}


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for a mistake of the user's, 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        return command(words)
    except UntiedError as error:
        return stop(f"untied: {error}", 2, debug)
    except KeyboardInterrupt:
        return stop("untied: interrupted", 130, debug)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except Exception as error:
        return stop(f"untied: unexpected {type(error).__name__}: {error} (--debug shows where)", 3, debug)


def stop(line: str, code: int, debug: bool) -> int:
    """Say in one line what went wrong."""
    if debug:
        traceback.print_exc()
    print(" ".join(line.split()), file=sys.stderr)
    return code


def command(words: list[str]) -> int:
    """Find the command that the first word names, and run it."""
    if words[:1] == ["--version"]:
        print(f"untied {untied.__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print("usage: untied COMMAND [OPTIONS]     (untied COMMAND --help lists them)\n")
        for name, run in COMMANDS.items():
            print(f"  {name:<10} {(run.__doc__ or '').splitlines()[0]}")
        print("\n  --version   --debug (a traceback with every error)")
        return 0 if words else 2
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UntiedError(f"unknown command {words[0]!r}: possible are {', '.join(COMMANDS)}{hint}")
    return COMMANDS[words[0]](words[1:])


def read_config(kind: type[Any], arguments: list[str], program: str) -> Any:
    """A config from the command line, over the YAML file that --config names, over the defaults.

    Raises:
        UntiedError: an unknown flag or an impossible value; what tyro says of it, in one line.
    """
    from untied.lab.config import read_yaml

    arguments = ["--data.name" if a == "--data" else re.sub(r"^--data=", "--data.name=", a) for a in arguments]
    defaults: dict[str, Any] = {}
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 == len(arguments):
            raise UntiedError("--config needs a YAML file, such as the config.yaml of an earlier run")
        defaults["default"] = read_yaml(kind, Path(arguments[at + 1]))
        arguments = arguments[:at] + arguments[at + 2 :]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=program, config=(tyro.conf.FlagConversionOff,), **defaults)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        text = re.sub(r"[│╭╮╰╯─┌┐└┘═║╔╗╚╝]|\x1b\[[0-9;]*m", " ", said.getvalue())
        line = " ".join(text.split()).removeprefix("Unrecognized options ").removeprefix("Parsing error ")
        raise UntiedError(f"{line or 'the command line cannot be read'} (see {program} --help)") from None
