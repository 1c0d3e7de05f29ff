"""One weight w, one backward weight b, one input x: the flow of the paper's section 4."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import UntiedError
from ..geometry import DENSE
from ..operations.signals import Signals
from ..primitives.primitive import PRIMITIVES
from ..rules.algebra import Alignment
from .covered import Given, covered, double
from .polynomials import TOLERANCE, common_zeros, evaluate, interpolate

__all__ = ["REGIMES", "FixedPoint", "ScalarDynamics", "scalar"]

REGIMES = {
    "diverging": "some start runs away",
    "stable line": "every start comes to rest, on a line or curve of fixed points",
    "stable point": "starts come to rest at isolated points other than zero",
    "collapsing": "every start decays to zero",
    "still": "nothing moves",
}
"""What `ScalarDynamics.regime` says."""


@dataclass(frozen=True)
class FixedPoint:
    """A point where nothing moves.

    Attributes:
        w, b: where.
        eigenvalues: of minus the Jacobian there (real parts), the one along (1, 1) first: positive ones decay.
        kind: "stable", "saddle" or "unstable"; "neutral" where the lowest order of the flow does not decide.

    >>> [point.kind for point in scalar("ia(amp=2)").fixed_points]
    ['stable', 'saddle', 'stable']
    """

    w: float
    b: float
    eigenvalues: tuple[float, float]
    kind: str


@dataclass(frozen=True)
class ScalarDynamics:
    """The symmetrised gradient flow of R on one forward weight w and one backward weight b. Made by `scalar`.

    Attributes:
        rule: as given.
        x: the layer's input, or its root mean square.
        note: what of the rule is not in the flow; empty if nothing.

    >>> found = scalar("sa")
    >>> found.flow(1.0, 0.0)
    (tensor(-1., dtype=torch.float64), tensor(1., dtype=torch.float64))
    >>> found.eigenvalues
    (0.0, 2.0)
    """

    rule: Alignment
    x: float
    note: str
    pull: Callable[[Tensor, Tensor], Tensor]  # ∂R/∂b at (w, b), for one point

    def flow(self, w: Tensor | float, b: Tensor | float) -> tuple[Tensor, Tensor]:
        """(dw/dt, db/dt) = −(∂R/∂b with w and b exchanged, ∂R/∂b) at any points, float64, in their common shape."""
        at: tuple[Tensor, Tensor] = torch.broadcast_tensors(double(w), double(b))
        pulls = torch.func.vmap(self.pull)
        (shape, _), (w, b) = (t.shape for t in at), (t.flatten() for t in at)
        return -pulls(b, w).view(shape), -pulls(w, b).view(shape)

    def jacobian(self, w: float, b: float) -> Tensor:
        """[2, 2] derivatives of (dw/dt, db/dt) in (w, b) at one point. Where R is quadratic it is −A everywhere."""
        here = torch.tensor([w, b], dtype=torch.float64)

        def both(at: Tensor) -> Tensor:
            return -torch.stack([self.pull(at[1], at[0]), self.pull(at[0], at[1])])

        J: Tensor = torch.func.jacrev(both)(here)
        return J

    @cached_property
    def polynomial(self) -> Tensor:
        """Coefficients [j, k] of w^j b^k in db/dt; those of dw/dt are its transpose.

        Raises:
            UntiedError: a primitive of one's own whose gradient is no polynomial (or of a degree above 5).
        """
        c = interpolate(lambda w, b: self.flow(w, b)[1])
        if c is None:
            raise UntiedError(
                f"the flow of {self.rule} is no polynomial of degree 5 or less in w and b: its fixed points and regime "
                "are not found; flow and jacobian hold for it all the same"
            )
        return c

    @property
    def is_linear(self) -> bool:
        """Whether R is quadratic in (w, b), so that the flow is linear: decided from the primitives themselves."""
        return _degree(self.polynomial) <= 1 and float(self.polynomial[0, 0]) == 0

    @property
    def A(self) -> Tensor | None:
        """[2, 2] the matrix of equation (1), d[w b]/dt = −A [w b]; None where R is not quadratic."""
        if not self.is_linear:
            return None
        return 0.0 - self.jacobian(0.0, 0.0)

    @property
    def eigenvalues(self) -> tuple[float, float] | None:
        """A's eigenvalues along u = (1, 1) and v = (1, −1): of the symmetric and of the skew-symmetric component.

        u and v are eigenvectors because the flow is the same with w and b exchanged. Positive: that component decays
        at this rate; negative: it grows. None where R is not quadratic (see `fixed_points`).
        """
        if self.A is None:
            return None
        own, other = float(self.A[1, 1]), float(self.A[1, 0])
        return self._rounded(own + other), self._rounded(own - other)

    @cached_property
    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """Every isolated fixed point, by elimination; none where fixed points form a line or curve (`has_line`)."""
        return tuple(self._fixed_point(w, b) for w, b in self._zeros or ())

    @property
    def has_line(self) -> bool:
        """Whether fixed points form a line or a curve."""
        return self._zeros is None

    @property
    def regime(self) -> str:
        """One of `REGIMES`."""
        if not self.polynomial.any():
            return "still"
        values = self.eigenvalues
        if min(values) < 0 if values is not None else self._falls_without_bound():
            return "diverging"
        if self.has_line:
            return "stable line"
        stable = [p for p in self.fixed_points if p.kind == "stable"]
        return "stable point" if any(p.w or p.b for p in stable) else "collapsing"

    def following_rate(self, w: float = 0.0, b: float = 0.0) -> float:
        """−∂(db/dt)/∂b: the rate at which b alone nears its rest for a w that is held fixed, as in training.

        SA: decay. AA: sparse · x². WM: decay; balanced, amp · x². IA: decay + null · x² w². (The skew
        eigenvalue is larger, because in the symmetrised flow w moves too.)
        """
        return 0.0 - float(self.jacobian(w, b)[1, 1])

    @cached_property
    def _zeros(self) -> list[tuple[float, float]] | None:
        return common_zeros(self.polynomial, self.polynomial.T)

    def _rounded(self, value: float) -> float:
        """The value, or 0 where it is only the rounding error of larger ones."""
        return value if abs(value) > TOLERANCE * float(self.polynomial.abs().max()) else 0.0

    def _fixed_point(self, w: float, b: float) -> FixedPoint:
        values, vectors = torch.linalg.eig(-self.jacobian(w, b))
        order = vectors.sum(0).abs().argsort(descending=True).tolist()  # nearest to (1, 1) first
        rates = [self._rounded(float(values.real[i])) for i in order]
        signs = {
            (rate > 0) - (rate < 0) or self._restores(w, b, vectors.real[:, i])
            for rate, i in zip(rates, order, strict=True)
        }
        kinds = {(1,): "stable", (-1,): "unstable", (-1, 1): "saddle"}
        return FixedPoint(w, b, (rates[0], rates[1]), kinds.get(tuple(sorted(signs)), "neutral"))

    def _restores(self, w: float, b: float, direction: Tensor) -> int:
        """Where the linear part says nothing: 1 if the flow close by points back on both sides, −1 if away, else 0."""
        near = min([1.0, *(d for p in self._zeros or () if (d := math.dist(p, (w, b))) > 0)])
        step = 1e-2 * near * direction / direction.norm()
        sides = [
            sum(d * float(f) for d, f in zip(s, self.flow(w + s[0], b + s[1]), strict=True)) for s in (step, -step)
        ]
        return 0 if sides[0] * sides[1] <= 0 else 1 if sides[0] < 0 else -1

    def _falls_without_bound(self) -> bool:
        """Whether R still falls, far out, with the distance from zero.

        R is taken as the work done against the flow along a ray: Σ over degrees d of −(w, b)·flow_d / (d + 1).
        """
        far = 1e6 * max([1.0, *(math.hypot(p.w, p.b) for p in self.fixed_points)])
        turn = torch.arange(3600, dtype=torch.float64) * (2 * math.pi / 3600)
        w, b = turn.cos().round(decimals=15), turn.sin().round(decimals=15)  # axes and diagonals among them, exactly
        j, k = (torch.arange(size, dtype=torch.float64) for size in self.polynomial.shape)
        c = self.polynomial / (j.unsqueeze(-1) + k + 1)

        def lowest(r: float) -> float:
            return -r * float((w * evaluate(c.T, r * w, r * b) + b * evaluate(c, r * w, r * b)).max())

        return lowest(10 * far) < min(2 * lowest(far), -TOLERANCE * float(c.abs().max()) * far**2)


def scalar(rule: Given, x: float | None = None, *, progress: float | None = None) -> ScalarDynamics:
    """The symmetrised gradient flow of a rule's R on scalar weights and input (paper, section 4).

    The paper includes weight decay on w and takes the gradient in w too. Here w follows b's law with w and b exchanged,
    which for every primitive of Table 1 is that gradient, and is defined for any other: decay and sparse gain their
    terms in w; amp, null and self are symmetric already.

    Args:
        rule: an alignment rule, a combination of primitives, or a text. `fa` has the zero flow; of `kp` only the decay
            is covered (see ``note``). ``fraction``, ``every`` and ``positions`` change nothing in the mean.
        x: the input; R depends on it by x², so give the root mean square for data. 1 if left out, and for a rule with
            noise input the noise's standard deviation.
        progress: of training, 0 to 1, where coefficients are functions of it.

    Raises:
        UntiedError: no alignment rule; operations that are not covered; x is not a finite number.

    >>> scalar("sa").regime, scalar("amp").regime
    ('stable line', 'diverging')
    """
    rule = covered(rule, ("noise", "noise_std", "reverse", "amp_on_reconstruction", "update_forward"))
    do = rule.operations
    if do.noise is not None and x is not None:
        raise UntiedError(f"{rule} has noise for its input, of standard deviation {do.noise_std:g}: leave x out")
    if do.noise is not None and not set(rule.combination) <= set(PRIMITIVES.values()):
        raise UntiedError(
            f"{rule} is not covered: noise acts by its variance on the primitives of Table 1 alone; give x"
        )
    x = float(do.noise_std if do.noise is not None else 1.0 if x is None else x)
    if not math.isfinite(x):
        raise UntiedError(f"x={x} is not possible: give a finite number, the input's root mean square")
    rule.coefficients(progress)  # says what is missing
    input = torch.full((1, 1), x, dtype=torch.float64)
    plain = Alignment(rule.combination, reverse=do.reverse, amp_on_reconstruction=do.amp_on_reconstruction)

    def R(w: Tensor, b: Tensor) -> Tensor:
        return plain.penalty(Signals(input, w.view(1, 1), b.view(1, 1), DENSE, plain.operations), progress)

    note = "kp: R's decay alone; the pseudogradient that w and b share leaves w − b as it is and moves w + b"
    return ScalarDynamics(rule, x, note if rule.copies_gradient else "", torch.func.grad(R, argnums=1))


def _degree(c: Tensor) -> int:
    """Of a polynomial, in both unknowns together."""
    return int(c.nonzero().sum(1).max()) if c.any() else 0
