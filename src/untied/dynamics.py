"""Why a rule is stable or not: the flow of the weights under R (paper, section 4, equation 1; section 5).

Two views, both derived from the primitives' own penalties and gradients, for any rule of the algebra:

    scalar(rule, x)       one weight w, one backward weight b, one input x, under the symmetrised gradient flow:
                          R moves b, and moves w by the same law with the two exchanged
    layer(rule, W, C)     a linear layer whose W is held fixed and whose input has the second moment C: how fast B
                          moves in each direction, and where it comes to rest

Time is flow time: one unit is 1 / (learning rate) steps of gradient descent. `time_constant` converts.

The paper's appendix with the details of equation 1 was not at hand: docs/theory.md says which statements are its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .algebra import Alignment, Rule
from .errors import UntiedError
from .geometry import DENSE
from .metrics import angle
from .operations import Signals
from .polynomials import ROUNDING, TOLERANCE, common_zeros, evaluate, interpolate
from .primitives import PRIMITIVES, Combination, Leak, Primitive
from .rules import as_rule

__all__ = ["REGIMES", "FixedPoint", "LayerDynamics", "ScalarDynamics", "layer", "scalar", "time_constant"]

REGIMES = {
    "diverging": "some start runs away",
    "stable line": "every start comes to rest, on a line or curve of fixed points",
    "stable point": "starts come to rest at isolated points other than zero",
    "collapsing": "every start decays to zero",
    "still": "nothing moves",
}
"""What `ScalarDynamics.regime` says."""

Given = Rule | Combination | Primitive | str


@dataclass(frozen=True)
class FixedPoint:
    """A point where nothing moves.

    Attributes:
        w, b: where.
        eigenvalues: of minus the Jacobian there (real parts), the one along (1, 1) first: positive ones decay.
        kind: "stable", "saddle" or "unstable"; "neutral" where the lowest order of the flow does not decide.
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
    """

    rule: Alignment
    x: float
    note: str
    pull: Callable[[Tensor, Tensor], Tensor]  # ∂R/∂b at (w, b), for one point

    def flow(self, w: Tensor | float, b: Tensor | float) -> tuple[Tensor, Tensor]:
        """(dw/dt, db/dt) = −(∂R/∂b with w and b exchanged, ∂R/∂b) at any points, float64, in their common shape."""
        at: tuple[Tensor, Tensor] = torch.broadcast_tensors(_double(w), _double(b))
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
    """
    rule = _covered(rule, ("noise", "noise_std", "reverse", "amp_on_reconstruction", "update_forward"))
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


@dataclass(frozen=True)
class LayerDynamics:
    """How B moves in a linear layer whose W is held fixed: dB/dt = drive − rates ∘ B in the basis (U, V). Ours.

    With the second moments C of the layer's input and S = W C Wᵀ of its output, S = U diag(s) Uᵀ, C = V diag(c) Vᵀ, a
    rule's gradient in B is decay B + sparse B C + null S B − amp W C − self W, so entry (j, k) of Uᵀ B V moves alone:

        rates[j, k]  =  decay + sparse c_k + null s_j           drive  =  Uᵀ (amp W C + self W) V

    A decay that is measured (`untied.statistics.power`) adds power C_kk instead, and V is then the identity.

    Attributes:
        W: [o, ...] as given, float64. rates, drive: [o, i]. U: [o, o]. V: [i, i], orthogonal.
    """

    W: Tensor
    rates: Tensor
    drive: Tensor
    U: Tensor
    V: Tensor

    @property
    def fixed_point(self) -> Tensor | None:
        """Where B comes to rest, in W's shape; None if it does not, some direction being driven or growing for ever.

        In directions in which nothing moves (an input without variance there, under AA) B keeps what it had; this is
        the fixed point without any of that.
        """
        if (self.rates < 0).any() or ((self.rates == 0) & (self.drive != 0)).any():
            return None
        rest = torch.where(self.rates > 0, self.drive / torch.where(self.rates > 0, self.rates, 1.0), 0.0)
        return self._back(rest)

    @property
    def angle(self) -> float:
        """Between the fixed point and W, in degrees; NaN without a fixed point, or where either is zero."""
        return math.nan if self.fixed_point is None else angle(self.fixed_point, self.W)

    @property
    def condition(self) -> float:
        """Largest rate over smallest: how many times longer the slowest direction takes. inf where one never moves."""
        low, high = float(self.rates.min()), float(self.rates.max())
        return high / low if low > 0 else math.inf

    def after(self, t: float, B: Tensor) -> Tensor:
        """B, in W's shape, after flow time t from a given B."""
        M = self.U.T @ _double(B).reshape(self.rates.shape) @ self.V
        rest = torch.where(self.rates == 0, M, self.drive / torch.where(self.rates == 0, 1.0, self.rates))
        drift = torch.where(self.rates == 0, self.drive * t, 0.0)
        return self._back(rest + (M - rest) * torch.exp(-self.rates * t) + drift)

    def _back(self, M: Tensor) -> Tensor:
        B: Tensor = self.U @ M @ self.V.T
        return B.view(self.W.shape)


