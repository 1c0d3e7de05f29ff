"""The two kinds of rule, the algebra over primitives, and the mathematics of R for one layer.

    Transport   B is a function of W at every step: backpropagation, sign symmetry.
    Alignment   B is a parameter that descends R, a combination of primitives: every rule of the paper.

Legend as in primitives.py; c_P is the coefficient of primitive P; n the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import UntiedError
from .geometry import DENSE, Geometry, inner, ordinary_autograd
from .operations import Operations, Signals
from .primitives import KNOWN, LEAKS, Combination, Correlation, Multiple, Primitive, amp, copy, decay
from .schedules import Coefficient, coefficient_text, multiply, value
from .statistics import Statistic, power

__all__ = ["OPTIONS", "Alignment", "Number", "Rule", "Transport", "Visit", "merged"]

Number = float | Tensor
"""A coefficient's value now: a 0-dim tensor where it changes in training, so that a compiled step stays compiled."""


@dataclass(frozen=True)
class Visit:
    """One backward kernel that a rule may move by itself.

    Attributes:
        W: the forward weight. beside: what stands beside it, by the rule's ``keeps``.
        geometry: how the layer uses W. name: of the layer, for errors.
        step: number of the training step, or None. align: whether it is measured too in this pass.
    """

    W: Tensor
    beside: Mapping[str, Any]
    geometry: Geometry
    name: str
    step: int | None = None
    align: bool = True


class Rule:
    """How a layer gets its backward weight.

    Attributes:
        name: short name, or "align" for a free combination.
        motion: what moves B: "transport" (a function of W), "alignment" (R), "estimate" (measurements of W).
        local: whether the rule meets both of the paper's locality criteria (section 3.1).
        aligns: whether there is an R to descend, so that `untied.record` is needed in training.
        copies: how much of W's pseudogradient goes to B's gradient too (`copy`, Kolen-Pollack).
        moves_itself: whether it moves B outside every optimizer, when a recording begins (`visit`).
        keeps: the names of what it keeps beside a weight.
        needs_record: whether training needs `untied.record`.
    """

    name: ClassVar[str]
    motion: ClassVar[str]
    local: bool
    aligns: bool = False
    copies: float = 0.0
    moves_itself: ClassVar[bool] = False
    keeps: ClassVar[tuple[str, ...]] = ("backward_weight",)

    @property
    def copies_gradient(self) -> bool:
        """Whether B's gradient takes W's pseudogradient."""
        return self.copies != 0

    @property
    def needs_record(self) -> bool:
        return self.aligns

    def beside(self, W: Tensor, B: Callable[[], Tensor]) -> dict[str, Tensor | None]:
        """What stands beside W from the conversion on, by the names in ``keeps``: only parameters learn.

        Args:
            W: the forward weight. B: draws an initial backward weight.
        """
        return {"backward_weight": nn.Parameter(B(), requires_grad=self.aligns or self.copies_gradient)}

    def kernel(self, W: Tensor, beside: Mapping[str, Any]) -> Tensor:
        """B for this pass, in W's layout, from what stands beside W."""
        return beside["backward_weight"]  # type: ignore[no-any-return]

    def check(self) -> None:
        """Called before a layer gets the rule.

        Raises:
            UntiedError: an option would change nothing.
        """

    def visit(self, visit: Visit) -> None:
        """A forward pass is about to be recorded: what moves B outside every optimizer does so now."""

    def settle(self, visit: Visit) -> None:
        """B is about to be looked at: what follows from W alone is brought up to date."""

    def __repr__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), str(self)))


