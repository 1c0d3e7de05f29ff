"""Which process this is, whether another one still lives, and what ends with it; a folder that one at a time writes.

A process is named by its host, the boot of its system (two machines may share a host's name), its process namespace
(containers share both), its number, and when it started, as numbers are used again. Of a process of another system
nothing is known but whether it still shows signs of life.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from untied.errors import UntiedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "Lock", "end_with_parent", "here", "is_free", "is_gone", "is_of_this_system", "when_closed"]

LOCK = "lock.json"
BEAT = 5.0  # seconds between two signs of life of a lock's holder
WATCH = 30.0  # seconds without one after which a holder that cannot be asked is taken for dead
SYSTEM = ("host", "boot", "space")


def here() -> dict[str, Any]:
    """This process, as others may read of it."""
    return {"host": socket.gethostname(), "boot": _boot(), "space": _space(), "pid": os.getpid(),
            "began": _began(os.getpid())}  # fmt: skip


def is_gone(process: Mapping[str, Any]) -> bool:
    """Whether a process is known to have ended: it was one of this system, and is not there any more."""
    return is_of_this_system(process) and _began(process.get("pid")) != process["began"]


def is_of_this_system(process: Mapping[str, Any]) -> bool:
    """Whether this system can say if a process lives. Some systems never can, those without /proc."""
    mine = here()
    return bool(process.get("began") and mine["boot"]) and all(process.get(name) == mine[name] for name in SYSTEM)


@cache
def _boot() -> str:
    """A name for this run of the operating system; empty where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: Any) -> str:
    """When a process started, in its system's own terms; empty if it has ended, also if nobody has waited for it.

    What is no process's number has ended, too.
    """
    try:
        with open(f"/proc/{int(pid)}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError, OverflowError):
        return ""
    return "" if state in "ZX" else fields[18]


def end_with_parent() -> None:
    """Let this process, which ``multiprocessing`` has started, end at once when its parent has ended in any way."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def when_closed(descriptor: int, then: Callable[[], None]) -> None:
    """Call something from a thread once nobody holds the other end of a pipe, as a process that was killed does not."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(descriptor, 4096):
                pass
        then()

    threading.Thread(target=watch, daemon=True).start()


class Lock:
    """A folder that this process alone writes, while it is entered; it is made if need be.

    The lock is a file that names its holder, who touches it every few seconds. A holder of this system that has ended
    is followed at once; one of another system after it has given no sign of life for half a minute. Files that an
    earlier holder was killed while writing are removed.

    Args:
        folder: to write to.
        say: for a line, where that takes time.

    Raises:
        UntiedError: on entering: another process writes there, or the folder cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> with Lock(Path(mkdtemp())) as lock:
        ...     (lock.folder / "lock.json").exists()
        True
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.say = folder, say
        self.file = folder / LOCK
        self._mine = False  # an outer one of this process may have it
        self._over = threading.Event()

    def __enter__(self) -> Lock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mine = self._take()
        except OSError as error:
            raise UntiedError(f"cannot write {self.folder}: {error.strerror or error}") from error
        if self._mine:
            for pattern in (".*-*.partial", "*/.*-*.partial"):
                for half in self.folder.glob(pattern):
                    with suppress(OSError):
                        half.unlink()
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._mine and _read(self.file) == here():
            with suppress(OSError):
                self.file.unlink()

    def _take(self) -> bool:
        """Become the holder. Returns False if this process is that already."""
        while True:
            with _alone(self.folder):
                if self._write():
                    return True
                holder = _read(self.file)
                if holder == here():
                    return False
                if is_gone(holder):
                    self.file.unlink(missing_ok=True)
                    continue
            if is_of_this_system(holder):
                raise self._busy(holder)
            self._wait(holder)

    def _write(self) -> bool:
        try:
            with self.file.open("x") as file:
                file.write(json.dumps(here()))
        except FileExistsError:
            return False
        except OSError:  # a full disk
            self.file.unlink(missing_ok=True)
            raise
        return True

    def _wait(self, holder: Mapping[str, Any]) -> None:
        """Take the lock away from a holder that gives no sign of life."""
        self.say(f"{self.folder} belongs to {_words(holder)}, which cannot be asked from here: waiting {WATCH:.0f} s "
                 "for a sign of life")  # fmt: skip
        seen, since = _touched(self.file), time.monotonic()
        while time.monotonic() - since < WATCH:
            time.sleep(min(1.0, WATCH / 4))
            now = _touched(self.file)
            if now is None:
                return
            if now != seen:
                raise self._busy(holder)
        with _alone(self.folder):
            if _touched(self.file) == seen:
                self.file.unlink(missing_ok=True)

    def _busy(self, holder: Mapping[str, Any]) -> UntiedError:
        error = UntiedError(
            f"{_words(holder)} is writing to {self.folder}: wait until it has ended, stop it, or choose another folder"
        )
        error.__cause__ = BlockingIOError(str(self.file))
        return error

    def _beat(self) -> None:
        """Give signs of life, as long as the lock is ours."""
        while not self._over.wait(BEAT) and _read(self.file) == here():
            with suppress(OSError):
                os.utime(self.file)


def is_free(folder: Path) -> bool:
    """Whether it is known that nobody writes to a folder."""
    return not (folder / LOCK).exists() or is_gone(_read(folder / LOCK))


def _read(file: Path) -> dict[str, Any]:
    """A lock's holder; nothing is known of it where a kill or a full disk cut the file short."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _touched(file: Path) -> tuple[int, int] | None:
    """Which file it is, and when it was last touched; opened first, as network file systems then look again."""
    try:
        with file.open("rb") as opened:
            about = os.fstat(opened.fileno())
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _words(holder: Mapping[str, Any]) -> str:
    return f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')}"[:200]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this system at a time: else two could each take the same dead holder's place."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
