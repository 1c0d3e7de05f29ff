"""A linear layer whose W is held fixed: how fast B moves in each direction, and where it comes to rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UntiedError
from ..geometry import DENSE
from ..metrics import angle
from ..operations.signals import Signals
from ..primitives.primitive import Leak
from ..rules.algebra import Alignment
from .covered import Given, covered, double
from .polynomials import ROUNDING, TOLERANCE

__all__ = ["LayerDynamics", "layer"]


@dataclass(frozen=True)
class LayerDynamics:
    """How B moves in a linear layer whose W is held fixed: dB/dt = drive − rates ∘ B in the basis (U, V). Ours.

    With the second moments C of the layer's input and S = W C Wᵀ of its output, S = U diag(s) Uᵀ, C = V diag(c) Vᵀ, a
    rule's gradient in B is decay B + sparse B C + null S B − amp W C − self W, so entry (j, k) of Uᵀ B V moves alone:

        rates[j, k]  =  decay + sparse c_k + null s_j           drive  =  Uᵀ (amp W C + self W) V

    A decay that is measured (`untied.statistics.power`) adds power C_kk instead, and V is then the identity.

    Attributes:
        W: [o, ...] as given, float64. rates, drive: [o, i]. U: [o, o]. V: [i, i], orthogonal.

    >>> import torch
    >>> found = layer("wm(decay=2)", torch.ones(3, 4), torch.eye(4))
    >>> found.fixed_point[0]
    tensor([0.5000, 0.5000, 0.5000, 0.5000], dtype=torch.float64)
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
        M = self.U.T @ double(B).reshape(self.rates.shape) @ self.V
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

    >>> import torch
    >>> found = layer("wm(decay=2)", torch.ones(3, 4), torch.eye(4))
    >>> round(found.angle, 3), round(found.condition, 3)
    (0.0, 1.0)
    """
    rule = covered(rule, ("noise", "noise_std", "reverse", "amp_on_reconstruction"))
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
    shape, W = W.shape, double(W).flatten(1)
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
    C = double(C)
    if C.shape != (n, n) or not C.isfinite().all() or (C - C.T).abs().max() > 1e-6 * C.abs().max():
        raise UntiedError(f"C of shape {list(C.shape)} is not possible: give a symmetric [{n}, {n}] for this W")
    C = (C + C.T) / 2
    if torch.linalg.eigvalsh(C).min() < -1e-6 * C.abs().max():
        raise UntiedError("C is not possible: a second moment, the mean of x xᵀ, has no negative eigenvalue")
    return C
