"""What every command does with a terminal: say a line, and stop when it is told to."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from rich.console import Console

from untied.lab.output import Output

__all__ = ["Stoppable", "ctrl_c_ignored", "interruptible", "say", "shows_bars", "stopping"]


class Stoppable(Protocol):
    """Something that ends soon, in good order, once ``stop`` is set."""

    stop: bool


def say(console: Console, line: str) -> None:
    """One line, as it is. Where output cannot be written, as after ``| head``, work goes on and says so once."""
    try:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    except SystemExit:  # Rich's answer to a reader that has gone, outside the command; it writes to nowhere from now on
        print("untied: nobody reads the output any more: going on without it", file=sys.stderr)
    if isinstance(sys.stdout, Output):
        sys.stdout.report()


def shows_bars(console: Console) -> bool:
    """Whether progress bars can be seen: on a terminal, and in a notebook that has ipywidgets, which rich needs."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def stopping(what: Stoppable) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM set ``what.stop``; a second Ctrl-C interrupts at once. Yields the exit code, once one came."""
    codes: list[int] = []

    def stop(number: int, frame: object) -> None:
        if codes and number == signal.SIGINT:
            raise KeyboardInterrupt
        codes.append(128 + number)
        what.stop = True

    with _handled({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield codes


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """SIGTERM, a cluster's way of saying stop, does what Ctrl-C does. Yields the exit code of the last one."""
    codes = [128 + signal.SIGINT]

    def stop(number: int, frame: object) -> None:
        codes[0] = 128 + number
        raise KeyboardInterrupt

    with _handled({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield codes


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """Children that start meanwhile ignore Ctrl-C for good: it is for their parent, which ends them."""
    with _handled({signal.SIGINT: signal.SIG_IGN}):
        yield


@contextmanager
def _handled(handlers: dict[signal.Signals, Callable[..., Any] | signal.Handlers]) -> Iterator[None]:
    """With other handlers of signals; elsewhere than in the main thread, whoever called us handles them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
