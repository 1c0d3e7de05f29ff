"""Which step trains the task, and which aligns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from untied import schedules
from untied.errors import UntiedError
from untied.lab.reading.edges import bounded
from untied.lab.reading.fields import Rare
from untied.schedules import Coefficient, value

__all__ = ["PhaseConfig"]


@dataclass(frozen=True)
class PhaseConfig:
    """When the task is trained and when the backward weights align. Rules with nothing to align skip all of it."""

    kind: Literal["simultaneous", "alternating", "mirror"] = "simultaneous"
    """How the two take turns. In simultaneous, both are trained in every step. In alternating, one step of alignment
    alone comes before task_steps of the task alone. In mirror, mirror_epochs of alignment alone come before
    engaged_epochs of the task alone, as weight mirror has it."""
    delay: int = 0
    """How many epochs of alignment alone come first. They are not counted in epochs."""
    calibrate: int = 0
    """How many noise measurements of W are averaged into B before the first step, as untied.mirror_ does. It takes no
    data, and 16 leave an angle of about 14 degrees."""
    align_steps: int = 1
    """How many steps of alignment each batch gets: all but the last are of alignment alone, before the task's."""
    task_steps: Rare[int] = 1
    """How many task steps follow each alignment step, where kind is alternating."""
    mirror_epochs: Rare[int] = 1
    """How many epochs of alignment alone each cycle has, where kind is mirror. They are counted in epochs."""
    engaged_epochs: Rare[int] = 1
    """How many epochs of the task alone each cycle has, where kind is mirror."""
    task: Rare[str] = "1"
    """The weight of the task loss J: a number, or a schedule such as "linear(0, 1, stop=0.1)"."""
    align: Rare[str] = "1"
    """The weight of the penalty R: a number or a schedule."""

    def __post_init__(self) -> None:
        for name, least in (
            ("delay", 0),
            ("calibrate", 0),
            ("align_steps", 1),
            ("task_steps", 1),
            ("mirror_epochs", 1),
            ("engaged_epochs", 1),
        ):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
            bounded(self, **{name: 10**9})
        for kind, names in (("alternating", ["task_steps"]), ("mirror", ["mirror_epochs", "engaged_epochs"])):
            for name in names:
                if self.kind != kind and getattr(self, name) != 1:
                    raise UntiedError(f"phases.{name} is {getattr(self, name)} but phases.kind is {self.kind}: {name} "
                                      f"is for {kind}; change one of the two")  # fmt: skip
        for name in ("task", "align"):
            weight(name, getattr(self, name))


def weight(name: str, text: str) -> Coefficient:
    """The weight of a loss term from its text.

    Raises:
        UntiedError: it cannot be read, or is negative.
    """
    try:
        given = schedules.parse(text)
        values = [value(given, at / 20) for at in range(21)]
    except UntiedError as error:
        raise UntiedError(f"phases.{name}: {error}") from None
    if not all(0 <= number < math.inf for number in values):
        raise UntiedError(f"phases.{name} is {text}: a loss term's weight must not be negative, nor infinite")
    return given
