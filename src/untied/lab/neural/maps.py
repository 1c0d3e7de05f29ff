"""Linear maps from features to neurons: partial least squares, and ridge regression.

    n   images                  X   (n, d)   features of a layer
    q   neurons                 Y   (n, q)   responses
    a   images fitted on        K = X X'     (n, n), inner products of images' features
    m   images predicted for

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
COLUMNS = 4096  # of X at a time in double precision
NOTHING = 1e-10  # of the covariance, relative, counts as nothing left to explain


def gram(X: NDArray[np.floating]) -> Floats:
    """K of X (n, d), its columns centred: (n, n), in double precision."""
    K = np.zeros((len(X), len(X)))
    for start in range(0, X.shape[1], COLUMNS):
        part = X[:, start : start + COLUMNS].astype(np.float64)
        part -= part.mean(0)
        K += part @ part.T
    return K


def centred(K: Floats, split: Split) -> tuple[Floats, Floats]:
    """Inner products of the images fitted on (a, a), and of the new ones with these (m, a), about the former's mean."""
    fit, new = split
    inside, across = K[np.ix_(fit, fit)], K[np.ix_(new, fit)]
    mean = inside.mean(0)
    return (
        inside - mean - mean[:, None] + mean.mean(),
        across - across.mean(1, keepdims=True) - mean + mean.mean(),
    )


def pls(K: Floats, Y: Floats, split: Split, components: int) -> Floats:
    """Predictions of partial least squares regression without scaling, (m, q).

    Those of scikit-learn's ``PLSRegression(components, scale=False)``, which Brain-Score's ``pls`` uses, each weight
    vector solved for exactly rather than by power iterations that stop early. In the kernel form of Rosipal and Trejo
    (2001): with F what is left of the centred Y, v the first eigenvector of F'KF and u = Fv, the score t is Ku without
    its part along earlier scores, of length 1; then F loses its part along t.

    Args:
        K: (n, n). Y: (n, q). split: rows to fit on, and rows to predict for.
        components: fewer are used where nothing is left to explain.
    """
    inside, across = centred(K, split)
    offset = Y[split[0]].mean(0)
    F = Y[split[0]] - offset
    M = inside @ F  # K F, as F changes
    T = np.empty((len(F), 0))
    U = np.empty((len(F), 0))
    start, enough = F, NOTHING * float((F * M).sum())
    for _ in range(min(components, len(F) - 1)):
        S = F.T @ M  # (q, q)
        if not np.trace(S) > enough:
            break
        v = largest(S)
        t = M @ v
        t -= T @ (T.T @ t)
        t -= T @ (T.T @ t)  # twice is enough
        size = np.linalg.norm(t)
        if size == 0:
            break
        t /= size
        U, T = np.column_stack([U, F @ v]), np.column_stack([T, t])
        c = t @ F
        F = F - np.outer(t, c)
        M = M - np.outer(inside @ t, c)
    if not T.shape[1]:
        return np.tile(offset, (split[1].size, 1))
    weights = np.linalg.solve(T.T @ inside @ U, T.T @ start)
    return np.asarray(across @ U @ weights + offset)


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
    inside, across = centred(K, split)
    offset = Y[split[0]].mean(0)
    values, vectors = scipy.linalg.eigh(inside, check_finite=False)
    values = values.clip(min=0.0)
    unit = max(float(values.mean()), float(np.finfo(np.float64).tiny))
    left, right = across @ vectors, vectors.T @ (Y[split[0]] - offset)
    return [left @ (right / (values + penalty * unit)[:, None]) + offset for penalty in penalties]


def chosen_penalty(K: Floats, Y: Floats, inner: Sequence[Split]) -> tuple[float, Floats]:
    """The penalty with the highest mean correlation over neurons on inner folds, and each neuron's there (q,)."""
    scores = np.zeros((len(PENALTIES), Y.shape[1]))
    for fold in inner:
        scores += np.array([pearson(found, Y[fold[1]]) for found in ridge(K, Y, fold, PENALTIES)]) / len(inner)
    best = int(np.nan_to_num(scores).mean(1).argmax())
    return PENALTIES[best], scores[best]
