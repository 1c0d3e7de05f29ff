"""The settings of untied dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

__all__ = ["DynamicsConfig"]


@dataclass(frozen=True)
class DynamicsConfig:
    """Draw the flow of forward and backward weight under each rule's R, and say where it leads.

    Without rules: weight mirror with too little, balanced and too much decay (paper, Fig. 2a-c).
    """

    command: ClassVar[str] = "dynamics"

    rules: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Such as "wm(amp=1, decay=0.5)" sa: a panel each."""
    x: float | None = None
    """The layer's input, or its root mean square: 1 if left out; for a rule with noise input, the noise's."""
    extent: float | None = None
    """Half the width of a panel; enough to hold every fixed point if left out."""
    lr: float = 0.1
    """Learning rate, for the time constants in steps of SGD."""
    momentum: float = 0.0
    """Of SGD, for the same."""
    out: Path | None = None
    """Where to write; runs/dynamics-<time> if left out."""
    overwrite: bool = False
    """Replace what an earlier call has written there."""
