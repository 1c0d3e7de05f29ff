"""R of one forward pass, and what a training loop may have forgotten."""

from __future__ import annotations

from .tape import Tape

__all__ = ["Tape"]
