"""What every command does with a terminal: say a line, and stop when it is told to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console

__all__ = ["Stoppable", "ctrl_c_ignored", "interruptible", "say", "stopping"]


class Stoppable(Protocol):
    """Something that ends soon, in good order, once ``stop`` is set."""

    stop: bool


def say(console: Console, line: str) -> None:
    """One line, as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


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
def interruptible() -> Iterator[None]:
    """SIGTERM, a cluster's way of saying stop, does what Ctrl-C does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with _handled({signal.SIGTERM: stop}):
        yield


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
