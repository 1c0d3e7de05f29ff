"""Table 1 of the paper: the primitives, and R of a layer made of them."""

from __future__ import annotations

from .primitive import (
    KNOWN,
    LEAKS,
    PRIMITIVES,
    Coefficient,
    Combination,
    Correlation,
    Multiple,
    Number,
    Primitive,
    amp,
    copy,
    decay,
    null,
    register_primitive,
    self_,
    sparse,
    total,
    unregister_primitive,
)

__all__ = [
    "KNOWN",
    "LEAKS",
    "PRIMITIVES",
    "Coefficient",
    "Combination",
    "Correlation",
    "Multiple",
    "Number",
    "Primitive",
    "amp",
    "copy",
    "decay",
    "null",
    "register_primitive",
    "self_",
    "sparse",
    "total",
    "unregister_primitive",
]
