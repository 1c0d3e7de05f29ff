"""A training run's whole state as one safetensors file: tensors by name, everything else as JSON in its header.

    model.<name>                           weights and buffers
    ema.<name>                             their moving average, if there is one
    optimizer.<group>.<index>.<key>        an optimizer's tensors; group is forward or backward
    sums                                   of the metrics of the epoch so far

The header has a digest of all of it. Beside last.safetensors lies the one before, previous.safetensors.

Random numbers need no place in it: those of a step are a function of the run's seed and the step's number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from untied.errors import UntiedError
from untied.lab.devices.devices import full, place, put
from untied.lab.keeping.record import Damaged, open_tensors, write_tensors
from untied.lab.reading.edges import CheckpointHeader, expect_file, load_json, printable, validated
from untied.lab.training.optim import Group, Optimizers

__all__ = ["PREVIOUS", "Position", "load", "model_tensors", "read", "restore", "save", "tensors_of"]


PREVIOUS = "previous"
FORMAT = 2
"""Of the header. From 2 on it has a digest, so that one without is damaged."""


@dataclass
class Position:
    """Where a run is.

    Attributes:
        step: steps done. lines: of metrics written, up to the last whole epoch.
        best: the task's first metric on validation, at its best so far, and the epoch that had it.
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
    header = json.dumps({"format": FORMAT, "position": asdict(position), **rest})
    # one entry: safetensors writes several in any order, and a file must be a function of what it holds
    metadata = {"untied": json.dumps({**json.loads(header), "digest": digest(tensors, header)})}
    before = _spare(path) if path.stem == "last" and path.is_file() else None
    try:
        write_tensors(path, tensors, metadata)
        if before is not None:
            before.replace(path.with_stem(PREVIOUS))
    finally:
        if before is not None:
            before.unlink(missing_ok=True)


def _spare(path: Path) -> Path:
    """A second name for a file: no bytes are copied where the file system has links."""
    spare = path.with_name(f".{PREVIOUS}-{os.getpid()}.partial")
    spare.unlink(missing_ok=True)
    try:
        os.link(path, spare)
    except OSError:
        try:
            shutil.copy2(path, spare)
        except OSError as error:
            spare.unlink(missing_ok=True)
            raise UntiedError(f"cannot keep {path} beside a new one: {error.strerror or error}") from error
    return spare


def digest(tensors: Mapping[str, Tensor], header: str) -> str:
    """Of names, types, shapes and bytes of all tensors, and of the header."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read(path: Path) -> tuple[dict[str, Tensor], Position, dict[str, Any]]:
    """A checkpoint's tensors, position, and the rest of its header.

    Raises:
        UntiedError: there is no such file, or it cannot be read. Damaged: it is not a checkpoint.
    """
    if not path.is_file():
        after = "once validation images have been scored" if path.stem == "best" else "after its first epoch"
        raise UntiedError(f"there is no checkpoint {path}: a run writes it {after}")
    try:
        expect_file(path)
        with open_tensors(path) as file:
            metadata = file.metadata() or {}
            if "untied" not in metadata:
                raise UntiedError("its header has no 'untied'")
            header = load_json(metadata["untied"], "its header")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = header.pop("digest", None) if isinstance(header, dict) else None
        checked = validated(CheckpointHeader, header, "its header")
        digested = kept is not None or checked.format is not None  # files of before have neither
        if digested and kept != digest(tensors, json.dumps(header)):
            raise UntiedError("its bytes are not those that were written")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        reason = printable(" ".join(str(error).split()))
        refused = UntiedError if isinstance(error, OSError | MemoryError) else Damaged
        raise refused(
            f"{path} is not a checkpoint of a training run, or is damaged ({reason}){_way_out(path)}"
        ) from error
    found = checked.position
    position = Position(found.step, found.lines, found.best, dict(found.identity))
    del header["position"]
    header.pop("format", None)
    return tensors, position, header


def _way_out(path: Path) -> str:
    before = path.with_stem(PREVIOUS)
    if path.stem != "last" or not before.is_file():
        return ""
    return f": mv {before} {path}  goes back to the one before"


def load(model: nn.Module, tensors: Mapping[str, Tensor], prefix: str, what: str) -> None:
    """Fill a model from a checkpoint's tensors.

    Raises:
        UntiedError: they are another model's.
    """
    own, given = model.state_dict(), {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for name in dict.fromkeys([*own, *given]):
        same = name in given and name in own and own[name].shape == given[name].shape
        if not same or own[name].dtype != given[name].dtype:
            of = [f"{tuple(d[name].shape)} {d[name].dtype}" if name in d else "missing" for d in (given, own)]
            of = [words.partition(" torch")[0] for words in of] if not same else of
            raise UntiedError(f"{what} is of another model or rule: {name} is {of[0]} there and {of[1]} here")
    for name, tensor in own.items():
        put(tensor, given[name])


def restore(optimizers: Optimizers, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put the optimizers back to where they were.

    Raises:
        UntiedError: the checkpoint's state is of other optimizers.
    """
    for name, group in optimizers.named.items():
        try:
            _restore(group, name, tensors, rest["optimizers"][name])
        except UntiedError:
            raise
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = printable(" ".join(str(error).split()))[:200]
            raise UntiedError(f"the checkpoint's {name} optimizer is not this run's ({reason})") from error


def _restore(group: Group, name: str, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    parameters = [p for part in group.optimizer.param_groups for p in part["params"]]
    state: dict[int, dict[str, Any]] = {}
    prefix = f"optimizer.{name}."
    for key, tensor in tensors.items():
        if key.startswith(prefix):
            index, _, field_name = key.removeprefix(prefix).partition(".")
            like = parameters[int(index)]
            if int(index) < 0 or tensor.numel() > max(1, like.numel()):
                raise UntiedError(
                    f"the checkpoint's {printable(key)} has {tuple(tensor.shape)} for {tuple(like.shape)}"
                )
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
