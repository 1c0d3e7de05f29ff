"""What comes from outside is checked here, before anything is made of it: files, YAML, JSON headers, archives, numbers.

A reader has a bound on what it allocates, and says in one line which file and field broke it.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
import zipfile
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from untied.errors import UntiedError

__all__ = [
    "CheckpointHeader",
    "ShardIndex",
    "bounded",
    "check_archive",
    "expect_file",
    "expect_variables",
    "load_json",
    "load_yaml",
    "printable",
    "shown",
    "validated",
]

T = TypeVar("T")

INTEGER = 2**63 - 1  # the most that torch and numpy count to
YAML_BYTES, YAML_DEPTH, YAML_NODES, YAML_SCALAR = 1_000_000, 50, 100_000, 10_000
ARCHIVE_BYTES = 64 * 2**30
ARCHIVE_FREE = 256 * 2**20  # so much may be packed as tightly as one likes, as constant arrays are
MEMBERS = 1000

NUMBERS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT",
           "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS")  # fmt: skip
"""Environment variables that we or Fabric take for whole numbers."""

Count = Annotated[int, Field(strict=True, ge=0, le=INTEGER)]


class Strict(BaseModel):
    """A schema that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PositionHeader(Strict):
    """Where a run is, as a checkpoint's header has it."""

    step: Count = 0
    lines: Count = 0
    best: tuple[Annotated[float, Field(allow_inf_nan=False)], Count] | None = None
    identity: dict[str, Any] = {}


class OptimizerHeader(Strict):
    """What is not a tensor of an optimizer's state."""

    moves: Any = None
    state: dict[str, Any]
    parts: list[dict[str, Any]]


class CheckpointHeader(Strict):
    """The header of a checkpoint. Early ones have no format; best.safetensors has nothing after the position."""

    format: Literal[2] | None = None
    position: PositionHeader
    optimizers: dict[str, OptimizerHeader] | None = None
    loss_scale: dict[str, float | int] | None = None
    processes: Annotated[int, Field(strict=True, ge=1, le=10**6)] | None = None
    averaged: Count | None = None


class ShardIndex(Strict):
    """index.json beside the shards of a split."""

    classes: Annotated[list[str | int], Field(max_length=10**6)]
    shards: dict[str, Annotated[int, Field(strict=True, ge=0, le=10**9)]]
    side: Annotated[int, Field(strict=True, ge=1, le=2**14)] | None = None
    quality: Annotated[int, Field(strict=True, ge=1, le=95)] | None = None


def validated(kind: type[T], values: Any, what: str) -> T:
    """Values that follow a schema.

    Raises:
        UntiedError: one line with the file and the first field that does not.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(str(part) for part in first["loc"])) or "it"
        raise UntiedError(f"{what}: {where} is {shown(first['input'])}: {first['msg']}") from None


def shown(value: Any) -> str:
    """A value in at most about a hundred characters, however large it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxstring, short.maxlong = 2, 3, 3, 60, 40
    try:
        return printable(short.repr(value))[:200]
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return f"a {type(value).__name__} too large to print"


def printable(text: str) -> str:
    """Text with every character that is no character on a line (bytes that decode to nothing, controls) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def expect_file(path: Path) -> None:
    """Raise UntiedError if the path is there, but is no regular file: reading a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says what is wrong
        return
    if path.suffix in (".yaml", ".yml") and path.stat().st_size > 4 * YAML_BYTES:
        raise UntiedError(f"{printable(str(path))} has {path.stat().st_size:,} bytes: no configuration has so many")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UntiedError(f"{printable(str(path))} is a pipe, socket or device: only regular files are read")


def expect_variables() -> None:
    """Raise UntiedError if an environment variable that a cluster sets is no whole number."""
    for name in NUMBERS:
        given = os.environ.get(name, "0")
        if not (given.isascii() and given.isdecimal() and len(given) < 10):
            raise UntiedError(
                f"the environment variable {name} is {shown(given)}, not a whole number: unset it, or let torchrun or "
                "the cluster set it"
            )


def load_json(text: str, what: str) -> Any:
    """Plain values from JSON.

    Raises:
        UntiedError: it is no JSON, or nests too deeply, or has a number too long.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UntiedError(f"{what} is not readable as JSON ({reason})") from None


def load_yaml(text: str, what: str) -> Any:
    """Plain values from YAML, of bounded size, depth and expansion.

    Raises:
        UntiedError: it is no YAML, or beyond a bound.
    """
    if len(text) > YAML_BYTES:
        raise UntiedError(f"{what} has {len(text):,} characters: at most {YAML_BYTES:,} are read")
    try:
        _measure(text, what)
        return yaml.safe_load(text)
    except UntiedError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UntiedError(f"cannot read {what}: {printable(' '.join(str(error).split()))[:300]}") from None


def _measure(text: str, what: str) -> None:
    """Walk over the events of YAML, which takes no memory, and count what it would expand to."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise UntiedError(f"{what}: the alias *{shown(event.anchor)} stands inside of itself, or before it")
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, nodes))
            nodes += 1
            if len(opened) > YAML_DEPTH:
                raise UntiedError(f"{what} nests deeper than {YAML_DEPTH} levels: a config has four")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if len(event.value) > YAML_SCALAR:
                raise UntiedError(f"{what}: a value has {len(event.value):,} characters: at most {YAML_SCALAR:,}")
            if event.anchor:
                sizes[event.anchor] = 1
        if nodes > YAML_NODES:
            raise UntiedError(f"{what} has, with its aliases written out, more than {YAML_NODES:,} values")


def check_archive(file: IO[bytes], what: str) -> None:
    """Raise UntiedError unless a zip archive, by its table of contents, unpacks to what its size makes plausible."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MEMBERS:
            raise UntiedError(f"{what} has {len(members):,} members: at most {MEMBERS:,} are read")
        total = sum(member.file_size for member in members)
        packed = sum(member.compress_size for member in members)
        for member in members:
            if member.flag_bits & 1:
                raise UntiedError(f"{what}: {printable(member.filename)} is encrypted: write it without a password")
        if total > ARCHIVE_BYTES or total > ARCHIVE_FREE + 100 * packed:
            raise UntiedError(
                f"{what} would unpack from {packed:,} to {total:,} bytes: that is no plausible recording; write it "
                "without compression if it is one"
            )
    file.seek(0)


def bounded(config: Any, **most: float) -> None:
    """Raise UntiedError unless the named whole numbers of a config are at most so much; None is left alone."""
    for name, bound in most.items():
        number = getattr(config, name)
        if number is not None and not number <= bound:
            raise UntiedError(f"{name} is {shown(number)}: it must be at most {bound:,}")
