"""The application around the library: data, models, tasks, training, run folders, figures and reports.

It imports ``untied``, never the other way round, and needs the ``lab`` extra: ``pip install 'torch-untied[lab]'``.

    from untied import lab
    lab.compare(["bp", "sa"], model=Net, data=(train_set, test_set))     likewise lab.train, lab.search, lab.open_run
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["compare", "load", "open_run", "search", "train"]

WHERE = dict.fromkeys(("compare", "open_run", "search", "train"), "api") | {"load": "experiments.exported"}


def __getattr__(name: str) -> Any:
    if name not in WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"untied.lab.{WHERE[name]}"), name)
