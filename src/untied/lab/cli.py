"""The command line: finds the command, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
import traceback

import torch

import untied
from untied.errors import UntiedError
from untied.lab import arguments, commands
from untied.lab.completion import completion
from untied.lab.keeping import crash
from untied.lab.reading.edges import expect_variables
from untied.lab.reading.secrets import redacted
from untied_usage import usage

__all__ = ["main"]


def main(given: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 2 for a mistake of the user's, 3 for one of ours, 130 if interrupted."""
    words = list(sys.argv[1:] if given is None else given)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    if not os.environ.get("COLUMNS", "1").strip("0"):  # a terminal of no width: nothing would be printed
        del os.environ["COLUMNS"]
    try:
        expect_variables()
        return command(words)
    except UntiedError as error:
        return stop(f"untied: {error}", 2, debug)
    except KeyboardInterrupt:
        return stop("untied: interrupted", 130, debug)
    except Exception as error:
        file = crash.write(error, words, arguments.last_read())
        where = f"the file {file} says where: please report it" if file else "--debug shows where"
        return stop(redacted(f"untied: unexpected {type(error).__name__}: {error} ({where})"), 3, debug)


def stop(line: str, code: int, debug: bool) -> int:
    """Say in one line what went wrong. One process of several ends here."""
    if debug:
        traceback.print_exc()
    print(" ".join(line.split()), file=sys.stderr)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Threads of its backend may still wait for another process; one that wakes while Python ends aborts it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def command(words: list[str]) -> int:
    """Find the command that the first word names, and run it."""
    if words[:1] == ["--version"]:
        print(f"untied {untied.__version__}")
        return 0
    if words[:1] == ["--print-completion"]:
        print(completion(words[1:], commands.NAMES, help_of))
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] not in commands.NAMES:
        near = difflib.get_close_matches(words[0], commands.NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UntiedError(f"unknown command {words[0]!r}: possible are {', '.join(commands.NAMES)}{hint}")
    return commands.command(words[0]).run(words[1:])


def help_of(words: list[str]) -> str:
    """What a command prints for --help, as plain text in one column."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), arguments.columns(100), contextlib.suppress(SystemExit, UntiedError):
        command([*words, "--help"])
    return re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
