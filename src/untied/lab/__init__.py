"""The application around the library: data, models, tasks, training, run folders, figures and reports.

It imports ``untied``, never the other way round, and needs the ``lab`` extra: ``pip install 'torch-untied[lab]'``.

    from untied import lab
    lab.compare(["bp", "sa"], model=Net, data=(train_set, test_set))     likewise lab.train, lab.search, lab.open_run
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["compare", "load", "open_run", "search", "train"]


def __getattr__(name: str) -> Any:
    if name in ("compare", "train"):
        return importlib.import_module(f"untied.lab.{name}")
    if name in ("open_run", "search"):
        return getattr(importlib.import_module("untied.lab.api"), name)
    if name == "load":
        return importlib.import_module("untied.lab.exported").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Called(ModuleType):
    """compare.py and train.py hold the commands; called, they are the functions of api.py that have their names."""

    def __call__(self, *given: Any, **settings: Any) -> Any:
        from untied.lab import api

        return getattr(api, self.__name__.rpartition(".")[2])(*given, **settings)


def make_callable(module: str) -> None:
    """Let a module of this package be called as the function of api.py with its name."""
    sys.modules[module].__class__ = _Called
