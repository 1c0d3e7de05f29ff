"""Which rules the analysis covers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..errors import UntiedError
from ..primitives.primitive import Combination, Primitive
from ..rules import as_rule
from ..rules.algebra import Alignment
from ..rules.rule import Rule

__all__ = ["Given", "covered", "double"]

Given = Rule | Combination | Primitive | str


def double(given: Tensor | float) -> Tensor:
    """A number, or a tensor [...], in float64 and without a graph.

    >>> double(2)
    tensor(2., dtype=torch.float64)
    """
    return torch.as_tensor(given, dtype=torch.float64).detach()


def covered(given: Given, operations: tuple[str, ...]) -> Alignment:
    """The rule, if it has dynamics and its operations are among these.

    Raises:
        UntiedError: R does not move its B; B is not in W's layout; or another operation is on.

    >>> covered("wm", ())
    wm
    """
    rule = as_rule(given)
    if not rule.combines:
        raise UntiedError(
            f"{rule} computes B from W, or from measurements of W: it has no dynamics; give an alignment rule, as wm is"
        )
    if not rule.route.like_weight:
        raise UntiedError(
            f"the dynamics of {rule} are not covered: its B is not in the layout of W; give a rule such as wm"
        )
    rule = cast(Alignment, rule)
    for switch in rule.operations.changed():
        if switch not in operations:
            raise UntiedError(f"the dynamics of {rule} are not covered: {switch} {_why(switch)}; leave it out")
    return rule


def _why(switch: str) -> str:
    """Why an operation is outside the analysis."""
    reasons = {
        "normalised": "divides each example's share by its own activity; give it the second moment of what is left",
        "batch_centre": "makes an example's share depend on the rest of its batch",
        "normalise": "divides by the activity itself, and of one feature leaves 0",
        "centre": "mixes the features, and of one leaves 0",
        "activation": "is not linear, and the analysis is of a linear layer (as the paper's, which ignores them)",
        "bias": "adds the layer's bias, and the analysis is of a layer without one",
        "update_forward": "lets R move W, which is held fixed here",
    }
    return next(reason for part, reason in reasons.items() if part in switch)
