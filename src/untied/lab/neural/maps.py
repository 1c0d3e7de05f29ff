"""Linear maps from features to neurons: partial least squares, and ridge regression.

    n   images          d   features of a layer         q   neurons
    X   (n, d)          Y   (n, q)                       A   components

Both maps see X only through inner products of its centred rows. So X may be replaced by its coordinates in an
orthonormal basis of the span of these rows, at most n numbers an image, without changing any prediction: ``reduced``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from untied.lab.neural.scores import pearson
from untied.lab.neural.splits import Split

__all__ = ["PENALTIES", "chosen_penalty", "pls", "reduced", "ridge"]

Floats = NDArray[np.float64]
PENALTIES = tuple(10.0**exponent for exponent in range(-4, 4))
"""What ridge regression chooses from, in units of the features' mean variance on the images it is fitted on."""
COLUMNS = 4096  # of X at a time in double precision


def reduced(X: NDArray[np.floating]) -> Floats:
    """X (n, d), centred, in an orthonormal basis of the span of its rows: (n, min(n, d)) in double precision.

    Inner products of rows, and with them every prediction of ``pls`` and ``ridge``, stay what they were.
    """
    n, d = X.shape
    if d <= n:
        return np.asarray(X - X.mean(0, dtype=np.float64), np.float64)
    gram = np.zeros((n, n))
    for start in range(0, d, COLUMNS):
        part = X[:, start : start + COLUMNS].astype(np.float64)
        part -= part.mean(0)
        gram += part @ part.T
    values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    kept = values > n * np.finfo(np.float64).eps * max(values[-1], 0.0)
    if not kept.any():
        return np.zeros((n, 1))
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def pls(X: Floats, Y: Floats, new: Floats, components: int) -> Floats:
    """Predictions of partial least squares regression (PLS2, the NIPALS deflation), without scaling.

    That of scikit-learn's ``PLSRegression(components, scale=False)``, which Brain-Score's ``pls`` uses, with each
    weight vector solved for exactly rather than by a power iteration of limited precision.

    Args:
        X: (n, d), fitted on. Y: (n, q). new: (m, d), predicted for.
        components: at most d and n - 1 of them are used, or as many as there is anything to explain.

    Returns:
        (m, q).
    """
    mean, offset = X.mean(0), Y.mean(0)
    E, F = X - mean, Y - offset
    C = E.T @ F
    weights, loadings, targets = [], [], []
    enough = 1e-10 * np.linalg.norm(C)
    for _ in range(min(components, X.shape[1], len(X) - 1)):
        if not np.linalg.norm(C) > enough:  # nothing is left to explain
            break
        w = dominant_left(C)
        t = E @ w
        square = float(t @ t)
        if square == 0:
            break
        p, c = t @ E / square, t @ F / square
        E -= np.outer(t, p)
        F -= np.outer(t, c)
        C -= square * np.outer(p, c)  # E'F: t is orthogonal to what is left of E
        weights.append(w)
        loadings.append(p)
        targets.append(c)
    if not weights:
        return np.tile(offset, (len(new), 1))
    W, P, Q = np.array(weights).T, np.array(loadings).T, np.array(targets)  # (d, A), (d, A), (A, q)
    scores = np.linalg.solve((P.T @ W).T, ((new - mean) @ W).T).T
    return np.asarray(scores @ Q + offset)


def dominant_left(C: Floats) -> Floats:
    """The first left singular vector of C (d, q), of length 1."""
    if C.shape[1] <= C.shape[0]:
        w = C @ largest(C.T @ C)
        return np.asarray(w / np.linalg.norm(w))
    return largest(C @ C.T)


def largest(S: Floats) -> Floats:
    """The eigenvector of a symmetric matrix's largest eigenvalue."""
    last = len(S) - 1
    return np.asarray(scipy.linalg.eigh(S, subset_by_index=[last, last], check_finite=False)[1][:, 0])


def ridge(X: Floats, Y: Floats, new: Floats, penalties: Sequence[float]) -> list[Floats]:
    """Predictions of ridge regression with an intercept, (m, q) for each penalty.

    Args:
        X: (n, d), fitted on. Y: (n, q). new: (m, d), predicted for.
        penalties: each times the trace of the centred X X' over n is what scikit-learn's ``Ridge`` calls alpha.
    """
    mean, offset = X.mean(0), Y.mean(0)
    E = X - mean
    values, vectors = scipy.linalg.eigh(E @ E.T, check_finite=False)
    values = values.clip(min=0.0)
    unit = max(values.mean(), np.finfo(np.float64).tiny)
    left, right = (new - mean) @ E.T @ vectors, vectors.T @ (Y - offset)
    return [left @ (right / (values + penalty * unit)[:, None]) + offset for penalty in penalties]


def chosen_penalty(X: Floats, Y: Floats, inner: Sequence[Split]) -> tuple[float, Floats]:
    """The penalty with the highest mean correlation over neurons on inner folds, and each neuron's there (q,)."""
    scores = np.zeros((len(PENALTIES), Y.shape[1]))
    for fit, held in inner:
        found = ridge(X[fit], Y[fit], X[held], PENALTIES)
        scores += np.array([pearson(prediction, Y[held]) for prediction in found]) / len(inner)
    best = int(np.nanmean(scores, axis=1).argmax())
    return PENALTIES[best], scores[best]
