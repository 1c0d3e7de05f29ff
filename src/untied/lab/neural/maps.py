"""Linear maps from features to neurons: partial least squares, and ridge regression.

    n   images                  X   (n, d)   features of a layer
    q   neurons                 Y   (n, q)   responses
    m   images predicted for    K = X X'     (n, n), inner products of images' features
    b   splits at once

Both maps, with an intercept and without scaling, see X through inner products alone. So they are computed from K: the
predictions are those from X, and a layer may be as wide as it likes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from untied.lab.neural.scores import pearson
from untied.lab.neural.splits import Split

__all__ = ["PENALTIES", "chosen_penalty", "gram", "pls", "ridge"]

Floats = NDArray[np.float64]
PENALTIES = tuple(10.0**exponent for exponent in range(-4, 4))
"""What ridge regression chooses from, in units of the features' total variance on the images it is fitted on."""
COLUMNS = 1024  # of X at a time
AT_ONCE = 32  # splits
NOTHING = 1e-10  # of the covariance, relative, counts as nothing left to explain


def gram(X: NDArray[np.floating]) -> Floats:
    """K of X (n, d), its columns centred: (n, n), in double precision.

    Products of features in single precision are taken in it, some columns at a time: r changes by less than 10⁻⁵.
    """
    K = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], COLUMNS):
        part = X[:, start : start + COLUMNS]
        part = part - part.mean(0, dtype=np.float64).astype(part.dtype)
        K += part @ part.T
    return K


def pls(K: Floats, Y: Floats, cuts: Sequence[Split], components: int) -> list[Floats]:
    """Predictions of partial least squares regression without scaling, (m, q) for each split.

    Those of scikit-learn's ``PLSRegression(components, scale=False)``, which Brain-Score's ``pls`` uses, each weight
    vector solved for exactly rather than by power iterations that stop early. In the kernel form of Rosipal and Trejo
    (2001): with F what is left of the centred Y, v the first eigenvector of S = F'KF and u = Fv, the score t is Ku
    without its part along earlier scores, of length 1; then F loses its part along t.

    Args:
        K: (n, n). Y: (n, q). cuts: each has rows to fit on, and rows to predict for.
        components: fewer are used where nothing is left to explain.
    """
    return [
        found for s in range(0, len(cuts), AT_ONCE) for found in side_by_side(K, Y, cuts[s : s + AT_ONCE], components)
    ]


def side_by_side(K: Floats, Y: Floats, cuts: Sequence[Split], components: int) -> list[Floats]:
    """``pls`` of some splits in step, so that K, which is far larger than all else, is read twice a component.

    A split's vectors over images are rows of (b, n), 0 where it has no images to fit on. F is F₀ - T'C, never formed.
    """
    (n, q), b = Y.shape, len(cuts)
    inside = np.zeros((b, n))
    for s, (fit, _) in enumerate(cuts):
        inside[s, fit] = 1.0
    count = inside.sum(1, keepdims=True)

    def centre(a: Floats) -> Floats:
        """(b, n): about each split's mean."""
        a = a * inside
        return np.asarray(a - inside * (a.sum(1, keepdims=True) / count))

    offset = inside @ Y / count
    S = np.empty((b, q, q))
    for s, (fit, _) in enumerate(cuts):
        F = Y[fit] - offset[s]
        S[s] = F.T @ (K[np.ix_(fit, fit)] @ F)
    enough = NOTHING * np.trace(S, axis1=1, axis2=2)
    T, KU = np.zeros((2, b, components, n))
    C = np.zeros((b, components, q))
    used = np.zeros(b, int)
    for a in range(components):
        going = (used == a) & (np.trace(S, axis1=1, axis2=2) > enough) & (count[:, 0] > a + 1)
        if not going.any():
            break
        v = np.array([largest(S[s]) if going[s] else np.zeros(q) for s in range(b)])
        u = centre(v @ Y.T) - combined(inner(C, v), T)  # F v
        KU[:, a] = u @ K
        t = centre(KU[:, a])
        for _ in range(2):  # twice is enough
            t -= combined(inner(T, t), T)
        size = np.linalg.norm(t, axis=1, keepdims=True)
        t /= np.where(size > 0, size, 1.0)
        c, k = t @ Y, centre(t @ K)
        f = k @ Y - combined(inner(T, k), C)  # F' K t
        half = c[:, :, None] * (f - (t * k).sum(1, keepdims=True) / 2 * c)[:, None]
        S -= half + half.swapaxes(1, 2)  # F becomes F - tc', so S loses cf' + fc' - (t'Kt) cc'
        T[:, a], C[:, a] = t, c
        used += going & (size[:, 0] > 0)
    out = []
    for s, (fit, new) in enumerate(cuts):
        t, ku = T[s, : used[s]], KU[s, : used[s]]
        weights = np.linalg.solve(t @ ku.T, C[s, : used[s]])  # of no component: none, and the mean is predicted
        out.append((ku[:, new] - ku[:, fit].mean(1, keepdims=True)).T @ weights + offset[s])
    return out


def inner(A: Floats, a: Floats) -> Floats:
    """(b, c, n) and (b, n) to (b, c)."""
    return np.asarray((A @ a[:, :, None])[:, :, 0])


def combined(a: Floats, A: Floats) -> Floats:
    """(b, c) and (b, c, n) to (b, n)."""
    return np.asarray((a[:, None] @ A)[:, 0])


def largest(S: Floats) -> Floats:
    """The eigenvector of a symmetric matrix's largest eigenvalue."""
    last = len(S) - 1
    return np.asarray(scipy.linalg.eigh(S, subset_by_index=[last, last], check_finite=False)[1][:, 0])


def ridge(K: Floats, Y: Floats, split: Split, penalties: Sequence[float]) -> list[Floats]:
    """Predictions of ridge regression with an intercept, (m, q) for each penalty.

    Args:
        K: (n, n). Y: (n, q). split: rows to fit on, and rows to predict for.
        penalties: scikit-learn's ``Ridge`` calls them alpha after multiplication with the mean squared length of the
            features, about their mean, of the images fitted on.
    """
    fit, new = split
    inside, across, offset = K[np.ix_(fit, fit)], K[np.ix_(new, fit)], Y[fit].mean(0)
    mean = inside.mean(0)
    across = across - across.mean(1, keepdims=True) - mean + mean.mean()
    inside = inside - mean - mean[:, None] + mean.mean()
    unit = float(np.trace(inside)) / len(fit) or 1.0
    found = []
    for penalty in penalties:
        penalised = inside.copy()
        penalised.flat[:: len(fit) + 1] += penalty * unit
        factor = scipy.linalg.cho_factor(penalised, lower=True, overwrite_a=True, check_finite=False)
        found.append(across @ scipy.linalg.cho_solve(factor, Y[fit] - offset, check_finite=False) + offset)
    return found


def chosen_penalty(K: Floats, Y: Floats, inner: Sequence[Split]) -> tuple[float, Floats]:
    """The penalty with the highest mean correlation over neurons on inner folds, and each neuron's there (q,)."""
    scores = np.zeros((len(PENALTIES), Y.shape[1]))
    for fold in inner:
        scores += np.array([pearson(found, Y[fold[1]]) for found in ridge(K, Y, fold, PENALTIES)]) / len(inner)
    best = int(np.nan_to_num(scores).mean(1).argmax())
    return PENALTIES[best], scores[best]
