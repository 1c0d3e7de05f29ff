"""The examples in docstrings: they run, and every public name has one. What docstrings say of errors and shapes."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import untied
from test_structure import modules

EXEMPT = {"offer": "it needs an installed package with a rule in its entry points; tests/lab/test_own.py makes one"}
"""Public names that have no example, and why. A `Protocol` has none either: nothing is made of it."""

SHAPED = ("geometry", "layers.layer", "metrics", "primitives.merging", "rules.transport", "tape.tape")
"""The modules in which whatever takes or returns a tensor says of which shape."""
SAYS_A_SHAPE = ("[", "0-dim", "layout", "shape")


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(f"untied.{name}"))
    assert not found.failed


def named(module: str) -> list[tuple[str, Any]]:
    """The public classes and functions of a module that are ours."""
    found = importlib.import_module(module)
    these = [(n, o) for n in found.__all__ if inspect.isfunction(o := getattr(found, n)) or inspect.isclass(o)]
    return [(n, o) for n, o in these if (o.__module__ or "").startswith("untied")]


def has_example(it: Any) -> bool:
    """Whether it, or a method of it, has an example; an inherited one is none."""
    own = [it, *(vars(it).values() if inspect.isclass(it) else ())]
    return any(">>> " in (o.__doc__ or "") for o in (getattr(o, "__func__", o) for o in own))


@pytest.mark.parametrize("module", ["untied", *(f"untied.{name}" for name in sorted(modules()))])
def test_every_public_name_has_an_example(module: str) -> None:
    bare = [
        name
        for name, it in named(module)
        if name not in EXEMPT and not getattr(it, "_is_protocol", False) and not has_example(it)
    ]
    assert not bare


def test_what_is_exempt_is_there_and_has_no_example() -> None:
    public = {n: o for module in modules() for n, o in named(f"untied.{module}")}
    assert all(not has_example(public[name]) for name in EXEMPT)


Function = tuple[str, ast.FunctionDef, ast.ClassDef | None]


def functions(path: Path) -> Iterator[Function]:
    """Every function of a file that has a public name, and every method of a class that has one, with the class."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node, None
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for f in node.body:
                if isinstance(f, ast.FunctionDef) and (not f.name.startswith("_") or f.name.startswith("__")):
                    yield f"{node.name}.{f.name}", f, node


def raises(f: ast.AST) -> bool:
    return any(isinstance(n, ast.Raise) and n.exc and "UntiedError" in ast.unparse(n.exc) for n in ast.walk(f))


@pytest.mark.parametrize("name", sorted(modules()))
def test_what_raises_says_so(name: str) -> None:
    """A constructor's errors stand at its class."""
    silent = []
    for label, f, owner in functions(modules()[name]):
        where: list[ast.FunctionDef | ast.ClassDef] = [f]
        where += [owner] if owner is not None and f.name in ("__init__", "__post_init__") else []
        if raises(f) and not any("Raises:" in (ast.get_docstring(w) or "") for w in where):
            silent.append(label)
    assert not silent


def takes_or_gives_tensors(f: ast.FunctionDef) -> bool:
    given = [a.annotation for a in (*f.args.args, *f.args.kwonlyargs) if a.annotation is not None]
    return any("Tensor" in ast.unparse(a) for a in (*given, *([f.returns] if f.returns else [])))


def inherits(label: str, module: str) -> bool:
    """Whether a method stands in for one of a base class, which says the shapes."""
    owner, _, method = label.partition(".")
    kind = getattr(importlib.import_module(f"untied.{module}"), owner, None)
    return method != "" and any(getattr(base, method, None) is not None for base in kind.__mro__[1:])  # type: ignore[union-attr]


@pytest.mark.parametrize("module", SHAPED)
def test_what_has_tensors_says_their_shapes(module: str) -> None:
    silent = []
    for label, f, _ in functions(modules()[module]):
        if f.name.startswith("__") or not takes_or_gives_tensors(f):
            continue
        text = ast.get_docstring(f) or ""
        if not (any(word in text for word in SAYS_A_SHAPE) or (text == "" and inherits(label, module))):
            silent.append(label)
    assert not silent


def test_the_modules_of_shapes_exist() -> None:
    assert set(SHAPED) <= set(modules()) and untied.geometry.Geometry.project.__doc__
