"""Representational similarity: do two pictures that differ for the network differ for the brain?

A dissimilarity matrix D (n, n) has for each pair of pictures one minus the correlation, over features or neurons, of
what they evoke (Kriegeskorte et al., 2008). Two matrices are compared by Spearman's correlation over pairs.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["bootstrap", "ceiling", "dissimilarity", "halves", "similarity"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def dissimilarity(X: NDArray[np.floating]) -> Floats:
    """1 - Pearson's correlation over features, for each pair of rows of X (n, d), d > 1: (n, n).

    A row without variance is as far from every other as independent ones are: 1.
    """
    rows = np.asarray(X, np.float64)
    rows = rows - rows.mean(1, keepdims=True)
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.where(size > 0, size, 1.0)
    D = 1 - rows @ rows.T
    np.fill_diagonal(D, 0.0)
    return np.asarray(D)


def similarity(D: Floats, other: Floats, rows: Ints | None = None) -> float:
    """Spearman's correlation of two dissimilarity matrices (n, n) over the pairs of some pictures, or of all."""
    rows = np.arange(len(D)) if rows is None else rows
    i, j = (rows[index] for index in np.triu_indices(len(rows), 1))
    a, b = (scipy.stats.rankdata(matrix[i, j]) for matrix in (D, other))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size else float("nan")


def bootstrap(D: Floats, other: Floats, count: int, seed: int) -> Floats:
    """The similarity of two matrices for samples of the pictures with replacement, (count,): the same for every D.

    Pairs keep the ranks that they have among all pairs, and count as often as both their pictures were drawn.
    """
    n = len(D)
    i, j = np.triu_indices(n, 1)
    a, b = (scipy.stats.rankdata(matrix[i, j]) for matrix in (D, other))
    a, b = a - a.mean(), b - b.mean()
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=count)
    weights = (times[:, i] * times[:, j]).astype(np.float64)  # (count, pairs)
    weights /= weights.sum(1, keepdims=True)
    mean_a, mean_b, ab, aa, bb = (weights @ np.stack([a, b, a * b, a * a, b * b], axis=1)).T
    size = np.sqrt((aa - mean_a**2) * (bb - mean_b**2))
    return np.asarray((ab - mean_a * mean_b) / np.where(size > 0, size, np.nan))


def halves(n: int, count: int, seed: int) -> list[tuple[Ints, Ints]]:
    """Random halves of n pictures: a layer is chosen on one and judged on the other."""
    random = np.random.default_rng(seed)
    orders = [random.permutation(n) for _ in range(count)]
    return [(order[: n // 2], order[n // 2 :]) for order in orders]


def ceiling(subjects: Floats) -> tuple[float, float]:
    """Lower and upper bound on what any model can reach, from matrices (s, n, n) of several subjects.

    Each subject against the mean of the others, and against the mean of all (Nili et al., 2014); NaN for one subject.
    """
    if len(subjects) < 2:
        return float("nan"), float("nan")
    everyone = subjects.mean(0)
    lower = [similarity(own, np.delete(subjects, s, 0).mean(0)) for s, own in enumerate(subjects)]
    upper = [similarity(own, everyone) for own in subjects]
    return float(np.mean(lower)), float(np.mean(upper))
