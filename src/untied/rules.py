"""The named rules, each by its short name; Table 2 of the paper; the counted cost.

Feedback alignment has R = 0, so its B stays as it was drawn.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .algebra import OPTIONS, Alignment, Rule, Transport
from .errors import UntiedError
from .mirror import MirroredKolenPollack
from .primitives import Combination, Leak, Primitive
from .schedules import Coefficient

__all__ = [
    "NAMED",
    "ActivationAlignment",
    "Alignment",
    "Backpropagation",
    "FeedbackAlignment",
    "InformationAlignment",
    "KolenPollack",
    "MirroredKolenPollack",
    "Rule",
    "SignSymmetry",
    "SymmetricAlignment",
    "Transport",
    "WeightMirror",
    "as_rule",
    "counted_cost",
    "from_reference",
    "parse",
    "taxonomy",
]


class Backpropagation(Transport):
    """B = W: instantaneous weight transport, the reference for every other rule."""

    name = "bp"

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        return W

    def __str__(self) -> str:
        return self.name


class SignSymmetry(Transport):
    """B = sign(W) * magnitude (Liao et al. 2016; Moskovitz et al. 2018; Xiao et al. 2019).

    Args:
        magnitude: "uniform" (uSF), one number for a layer; "fixed" (frSF), |N(0, s²)| drawn once; "redrawn"
            (brSF), |N(0, s²)| drawn anew at every forward pass. The scale s, and uSF's number, is the
            standard deviation of W when the layer was converted.
    """

    MAGNITUDES: ClassVar[dict[str, str]] = {"uniform": "usf", "fixed": "frsf", "redrawn": "brsf"}

    def __init__(self, magnitude: str = "uniform") -> None:
        if magnitude not in self.MAGNITUDES:
            raise UntiedError(f"magnitude={magnitude!r} is not possible: choose one of {', '.join(self.MAGNITUDES)}")
        self.kind = magnitude

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.MAGNITUDES[self.kind]

    def magnitude(self, W: Tensor) -> Tensor:
        std = W.detach().std(correction=0)
        return torch.randn_like(W.detach()).abs() * std if self.kind == "fixed" else std

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        assert magnitude is not None
        if self.kind == "redrawn":
            magnitude = torch.randn_like(W).abs() * magnitude
        return W.sign() * magnitude

    def __str__(self) -> str:
        return self.name


class FeedbackAlignment(Alignment):
    """R = 0: B keeps its random initial value (Lillicrap et al. 2016; paper, section 3.2)."""

    name = "fa"

    def __init__(self) -> None:
        super().__init__({})


class WeightMirror(Alignment):
    """R = amp + decay (Akrout et al. 2019; paper, section 3.2)."""

    name, defaults = "wm", {"amp": 1.0, "decay": 1.0}

    def __init__(self, amp: Coefficient = 1.0, decay: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"amp": amp, "decay": decay}, **options)


class InformationAlignment(Alignment):
    """R = amp + decay + null, the paper's local rule (section 4).

    ``sparse`` stands in place of decay in one variant of the reference code; its other two are ``reverse``
    and ``amp_on_reconstruction``.
    """

    name, defaults = "ia", {"amp": 1.0, "decay": 1.0, "null": 1.0, "sparse": 0.0}

    def __init__(
        self,
        amp: Coefficient = 1.0,
        decay: Coefficient = 1.0,
        null: Coefficient = 1.0,
        sparse: Coefficient = 0.0,
        **options: Any,
    ) -> None:
        super().__init__({"amp": amp, "decay": decay, "null": null, "sparse": sparse}, **options)


class SymmetricAlignment(Alignment):
    """R = self + decay, ∝ ½‖W − B‖² in B where the coefficients agree (paper, section 5). Not local."""

    name, defaults = "sa", {"self": 1.0, "decay": 1.0}

    def __init__(self, self_: Coefficient = 1.0, decay: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"self": self_, "decay": decay}, **options)


class ActivationAlignment(Alignment):
    """R = amp + sparse, ∝ ½‖T_W x − T_B x‖² in B where the coefficients agree (paper, section 5). Not
    local."""

    name, defaults = "aa", {"amp": 1.0, "sparse": 1.0}

    def __init__(self, amp: Coefficient = 1.0, sparse: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"amp": amp, "sparse": sparse}, **options)


class KolenPollack(Alignment):
    """R = copy + decay: B takes W's pseudogradient and both decay (Kolen & Pollack 1994; Akrout et al. 2019; paper,
    section 3.2).

    W − B shrinks by the decay alone, so give W the weight decay ``decay`` in its optimizer, and both the
    same learning rate.
    """

    name, defaults = "kp", {"copy": 1.0, "decay": 1e-3}

    def __init__(self, copy: Coefficient = 1.0, decay: Coefficient = 1e-3, **options: Any) -> None:
        super().__init__({"copy": copy, "decay": decay}, **options)
        if self.needs_data:
            raise UntiedError(
                f"kp's decay is W's weight decay too, which is measured nowhere: give a number, not {decay}"
            )


NAMED: dict[str, type[Rule]] = {
    "bp": Backpropagation,
    "fa": FeedbackAlignment,
    "wm": WeightMirror,
    "ia": InformationAlignment,
    "sa": SymmetricAlignment,
    "aa": ActivationAlignment,
    "kp": KolenPollack,
    "mkp": MirroredKolenPollack,
    "usf": SignSymmetry,
    "frsf": SignSymmetry,
    "brsf": SignSymmetry,
}
"""Every named rule by its short name."""


def options_of(name: str) -> list[str]:
    """What can be written in the brackets after a rule's short name: its coefficients, then `OPTIONS`."""
    kind = NAMED[name]
    if issubclass(kind, MirroredKolenPollack):
        return list(kind.OPTIONS)
    return [*kind.defaults, *OPTIONS] if issubclass(kind, Alignment) and kind is not FeedbackAlignment else []


