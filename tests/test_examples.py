"""The examples in docstrings: they run, and every public name of the library's pages has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from test_structure import modules

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs_site"))

from pages import MODULES

DESCRIBED = {
    "AlignmentTable", "Estimate", "Finding", "FixedPoint", "LayerAlignment",
    "LayerDynamics", "ScalarDynamics", "Verification", "Windows",
}  # fmt: skip
"""What functions return, and nobody makes: their examples stand at those functions."""
PROTOCOLS = {
    "Layer",
    "Listener",
    "Place",
    "Use",
    "Visit",
    "Correlation",
    "Multiple",
    "Collector",
    "broadcasting",
    "History",
    "TransposedDense",
    "attend",
    "register",
    "release",
    "Kind",
    "cut",
    "reverse",
    "many_to_one",
    "quiet",
    "begin",
    "end",
}
"""What a route or rule of one's own is handed; docs/architecture.md and docs/rules.md have the examples."""


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples_run(name: str) -> None:
    torch.manual_seed(0)
    found = doctest.testmod(importlib.import_module(f"untied.{name}"))
    assert not found.failed


def named(module: str) -> list[tuple[str, Any]]:
    found = importlib.import_module(module)
    return [(n, o) for n in found.__all__ if inspect.isclass(o := getattr(found, n)) or inspect.isfunction(o)]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_public_name_has_an_example(module: str) -> None:
    bare = [
        name
        for name, it in named(module)
        if name not in DESCRIBED | PROTOCOLS and not re.search(r">>> |::\n", it.__doc__ or "")
    ]
    assert not bare