def layer(
    rule: Given, W: Tensor, C: Tensor | None = None, *, positions: int = 1, progress: float | None = None
) -> LayerDynamics:
    """How fast B moves in each direction, and where it comes to rest, in a linear layer with fixed W. Ours.

    Args:
        rule: an alignment rule, a combination of primitives, or a text.
        W: [o, i] of a dense layer; or [o, i, *k], a convolution's without groups, whose rows see patches of the image.
        C: [i, i] second moment of the input, the mean of x xᵀ (for a convolution [i·∏k, i·∏k], of patches, averaged
            over positions). Left out for a rule with noise input, whose C is s² times the identity; a rule of weights
            alone, such as `sa`, needs none.
        positions: at which the kernel is applied; a rule that sums over them sees so many times C.
        progress: of training, 0 to 1, where coefficients are functions of it.

    Raises:
        UntiedError: no alignment rule; operations or primitives that are not covered; W or C is not what it should be.
    """
    rule = _covered(rule, ("noise", "noise_std", "reverse", "amp_on_reconstruction"))
    if rule.copies_gradient:
        raise UntiedError(f"{rule} also takes W's pseudogradient, which is the task's: only its scalar flow is covered")
    reconstructs = any(p.signal == "reconstruction" for p in rule.combination)
    if reconstructs and rule.operations.reverse:
        raise UntiedError(f"{rule} is not covered: null with reverse mixes the directions of W; leave reverse out")
    if W.dim() < 2 or not W.numel():
        raise UntiedError(f"W of shape {list(W.shape)} is not possible: give a layer's weight, [o, i] or [o, i, *k]")
    if not W.isfinite().all():
        raise UntiedError("W is not possible: some of it is not finite; the run has failed before")
    if positions < 1:
        raise UntiedError(f"positions={positions} is not possible: give how often the kernel is applied, 1 or more")
    if reconstructs and W.dim() > 2:
        raise UntiedError(f"{rule} is not covered for a convolution: null's reconstructions overlap between positions")
    shape, W = W.shape, _double(W).flatten(1)
    C = _second_moment(rule, W, C) * (positions if rule.positions == "sum" else 1)
    c, V = torch.linalg.eigh(C)
    c = torch.where(c > ROUNDING * c.max(), c, 0.0)
    n = W.shape[1]
    x = math.sqrt(n) * c.sqrt().unsqueeze(-1) * V.T  # [n, i]: the mean of x xᵀ over its rows is C
    U = torch.linalg.eigh(W @ x.T @ x @ W.T / n)[1]
    if any(isinstance(p, Leak) for p in rule.primitives):  # its rates are those of the inputs one by one
        V = torch.eye(n, dtype=torch.float64)
    mirror = torch.nn.functional.normalize(torch.arange(1, n + 1, dtype=torch.float64), dim=0)
    same_C = x - 2 * mirror.outer(mirror @ x)  # other inputs with the same second moment
    plain = Alignment(rule.combination)
    now = plain.coefficients(progress)

    def pull(M: Tensor, x: Tensor) -> Tensor:
        """R's gradient in B = U M Vᵀ by the library's own closed forms, in the same basis."""
        s = Signals(x, W, U @ M @ V.T, DENSE, plain.operations)
        gradient: Tensor = plain.data_terms(s, now, 1 / n)[1] + plain.weight_terms(W, s.B, now)[1]
        turned: Tensor = U.T @ gradient @ V
        return turned

    drive = -pull(torch.zeros_like(W), x)
    rates = pull(torch.ones_like(W), x) + drive  # one probe gives all: each entry moves alone
    rates = torch.where(rates.abs() > 0.01 * ROUNDING * rates.abs().max(), rates, 0.0)
    probe = torch.cos(torch.arange(W.numel(), dtype=torch.float64)).view_as(W)
    error = (pull(probe, same_C) + drive - rates * probe).abs().max()
    if error > TOLERANCE * max(float(rates.abs().max()), float(drive.abs().max())):
        raise UntiedError(
            f"{rule} is not covered: its gradient in B does not separate over the directions of input and output, or "
            "sees more of the input than its second moment; neither is so for the primitives of Table 1"
        )
    drive = torch.where((rates != 0) | (drive.abs() > ROUNDING * drive.abs().max()), drive, 0.0)
    return LayerDynamics(W.view(shape), rates, drive, U, V)


