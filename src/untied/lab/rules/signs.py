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
from untied.layers.layer import untied_layers
from untied.metrics import VANISHING
from untied.rules import Backpropagation
from untied.rules.naming import register_rule
from untied.rules.rule import Rule

__all__ = ["FROZEN", "LEGEND", "Frozen", "above", "freeze", "looks", "marks", "table"]

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
    """Of a trained network: {"gradient_angle_std": degrees over batches; "gradient_norm" of backpropagation and
    "growth" of activity, by layer; "signs": what is wrong, in words}.

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
    norms = {name: row.gradient_norm for name, row in table.layers.items() if math.isfinite(row.gradient_norm)}
    growth = {name: row.growth for name, row in table.layers.items() if math.isfinite(row.growth)}
    return {"gradient_angle_std": spread, "gradient_norm": norms, "growth": growth, "signs": signs}


def marks(row: Mapping[str, Any], chance: float, baseline: float | None) -> list[str]:
    """What a result's score says by itself: at chance, or no better than ``baseline``, the frozen network's."""
    score, judge = row.get("accuracy_mean"), row.get("metric") or {"name": "accuracy", "higher": True}
    if score is None:
        return []
    found = []
    if judge["name"] == "accuracy" and score <= min(1.5 * chance, chance + 0.05):
        found.append(f"at chance ({100 * chance:.3g} %): it has not learned")
    if above(row, baseline) is False:
        found.append(f"not above {FROZEN}: its hidden layers have learned nothing that helps")
    return found


def above(row: Mapping[str, Any], baseline: float | None) -> bool | None:
    """Whether a result's score is better than ``baseline``, the frozen network's; None where there is nothing to
    compare."""
    score, judge = row.get("accuracy_mean"), row.get("metric") or {"higher": True}
    if score is None or baseline is None or row.get("rule") == FROZEN:
        return None
    return bool(score > baseline if judge["higher"] else score < baseline)


LEGEND = (
    "Accuracy with an angle passes methods that do not train hidden layers; these numbers catch them. The gradient "
    "angle is of one batch, ± its standard deviation over several. Beside it stands the smallest norm that "
    f"backpropagation's gradient has in a layer: below {VANISHING:g} an angle to it means nothing. The largest growth "
    f"is that of activity from one layer to the next: above {SICK:g} forward passes are out of order."
)
"""Of `table`."""


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of a comparison's rows: what `looks` has found of each, and whether it ends above the frozen network.

    Nothing where rows have none of it, as those of older folders.
    """
    seen = [row for row in rows if row.get("gradient_norm") and row.get("rule") != FROZEN]
    compared = any(above_frozen(rows, row) is not None for row in seen)
    found = []
    for row in seen:
        weakest = min(row["gradient_norm"].items(), key=lambda item: item[1])
        largest = max((row.get("growth") or {}).items(), key=lambda item: item[1], default=None)
        cells = {
            "rule": row["rule"],
            "gradient angle (°)": angle_cell(row),
            "smallest ‖gradient‖": f"{weakest[1]:.1e} ({weakest[0] or 'the model'})",
            "largest growth": "–" if largest is None else f"{largest[1]:.1f}-fold ({largest[0] or 'the model'})",
        }
        found.append(cells | ({f"above {FROZEN}": above_frozen(rows, row)} if compared else {}))
    return found


def above_frozen(rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> bool | None:
    """`above`, of a row among others."""
    return above(row, next((r.get("accuracy_mean") for r in rows if r.get("rule") == FROZEN), None))


def angle_cell(row: Mapping[str, Any]) -> str:
    """The gradient angle in degrees, ± its standard deviation over batches, where that is known.

    >>> angle_cell({"gradient_angle": 31.25, "gradient_angle_std": 2.04}), angle_cell({})
    ('31.2 ± 2.0', '–')
    """
    angle, spread = row.get("gradient_angle"), row.get("gradient_angle_std")
    if angle is None or not math.isfinite(angle):
        return "–"
    return f"{angle:.1f}" + (f" ± {spread:.1f}" if spread is not None and math.isfinite(spread) else "")
