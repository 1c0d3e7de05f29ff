"""Layer types that installed packages offer, as entry points of the group ``untied.layers``.

The name of an entry point is the plain class, ``package.nets.Conv1D``, and its value the untied one: so nothing is
imported before a model has such a layer.
"""

from __future__ import annotations

import importlib.metadata
import warnings

from torch import nn

from ..parametrized import plain_type
from .layer import LAYERS

__all__ = ["layers"]

_said: set[str] = set()


def layers(model: nn.Module) -> None:
    """Make known what packages offer for the layers of a model. `untied.untie_` calls it.

    One that cannot be imported, or registers nothing, is named in a warning, once, and left out.

    >>> layers(nn.Linear(4, 3))
    """
    kinds = {plain_type(module) for module in model.modules()} - set(LAYERS)
    points = importlib.metadata.entry_points(group="untied.layers") if kinds else ()
    by_name = {point.name: point for point in points}
    for kind in kinds:
        point = by_name.get(f"{kind.__module__}.{kind.__qualname__}")
        if point is None:
            continue
        why = "registers no class for it with untied.register_layer"
        try:
            point.load()
        except Exception as error:  # somebody else's code
            why = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
        if kind not in LAYERS and point.value not in _said:
            _said.add(point.value)
            warnings.warn(f"layer {point.name} ({point.value}) {why}; it is left out", stacklevel=3)
