"""Configs from plain values: YAML in, one line out where a key or a value is wrong."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from tyro.conf import Suppress as Rare

from untied.errors import UntiedError
from untied.lab.reading.edges import expect_file, load_yaml, printable, shown

__all__ = ["Rare", "from_mapping", "is_rare", "nested_config", "read_mapping", "read_yaml", "set_in", "settings_of"]

T = TypeVar("T")
# `field: Rare[int] = 1` has no flag of its own: `--set path.to.field=value` sets it, and YAML, and Python.
_MARK = get_args(Rare[int])[1]


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


def is_rare(kind: type, name: str) -> bool:
    """Whether a field has no flag of its own."""
    return _MARK in get_args(get_type_hints(kind, include_extras=True)[name])[1:]


def set_in(config: T, pairs: list[str], start: Any) -> T:
    """A config with some of its fields replaced.

    Args:
        config: a dataclass instance. pairs: "path.to.field=value", values as YAML has them.
        start: the same config as plain values; it is changed.

    Raises:
        UntiedError: a pair cannot be read, or there is no such field, or the value is impossible.
    """
    for pair in pairs:
        path, equals, text = pair.partition("=")
        *parents, last = path.strip().split(".")
        if not equals or not last:
            raise UntiedError(f"--set {pair}: write path.to.field=value, as in forward.lr=0.05")
        inside = start
        for parent in parents:
            if not isinstance(inside.get(parent), dict):
                names = ", ".join(name for name, value in inside.items() if isinstance(value, dict))
                near = difflib.get_close_matches(parent, inside, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UntiedError(f"--set {pair}: there is nothing below {parent}: {hint}groups are {names or 'none'}")
            inside = inside[parent]
        inside[last] = load_yaml(text, f"--set {pair}")
    return from_mapping(type(config), start, "--set")


def settings_of(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str, bool]]:
    """Every setting of a config: its path, its default, what it is, and whether it is rare."""
    docs = docs_of(kind)
    for field in dataclasses.fields(kind):
        nested = nested_config(field)
        if nested is not None:
            yield from settings_of(nested, f"{prefix}{field.name}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield f"{prefix}{field.name}", str(default), docs.get(field.name, ""), is_rare(kind, field.name)


def docs_of(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, those that it inherits too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except OSError:  # no source, as in a frozen application
            continue
        body = tree.body if isinstance(tree, ast.ClassDef) else []
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found
