"""Learning rules: the algebra over primitives, the named rules, and Table 2 of the paper.

Two kinds of rule, by where the backward weight B comes from:
    Transport   B is a function of W at every step: backpropagation, sign symmetry.
    Alignment   B is a parameter that descends R, a combination of primitives: every rule of the paper.
                Feedback alignment has R = 0, so its B stays; Kolen-Pollack's B also takes W's pseudogradient.

Legend as in primitives.py; c_P is the coefficient of primitive P; n the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import UntiedError
from .geometry import DENSE, Geometry
from .operations import Operations, Signals
from .primitives import PRIMITIVES, Coefficient, Combination, Correlation, Primitive, total, value

__all__ = [
    "NAMED", "ActivationAlignment", "Alignment", "Backpropagation", "FeedbackAlignment", "InformationAlignment",
    "KolenPollack", "Rule", "SignSymmetry", "SymmetricAlignment", "Transport", "WeightMirror", "as_rule",
    "from_reference", "parse", "taxonomy",
]  # fmt: skip

Number = float | Tensor
"""A coefficient's value now; a 0-dim tensor where it changes in training, so that a compiled step need not be compiled anew."""


class Rule:
    """How a layer gets its backward weight.

    Attributes:
        name: short name, or "align" for a free combination.
        local: whether the rule meets both of the paper's locality criteria (section 3.1).
        aligns: whether there is an R to descend, so that `untied.record` is needed in training.
        copies_gradient: whether B's gradient takes W's pseudogradient (Kolen-Pollack).
    """

    name: ClassVar[str]
    local: bool
    aligns: bool = False
    copies_gradient: bool = False

    def __repr__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), str(self)))


class Transport(Rule):
    """B is computed from W whenever it is needed; nothing is trained. Not local: it reads the forward weights."""

    local = False

    def magnitude(self, W: Tensor) -> Tensor | None:
        """What has to be remembered from the moment of conversion: a buffer beside W, or None."""
        return None

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        """B for this step, in W's layout."""
        raise NotImplementedError(f"{type(self).__name__}.backward_weight")


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
        magnitude: "uniform" (uSF), one number for a layer; "fixed" (frSF), |N(0, s²)| drawn once; "redrawn" (brSF), |N(0, s²)| drawn
            anew at every forward pass. The scale s, and uSF's number, is the standard deviation of W when the layer was converted.
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


