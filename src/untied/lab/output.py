"""Standard output and error that may end before the work does: at a reader that has gone, or on a full disk."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Output", "checked", "keep_outputs"]

T = TypeVar("T")


class Output(io.TextIOWrapper):
    """A stream that goes on to nowhere once it cannot be written.

    Attributes:
        lost: why it cannot be.
    """

    lost: OSError | None = None
    _said = False

    def report(self) -> None:
        """Say once that it is lost, if it is."""
        if self.lost is None or self._said:
            return
        self._said = True
        gone = isinstance(self.lost, BrokenPipeError)
        print(
            "untied: nobody reads the output any more: going on without it" if gone
            else f"untied: the output cannot be written: {self.lost.strerror}: going on without it",
            file=sys.stderr,
        )  # fmt: skip

    def write(self, text: str) -> int:
        return self._kept(lambda: super(Output, self).write(text), len(text))

    def flush(self) -> None:
        self._kept(super().flush, None)

    def _kept(self, call: Callable[[], T], otherwise: T) -> T:
        try:
            return call()
        except OSError as error:
            self.lost = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # where what is buffered still has to go
            os.close(nowhere)
            return otherwise


def keep_outputs() -> None:
    """Make this process's standard output and error such streams. What a terminal cannot show, it shows as numbers."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            line, encoding = stream.line_buffering, stream.encoding
            setattr(sys, name, Output(stream.detach(), encoding, "backslashreplace", line_buffering=line))


def checked(code: int) -> int:
    """The exit code: 2, and a line, where a command has ended well and its output could not be written.

    A reader that has seen enough, such as ``head``, is no mistake.
    """
    if not isinstance(sys.stdout, Output):
        return code
    sys.stdout.flush()
    if sys.stdout.lost is None or isinstance(sys.stdout.lost, BrokenPipeError):
        return code
    sys.stdout.report()
    return code or 2
