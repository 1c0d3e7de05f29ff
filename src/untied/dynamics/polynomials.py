"""Two polynomial equations in two unknowns: all of their real solutions, by elimination rather than by search.

Legend: a polynomial in (w, b) is its coefficients c [J, K], Σ c[j, k] w^j b^k; one in w alone is c [J].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["common_zeros", "evaluate", "interpolate"]

TOLERANCE = 1e-9
"""What is smaller than this part of the largest counts as zero."""
ROUNDING = 1e-12


def evaluate(c: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The polynomial c [J, K] at points w and b, both of one shape, which the result has.

    >>> import torch
    >>> evaluate(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor(3.0), torch.tensor(4.0))  # 1 + 2 w b
    tensor(25.)
    """
    j, k = (torch.arange(size, dtype=c.dtype) for size in c.shape)
    return torch.einsum("...j,jk,...k->...", w.unsqueeze(-1) ** j, c, b.unsqueeze(-1) ** k)


def interpolate(f: Callable[[Tensor, Tensor], Tensor], degree: int = 5) -> Tensor | None:
    """The coefficients [degree + 1, degree + 1] of f(w, b), float64; None if f is no polynomial of that degree in each.

    From its values at Chebyshev points, checked at others.

    >>> interpolate(lambda w, b: 1 + 2 * w * b, degree=1).round(decimals=9).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    >>> interpolate(lambda w, b: w.abs()) is None
    True
    """
    nodes = torch.cos(math.pi * (torch.arange(degree + 1, dtype=torch.float64) + 0.5) / (degree + 1))
    powers = nodes.unsqueeze(-1) ** torch.arange(degree + 1, dtype=torch.float64)
    w, b = torch.meshgrid(nodes, nodes, indexing="ij")
    c = torch.linalg.solve(powers, torch.linalg.solve(powers, f(w, b)).T).T
    c = torch.where(c.abs() > ROUNDING * c.abs().max(), c, 0.0)
    elsewhere = torch.tensor([-1.37, -0.71, 0.0, 0.43, 1.59], dtype=torch.float64)
    w, b = torch.meshgrid(elsewhere, elsewhere, indexing="ij")
    wanted, got = f(w, b), evaluate(c, w, b)
    return c if bool(((wanted - got).abs() <= TOLERANCE * wanted.abs().max()).all()) else None


def common_zeros(P: Tensor, Q: Tensor) -> list[tuple[float, float]] | None:
    """Every real (w, b) with P = Q = 0; None where they lie on a curve, P and Q having a common factor.

    The resultant of P and Q in b is a polynomial in w that vanishes exactly where they have a common zero b. It is
    found from its values on the unit circle, its roots are eigenvalues of its companion matrix.

    >>> import torch
    >>> w_and_b = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)  # w + b
    >>> w_less_b = torch.tensor([[-2.0, -1.0], [1.0, 0.0]], dtype=torch.float64)  # w − b − 2
    >>> [(round(w, 6), round(b, 6)) for w, b in common_zeros(w_and_b, w_less_b)]
    [(1.0, -1.0)]
    """
    size = _scale(P, Q)
    P, Q = _rescaled(P, size), _rescaled(Q, size)
    r = _resultant(P, Q)
    if r.abs().max() < TOLERANCE:
        return None
    found: list[tuple[float, float]] = []
    for w in _real_roots(r):
        for b in (*_real_roots(_at(P, w)), *_real_roots(_at(Q, w))):
            point = _polished(P, Q, w, b)
            if point is not None and all(math.dist(point, other) > 1e-5 for other in found):
                found.append(point)
    return sorted((size * w, size * b) for w, b in found)


def _scale(P: Tensor, Q: Tensor) -> float:
    """The unit of w and b in which terms of the lowest and of the highest degree are alike in size."""
    j, k = torch.meshgrid(torch.arange(P.shape[0]), torch.arange(P.shape[1]), indexing="ij")
    largest = torch.stack([torch.maximum(P.abs(), Q.abs())[j + k == d].max() for d in range(P.shape[0])])
    degrees = largest.nonzero().flatten().tolist()
    if len(degrees) < 2:
        return 1.0
    low, high = degrees[0], degrees[-1]
    return float((largest[low] / largest[high]) ** (1 / (high - low)))