def named(name: str, **options: Any) -> Rule:
    """The rule with this short name.

    Raises:
        UntiedError: an unknown option.
    """
    kind, possible = NAMED[name], options_of(name)
    for given in options:
        if given not in possible:
            raise UntiedError(f"{name} has no option {given!r}: possible are {', '.join(possible) or 'none'}")
    if kind is SignSymmetry:
        options = {"magnitude": {v: k for k, v in SignSymmetry.MAGNITUDES.items()}[name]}
    if "self" in options:
        options["self_"] = options.pop("self")
    return kind(**options)


def parse(text: str) -> Rule:
    """Read a rule's text form, such as ``"sa"``, ``"ia(amp=1, null=2)"`` or ``"amp + 0.5*decay + null"``
    (see `untied.text`).

    Raises:
        UntiedError: what is wrong, where, and what is possible.
    """
    from .text import parse_rule

    return parse_rule(text)


def as_rule(given: Rule | Combination | Primitive | str) -> Rule:
    """The rule that is meant by a rule, a combination of primitives, one primitive, or a text.

    Raises:
        UntiedError: it is none of these.
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
    raise UntiedError(f"{given!r} is not a rule: give a rule, a combination of primitives, or a text such as 'sa'")


def taxonomy() -> list[dict[str, object]]:
    """Table 2 of the paper, and the rules around it: name, class, locality, primitives, counted cost.

    ``cost`` is in multiplications over backpropagation's: three layer products (forward, input gradient,
    weight gradient), and what R adds to them after merging.
    """
    rows: list[dict[str, object]] = []
    for name in NAMED:
        rule = named(name)
        primitives = list(rule.combination) if isinstance(rule, Alignment) else []
        rows.append({
            "name": name, "rule": type(rule).__name__, "local": rule.local, "primitives": [p.name for p in primitives],
            "kind": rule.motion, "cost": counted_cost(rule),
            "formula": " + ".join(p.formula for p in primitives), "about": (type(rule).__doc__ or "").split("\n")[0],
        })  # fmt: skip
    return rows


def counted_cost(rule: Rule) -> float:
    """Multiplications of one training step over backpropagation's, for a layer whose input needs a gradient.

    For rules with a closed form; those whose operations need autograd of the penalty cost more.
    """
    if not isinstance(rule, Alignment):
        return 1.0
    seen = {p for p in rule.primitives if p.needs_data and not isinstance(p, Leak)}  # a leak makes no product
    signals = {p.signal for p in seen} - {None}  # each is a product of its own, and correlates with its own other side
    correlates = max(len(signals), bool(seen))
    projects, reconstructs = "projection" in signals, "reconstruction" in signals
    do = rule.operations
    anew = bool(seen) and (
        do.noise is not None or do.centre_input or do.normalise_input
    )  # y of another x than the layer's
    return 1 + (projects + reconstructs + correlates + anew) / 3 * rule.fraction / rule.every


def from_reference(name: str, **flags: Any) -> Rule:
    """The rule that the paper's own TensorFlow code would build (see `untied.reference.from_reference`)."""
    from .reference import from_reference

    return from_reference(name, **flags)
