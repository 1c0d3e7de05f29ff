"""The algebra over primitives, and the mathematics of R for one layer: every rule of the paper.

Legend as in primitives.py; c_P is the coefficient of primitive P; n the batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..coefficients.coefficient import Coefficient, Statistic, value
from ..errors import UntiedError
from ..geometry import DENSE, inner, ordinary_autograd
from ..operations.signals import Signals
from ..operations.switches import Operations
from ..primitives.merging import merged, summed
from ..primitives.primitive import (
    KNOWN,
    LEAKS,
    Combination,
    Correlation,
    Leak,
    Multiple,
    Number,
    Primitive,
    amp,
    copy,
    decay,
    null,
)
from ..routes.route import ROUTES, THROUGH, Route
from .checks import balanced, checked, primitive_of, text_of
from .rule import Rule, whole

__all__ = ["OPTIONS", "Alignment"]


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
        route: how B carries errors: a `Route`, or the name of one of `ROUTES`.
        **switches: fields of `untied.operations.Operations`.

    Raises:
        UntiedError: an unknown primitive or switch, or an impossible value.

    >>> Alignment({"amp": 1.0, "decay": 0.5}, noise="normal")
    align(amp=1, decay=0.5, noise=normal)
    """

    name, motion, combines, alone = "align", "alignment", True, ""

    def __init__(
        self,
        coefficients: Mapping[Primitive, Coefficient] | Mapping[str, Coefficient],
        *,
        fraction: float = 1.0,
        every: int = 1,
        positions: str = "sum",
        route: Route | str = THROUGH,
        **switches: Any,
    ) -> None:
        given: dict[Primitive, Any] = {primitive_of(p): c for p, c in coefficients.items()}
        if given.get(decay) == "balanced":
            given[decay] = balanced(given.get(amp, 0.0))
        self.combination = Combination({p: checked(p, c) for p, c in given.items()})
        if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
            raise UntiedError(
                f"fraction={fraction!r} is not possible: give the share of the batch, above 0 and at most 1"
            )
        if positions not in ("sum", "mean"):
            raise UntiedError(f"positions={positions!r} is not possible: choose sum or mean")
        unknown = [s for s in switches if s not in OPTIONS]
        if unknown:
            raise UntiedError(f"{self.name} has no option {unknown[0]!r}: possible are {', '.join([*KNOWN, *OPTIONS])}")
        self.fraction = float(fraction)
        self.every = whole("every", every)
        self.route = self._checked_route(route)
        self.positions = positions
        self.operations = Operations(**switches)

    def _checked_route(self, route: Route | str) -> Route:
        if isinstance(route, str):
            if route not in ROUTES:
                raise UntiedError(f"route={route!r} is not possible: choose one of {', '.join(ROUTES)}")
            route = ROUTES[route]()
        cannot = [p for p in self.combination if p not in (copy, decay)]
        if route != THROUGH and (cannot or self.needs_data):
            raise UntiedError(
                f"{self.combination} cannot move a kernel on the route {route}: it compares B with W or with activity, "
                "which needs one layout; possible there are copy and decay, with a number"
            )
        return route

    @classmethod
    def possible(cls) -> list[str]:
        return [*cls.defaults, *OPTIONS]

    def check(self) -> None:
        """Called before a layer gets the rule.

        Raises:
            UntiedError: an option would change nothing.
        """
        idle = {}
        if not self.needs_data:
            idle = {k: v for k, v in self.options.items() if k not in ("every", "update_forward", "route")}
            why = "R sees no activity"
        elif self.operations.noise is None and self.operations.noise_std != 1:
            idle, why = {"noise_std": self.operations.noise_std}, "there is no noise: add noise=normal"
        if not self.aligns and "every" in self.options:
            idle, why = {"every": self.every}, "there is no R"
        if idle:
            shown = ", ".join(f"{k}={text_of(v)}" for k, v in idle.items())
            raise UntiedError(f"{shown} would change nothing in {self.combination}: {why}; leave it out")

    # What the rule is

    @property
    def is_free(self) -> bool:
        """Whether it has no name of its own, and is written as the sum that it is."""
        return self.name == Alignment.name

    @property
    def aligns(self) -> bool:  # type: ignore[override]
        return any(not p.needs_error for p in self.combination)

    @property
    def copies(self) -> float:  # type: ignore[override]
        return float(self.combination.get(copy, 0.0))  # type: ignore[arg-type]

    @property
    def local(self) -> bool:  # type: ignore[override]
        """The paper's two criteria, of what is computed: T_B x and T_W* y reach neither end of a backward synapse."""
        do, used = self.operations, set(self.combination)
        reverses = do.reverse and null in used
        bends = do.backward_activation is not None or do.normalise_backward_output  # amp's gradient then needs T_B x
        reads_p = bends and amp in used and (do.reverse or not do.amp_on_reconstruction)
        moves_W = do.update_forward and bool({amp, null} & used)  # by T_B x, or T_B of the reconstruction
        return all(p.local for p in used) and not (reverses or reads_p or moves_W)

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
        own |= {"route": self.route} if self.route != THROUGH else {}
        return own | self.operations.changed()

    # The algebra: a rule adds and multiplies like the combination it holds

    def __mul__(self, factor: Coefficient) -> Alignment:
        return Alignment(self.combination * factor, **self.options)

    __rmul__ = __mul__

    def __add__(self, other: Rule | Combination | Primitive) -> Alignment:
        """The rule whose coefficients are the sums of both, with the options of the one that has any.

        Raises:
            UntiedError: one of them stands alone, or both have options and these differ.
        """
        options = self.options
        if isinstance(other, Rule):
            if other.alone:
                raise UntiedError(f"cannot add {self} and {other}: {other.name} {other.alone}")
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

    @property
    def forward_decay(self) -> Coefficient | None:
        if not self.copies_gradient or not set(self.combination) <= {copy, decay} or self.needs_data:
            return None
        return self.combination.get(decay, 0.0)

    @property
    def cost(self) -> float:
        """For rules with a closed form; those whose operations need autograd of the penalty cost more."""
        seen = {p for p in self.primitives if p.needs_data and not isinstance(p, Leak)}  # a leak makes no product
        signals = {p.signal for p in seen} - {None}  # each a product of its own, and correlates with its own other side
        correlates = max(len(signals), bool(seen))
        projects, reconstructs = "projection" in signals, "reconstruction" in signals
        do = self.operations
        # y of another x than the layer's
        anew = bool(seen) and (do.noise is not None or do.centre_input or do.normalise_input)
        return self.route.cost + (projects + reconstructs + correlates + anew) / 3 * self.fraction / self.every

    # The mathematics

    def coefficients(self, progress: float | None) -> dict[Primitive, Number]:
        """The coefficient now of each term of R; those that are zero are left out. `copy` is not a term of the loss."""
        given = [c.factor if isinstance(c, Statistic) else c for c in self.combination.values()]
        terms = [(p, c) for p, c in zip(self.primitives, given, strict=True) if not p.needs_error]
        now = {p: (c, value(c, progress)) for p, c in terms}
        return {p: torch.tensor(v, dtype=torch.float64) if callable(c) else v for p, (c, v) in now.items() if v != 0}

    def penalty(self, s: Signals, progress: float | None = None) -> Tensor:
        """The readable definition: Σ_P c_P P for one layer, summed over the batch, 0-dim; differentiable. `copy` counts
        where the signals have an error.
        """
        copied = self.copies * copy.penalty(s) if s.error is not None else s.B.new_zeros(())
        s = s.with_input_operations()
        return sum((c * p.penalty(s) for p, c in self.coefficients(progress).items()), start=copied)

    def data_terms(
        self, s: Signals, c: Mapping[Primitive, Number], scale: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The primitives that see activity: (value, 0-dim; gradient in B, of its shape; in W or None), times ``scale``.

        Raises:
            UntiedError: a primitive of one's own has a gradient that is neither a tensor nor a `Correlation`.
        """
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
            gradient = summed(products, gradient)
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
        """The primitives of W and B alone: (value, 0-dim; gradient in B, of its shape; in W or None).

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
        if self.is_free and not self.options:
            return repr(self.combination)
        given = {p.name: c for p, c in self.combination.items()}
        names = list(dict.fromkeys([*self.defaults, *given]))
        words = {n: text_of(given.get(n, 0.0)) for n in names}
        # a named rule says only what differs from what its name says
        words = {n: w for n, w in words.items() if n not in self.defaults or w != text_of(self.defaults[n])}
        words |= {k: text_of(v) for k, v in self.options.items()}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in words.items())})" if words else self.name

    defaults: ClassVar[dict[str, float]] = {}


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
    return summed(terms, onto)


def _weight_gradient(primitive: Primitive, W: Tensor, B: Tensor, operations: Operations) -> Tensor | Multiple:
    """dP/dB of a primitive of W and B alone."""
    if not primitive.has_gradient:
        return gradients_of(lambda B, W: primitive.penalty(_without_activity(W, B, operations)), (B,), W)[0][0]
    given = primitive.gradient(_without_activity(W, B, operations))
    if not isinstance(given, Tensor | Multiple):
        raise UntiedError(
            f"primitive {primitive}: its gradient is a {type(given).__name__}; without data it is a tensor"
        )
    return given


OPTIONS = ("fraction", "every", "positions", "route", *(f.name for f in fields(Operations)))
