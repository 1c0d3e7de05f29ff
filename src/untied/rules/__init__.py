"""The rules, each by its short name; Table 2 of the paper; the counted cost.

This is the public door: the rules themselves are in transport.py, aligned.py, mirror.py, direct.py and product.py.
"""

from __future__ import annotations

from ..errors import UntiedError, shown
from ..primitives.primitive import Combination, Primitive
from ..routes.route import ROUTES, Product, Route, Through
from .algebra import Alignment
from .aligned import (
    ActivationAlignment,
    FeedbackAlignment,
    InformationAlignment,
    KolenPollack,
    SymmetricAlignment,
    WeightMirror,
)
from .broadcast import Broadcast
from .direct import DirectFeedback, DirectKolenPollack, DirectTargets, SignDirectFeedback
from .estimated import RegressionDiscontinuity
from .mirror import MirroredKolenPollack
from .naming import BUILT_IN, NAMED, named, options_of, register_rule, unregister_rule
from .product import LowRankFeedback, ProductFeedback
from .reference import from_reference
from .rule import Rule
from .text import parse_rule as parse
from .transport import FEEDBACK, Backpropagation, SignSymmetry, Transport, Transported

__all__ = [
    "BUILT_IN", "FEEDBACK", "NAMED", "ROUTES", "ActivationAlignment", "Alignment", "Backpropagation", "Broadcast",
    "DirectFeedback", "DirectKolenPollack", "DirectTargets", "FeedbackAlignment", "InformationAlignment",
    "KolenPollack", "LowRankFeedback", "MirroredKolenPollack", "Product", "ProductFeedback",
    "RegressionDiscontinuity", "Route", "Rule", "SignDirectFeedback", "SignSymmetry", "SymmetricAlignment", "Through",
    "Transport", "Transported", "WeightMirror", "as_rule", "counted_cost", "from_reference", "named", "options_of",
    "parse", "register_rule", "taxonomy", "unregister_rule",
]  # fmt: skip


def as_rule(given: Rule | Combination | Primitive | str) -> Rule:
    """The rule that is meant by a rule, a combination of primitives, one primitive, or a text.

    Raises:
        UntiedError: it is none of these.

    >>> from untied.primitives import amp, decay
    >>> as_rule(amp + 0.5 * decay)
    amp + 0.5*decay
    """
    if isinstance(given, Rule):
        return given
    if isinstance(given, Primitive):
        given = Combination({given: 1.0})
    if isinstance(given, Combination):
        return Alignment(given)
    if isinstance(given, str):
        return parse(given)
    if isinstance(given, type) and issubclass(given, Rule):
        raise UntiedError(f"{given.__name__} is a class of rules, not a rule: write {given.__name__}()")
    raise UntiedError(f"{shown(given)} is not a rule: give a rule, a combination of primitives, or a text such as 'sa'")


def taxonomy() -> list[dict[str, object]]:
    """Table 2 of the paper, and the rules around it, a row each: name, title, source, locality, route, motion,
    primitives, counted cost.

    ``cost`` is in multiplications over backpropagation's: three layer products (forward, input gradient,
    weight gradient), and what R adds to them after merging.

    >>> next(row["sends"] for row in taxonomy() if row["name"] == "sdfa")
    'sign(e), broadcast'
    """
    rows: list[dict[str, object]] = []
    for name in NAMED:
        rule = named(name)
        rows.append({
            "name": name, "rule": type(rule).__name__, "title": rule.title, "source": rule.source, "local": rule.local,
            "primitives": [p.name for p in rule.combination], "route": rule.route.name, "kind": rule.motion,
            "sends": rule.route.sends, "cost": rule.cost,
            "formula": " + ".join(p.formula for p in rule.combination),
            "about": (type(rule).__doc__ or "").split("\n")[0],
        })  # fmt: skip
    return rows


def counted_cost(rule: Rule) -> float:
    """Multiplications of one training step over backpropagation's, for a layer whose input needs a gradient.

    For rules with a closed form; those whose operations need autograd of the penalty cost more. Rules that broadcast
    spare the error through each layer; what they send instead is n · C · inputs, C the network's outputs, and not
    counted. Rules that carry errors through two kernels are counted for a batch times positions far above W's outputs.

    >>> round(counted_cost(as_rule("wm")), 2)
    1.33
    """
    return rule.cost