class Alignment(Rule):
    """B is a parameter that descends R, the sum over layers of Σ_P c_P P / n.

    Args:
        coefficients: of each primitive, by primitive or by name; a number, or a function of training progress.
        fraction: share of each batch on which R's data-dependent part is evaluated: neighbouring examples (the last one's neighbour is the
            first) from a place drawn anew each step, so that every example counts equally and R is unbiased.
        every: R is evaluated at every k-th step only and multiplied by k there, so that its mean over steps is unbiased.
        positions: "sum" over the positions at which a kernel is applied (the reference code), or their "mean".
        **switches: fields of `untied.operations.Operations`.

    Raises:
        UntiedError: an unknown primitive or switch, or an impossible value.
    """

    name = "align"

    def __init__(
        self,
        coefficients: Mapping[Primitive, Coefficient] | Mapping[str, Coefficient],
        *,
        fraction: float = 1.0,
        every: int = 1,
        positions: str = "sum",
        **switches: Any,
    ) -> None:
        self.combination = Combination({_primitive(p): _coefficient(p, c) for p, c in coefficients.items()})
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise UntiedError(f"fraction={fraction!r} is not possible: give the share of the batch, above 0 and at most 1")
        if not isinstance(every, int) or every < 1:
            raise UntiedError(f"every={every!r} is not possible: give a whole number of steps, 1 or more")
        if positions not in ("sum", "mean"):
            raise UntiedError(f"positions={positions!r} is not possible: choose sum or mean")
        unknown = [s for s in switches if s not in OPTIONS]
        if unknown:
            raise UntiedError(f"{self.name} has no option {unknown[0]!r}: possible are {', '.join([*PRIMITIVES, *OPTIONS])}")
        self.fraction = float(fraction)
        self.every = every
        self.positions = positions
        self.operations = Operations(**switches)

    # What the rule is

    @property
    def aligns(self) -> bool:  # type: ignore[override]
        return len(self.combination) > 0

    @property
    def local(self) -> bool:  # type: ignore[override]
        return all(p.local for p in self.combination)

    @property
    def needs_data(self) -> bool:
        """Whether R sees activity, or W and B alone."""
        return any(p.needs_data for p in self.combination)

    @property
    def has_closed_form(self) -> bool:
        """Whether Table 1's closed forms hold; otherwise R's gradient comes from autograd of the penalty, layer by layer."""
        reconstructs = any(p.name == "null" for p in self.combination)
        return not (self.operations.on_output or (reconstructs and self.operations.on_reconstruction))

    @property
    def options(self) -> dict[str, Any]:
        """Every option that is not at its default; ``Alignment(rule.combination, **rule.options)`` is the same R."""
        own: dict[str, Any] = {"fraction": self.fraction} if self.fraction < 1 else {}
        own |= {"every": self.every} if self.every > 1 else {}
        own |= {"positions": self.positions} if self.positions != "sum" else {}
        return own | self.operations.changed()

    # The algebra: a rule adds and multiplies like the combination it holds

    def __mul__(self, factor: Coefficient) -> Alignment:
        return Alignment(self.combination * factor, **self.options)

    __rmul__ = __mul__

    def __add__(self, other: Alignment | Combination | Primitive) -> Alignment:
        options = self.options
        if isinstance(other, Alignment):
            if options and other.options and options != other.options:
                raise UntiedError(f"cannot add {self} and {other}: their options differ; give both the same, or one none")
            options = options or other.options
            if self.copies_gradient or other.copies_gradient:
                raise UntiedError("kp cannot be added to another rule: it also copies W's pseudogradient; give kp its coefficients")
            other = other.combination
        return Alignment(self.combination + other, **options)

    __radd__ = __add__

    # The mathematics

    def coefficients(self, progress: float | None) -> dict[Primitive, Number]:
        """Each primitive's coefficient now; those that are zero are left out."""
        now = {p: value(c, progress) for p, c in self.combination.items()}
        return {p: torch.tensor(v) if callable(self.combination[p]) else v for p, v in now.items() if v != 0}

    def penalty(self, s: Signals, progress: float | None = None) -> Tensor:
        """The readable definition: Σ_P c_P P for one layer, summed over the batch; differentiable."""
        s = s.with_input_operations()
        return sum((c * p.penalty(s) for p, c in self.coefficients(progress).items()), start=s.B.new_zeros(()))

    def data_terms(self, s: Signals, c: Mapping[Primitive, Number], scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """The primitives that see activity: (value, gradient in B, gradient in W or None), all times ``scale``."""
        c = {p: v for p, v in c.items() if p.needs_data}
        s = s.with_input_operations()
        if not self.has_closed_form:
            return self._by_autograd(s, c, scale)
        terms: list[Correlation] = []
        for primitive, v in c.items():
            term = primitive.gradient(s)
            assert isinstance(term, Correlation)
            terms.append(Correlation(v * term.factor, term.left, term.right))
        gradient = merged(terms, s.geometry, scale)
        # Euler: <B, dP/dB> = degree * P. What is of degree 2 was counted twice.
        R = total(s.B * gradient)
        for primitive, v in c.items():
            if primitive.degree == 2:
                R = R - v * scale * primitive.penalty(s)
        return R, gradient, None

    def _by_autograd(self, s: Signals, c: Mapping[Primitive, Number], scale: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same by autograd of the readable penalty, for operations on what B has produced."""

        def penalty(B: Tensor, W: Tensor) -> Tensor:
            seen = Signals(s.x, W, B, s.geometry, s.operations, s.bias, None if both else s.linear_output)
            return sum((v * scale * p.penalty(seen) for p, v in c.items()), start=B.new_zeros(()))

        both = self.operations.update_forward
        gradients, R = torch.func.grad_and_value(penalty, argnums=(0, 1))(s.B, s.W)
        return R, gradients[0], gradients[1] if both else None

    def weight_terms(self, W: Tensor, B: Tensor, c: Mapping[Primitive, Number]) -> tuple[Tensor, Tensor, Tensor | None]:
        """The primitives of W and B alone: (value, gradient in B, gradient in W or None)."""
        s = Signals(B, W, B, DENSE, self.operations)  # there is no activity to see
        swapped = Signals(B, B, W, DENSE, self.operations)  # both of these primitives are symmetric in W and B
        R, dB = B.new_zeros(()), torch.zeros_like(B)
        dW = torch.zeros_like(W) if self.operations.update_forward else None
        for primitive, v in c.items():
            if not primitive.needs_data:
                R = R + v * primitive.penalty(s)
                dB = _plus(dB, v, _tensor(primitive.gradient(s)))
                if dW is not None:
                    dW = _plus(dW, v, _tensor(primitive.gradient(swapped)))
        return R, dB, dW

    def __str__(self) -> str:
        if type(self) is Alignment and not self.options:
            return repr(self.combination)
        names = list(dict.fromkeys([*getattr(self, "defaults", {}), *(p.name for p in self.combination)]))
        words = {n: _text(self.combination.get(PRIMITIVES[n], 0.0)) for n in names}
        if type(self) is not Alignment:  # a named rule says only what differs from what its name says
            words = {n: w for n, w in words.items() if w != _text(self.defaults[n])}
        words |= {k: _text(v) for k, v in self.options.items()}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in words.items())})" if words else self.name

    defaults: ClassVar[dict[str, float]] = {}


def merged(terms: list[Correlation], geometry: Geometry, scale: float) -> Tensor:
    """Σ factor * correlate(left, right) * scale, in as few products as sharing a side allows.

    Activation alignment's two terms share x: correlate(x, p − y). Information alignment's share y: correlate(T_B* y − x, y).
    """
    groups: list[tuple[list[tuple[Number, Tensor]], list[tuple[Number, Tensor]]]] = []
    for t in terms:
        for lefts, rights in groups:
            if len(rights) == 1 and rights[0][1] is t.right:
                lefts.append((t.factor, t.left))
                break
            if len(lefts) == 1 and lefts[0][1] is t.left:
                if len(rights) == 1:  # the factor moves to the side that is summed
                    rights[0], lefts[0] = (lefts[0][0], rights[0][1]), (1.0, lefts[0][1])
                rights.append((t.factor, t.right))
                break
        else:
            groups.append(([(t.factor, t.left)], [(1.0, t.right)]))
    products = []
    for lefts, rights in groups:
        (a, left), (b, right) = _sum(lefts), _sum(rights)
        factor = a * b * scale
        if right.dtype == torch.float16:  # a sum over batch and positions leaves float16's range
            products.append(geometry.correlate(left, right * scale) * (a * b))
        else:
            products.append(geometry.correlate(left, right) * factor)
    return sum(products[1:], start=products[0])


def _sum(terms: list[tuple[Number, Tensor]]) -> tuple[Number, Tensor]:
    """Σ factor * tensor as (factor, tensor), in one pass for two terms."""
    factor, result = terms[0]
    for f, t in terms[1:]:
        result = _plus(result, f / factor, t)
    return factor, result


def _plus(a: Tensor, factor: Number, b: Tensor) -> Tensor:
    """A + factor * b."""
    return a + factor * b if isinstance(factor, Tensor) else torch.add(a, b, alpha=factor)


def _tensor(gradient: Tensor | Correlation) -> Tensor:
    assert isinstance(gradient, Tensor)
    return gradient


def _text(v: object) -> str:
    if isinstance(v, bool) or v is None:
        return str(v).lower()
    if isinstance(v, int | float):
        return f"{v:.17g}" if float(f"{v:g}") != v else f"{v:g}"
    return v if isinstance(v, str) else f"<{getattr(v, '__name__', type(v).__name__)}>"


def _primitive(given: Primitive | str) -> Primitive:
    if isinstance(given, Primitive):
        return given
    if given not in PRIMITIVES:
        raise UntiedError(f"unknown primitive {given!r}: possible are {', '.join(PRIMITIVES)}")
    return PRIMITIVES[given]


def _coefficient(primitive: Primitive | str, c: Coefficient) -> Coefficient:
    if callable(c) or (isinstance(c, int | float) and not isinstance(c, bool) and c == c and abs(c) != float("inf")):
        return c
    raise UntiedError(f"coefficient {primitive}={c!r} is not possible: give a finite number, or a function of training progress")


OPTIONS = ("fraction", "every", "positions", *(f.name for f in fields(Operations)))


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

    ``sparse`` stands in place of decay in one variant of the reference code; its other two are ``reverse`` and ``amp_on_reconstruction``.
    """

    name, defaults = "ia", {"amp": 1.0, "decay": 1.0, "null": 1.0, "sparse": 0.0}

    def __init__(
        self, amp: Coefficient = 1.0, decay: Coefficient = 1.0, null: Coefficient = 1.0, sparse: Coefficient = 0.0, **options: Any
    ) -> None:
        super().__init__({"amp": amp, "decay": decay, "null": null, "sparse": sparse}, **options)


class SymmetricAlignment(Alignment):
    """R = self + decay, ∝ ½‖W − B‖² in B where the coefficients agree (paper, section 5). Not local."""

    name, defaults = "sa", {"self": 1.0, "decay": 1.0}

    def __init__(self, self_: Coefficient = 1.0, decay: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"self": self_, "decay": decay}, **options)


class ActivationAlignment(Alignment):
    """R = amp + sparse, ∝ ½‖T_W x − T_B x‖² in B where the coefficients agree (paper, section 5). Not local."""

    name, defaults = "aa", {"amp": 1.0, "sparse": 1.0}

    def __init__(self, amp: Coefficient = 1.0, sparse: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"amp": amp, "sparse": sparse}, **options)


