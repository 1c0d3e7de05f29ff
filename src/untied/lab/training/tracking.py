"""Where metrics go besides the run folder's own files: TensorBoard event files, Weights & Biases, MLflow."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from untied.errors import UntiedError
from untied.lab.keeping.record import RunFolder

__all__ = ["Tracker", "check", "flat", "numbers", "trackers"]

_numbers = itertools.count()  # of this process's event files


class Tracker(Protocol):
    """Takes numbers by name, at steps that only grow."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """An event file in a folder; steps from ``start`` on that are there already, from before a kill, are hidden.

    Its records are written here and now: PyTorch's writer does it in a thread, where a full disk cannot be caught.

    Raises:
        UntiedError: it cannot be written.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # here, as they are slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        with self._guarded():
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab")
        self.records = RecordWriter(self.file)
        self._write([Event(file_version="brain.Event:2"),
                     Event(step=start, session_log=SessionLog(status=SessionLog.START))])  # fmt: skip

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=number) for name, number in metrics.items()]
        self._write([Event(step=step, summary=Summary(value=[value])) for value in values])

    def close(self) -> None:
        with suppress(OSError):  # all is written; what could not be has been said
            self.file.close()

    def _write(self, events: list[Any]) -> None:
        with self._guarded():
            for event in events:
                event.wall_time = time.time()
                self.records.write(event.SerializeToString())
            self.file.flush()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UntiedError(f"cannot write {self.path}: {error.strerror or error}") from error


class WeightsAndBiases:
    """A run of W&B with the folder's name, continued where it exists."""

    def __init__(self, folder: RunFolder) -> None:
        self.run = imported("wandb").init(
            project="untied", name=folder.path.name, id=key(folder), resume="allow", dir=str(folder.path),
            config=folder.config(),
        )  # fmt: skip

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow with the folder's name, continued where it exists; MLFLOW_TRACKING_URI says where."""

    def __init__(self, folder: RunFolder) -> None:
        self.mlflow = imported("mlflow")
        self.mlflow.set_experiment("untied")
        before = self.mlflow.search_runs(filter_string=f"tags.untied = '{key(folder)}'", output_format="list")
        if before:
            self.mlflow.start_run(run_id=before[0].info.run_id)
        else:
            self.mlflow.start_run(run_name=folder.path.name, tags={"untied": key(folder)})
            self.mlflow.log_params({name: str(value)[:500] for name, value in flat(folder.config()).items()})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


def key(folder: RunFolder) -> str:
    """A run's name among all runs: folders of one name are many."""
    about = f"{folder.path.resolve()} {folder.environment()['date']}"
    return hashlib.sha256(os.fsencode(about)).hexdigest()[:16]


def imported(module: str) -> Any:
    """A package that is not a requirement of the lab.

    Raises:
        UntiedError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES[module]
        raise UntiedError(f"tracker {module} is not installed: run  pip install {package},  or leave it out") from error


PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}
OTHERS: dict[str, Callable[[RunFolder], Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def check(name: str) -> None:
    """Raise UntiedError if what this tracker needs is not installed."""
    if name != "none":
        imported(name)


def trackers(name: str, folder: RunFolder, start: int) -> list[Tracker]:
    """TensorBoard, and the one that ``name`` says.

    Args:
        name: none, wandb or mlflow.
        folder: of the run. start: the first step that can come; what TensorBoard has from it on is of before a kill.

    Raises:
        UntiedError: the tracker cannot be reached, or is not set up.
    """
    try:
        others: list[Tracker] = [OTHERS[name](folder)] if name != "none" else []
    except Exception as error:  # each tracker has its own
        raise UntiedError(f"tracker {name} refuses: {' '.join(str(error).split())}") from error
    return [TensorBoard(folder.path / "tensorboard", start), *others]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names joined by slashes."""
    return dict(_flat(values, prefix))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among metrics, flat."""
    return {
        name: float(value)
        for name, value in flat(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
