"""Which run a checkpoint is of, and whether it is this one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from untied.errors import UntiedError
from untied.lab.data import Dataset
from untied.lab.reading.edges import shown
from untied.lab.settings.run import TrainConfig
from untied.lab.training import checkpoint
from untied.lab.training.checkpoint import Position

__all__ = ["read_last", "same_run"]

LAST = Path("checkpoints/last.safetensors")


def identity(config: TrainConfig, data: Dataset) -> dict[str, Any]:
    """What makes a checkpoint this run's."""
    return {
        "model": config.model, "rule": config.rule, "data": config.data.name, "classes": list(data.classes),
        "images": data.train.size, "batch size": config.data.batch_size, "seed": config.seed, "epochs": config.epochs,
        "forward optimizer": config.forward.name, "backward optimizer": config.backward.name, "ema": config.ema,
        "settings": settings(config),
    }  # fmt: skip


FREE = ("out", "overwrite", "tracker", "verify", "checkpoint_minutes", "data.root", "data.workers", "data.download",
        "devices.accelerator", "devices.devices", "devices.nodes")  # fmt: skip
"""Settings that say where a run is and how it is watched: it may go on with others. The number of processes is asked
for by itself."""


def settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its dotted name that decides what a run becomes, as JSON has it."""

    def flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                yield from flat({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, f"{name}.")
            elif name not in FREE:
                yield name, json.loads(json.dumps(value, default=str))

    return dict(flat({f.name: getattr(config, f.name) for f in dataclasses.fields(config)}, ""))


def same_settings(file: Path, there: Any, here: dict[str, Any]) -> None:
    """Raise UntiedError, naming the fields, if the configuration was edited since the checkpoint was written."""
    if not isinstance(there, dict):  # a checkpoint of before, which did not keep them
        return
    differing = [name for name in here if name in there and there[name] != here[name]]
    if differing:
        of = ", ".join(f"{name} {shown(there[name])} → {shown(here[name])}" for name in differing)
        raise UntiedError(
            f"config.yaml was edited since {file} was written: {of}; put it back, or start another run with "
            "--config config.yaml --out FOLDER"
        )


def same_run(file: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise UntiedError if what a checkpoint was made of is not what we have here."""
    for what, mine in here.items():
        if what == "settings":
            same_settings(file, there.get(what), mine)
            continue
        if (its := there.get(what)) != mine:
            its, mine = brief(its, mine), brief(mine, its)
            raise UntiedError(f"{file} is of another run: its {what}: {its}; here: {mine}")


def brief(value: Any, other: Any) -> str:
    """A value in a few words: of a list, what another has not."""
    if not isinstance(value, list):
        return str(value)
    own = [str(item) for item in value if not isinstance(other, list) or item not in other]
    return ", ".join([str(len(value)), *own[:3]]) + (", ..." if len(own) > 3 else "")


def read_last(
    folder: Path, identity: dict[str, Any], processes: int
) -> tuple[dict[str, Tensor], Position, dict[str, Any]]:
    """The last checkpoint of a run folder, as ``checkpoint.read`` gives it.

    Raises:
        UntiedError: it is damaged, or of another model, rule, data set, optimizer, or number of processes.
    """
    path = folder / LAST
    tensors, position, rest = checkpoint.read(path)
    same_run(path, position.identity, identity)
    if "optimizers" not in rest:
        raise UntiedError(f"{path} holds weights alone, as best.safetensors does: a run goes on from its own last one")
    if rest.get("processes", 1) != processes:
        raise UntiedError(
            f"the run had {rest.get('processes', 1)} processes and now has {processes}: go on with as many, "
            "so that it stays the same run"
        )
    return tensors, position, rest
