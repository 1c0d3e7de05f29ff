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
    """The learning rules, such as "wm(amp=1, decay=0.5)" sa. Each gets a panel."""
    x: float | None = None
    """The layer's input, or its root mean square; for a rule with noise input, that of the noise. By default it is
    1."""
    extent: float | None = None
    """Half the width of a panel. By default every fixed point fits in."""
    lr: float = 0.1
    """The learning rate of SGD, for time constants in steps."""
    momentum: float = 0.0
    """The momentum of SGD, for time constants in steps."""
    out: Path | None = None
    """The run folder. By default it is runs/dynamics-TIME."""
    overwrite: bool = False
    """Whether what an earlier call has written there is replaced."""
