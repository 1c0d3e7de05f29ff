"""Signs that a network does not learn in depth, though its accuracy and angles look well: fake learning.

Accuracy with an angle passes methods that do not train hidden layers. Four looks catch them: growth of activity from
layer to layer, the norm of backpropagation's gradient beside each angle, the angle's spread over batches, and the same
network with hidden layers that stay random, `Frozen`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from untied import metrics
from untied.errors import UntiedError
from untied.layers import untied_layers
from untied.metrics import VANISHING
from untied.naming import register_rule
from untied.rule import Rule
from untied.rules import Backpropagation

__all__ = ["FROZEN", "Frozen", "freeze", "looks", "marks"]

FROZEN = "frozen"
SICK = 50.0
"""Growth of activity from a layer to the next above which forward passes are out of order."""
UNSTABLE = 10.0
"""Standard deviation of the gradient angle over batches, in degrees, above which one batch says nothing."""


@register_rule
class Frozen(Backpropagation):
    """The baseline of fake learning: hidden layers stay as they were drawn, and the last layer alone learns."""

    name, title, source = FROZEN, "hidden layers random and frozen", "baseline"

    def check(self) -> None:
        """Refuse to be a rule in somebody's own loop: nothing there would freeze a layer."""
        raise UntiedError(
            f"{FROZEN} is a baseline of untied compare and untied train: in a loop of your own, untie with 'bp' and "
            "freeze the hidden layers with requires_grad_(False)"
        )


def trained_as(rule: Rule) -> Rule:
    """The rule that layers get: backpropagation's for the baseline, whose hidden layers `freeze` stops."""
    return Backpropagation() if rule.name == FROZEN else rule


def freeze(model: nn.Module, rule: Rule) -> None:
    """Under `Frozen`, let the last untied layer alone learn."""
    if rule.name != FROZEN:
        return
    model.requires_grad_(False)
    last: Any = list(untied_layers(model).values())[-1]
    last.requires_grad_(True)


def looks(
    model: nn.Module, losses: Sequence[tuple[Callable[[], Tensor], Tensor | None]], about: Any = metrics
) -> dict[str, Any]:
    """Of a trained network: {"gradient_angle_std": degrees over batches, "signs": what is wrong, in words}.

    Args:
        model: under a rule. losses: each runs a forward pass on a batch of its own and returns the task's loss; beside
            it the targets, for rules that send them. about: who measures it, a `learners.Learner`.
    """
    table = about.measure(model, *losses[0])
    angles = [table.gradient_angle, *(about.gradient_angle(model, *each) for each in losses[1:])]
    known = [a for a in angles if math.isfinite(a)]
    spread = statistics.stdev(known) if len(known) > 1 else None
    signs = []
    sick = {name: row.growth for name, row in table.layers.items() if row.growth > SICK}
    if sick:
        worst = max(sick, key=lambda name: sick[name])
        signs.append(f"activity grows {sick[worst]:.0f}-fold before layer {worst}")
    vanished = [name for name, row in table.layers.items() if row.gradient_norm < VANISHING]
    if vanished:
        signs.append(f"backprop's gradient vanishes in {len(vanished)} of {len(table.layers)} layers")
    if spread is not None and spread > UNSTABLE:
        signs.append(f"the gradient angle varies by ± {spread:.0f}° over batches")
    return {"gradient_angle_std": spread, "signs": signs}


def marks(row: Mapping[str, Any], chance: float, baseline: float | None) -> list[str]:
    """What a result's score says by itself: at chance, or no better than ``baseline``, the frozen network's."""
    score, judge = row.get("accuracy_mean"), row.get("metric") or {"name": "accuracy", "higher": True}
    if score is None:
        return []
    found = []
    if judge["name"] == "accuracy" and score <= min(1.5 * chance, chance + 0.05):
        found.append(f"at chance ({100 * chance:.3g} %): it has not learned")
    if baseline is not None and row.get("rule") != FROZEN and (score <= baseline) == judge["higher"]:
        found.append(f"not above {FROZEN}: its hidden layers have learned nothing that helps")
    return found
