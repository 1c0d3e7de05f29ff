"""When the task is trained and when the backward weights align: a run's epochs and steps, as `PhaseConfig` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from untied.lab.settings.phases import PhaseConfig, weight
from untied.lab.training.step import Phase
from untied.rules.rule import Rule
from untied.schedules import Coefficient, value

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What each step of a run trains.

    Epochs of a ``delay`` are numbered up to 0, the others from 1; steps are counted through from 0.

    Args:
        config: the phases. epochs: after the delay. length: steps in an epoch.
        rule: with nothing to align, or whose alignment needs the task (Kolen-Pollack), all steps are simultaneous.
    """

    config: PhaseConfig
    rule: Rule
    epochs: int
    length: int

    @property
    def apart(self) -> bool:
        """Whether the rule can align without the task."""
        return self.rule.aligns_alone

    @property
    def delay(self) -> int:
        """Epochs of alignment alone at the beginning."""
        return self.config.delay if self.apart else 0

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return (self.delay + self.epochs) * self.length

    @property
    def numbers(self) -> range:
        """The epochs' numbers."""
        return range(1 - self.delay, self.epochs + 1)

    def phase(self, step: int) -> Phase:
        """What a step trains, and with what weights."""
        task, align = self.trained(step)
        progress = step / self.steps
        return Phase(task * value(self.weights[0], progress), align * value(self.weights[1], progress))

    def turns(self, step: int) -> list[Phase]:
        """What is done with a step's batch, one after the other: alignment alone, ``align_steps`` - 1 times, and then
        what the step trains."""
        phase = self.phase(step)
        again = self.config.align_steps - 1 if self.apart and phase.align > 0 else 0
        return [Phase(0.0, phase.align)] * again + [phase]

    def trained(self, step: int) -> tuple[bool, bool]:
        """Whether a step trains the task, and whether it aligns."""
        if not self.rule.aligns:
            return True, self.rule.moves_itself  # such a rule measures when a step is recorded
        if not self.apart:
            return True, self.rule.forward_decay is None  # else its decay is W's weight decay, and R has nothing left
        epoch, config = step // self.length - self.delay, self.config
        if epoch < 0:
            return False, True
        if config.kind == "alternating":
            alone = (step - self.delay * self.length) % (1 + config.task_steps) == 0
            return not alone, alone
        if config.kind == "mirror":
            alone = epoch % (config.mirror_epochs + config.engaged_epochs) < config.mirror_epochs
            return not alone, alone
        return True, True

    @cached_property
    def weights(self) -> tuple[Coefficient, Coefficient]:
        """Of J and R, over the run."""
        return weight("task", self.config.task), weight("align", self.config.align)

    def counts(self) -> tuple[int, int]:
        """How often the task's optimizer moves, and how often the one that aligns."""
        both = [self.trained(step) for step in range(self.steps)]
        turns = self.config.align_steps if self.apart else 1
        return sum(task for task, _ in both), turns * sum(align for _, align in both)

    def of_epoch(self, number: int, start: int = 0) -> Iterator[int]:
        """The steps of an epoch, from its step ``start`` on."""
        first = (number - 1 + self.delay) * self.length
        yield from range(first + start, first + self.length)

    def order(self, number: int) -> int:
        """The epoch of the data: the task sees the same order of images whatever delay went before."""
        return number - 1 if number > 0 else self.epochs - number
