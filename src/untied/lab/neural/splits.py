"""Which images a map is fitted on and which it is tested on: repeats of one picture always stay together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Split", "folds", "splits"]

Ints = NDArray[np.int64]
Split = tuple[Ints, Ints]
"""Rows to fit on and rows to test on, each sorted."""


def splits(groups: Ints, count: int, test: float, seed: int) -> list[Split]:
    """Repeated splits over pictures, a function of the arguments alone.

    The pictures are shuffled and cut into 1/test parts, each of which is tested on once; after the last part they are
    shuffled anew. So no picture is tested on twice more often than another.

    Args:
        groups: (n,), which picture each row shows. count: of splits. test: fraction of the pictures to test on.
        seed: of the shuffling.
    """
    parts = max(2, round(1 / test))
    found: list[Split] = []
    for turn in range(-(-count // parts)):
        found += folds(groups, parts, (seed, turn))
    return found[:count]


def folds(groups: Ints, parts: int, seed: int | tuple[int, ...]) -> list[Split]:
    """The pictures shuffled and cut into parts, each tested on once, as rows of ``groups``."""
    pictures = np.unique(groups)
    order = np.random.default_rng(seed).permutation(pictures)
    found = []
    for held in np.array_split(order, parts):
        tested = np.isin(groups, held)
        found.append((np.flatnonzero(~tested), np.flatnonzero(tested)))
    return found
