"""The run folder: everything a run leaves behind, as text and safetensors, readable at any moment.

    config.yaml           the resolved configuration
    environment.json      which command made it, commit, package versions, machine, date
    lock.json             while a process writes here: which one
    metrics.jsonl         one JSON object a line, appended as the run goes
    results.json          the table's rows; table.md and table.csv are the same for people and spreadsheets
    weights/<name>.safetensors
    fits/<name>.safetensors, neurons.csv    of untied neural
    checkpoints/last.safetensors, best.safetensors, tensorboard/, timing.jsonl, card.md     of untied train
    trial.json            of a study's run: its parameters, and what came out
    traceback.txt         of a study's run that failed for a reason of its own
    figures/<name>.png, <name>.svg
    index.html            all of it on one page

Whole files are written beside their place and then renamed, so that a killed run leaves the old file or the
new one. Lines of metrics are appended; a last line that a kill cut short is dropped by the reader and by the
next append. JSON has no NaN: a value that is not finite is written as null.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any

import safetensors.torch
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.keeping.environment import environment
from untied.lab.keeping.processes import LOCK, Lock
from untied.lab.reading.edges import expect_file, load_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "Damaged",
    "RunFolder",
    "begun",
    "drop_torn_line",
    "file_name",
    "new_folder",
    "open_tensors",
    "plain",
    "write_atomically",
    "write_tensors",
]

CONFIG, ENVIRONMENT, METRICS, TIMING = "config.yaml", "environment.json", "metrics.jsonl", "timing.jsonl"
TRACEBACK, TRIAL = "traceback.txt", "trial.json"
# What `overwrite` removes: a run's own files, never anything else that lies in the folder. The two that make it a run
# are replaced instead, so that a kill in between leaves a run.
OWN_FILES = (
    METRICS, TIMING, "results.json", "table.md", "table.csv", "index.html",
    "card.md", TRACEBACK, TRIAL, "runs.jsonl", "evaluation-*.json", "checkpoints/*.safetensors", "tensorboard/events.*",
    "weights/*.safetensors", "fits/*.safetensors", "neurons.csv", "flow.csv", "figures/*.png", "figures/*.svg",
    "*.partial", "*/*.partial",
)  # fmt: skip


class Damaged(UntiedError):
    """A file that we have written does not hold any more what was written."""


class RunFolder:
    """A folder of one run. Make one with ``create``, read one with ``open``.

    Every method raises UntiedError where the file system refuses or a file is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: DataclassInstance | Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> RunFolder:
        """Start a run: make the folder, write environment.json and config.yaml, which makes it one.

        Args:
            path: the folder; it may exist if it is empty, or a start that was killed has begun it.
            config: a dataclass instance, or plain values; written as YAML.
            overwrite: replace the run that is in the folder: its own files are removed, and nothing else.

        Raises:
            UntiedError: something else is in the folder, or another process writes there.
        """
        run = cls(Path(path))
        with _one_line(run.path), run.lock():
            if not begun(run.path):
                run._clear(overwrite)
            run.write_config(config)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """A run folder that exists."""
        run = cls(Path(path))
        with _one_line(run.path):
            found = (run.path / CONFIG).is_file()
        if not found:
            raise UntiedError(f"{run.path} is not a run folder (no {CONFIG} in it); name the folder that --out made")
        return run

    # writing

    def lock(self, say: Callable[[str], None] = lambda line: None) -> Lock:
        """Keep other processes from writing here, in a with statement; the folder is made if need be."""
        return Lock(self.path, say)

    def write_config(self, config: DataclassInstance | Mapping[str, Any]) -> None:
        """Write environment.json and config.yaml, a dataclass instance or plain values as YAML."""
        settings = plain(config)
        command = getattr(config, "command", None) or settings.get("kind")
        self.write_json(ENVIRONMENT, {"command": command} | environment())
        self.write_text(
            CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        )  # last: it makes it a run

    def append(self, metrics: Mapping[str, Any], name: str = METRICS) -> None:
        """Add one line to metrics.jsonl (or another file); it is on its way to the disk when this returns."""
        line = json.dumps(_finite(plain(metrics)), allow_nan=False) + "\n"
        path = self.path / name
        with _one_line(path), path.open("ab+") as file:
            drop_torn_line(file)
            file.write(line.encode())

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file (``name`` may have folders in it), all or nothing; what is no character is escaped."""
        return write_atomically(self.path / name, text.encode(errors="backslashreplace"))

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON file, all or nothing; what is not finite becomes null."""
        return self.write_text(name, json.dumps(_finite(plain(value)), indent=2, allow_nan=False) + "\n")

    def write_weights(
        self, name: str, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> Path:
        """Write weights/<name>.safetensors (see ``write_tensors``)."""
        return write_tensors(self._weights(name), state_dict, metadata)

    def keep_lines(self, count: int) -> None:
        """Drop the lines of metrics.jsonl and timing.jsonl after the first ``count``: of epochs that will be run again.

        Raises:
            Damaged: metrics.jsonl has fewer.
        """
        for path in (self.path / METRICS, self.path / TIMING):
            with _one_line(path):
                content = path.read_bytes() if path.exists() else b""
            lines = content.split(b"\n")[:-1]
            if path.name == METRICS and len(lines) < count:
                raise Damaged(f"{path} has {len(lines)} lines where its checkpoint has seen {count}: it was changed")
            kept = b"".join(line + b"\n" for line in lines[:count])
            if kept != content:
                write_atomically(path, kept)

    # reading

    def config(self) -> dict[str, Any]:
        """The configuration of the run, as config.yaml has it."""
        path = self.path / CONFIG
        with _one_line(path, "read"):
            expect_file(path)
            settings = load_yaml(path.read_text(encoding="utf-8"), f"config {path}")
        if not isinstance(settings, dict):
            raise UntiedError(f"{path} does not hold a configuration (a YAML mapping); the file was changed or damaged")
        return settings

    def environment(self) -> dict[str, Any]:
        """Commit, versions and machine of the run, as environment.json has them."""
        read: dict[str, Any] = self.read_json(ENVIRONMENT)
        return read

    def metrics(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl (or another file) in the order written, without a torn last one; none if there is
        no file."""
        path = self.path / name
        if not path.exists():
            return []
        with _one_line(path, "read"):
            lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty or torn
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as broken:
                raise Damaged(f"{path}, line {number}, is not JSON: {_words(broken)}; remove that line") from broken
        return rows

    def read_json(self, name: str) -> Any:
        """A JSON file of the run, such as results.json."""
        path = self.path / name
        with _one_line(path, "read"):
            return json.loads(path.read_text(encoding="utf-8"))

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of weights/<name>.safetensors, on the CPU."""
        with self._known_weights(name) as path, open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)

    def weights_metadata(self, name: str) -> dict[str, str]:
        """The metadata that ``write_weights`` kept in the file's header."""
        with self._known_weights(name) as path, open_tensors(path) as file:
            return dict(file.metadata() or {})

    def weight_names(self) -> list[str]:
        """The names that ``weights`` takes, sorted."""
        return sorted(path.stem for path in (self.path / "weights").glob("*.safetensors"))

    def _weights(self, name: str) -> Path:
        return self.path / "weights" / f"{file_name(name)}.safetensors"

    @contextmanager
    def _known_weights(self, name: str) -> Iterator[Path]:
        path = self._weights(name)
        if not path.is_file():
            known = ", ".join(self.weight_names()) or "none"
            raise UntiedError(f"{self.path} has no weights {name!r}; it has: {known}")
        with _one_line(path, "read"):
            yield path

    def _clear(self, overwrite: bool) -> None:
        if not (self.path / CONFIG).is_file():
            raise UntiedError(
                f"the output folder {self.path} is not empty and does not hold a run; choose another folder"
            )
        if not overwrite:
            raise UntiedError(
                f"the output folder {self.path} already holds a run; choose another folder, or overwrite it"
            )
        for pattern in OWN_FILES:
            for old in self.path.glob(pattern):
                old.unlink()


def begun(path: Path) -> bool:
    """Whether a folder has nothing in it but what a start leaves that was killed before it had made a run."""
    names = (p.name for p in path.iterdir()) if path.exists() else ()
    return all(name in (ENVIRONMENT, LOCK) or name.endswith(".partial") for name in names)


def new_folder(kind: str) -> Path:
    """Make a folder in runs/ that is named for now, and that no other process has in the same second.

    Raises:
        UntiedError: it cannot be made.
    """
    path = Path("runs") / time.strftime(f"{kind}-%Y%m%d-%H%M%S")
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with _one_line(free):
            free.parent.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                free.mkdir()
                return free
    raise AssertionError("unreachable")


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old one or the new one; makes the folder. Returns the path."""
    with _in_place_of(path) as partial:
        partial.write_bytes(content)
    return path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file likewise. Tensors may be of any layout, on any device, and share memory: each is copied.

    ``metadata`` goes into the file's header.
    """
    copies = {
        key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    with _in_place_of(path) as partial:
        safetensors.torch.save_file(copies, partial, dict(metadata or {}))
    return path


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, for its tensors on the CPU and its metadata; its library takes no path that is not UTF-8."""
    with path.open("rb") as file:
        name = str(path)
        try:
            name.encode()
        except UnicodeEncodeError:
            name = f"/proc/self/fd/{file.fileno()}"
        with safe_open(name, framework="pt") as opened:
            yield opened


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the path's place when all is on the disk, and is removed otherwise."""
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}-{os.getpid()}.partial")
        try:
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise


def file_name(text: str) -> str:
    """A file name from any text, such as a rule: the text itself if possible, else readable and unique."""
    safe = re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).strip("._")
    if text and text == safe[:80]:
        return text
    return f"{safe[:73] or 'unnamed'}-{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:6]}"


def plain(value: Any) -> Any:
    """The same value in the types that YAML and JSON know: mappings, lists, strings, numbers, None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a tensor or an array
        return value.tolist()
    if isinstance(value, PurePath):
        return str(value)
    return value


@contextmanager
def _one_line(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn what the file system or a parser says into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise UntiedError(f"cannot {verb} {path}: {error.strerror or _words(error)}") from error
    except (ValueError, yaml.YAMLError, SafetensorError) as error:
        if isinstance(error, UntiedError):
            raise
        raise UntiedError(f"cannot {verb} {path}: {_words(error)}") from error


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _finite(value: Any) -> Any:
    """Plain values with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_torn_line(file: IO[bytes]) -> int:
    """Cut a file back to its last newline, so that the next line does not continue a torn one. Returns its size."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        end = start if newline < 0 else start + newline + 1
        if newline >= 0:
            break
    return file.truncate(end)
