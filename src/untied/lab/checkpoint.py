"""A training run's whole state as one safetensors file: tensors by name, everything else as JSON in its header.

    model.<name>                           weights and buffers
    ema.<name>                             their moving average, if there is one
    optimizer.<group>.<index>.<key>        an optimizer's tensors; group is forward or backward
    sums                                   of the metrics of the epoch so far

Random numbers need no place in it: those of a step are a function of the run's seed and the step's number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from untied.errors import UntiedError
from untied.lab.devices import full, place, put
from untied.lab.optim import Group, Optimizers
from untied.lab.record import write_tensors

__all__ = ["Position", "load", "model_tensors", "read", "restore", "save", "tensors_of"]


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: steps done. lines: of metrics written, up to the last whole epoch.
        best: highest validation accuracy so far, and the epoch that had it.
        identity: what the run trains; a checkpoint of something else is refused.
    """

    step: int = 0
    lines: int = 0
    best: tuple[float, int] | None = None
    identity: dict[str, Any] = field(default_factory=dict)


def model_tensors(model: nn.Module, prefix: str = "model.") -> dict[str, Tensor]:
    """Weights and buffers, whole, by name."""
    return {prefix + name: full(tensor.detach()) for name, tensor in model.state_dict().items()}


def tensors_of(optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizers' state: tensors, and what is not a tensor by group."""
    tensors, rest = {}, {}
    for name, group in optimizers.named.items():
        state = group.optimizer.state_dict()
        others: dict[str, Any] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{index}.{key}"] = full(value)
                else:
                    others[f"{index}.{key}"] = value
        parts = [{k: v for k, v in part.items() if k != "params"} for part in state["param_groups"]]
        rest[name] = {"moves": group.moves, "state": others, "parts": parts}
    return tensors, rest


def save(path: Path, position: Position, tensors: Mapping[str, Tensor], **rest: Any) -> None:
    """Write a checkpoint, all or nothing.

    Raises:
        UntiedError: it cannot be written, as on a full disk; the file that was there stays.
    """
    write_tensors(path, tensors, {"untied": json.dumps({"position": asdict(position), **rest})})


def read(path: Path) -> tuple[dict[str, Tensor], Position, dict[str, Any]]:
    """A checkpoint's tensors, position, and the rest of its header.

    Raises:
        UntiedError: there is no such file, or it is not a checkpoint.
    """
    if not path.is_file():
        after = "once validation images have been scored" if path.stem == "best" else "after its first epoch"
        raise UntiedError(f"there is no checkpoint {path}: a run writes it {after}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["untied"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        position = Position(**header.pop("position"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UntiedError(f"{path} is not a checkpoint of a training run, or is damaged ({reason})") from error
    position.best = None if position.best is None else (position.best[0], position.best[1])  # JSON has no tuples
    return tensors, position, header


def load(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str, what: str) -> None:
    """Fill a model from a checkpoint's tensors.

    Raises:
        UntiedError: they are another model's.
    """
    own, given = model.state_dict(), {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for name in dict.fromkeys([*own, *given]):
        if name not in given or name not in own or own[name].shape != given[name].shape:
            of = [tuple(d[name].shape) if name in d else "missing" for d in (given, own)]
            raise UntiedError(f"{what} is of another model or rule: {name} is {of[0]} there and {of[1]} here")
    for name, tensor in own.items():
        put(tensor, given[name])


def restore(optimizers: Optimizers, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put the optimizers back to where they were."""
    for name, group in optimizers.named.items():
        _restore(group, name, tensors, rest["optimizers"][name])


def _restore(group: Group, name: str, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    parameters = [p for part in group.optimizer.param_groups for p in part["params"]]
    state: dict[int, dict[str, Any]] = {}
    prefix = f"optimizer.{name}."
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, _, field_name = key.removeprefix(prefix).partition(".")
            like = parameters[int(index)]
            same = tensor.shape == like.shape and tensor.dim() > 0
            state.setdefault(int(index), {})[field_name] = place(tensor, like) if same else tensor
    for key, value in rest["state"].items():
        index, _, field_name = key.partition(".")
        state.setdefault(int(index), {})[field_name] = value
    parts, start = [], 0
    for own, saved in zip(group.optimizer.param_groups, rest["parts"], strict=True):
        count = len(own["params"])
        saved = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}  # JSON has no tuples
        parts.append({**saved, "params": list(range(start, start + count))})
        start += count
    group.optimizer.load_state_dict({"state": state, "param_groups": parts})
    group.moves = rest["moves"]
