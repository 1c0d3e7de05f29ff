"""Ctrl-C while the command imports what it needs, which takes seconds, ends it in a line.

It has to be the package's first import. Nothing happens where untied is used as a library.
"""

import os
import signal
import sys
from types import FrameType

__all__ = ["over"]


def over() -> None:
    """The command has begun, and handles Ctrl-C itself.

    >>> over()
    >>> signal.getsignal(signal.SIGINT) is _stop
    False
    """
    if signal.getsignal(signal.SIGINT) is _stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stop(number: int, frame: FrameType | None) -> None:
    os.write(2, b"untied: interrupted\n")
    os._exit(128 + number)


def _is_command(program: str, words: list[str]) -> bool:
    """Whether this process is ``untied``, or ``python -m untied``."""
    name = os.path.splitext(os.path.basename(program))[0]
    module = words[words.index("-m") + 1 : words.index("-m") + 2] if "-m" in words else []
    return name == "untied" or (program == "-m" and module == ["untied"])


def _begin() -> None:
    ours = _is_command(sys.argv[0] if sys.argv else "", sys.orig_argv)
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


_begin()