class KolenPollack(Alignment):
    """B takes W's pseudogradient and both decay (Kolen & Pollack 1994; Akrout et al. 2019; paper, section 3.2).

    W − B shrinks by the decay alone, so give W the weight decay ``decay`` in its optimizer, and both the same learning rate.
    """

    name, defaults = "kp", {"decay": 1e-3}
    copies_gradient = True

    def __init__(self, decay: Coefficient = 1e-3, **options: Any) -> None:
        super().__init__({"decay": decay}, **options)

    def __mul__(self, factor: Coefficient) -> Alignment:
        raise UntiedError("kp cannot be multiplied: it also copies W's pseudogradient; give kp its decay")

    __rmul__ = __mul__


NAMED: dict[str, type[Rule]] = {
    "bp": Backpropagation, "fa": FeedbackAlignment, "wm": WeightMirror, "ia": InformationAlignment, "sa": SymmetricAlignment,
    "aa": ActivationAlignment, "kp": KolenPollack, "usf": SignSymmetry, "frsf": SignSymmetry, "brsf": SignSymmetry,
}  # fmt: skip
"""Every named rule by its short name."""


def named(name: str, **options: Any) -> Rule:
    """The rule with this short name.

    Raises:
        UntiedError: an unknown option.
    """
    kind = NAMED[name]
    if kind is SignSymmetry:
        options = {"magnitude": {v: k for k, v in SignSymmetry.MAGNITUDES.items()}[name], **options}
    if issubclass(kind, Alignment) and kind is not FeedbackAlignment:
        possible = [*kind.defaults, *OPTIONS]
    else:
        possible = ["magnitude"] if kind is SignSymmetry else []
    for given in options:
        if given not in possible:
            ways = f"possible are {', '.join(possible)}" if possible and kind is not SignSymmetry else "it has none"
            raise UntiedError(f"{name} has no option {given!r}: {ways}")
    if "self" in options:
        options["self_"] = options.pop("self")
    return kind(**options)


