"""Correlations, and how far noise lets them go."""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import NDArray

__all__ = ["corrected", "median", "pearson", "sem", "split_half", "test_retest"]

Floats = NDArray[np.float64]
HALVES = 20  # random halvings of the repeats
AGAIN = 20  # pictures that must have been measured twice for a correlation over them to say anything
LEAST = 0.1
"""Neurons less reliable than this have no noise-corrected value: it would be noise divided by noise."""


def pearson(predicted: Floats, measured: Floats) -> Floats:
    """Pearson's r over rows, for each column: (n, q) and (n, q) to (q,).

    A prediction that never changes predicts nothing: 0. A measurement that never changes cannot be predicted: NaN.
    """
    p, y = predicted - predicted.mean(0), measured - measured.mean(0)
    size_p, size_y = np.linalg.norm(p, axis=0), np.linalg.norm(y, axis=0)
    still = size_p <= 1e-12 * np.abs(predicted).max(axis=0, initial=0.0) * math.sqrt(len(p))
    r = (p * y).sum(0) / np.where(still, 1.0, size_p) / np.where(size_y > 0, size_y, 1.0)
    return np.where(size_y > 0, np.where(still, 0.0, r), np.nan)


def split_half(repeats: Floats, seed: int = 0) -> Floats:
    """Reliability ρ of each neuron's mean response, (q,): the split-half correlation, stepped up by Spearman-Brown.

    The repeats of each image and neuron are halved at random; r is the correlation of the two means over images, its
    mean over 20 halvings, and ρ = 2r / (1 + r).

    Args:
        repeats: (n, q, t), NaN where a neuron was not measured. Images with one repeat do not count.
    """
    random = np.random.default_rng(seed)
    n, q, _ = repeats.shape
    known = np.isfinite(repeats)
    count = known.sum(2, keepdims=True)  # (n, q, 1)
    values = np.where(known, repeats, 0.0)
    total = np.zeros(q)
    for _ in range(HALVES):
        order = np.where(known, random.random(repeats.shape), np.inf).argsort(2).argsort(2)  # the known ones come first
        first = order < count // 2 + (count % 2) * random.integers(2, size=(n, q, 1))  # an odd one goes to either half
        second = known & ~first
        sums = [(values * half).sum(2) / np.maximum(half.sum(2), 1) for half in (first, second)]
        total += masked_pearson(sums[0], sums[1], count[:, :, 0] > 1)
    r = total / HALVES
    return np.asarray(2 * r / (1 + r))


def masked_pearson(a: Floats, b: Floats, known: NDArray[np.bool_]) -> Floats:
    """Pearson's r over the known rows of each column, NaN where fewer than three are known."""
    r = np.full(a.shape[1], np.nan)
    for column in range(a.shape[1]):
        rows = known[:, column]
        if rows.sum() > 2:
            r[column] = pearson(a[rows, column, None], b[rows, column, None])[0]
    return r


def test_retest(responses: Floats, groups: NDArray[np.int64]) -> Floats:
    """Reliability of one measurement of each neuron, (q,), from pictures that were measured in more than one row.

    The correlation of the first row with the second one of each such picture; NaN with fewer than 20 of them.

    Args:
        responses: (n, q). groups: (n,), which picture each row shows.
    """
    _, first, count = np.unique(groups, return_index=True, return_counts=True)
    again = [(i, np.flatnonzero(groups == groups[i])[1]) for i in first[count > 1]]
    if len(again) < AGAIN:
        return np.full(responses.shape[1], np.nan)
    one, two = np.array(again).T
    return pearson(responses[one], responses[two])


def corrected(r: Floats, reliability: Floats) -> Floats:
    """r / √ρ, what r would be without noise in the measurement; NaN where ρ is unknown or below ``LEAST``."""
    usable = reliability >= LEAST
    return np.where(usable, r / np.sqrt(np.where(usable, reliability, 1.0)), np.nan)


def median(values: Floats) -> float:
    """Of the known ones; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan


def mean(values: Floats) -> Floats:
    """Over the first axis, of the known ones; NaN where there are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy warns of what NaN says
        return np.asarray(np.nanmean(values, axis=0))


def sem(values: Floats) -> float:
    """Standard error of the mean of the known ones; NaN if there are fewer than two."""
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1) / math.sqrt(known.size)) if known.size > 1 else math.nan
