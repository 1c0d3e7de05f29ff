"""Configs from plain values: YAML in, one line out where a key or a value is wrong."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from untied.errors import UntiedError
from untied.lab.edges import expect_file, load_yaml, printable, shown

__all__ = ["from_mapping", "nested_config", "read_mapping", "read_yaml"]

T = TypeVar("T")


def from_mapping(kind: type[T], values: Any, what: str) -> T:
    """A config from plain values, such as YAML's.

    Raises:
        UntiedError: an unknown key (with the nearest known one), or a value of the wrong type.
    """
    _check_keys(kind, values, what, "")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        ours = first.get("ctx", {}).get("error")
        if isinstance(ours, UntiedError):
            raise UntiedError(f"{what}: {ours}") from None
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise UntiedError(f"{what}: {where} is {shown(first['input'])}: {first['msg']}") from None


def _check_keys(kind: type, values: Any, what: str, prefix: str) -> None:
    if not isinstance(values, dict):
        raise UntiedError(f"{what}: {prefix.rstrip('.') or 'it'} is {shown(values)}, where keys and values are needed")
    names = {f.name: f for f in dataclasses.fields(kind)}
    for key, inner in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UntiedError(
                f"{what}: unknown key {prefix}{printable(str(key))[:100]}: {hint}possible are {', '.join(names)}"
            )
        nested = nested_config(names[key])
        if nested is not None:
            _check_keys(nested, inner, what, f"{prefix}{key}.")


def nested_config(of: dataclasses.Field[Any]) -> type | None:
    """The dataclass that a field holds, or None."""
    example = of.default_factory() if of.default_factory is not dataclasses.MISSING else None
    return type(example) if dataclasses.is_dataclass(example) else None


def read_yaml(kind: type[T], path: Path) -> T:
    """A config from a YAML file.

    Raises:
        UntiedError: the file cannot be read, or is not such a config.
    """
    return from_mapping(kind, read_mapping(path), f"config {path}")


def read_mapping(path: Path) -> Any:
    """What a YAML file holds, as plain values.

    Raises:
        UntiedError: the file cannot be read.
    """
    try:
        expect_file(path)
        values = load_yaml(path.read_text(encoding="utf-8"), f"config {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise UntiedError(f"cannot read config {path}: {' '.join(str(error).split())}") from None
    return {} if values is None else values
