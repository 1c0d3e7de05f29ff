"""Optuna's journal in a file, to which a full disk or a kill does no lasting harm."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from untied.errors import UntiedError
from untied.lab.keeping.record import drop_torn_line

__all__ = ["Journal", "open_journal"]


def open_journal(path: Path) -> JournalStorage:
    """A journal as a storage of Optuna's.

    Raises:
        UntiedError: it is damaged. OSError: it cannot be read or written.
    """
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(Journal(path))
    except (OSError, UntiedError):
        raise
    except Exception as error:  # lines that are JSON, but not Optuna's
        raise _damaged(path, f"does not tell a story ({type(error).__name__})") from error


def _damaged(path: Path, how: str) -> UntiedError:
    return UntiedError(
        f"the journal {path} {how}: untied study recover FOLDER  makes the study again from the folders of its runs"
    )


class Journal(JournalFileBackend):
    """A log of JSON lines. What could not be written whole is cut off again: the next line would continue it.

    Args:
        path: the file, made if need be.

    Raises:
        UntiedError: on reading: a line in the middle is damaged.
        OSError: on writing, as on a full disk; the log is as it was then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.alone = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self.alone)
        with self._locked(), path.open("ab+") as file:  # also says at once if it cannot be written
            drop_torn_line(file)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._locked(), self.path.open("ab+", buffering=0) as file:
            size = drop_torn_line(file)
            try:
                rest = memoryview(lines.encode())
                while rest:
                    rest = rest[file.write(rest) or 0 :]
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(size)
                raise

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        number = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                number += 1
                if not isinstance(log, dict):
                    raise ValueError("no object")
                yield log
        except ValueError as error:
            raise _damaged(self.path, f"is damaged in line {number + 1}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.alone.acquire()
        try:
            yield
        finally:
            self.alone.release()