def parse(text: str) -> Rule:
    """Read a rule's text form, such as ``"sa"``, ``"ia(amp=1, null=2)"`` or ``"amp + 0.5*decay + null"`` (see `untied.text`).

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

    ``cost`` is in multiplications over backpropagation's: three layer products (forward, input gradient, weight gradient), and what
    R adds to them after merging.
    """
    rows: list[dict[str, object]] = []
    for name in NAMED:
        rule = named(name)
        primitives = list(rule.combination) if isinstance(rule, Alignment) else []
        rows.append({
            "name": name, "rule": type(rule).__name__, "local": rule.local, "primitives": [p.name for p in primitives],
            "kind": "alignment" if isinstance(rule, Alignment) else "transport", "cost": counted_cost(rule),
            "formula": " + ".join(p.formula for p in primitives), "about": (type(rule).__doc__ or "").split("\n")[0],
        })  # fmt: skip
    return rows


def counted_cost(rule: Rule) -> float:
    """Multiplications of one training step over backpropagation's, for a layer whose input needs a gradient."""
    if not isinstance(rule, Alignment):
        return 1.0
    seen = {p.name for p in rule.combination if p.needs_data}
    projects, reconstructs = "sparse" in seen, "null" in seen
    correlates = (projects and reconstructs) + bool(seen)
    noise = rule.operations.noise is not None and bool(seen)  # the layer's own y is of no use then
    return 1 + (projects + reconstructs + correlates + noise) / 3 * rule.fraction / rule.every


