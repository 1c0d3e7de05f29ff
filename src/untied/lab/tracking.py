"""Where metrics go besides the run folder's own files: TensorBoard event files, Weights & Biases, MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from untied.errors import UntiedError

__all__ = ["Tracker", "flat", "trackers"]


class Tracker(Protocol):
    """Takes numbers by name, at steps that only grow."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in a folder; steps from ``purge`` on that are there already, from before a kill, are hidden."""

    def __init__(self, folder: Path, purge: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, as it is slow to import

        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=purge or None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        try:
            for name, number in metrics.items():
                self.writer.add_scalar(name, number, step)
            self.writer.flush()
        except OSError as error:
            raise UntiedError(f"cannot write {self.folder}: {error.strerror or error}") from error

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of W&B with the folder's name, continued where it exists."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = imported("wandb", "wandb")
        self.run = wandb.init(
            project="untied", name=folder.name, id=folder.name, resume="allow", dir=str(folder), config=dict(config)
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow with the folder's name, continued where it exists; MLFLOW_TRACKING_URI says where."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.mlflow = imported("mlflow", "mlflow-skinny")
        self.mlflow.set_experiment("untied")
        wanted = f"attributes.run_name = '{folder.name}'"
        before = self.mlflow.search_runs(filter_string=wanted, output_format="list")
        self.mlflow.start_run(run_id=before[0].info.run_id if before else None, run_name=folder.name)
        if not before:
            self.mlflow.log_params({name: str(value)[:500] for name, value in flat(config).items()})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.mlflow.log_metrics({name.replace("°", ""): number for name, number in metrics.items()}, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


def imported(module: str, package: str) -> Any:
    """A package that is not a requirement of the lab.

    Raises:
        UntiedError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UntiedError(f"tracker {module} is not installed: run  pip install {package},  or leave it out") from error


OTHERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def trackers(name: str, folder: Path, config: Mapping[str, Any], step: int) -> list[Tracker]:
    """TensorBoard, and the one that ``name`` says.

    Args:
        name: none, wandb or mlflow.
        folder: of the run. config: its configuration. step: at which the run begins or goes on.
    """
    others: list[Tracker] = [OTHERS[name](folder, config)] if name != "none" else []
    return [TensorBoard(folder / "tensorboard", step), *others]


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
