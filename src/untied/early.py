"""What ends the command in a line before it has imported what it needs: Ctrl-C in those seconds, a deleted folder, and
a PyTorch that cannot be loaded.

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
    _end("interrupted", 128 + number)


def _end(why: str, code: int) -> None:
    os.write(2, f"untied: {why}\n".encode())
    os._exit(code)


def _is_command(program: str, words: list[str]) -> bool:
    """Whether this process is ``untied``, or ``python -m untied``."""
    name = os.path.splitext(os.path.basename(program))[0]
    module = words[words.index("-m") + 1 : words.index("-m") + 2] if "-m" in words else []
    return name == "untied" or (program == "-m" and module == ["untied"])


def _begin() -> None:
    if not _is_command(sys.argv[0] if sys.argv else "", sys.orig_argv):
        return
    try:
        os.getcwd()
    except OSError:  # neither PyTorch nor any path can be found from there
        _end("the folder that this command works in is gone: cd to another one", 2)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        import torch  # noqa: F401
    except (ImportError, OSError, MemoryError) as error:  # it is missing or broken, or there is too little memory
        _end(f"PyTorch cannot be loaded: {' '.join(str(error).split()) or type(error).__name__}", 1)


_begin()
