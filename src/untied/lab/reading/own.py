"""What is a user's own: models, data sets and tasks by import path, and what installed packages offer.

``package.module:name`` or ``path/to/file.py:name`` names something to call. An installed package offers the same under
a plain name, as an entry point of the groups in ``GROUPS``. Objects that Python code hands over have a name here too.

Whatever is wrong with them is said in one line. The user's own traceback stays behind the error, for --debug.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from untied.errors import UntiedError

__all__ = ["GROUPS", "a", "blame", "called", "find", "hold", "is_own", "is_path", "offered"]

GROUPS = {"model": "untied.models", "data": "untied.datasets", "rule": "untied.rules", "task": "untied.tasks",
          "layer": "untied.layers"}  # fmt: skip
"""The entry points that each kind of thing comes from."""

PYTHON = "python"  # python:NAME is an object of this process, which no other one can find
_PATH = re.compile(r"(?P<where>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*|[^:]*\.py|[A-Za-z]:[^:]*\.py):(?P<name>[A-Za-z_][\w.-]*)")
_held: dict[str, Any] = {}


def is_path(text: str) -> bool:
    """Whether this is an import path, such as ``nets:Net`` or ``lib/nets.py:Net``."""
    return _PATH.fullmatch(text) is not None


def is_own(kind: str, text: str) -> bool:
    """Whether this names something of the user's, or of a package's, rather than of the lab."""
    return is_path(text) or text in offered(kind)


@cache
def offered(kind: str) -> Mapping[str, importlib.metadata.EntryPoint]:
    """The entry points of a kind of thing (a key of ``GROUPS``), by name. Nothing is imported."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUPS[kind])}


def find(kind: str, text: str) -> Any:
    """The object behind an import path or the name of an entry point.

    Raises:
        UntiedError: no such module, file or name in it; or importing it raised.

    >>> find("model", "torch.nn:Flatten")
    <class 'torch.nn.modules.flatten.Flatten'>
    """
    if not is_path(text):
        point = offered(kind)[text]
        try:
            return point.load()
        except Exception as error:
            package = point.dist.name if point.dist is not None else "a package"
            raise blame(f"{kind} {text} of {package} ({point.value})", error) from error
    match = _PATH.fullmatch(text)
    assert match is not None
    where, name = match["where"], match["name"]
    if where == PYTHON:
        if name not in _held:
            raise UntiedError(
                f"{kind} {text} was handed over from Python, in a process that has ended: hand it over again"
            )
        return _held[name]
    found: Any = _from_file(kind, text, Path(where)) if where.endswith(".py") else _from_module(kind, text, where)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            near = difflib.get_close_matches(part, known, n=3, cutoff=0.4)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise UntiedError(f"{kind} {text}: {where} has no {part}{hint}")
        found = getattr(found, part)
    return found


def _from_module(kind: str, text: str, where: str) -> Any:
    """A module by its name, which may lie in the current folder."""
    _on_path(Path.cwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise UntiedError(
                f"{kind} {text}: there is no module {error.name}, neither installed nor in {Path.cwd()}; "
                f"a file is named by its path, as in {where.replace('.', '/')}.py:NAME"
            ) from error
        raise blame(f"{kind} {text}", error) from error
    except Exception as error:
        raise blame(f"{kind} {text}", error) from error


def _from_file(kind: str, text: str, path: Path) -> Any:
    """A file as a module, imported once; it finds its neighbours as a script would."""
    path = path.expanduser().absolute()
    name = f"untied_own_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise UntiedError(f"{kind} {text}: there is no file {path}")
    _on_path(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as import does it: dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception):
            raise blame(f"{kind} {text}", error) from error
        raise
    return module


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end: it hides nothing that is installed


def called(kind: str, text: str, **given: Any) -> Any:
    """Call what a path names, with those of the arguments that it takes.

    Args:
        kind, text: as for ``find``.
        given: what can be had by the names of parameters. Others need defaults.

    Raises:
        UntiedError: as ``find`` does; it cannot be called so, or raised something.

    >>> called("model", "torch.nn:Flatten", classes=10)
    Flatten(start_dim=1, end_dim=-1)
    """
    found = find(kind, text)
    if not callable(found):
        raise UntiedError(f"{kind} {text} is {a(found)}, which cannot be called: name a function or a class")
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # of something built in
        parameters = ()  # type: ignore[assignment]
    missing = [
        p.name for p in parameters
        if p.default is p.empty and p.name not in given and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]  # fmt: skip
    if missing:
        raise UntiedError(
            f"{kind} {text} needs {', '.join(missing)}: it can have {', '.join(given)}; give all else a default"
        )
    taken = {p.name for p in parameters}
    try:
        return found(**{name: value for name, value in given.items() if name in taken})
    except Exception as error:
        raise blame(f"{kind} {text}", error) from error


def blame(what: str, error: BaseException) -> UntiedError:
    """One line for what somebody else's code raised: what it was, where, and what it said."""
    if isinstance(error, UntiedError):
        return UntiedError(f"{what}: {error}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    if isinstance(error, SyntaxError) and error.filename:
        at = f" in {error.filename}, line {error.lineno}"
    else:
        at = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())[:300]
    return UntiedError(
        f"{what} raised {type(error).__name__}{at}: {said or 'no message'} (--debug shows the traceback)"
    )


def hold(thing: Any) -> str:
    """A name for an object of this process: its import path where others can import it too, else python:NAME.

    >>> import torch
    >>> hold(torch.nn.Flatten)
    'torch.nn.modules.flatten:Flatten'
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if module and name and module != "__main__" and "<" not in name:
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is thing and importlib.util.find_spec(module) is not None:
            return f"{module}:{name}"
    word = re.sub(r"\W+", "_", name or type(thing).__name__).strip("_") or "object"
    own = next((n for n, other in _held.items() if other is thing), None)
    own = own or next(n for i in range(1, len(_held) + 2) if (n := f"{word}-{i}") not in _held)
    _held[own] = thing
    return f"{PYTHON}:{own}"


def a(thing: Any) -> str:
    kind = type(thing).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