class Transport(Rule):
    """B is computed from W whenever it is needed; nothing is trained. Not local: it reads the forward weights."""

    motion, local = "transport", False

    keeps = ("backward_magnitude",)

    def beside(self, W: Tensor, B: Callable[[], Tensor]) -> dict[str, Tensor | None]:
        return {"backward_magnitude": self.magnitude(W)}

    def kernel(self, W: Tensor, beside: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            return self.backward_weight(W, beside["backward_magnitude"]).detach()

    def magnitude(self, W: Tensor) -> Tensor | None:
        """What has to be remembered from the moment of conversion: a buffer beside W, or None."""
        return None

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        """B for this step, in W's layout."""
        raise NotImplementedError(f"{type(self).__name__}.backward_weight")


class Alignment(Rule):
    """B is a parameter that descends R, the sum over layers of Σ_P c_P P / n.

    Args:
        coefficients: of each primitive, by primitive or by name; a number, a schedule, or any function of
            training progress. decay also takes a statistic of the layer (`untied.statistics`), or "balanced", the
            statistic that balances amp: amp · power.
        fraction: share of each batch on which R's data-dependent part is evaluated: neighbouring examples at a place
            drawn anew each step, so that every example counts equally and R is unbiased. Where it divides the batch,
            one of its blocks, which copies nothing; else from any place, the first example following the last.
        every: R is evaluated at every k-th step only and multiplied by k there, so that its mean over steps
            is unbiased.
        positions: "sum" over the positions at which a kernel is applied (the reference code), or their
            "mean".
        **switches: fields of `untied.operations.Operations`.

    Raises:
        UntiedError: an unknown primitive or switch, or an impossible value.
    """

    name, motion = "align", "alignment"

    def __init__(
        self,
        coefficients: Mapping[Primitive, Coefficient] | Mapping[str, Coefficient],
        *,
        fraction: float = 1.0,
        every: int = 1,
        positions: str = "sum",
        **switches: Any,
    ) -> None:
        given: dict[Primitive, Any] = {_primitive(p): c for p, c in coefficients.items()}
        if given.get(decay) == "balanced":
            given[decay] = _balanced(given.get(amp, 0.0))
        self.combination = Combination({p: _coefficient(p, c) for p, c in given.items()})
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise UntiedError(
                f"fraction={fraction!r} is not possible: give the share of the batch, above 0 and at most 1"
            )
        if not isinstance(every, int) or every < 1:
            raise UntiedError(f"every={every!r} is not possible: give a whole number of steps, 1 or more")
        if positions not in ("sum", "mean"):
            raise UntiedError(f"positions={positions!r} is not possible: choose sum or mean")
        unknown = [s for s in switches if s not in OPTIONS]
        if unknown:
            raise UntiedError(f"{self.name} has no option {unknown[0]!r}: possible are {', '.join([*KNOWN, *OPTIONS])}")
        self.fraction = float(fraction)
        self.every = every
        self.positions = positions
        self.operations = Operations(**switches)

    def check(self) -> None:
        idle = {}
        if not self.needs_data:
            idle = {k: v for k, v in self.options.items() if k not in ("every", "update_forward")}
            why = "R sees no activity"
        elif self.operations.noise is None and self.operations.noise_std != 1:
            idle, why = {"noise_std": self.operations.noise_std}, "there is no noise: add noise=normal"
        if not self.aligns and "every" in self.options:
            idle, why = {"every": self.every}, "there is no R"
        if idle:
            shown = ", ".join(f"{k}={_text(v)}" for k, v in idle.items())
            raise UntiedError(f"{shown} would change nothing in {self.combination}: {why}; leave it out")

    # What the rule is

    @property
    def aligns(self) -> bool:  # type: ignore[override]
        return any(not p.needs_error for p in self.combination)

    @property
    def copies(self) -> float:  # type: ignore[override]
        return float(self.combination.get(copy, 0.0))  # type: ignore[arg-type]

    @property
    def local(self) -> bool:  # type: ignore[override]
        return all(p.local for p in self.combination)

    @property
    def primitives(self) -> tuple[Primitive, ...]:
        """What R is made of: a primitive whose coefficient is a statistic is another one, which sees activity."""
        return tuple(LEAKS[c.name] if isinstance(c, Statistic) else p for p, c in self.combination.items())

    @property
    def needs_data(self) -> bool:
        """Whether R sees activity, or W and B alone."""
        return any(p.needs_data for p in self.primitives)

    @property
    def has_closed_form(self) -> bool:
        """Whether Table 1's closed forms hold; otherwise R's gradient is by autograd of the penalty, layer by layer."""
        reconstructs = any(p.signal == "reconstruction" for p in self.primitives)
        given = all(p.has_gradient for p in self.primitives)
        return given and not (self.operations.on_output or (reconstructs and self.operations.on_reconstruction))

    @property
    def options(self) -> dict[str, Any]:
        """Every option not at its default: ``Alignment(rule.combination, **rule.options)`` is the same R."""
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
                raise UntiedError(
                    f"cannot add {self} and {other}: their options differ; give both the same, or one none"
                )
            options = options or other.options
            other = other.combination
        return Alignment(self.combination + other, **options)

    __radd__ = __add__

    def __neg__(self) -> Alignment:
        return self * -1.0

    def __sub__(self, other: Alignment | Combination | Primitive) -> Alignment:
        return self + -other

    # The mathematics

    def coefficients(self, progress: float | None) -> dict[Primitive, Number]:
        """The coefficient now of each term of R; those that are zero are left out. `copy` is not a term of the loss."""
        given = [c.factor if isinstance(c, Statistic) else c for c in self.combination.values()]
        terms = [(p, c) for p, c in zip(self.primitives, given, strict=True) if not p.needs_error]
        now = {p: (c, value(c, progress)) for p, c in terms}
        return {p: torch.tensor(v, dtype=torch.float64) if callable(c) else v for p, (c, v) in now.items() if v != 0}

    def penalty(self, s: Signals, progress: float | None = None) -> Tensor:
        """The readable definition: Σ_P c_P P for one layer, summed over the batch; differentiable. `copy` counts where
        the signals have an error.
        """
        copied = self.copies * copy.penalty(s) if s.error is not None else s.B.new_zeros(())
        s = s.with_input_operations()
        return sum((c * p.penalty(s) for p, c in self.coefficients(progress).items()), start=copied)

    def data_terms(
        self, s: Signals, c: Mapping[Primitive, Number], scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The primitives that see activity: (value, gradient in B, gradient in W or None), all times ``scale``."""
        c = {p: v for p, v in c.items() if p.needs_data}
        if not c:
            return s.B.new_zeros(()), torch.zeros_like(s.B), None
        s = s.with_input_operations()
        if not self.has_closed_form:
            return self._by_autograd(s, c, scale)
        terms: list[Correlation] = []
        products: list[tuple[Number, Tensor]] = []
        for primitive, v in c.items():
            term = primitive.gradient(s)
            if isinstance(term, Tensor):
                products.append((v * scale, term))
            elif isinstance(term, Correlation):
                terms.append(Correlation(v * term.factor, term.left, term.right))
            else:
                raise UntiedError(
                    f"primitive {primitive}: its gradient is {type(term).__name__}; with data it is a Correlation"
                )
        # Euler: <B, dP/dB> = degree * P. What is of degree 2 is counted twice there.
        twice = [(p.degree - 1) * v * scale * p.penalty(s) for p, v in c.items() if p.degree != 1]
        gradient = merged(terms, s.geometry, scale, s.release(), s.B.numel()) if terms else None
        if products:
            gradient = _sum(products, gradient)
        assert gradient is not None
        return sum((-t for t in twice), start=inner(s.B, gradient)), gradient, None

    def _by_autograd(
        self, s: Signals, c: Mapping[Primitive, Number], scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The same by autograd of the readable penalty, for operations on what B has produced."""

        def penalty(B: Tensor, W: Tensor) -> Tensor:
            seen = Signals(s.x, W, B, s.geometry, s.operations, s.bias, None if both else s.linear_output)
            return sum((v * scale * p.penalty(seen) for p, v in c.items()), start=B.new_zeros(()))

        both = self.operations.update_forward
        gradients, R = gradients_of(penalty, (s.B, s.W) if both else (s.B,), s.W)
        return R, gradients[0], gradients[1] if both else None

    def weight_terms(
        self,
        W: Tensor,
        B: Tensor,
        c: Mapping[Primitive, Number],
        onto: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The primitives of W and B alone: (value, gradient in B, gradient in W or None).

        ``onto``: gradients in B and W so far, which are added to, in place where their type is the kernels'.
        """
        c = {p: v for p, v in c.items() if not p.needs_data}
        s = _without_activity(W, B, self.operations)
        R = sum((v * p.penalty(s) for p, v in c.items()), start=B.new_zeros(()))
        dB = _gradient(c, W, B, self.operations, onto[0])
        # such primitives are symmetric in W and B
        dW = _gradient(c, B, W, self.operations, onto[1]) if self.operations.update_forward else None
        return R, dB, dW

    def __hash__(self) -> int:  # not the text: one combination can be written in several orders
        return hash((type(self), self.combination, tuple(self.options.items())))

    def __str__(self) -> str:
        if type(self) is Alignment and not self.options:
            return repr(self.combination)
        given = {p.name: c for p, c in self.combination.items()}
        names = list(dict.fromkeys([*self.defaults, *given]))
        words = {n: _text(given.get(n, 0.0)) for n in names}
        if type(self) is not Alignment:  # a named rule says only what differs from what its name says
            words = {n: w for n, w in words.items() if w != _text(self.defaults[n])}
        words |= {k: _text(v) for k, v in self.options.items()}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in words.items())})" if words else self.name

    defaults: ClassVar[dict[str, float]] = {}


def merged(
    terms: list[Correlation], geometry: Geometry, scale: float, free: tuple[Tensor, ...] = (), size: int = 0
) -> Tensor:
    """Σ factor * correlate(left, right) * scale, in as few products as sharing a side allows.

    Activation alignment's two terms share x: correlate(x, p − y). Information alignment's share y:
    correlate(T_B* y − x, y). Where one of ``free`` appears in a single term, the sum may take its place in memory.
    ``size``: of the result in numbers. What multiplies it multiplies the right side instead, where that is smaller.
    """
    sides = [side for t in terms for side in (t.left, t.right)]
    once = [t for t in free if sum(t is side for side in sides) == 1]
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
        (a, left), (b, right) = _side(lefts, once), _side(rights, once)
        if right.dtype == torch.float16:  # a sum over batch and positions leaves float16's range
            products.append((a * b, geometry.correlate(left, right * scale)))
        elif right.numel() < size:
            products.append((1.0, geometry.correlate(left, right * (a * b * scale))))
        else:
            products.append((a * b * scale, geometry.correlate(left, right)))
    factor, gradient = products[0]
    return _sum(products[1:], _times(gradient, factor))


def _side(terms: list[tuple[Number, Tensor]], once: list[Tensor]) -> tuple[Number, Tensor]:
    """Σ factor * tensor as (factor, tensor); the first of those that may be overwritten becomes the sum."""
    at = next((i for i, (_, t) in enumerate(terms) if any(t is free for free in once)), None)
    factor, result = terms[at or 0]
    for i, (f, t) in enumerate(terms):
        if i != (at or 0):
            result = _plus(result, f / factor, t, in_place=at is not None or i > 1)
    return factor, result


def _sum(terms: list[tuple[Number, Tensor]], onto: Tensor | None = None) -> Tensor:
    """Σ factor * tensor, a new tensor; or added to ``onto`` in place. One pass a term, less where a factor is 1."""
    terms = list(terms)
    if onto is None:
        at = next((i for i, (f, _) in enumerate(terms) if not isinstance(f, Tensor) and f == 1), 0)
        (factor, first), *terms = [terms[at], *terms[:at], *terms[at + 1 :]]
        if len(terms) > 0 and not isinstance(factor, Tensor) and factor == 1:
            (f, t), *terms = terms
            onto = _plus(first, f, t)
        else:
            onto = first * factor
    for f, t in terms:
        onto = _plus(onto, f, t, in_place=True)
    return onto


def _plus(a: Tensor, factor: Number, b: Tensor, in_place: bool = False) -> Tensor:
    """A + factor * b; into a where that is asked for and b's type goes into a's."""
    if isinstance(factor, Tensor):
        b, factor = factor * b, 1.0
    if in_place and torch.promote_types(a.dtype, b.dtype) == a.dtype:
        return a.add_(b, alpha=factor)
    return torch.add(a, b, alpha=factor)


def _times(a: Tensor, factor: Number) -> Tensor:
    """A * factor, in place."""
    return a if not isinstance(factor, Tensor) and factor == 1 else a.mul_(factor)


def gradients_of(
    function: Callable[[Tensor, Tensor], Tensor], at: tuple[Tensor, ...], W: Tensor
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients in ``at``, (B,) or (B, W), of a function of (B, W); and its value."""

    def value(*given: Tensor) -> Tensor:
        return function(given[0], given[1] if len(given) > 1 else W)

    if torch.compiler.is_compiling():
        gradients, R = torch.func.grad_and_value(value, argnums=tuple(range(len(at))))(*at)
        return gradients, R
    with ordinary_autograd():
        leaves = [t.detach().requires_grad_() for t in at]
        R = value(*leaves)
        gradients = torch.autograd.grad(R, leaves, allow_unused=True, materialize_grads=True)
    return tuple(g.clone() if 0 in g.stride() else g for g in gradients), R.detach()  # expanded: not to be added to


def _without_activity(W: Tensor, B: Tensor, operations: Operations) -> Signals:
    return Signals(B, W, B, DENSE, operations)


def _gradient(
    c: Mapping[Primitive, Number], W: Tensor, B: Tensor, operations: Operations, onto: Tensor | None
) -> Tensor:
    """Σ c_P dP/dB of primitives of W and B alone, added to ``onto``: of B's shape, perhaps of a smaller type."""
    terms = []
    for primitive, v in c.items():
        given = _weight_gradient(primitive, W, B, operations)
        factor, tensor = (given.factor, given.tensor) if isinstance(given, Multiple) else (1.0, given)
        terms.append((v * factor, tensor))
    if not terms:
        return torch.zeros_like(B) if onto is None else onto.to(B.dtype)
    if onto is not None and onto.dtype != B.dtype:
        terms, onto = [*terms, (1.0, onto)], None
    return _sum(terms, onto)


def _weight_gradient(primitive: Primitive, W: Tensor, B: Tensor, operations: Operations) -> Tensor | Multiple:
    """DP/dB of a primitive of W and B alone."""
    if not primitive.has_gradient:
        return gradients_of(lambda B, W: primitive.penalty(_without_activity(W, B, operations)), (B,), W)[0][0]
    given = primitive.gradient(_without_activity(W, B, operations))
    if not isinstance(given, Tensor | Multiple):
        raise UntiedError(
            f"primitive {primitive}: its gradient is a {type(given).__name__}; without data it is a tensor"
        )
    return given


def _text(v: object) -> str:
    if isinstance(v, bool) or v is None:
        return str(v).lower()
    return v if isinstance(v, str) else coefficient_text(v)  # type: ignore[arg-type]


def _primitive(given: Primitive | str) -> Primitive:
    if isinstance(given, Primitive):
        return given
    if given not in KNOWN:
        raise UntiedError(f"unknown primitive {given!r}: possible are {', '.join(KNOWN)}")
    return KNOWN[given]


def _balanced(c: Any) -> Coefficient:
    """The decay that balances amp, whose coefficient is given."""
    if c == 0:
        raise UntiedError(
            "decay=balanced balances amp, and the rule has none: give amp a coefficient, or decay a number"
        )
    return multiply(_coefficient(amp, c), power)


def _coefficient(primitive: Primitive, c: Coefficient) -> Coefficient:
    if primitive == copy and (callable(c) or isinstance(c, Statistic)):
        raise UntiedError(f"copy={coefficient_text(c)} is not possible: it acts in the backward pass, so give a number")
    if isinstance(c, Statistic):
        if primitive != decay:
            raise UntiedError(f"{primitive}={c} is not possible: a statistic is the coefficient of decay alone")
        return c
    if callable(c) or (isinstance(c, int | float) and not isinstance(c, bool) and c == c and abs(c) != float("inf")):
        return c
    raise UntiedError(
        f"coefficient {primitive}={c!r} is not possible: give a finite number, a schedule such as linear(0, 1), "
        "or a function of training progress; or decay=balanced, power, mean_power"
    )


OPTIONS = ("fraction", "every", "positions", *(f.name for f in fields(Operations)))