def _rescaled(c: Tensor, size: float) -> Tensor:
    """In units of ``size``, and divided by the largest coefficient."""
    power = float(size) ** torch.arange(max(c.shape), dtype=c.dtype)
    c = c * power[: c.shape[0], None] * power[: c.shape[1]]
    return c / c.abs().max() if c.any() else c


def _degrees(c: Tensor) -> tuple[int, int]:
    """The highest powers of w and of b."""
    rows, columns = c.any(1).nonzero(), c.any(0).nonzero()
    return (int(rows.max()), int(columns.max())) if len(rows) else (0, 0)


def _resultant(P: Tensor, Q: Tensor) -> Tensor:
    """The determinant of the Sylvester matrix of P and Q as polynomials in b: coefficients in w."""
    (jp, p), (jq, q) = _degrees(P), _degrees(Q)
    count = p * jq + q * jp + 1
    z = torch.exp(2j * math.pi * torch.arange(count, dtype=torch.float64) / count).unsqueeze(-1)
    Pz, Qz = ((z ** torch.arange(c.shape[0])) @ c.to(z.dtype) for c in (P, Q))
    sylvester = torch.zeros(count, p + q, p + q, dtype=z.dtype)
    for row in range(q):
        sylvester[:, row, row : row + p + 1] = Pz[:, : p + 1].flip(-1)
    for row in range(p):
        sylvester[:, q + row, row : row + q + 1] = Qz[:, : q + 1].flip(-1)
    r: Tensor = torch.fft.fft(torch.linalg.det(sylvester)) / count
    return r.real


def _real_roots(c: Tensor) -> list[float]:
    """The real roots of a polynomial in one unknown, by its companion matrix; of 0, none."""
    known = (c.abs() > ROUNDING * c.abs().max()).nonzero().flatten()
    if not len(known):
        return []
    low, high = int(known[0]), int(known[-1])
    zero = [0.0] if low else []
    c = c[low : high + 1]
    if len(c) < 2:
        return zero
    companion = torch.diag(torch.ones(len(c) - 2, dtype=c.dtype), -1)
    companion[:, -1] = -c[:-1] / c[-1]
    roots = torch.linalg.eigvals(companion)
    real: list[float] = roots.real[roots.imag.abs() < 1e-5 * (1 + roots.real.abs())].tolist()
    return zero + real


def _at(c: Tensor, w: float) -> Tensor:
    """The polynomial in b that c is at this w."""
    terms: Tensor = c * (w ** torch.arange(c.shape[0], dtype=c.dtype)).unsqueeze(-1)
    total = terms.sum(0)  # what only rounding has left is zero
    return torch.where(total.abs() > ROUNDING * terms.abs().sum(0), total, 0.0)


def _polished(P: Tensor, Q: Tensor, w: float, b: float) -> tuple[float, float] | None:
    """A few steps of Newton's method from a candidate; None if it was none."""
    start = at = torch.tensor([w, b], dtype=P.dtype)
    power = torch.arange(P.shape[0], dtype=P.dtype).unsqueeze(-1)
    slopes = [[(power * c)[1:], (power.T * c)[:, 1:]] for c in (P, Q)]  # in w and in b

    def both(at: Tensor) -> Tensor:
        return torch.stack([evaluate(c, at[0], at[1]) for c in (P, Q)])

    for _ in range(20):
        jacobian = torch.stack([torch.stack([evaluate(c, at[0], at[1]) for c in line]) for line in slopes])
        at = at - torch.linalg.pinv(jacobian, rtol=ROUNDING) @ both(at)
    at = torch.where(at.abs() > ROUNDING, at, 0.0)
    near = float((at - start).norm()) < 1e-3 * (1 + float(start.norm()))
    terms = torch.stack([evaluate(c.abs(), *at.abs()) for c in (P, Q)])
    zero = bool((both(at).abs() <= TOLERANCE * terms).all())
    return (float(at[0]), float(at[1])) if near and zero else None
