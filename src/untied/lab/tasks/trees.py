"""Batches whose inputs or targets are nested lists, tuples and mappings of tensors, all of one length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

__all__ = ["channels_last", "chunks", "finite", "first", "groups", "shapes", "size", "to"]

Tree = Any
"""A tensor (n, ...), or a nested structure of such tensors."""


def size(tree: Tree) -> int:
    """The number of examples, n.

    >>> size({"image": torch.zeros(3, 2), "word": torch.zeros(3)})
    3
    """
    return len(tree_leaves(tree)[0])


def first(tree: Tree, count: int) -> Tree:
    """The first so many examples."""
    return tree_map(lambda t: t[:count], tree)


def chunks(tree: Tree, parts: int) -> list[Tree]:
    """The examples in so many parts, one after the other."""
    leaves, structure = tree_flatten(tree)
    split = [leaf.chunk(parts) for leaf in leaves]
    return [tree_unflatten(list(part), structure) for part in zip(*split, strict=True)]


def groups(tree: Tree, count: int) -> list[Tree]:
    """The examples in groups of so many. What is left over is left out, unless it is all there is.

    >>> [size(group) for group in groups(torch.zeros(7), 3)], [size(group) for group in groups(torch.zeros(2), 3)]
    ([3, 3], [2])
    """
    starts = range(0, max(size(tree) - count, 0) + 1, count)
    return [tree_map(lambda t, at=at: t[at : at + count], tree) for at in starts]


def to(tree: Tree, device: torch.device | str) -> Tree:
    """The same on a device."""
    return tree_map(lambda t: t.to(device), tree)


def finite(tree: Tree) -> bool:
    """Whether every number is finite."""
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(tree))


def channels_last(tree: Tree) -> Tree:
    """Images with channels last, all else as it is."""

    def one(t: Tensor) -> Tensor:
        return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t

    return tree_map(one, tree)


def shapes(tree: Tree) -> str:
    """Shapes and types in words, without the number of examples."""
    leaves = [f"{tuple(t.shape[1:])} {str(t.dtype).removeprefix('torch.')}" for t in tree_leaves(tree)]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})"