REFERENCE_NAMES = {
    "feedback": "fa", "mirror": "wm", "information": "ia", "symmetric": "sa", "activation": "aa", "kolen_pollack": "kp", "none": "bp",
}  # fmt: skip
_REFERENCE_LETTERS = {  # letter -> (primitive, our coefficient over the reference's: it leaves the ½ out)
    "wm": {"alpha": ("decay", 2.0), "beta": ("amp", 1.0)},
    "sa": {"alpha": ("decay", 2.0), "beta": ("self", 1.0)},
    "aa": {"alpha": ("sparse", 2.0), "beta": ("amp", 1.0)},
    "ia": {"alpha": ("amp", 1.0), "beta": ("null", 2.0), "gamma": ("decay", 2.0)},
    "kp": {"alpha": ("decay", 2.0)},
}
_REFERENCE_DEFAULTS = {  # in our units
    "wm": {"amp": 1e-3, "decay": 2e-3}, "sa": {"self": 2e-3, "decay": 2e-3}, "aa": {"amp": 2e-3, "sparse": 2e-3},
    "ia": {"amp": 2e-3, "null": 2e-3, "decay": 2e-3}, "kp": {"decay": 2e-3},
}  # fmt: skip
_REFERENCE_FLAGS = {
    "input_distribution": "noise", "input_stddev": "noise_std", "use_bias_forward": "forward_bias",
    "use_bias_backward": "backward_bias", "activation_forward": "forward_activation", "activation_backward": "backward_activation",
    "batch_center_backward_input": "batch_centre_backward_input", "center_input": "centre_input", "normalize_input": "normalise_input",
    "batch_center_forward_output": "batch_centre_forward_output", "center_forward_output": "centre_forward_output",
    "normalize_forward_output": "normalise_forward_output", "center_backward_output": "centre_backward_output",
    "normalize_backward_output": "normalise_backward_output", "reconstruction_reversal": "reverse",
    "reconstruction_amp": "amp_on_reconstruction", "update_forward": "update_forward",
}  # fmt: skip


def from_reference(name: str, **flags: Any) -> Rule:
    """The rule that the paper's TensorFlow code (neuroailab/Neural-Alignment) would build, in this library's units.

    Args:
        name: "feedback", "mirror", "information", "symmetric", "activation", "kolen_pollack" or "none"; short names are taken too.
        **flags: its letters ``alpha``, ``beta``, ``gamma`` (they differ from the paper's, and its squares have no ½; without them its
            defaults), and its flags by their own names (``input_distribution``, ``center_input``, ``reconstruction_reversal``, ``use_sparse``,
            ...). ``activation_fn_override`` names the activation that ``activation_forward`` and ``activation_backward`` switch on.

    Raises:
        UntiedError: an unknown name, letter or flag.
    """
    short = REFERENCE_NAMES.get(name, name)
    if short not in REFERENCE_NAMES.values():
        raise UntiedError(f"unknown reference rule {name!r}: possible are {', '.join(REFERENCE_NAMES)}")
    letters = _REFERENCE_LETTERS.get(short, {})
    coefficients: dict[str, Any] = dict(_REFERENCE_DEFAULTS.get(short, {}))
    activation, use_sparse = flags.pop("activation_fn_override", None), flags.pop("use_sparse", False)
    options: dict[str, Any] = {}
    for flag, given in flags.items():
        if flag in letters:
            primitive, factor = letters[flag]
            coefficients[primitive] = given * factor
        elif flag in _REFERENCE_FLAGS and short in _REFERENCE_LETTERS:
            ours = _REFERENCE_FLAGS[flag]
            if ours.endswith("_activation"):
                if given and activation is None:
                    raise UntiedError(f"{flag} needs a function: give activation_fn_override='relu', or the layer's own by name")
                given = activation if given else None
            options[ours] = given
        else:
            raise UntiedError(f"{name} has no letter or flag {flag!r}: possible are {', '.join([*letters, *_REFERENCE_FLAGS])}")
    if use_sparse:
        if short != "ia":
            raise UntiedError(f"{name} has no flag 'use_sparse': only information alignment does")
        coefficients |= {"sparse": coefficients["decay"], "decay": 0.0}
    return named(short, **coefficients, **options)