def time_constant(rate: Tensor | float, lr: float | None = None, momentum: float = 0.0) -> Tensor:
    """The time in which a difference that decays at this rate falls to 1/e, float64, in the rate's shape.

    Args:
        rate: in flow time, such as an eigenvalue of A, a `following_rate`, or the `rates` of a layer.
        lr: learning rate. Without it the answer is in flow time, 1 / rate; with it in steps of SGD.
        momentum: of SGD, without dampening. With a = lr · rate, differences go with the roots of
            z² − (1 + m − a) z + m: for small a, (1 − m) / a steps.

    inf where the difference does not decay: a rate of 0 or less, or a learning rate too large for it.

    Raises:
        UntiedError: lr is not above 0, or momentum not in [0, 1).
    """
    rate = _double(rate)
    decays = rate > 0
    if lr is None:
        return torch.where(decays, 1 / torch.where(decays, rate, 1.0), math.inf)
    if not 0 < lr < math.inf or not 0 <= momentum < 1:
        raise UntiedError(f"lr={lr}, momentum={momentum} is not possible: lr is above 0, momentum in [0, 1)")
    half = ((1 + momentum - lr * rate) / 2).to(torch.complex128)
    root = (half.square() - momentum).sqrt()
    slowest = torch.maximum((half + root).abs(), (half - root).abs())
    return torch.where(decays & (slowest < 1), -1 / slowest.log(), math.inf)


def _double(given: Tensor | float) -> Tensor:
    return torch.as_tensor(given, dtype=torch.float64).detach()


def _degree(c: Tensor) -> int:
    """Of a polynomial, in both unknowns together."""
    return int(c.nonzero().sum(1).max()) if c.any() else 0


def _covered(given: Given, operations: tuple[str, ...]) -> Alignment:
    """The rule, if it has dynamics and its operations are among these."""
    rule = as_rule(given)
    if not isinstance(rule, Alignment):
        raise UntiedError(
            f"{rule} computes B from W at every step: it has no dynamics; give an alignment rule, such as wm"
        )
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


def _second_moment(rule: Alignment, W: Tensor, C: Tensor | None) -> Tensor:
    """C as given, checked; or that of the rule's noise."""
    n, do = W.shape[1], rule.operations
    if do.noise is not None:
        if C is not None:
            raise UntiedError(f"{rule} has noise for its input: its second moment is {do.noise_std:g}²; leave C out")
        return do.noise_std**2 * torch.eye(n, dtype=torch.float64)
    if C is None and not rule.needs_data:
        return torch.zeros(n, n, dtype=torch.float64)
    if C is None:
        raise UntiedError(f"{rule} sees the layer's input: give its second moment C, the mean of x xᵀ, [{n}, {n}]")
    C = _double(C)
    if C.shape != (n, n) or not C.isfinite().all() or (C - C.T).abs().max() > 1e-6 * C.abs().max():
        raise UntiedError(f"C of shape {list(C.shape)} is not possible: give a symmetric [{n}, {n}] for this W")
    C = (C + C.T) / 2
    if torch.linalg.eigvalsh(C).min() < -1e-6 * C.abs().max():
        raise UntiedError("C is not possible: a second moment, the mean of x xᵀ, has no negative eigenvalue")
    return C
