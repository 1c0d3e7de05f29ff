"""Target propagation: errors reach a layer as targets that feedback networks send."""

from __future__ import annotations

from .propagation import KINDS, Kind, TargetPropagation

__all__ = ["KINDS", "Kind", "TargetPropagation"]
