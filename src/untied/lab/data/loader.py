"""What every loader of images has in common: an epoch is a function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from untied.errors import UntiedError

__all__ = ["Batch", "Loader"]

Batch = tuple[Any, Any]
"""Inputs and targets: of images (n, channels, height, width) float, normalised, and labels (n,) long. Other data have
tensors of other shapes, or nested lists and mappings of tensors."""


class Loader(ABC):
    """Batches of images and labels.

    ``loader.epoch(7)`` gives the batches of epoch 7, and always the same ones: nothing is remembered between
    epochs, and the global random state is neither read nor changed. ``loader.epoch(7, start=100)`` leaves out
    the first 100 batches without computing them, which is how an interrupted run goes on.
    ``loader.epoch(7, share=(rank, count))`` is what one of ``count`` processes gets.

    With a seed (training), images come shuffled, in batches that are all full. Without one (validation and
    test), all images come in their stored order.
    """

    def __init__(self, size: int, batch_size: int, seed: int | None) -> None:
        self.size = size
        """Number of images."""
        self.batch_size = batch_size
        self.seed = seed
        self.damaged: dict[str, str] = {}
        """Images that could not be read in the epochs served so far, and why. They were passed over."""
        if seed is not None and seed < 0:
            raise UntiedError(f"seed is {seed}: it must be 0 or more")
        if seed is not None and batch_size > size:
            raise UntiedError(f"batch_size is {batch_size} but there are only {size} training images: use less")

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.size // self.batch_size) if self.seed is None else self.size // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """The batches of an epoch, from batch number ``start`` on.

        Args:
            epoch: its number; it decides the order and the augmentation.
            start: so many batches are left out.
            share: (rank, count): of each batch, the rank-th of count contiguous parts. The parts together are
                the batch (shards are shared out differently, see ``ShardLoader``). In evaluation an empty part of
                a small last batch is left out.

        Raises:
            UntiedError: the share is impossible, or a training batch cannot be divided into equal parts.
        """
        rank, count = share
        if not 0 <= rank < count:
            raise UntiedError(f"share is {share}: it must be (rank, count), with rank from 0 to count - 1")
        if self.seed is not None and self.batch_size % count:
            raise UntiedError(
                f"batch_size is {self.batch_size}, which {count} processes cannot share equally: "
                f"use a multiple of {count}, such as {-(-self.batch_size // count) * count}"
            )
        return self.read(self.generator(epoch), start, share)

    @abstractmethod
    def still(self, like: Loader) -> Loader:
        """All these examples, in their stored order, prepared and batched as another loader's are: for a score."""

    @abstractmethod
    def read(self, generator: torch.Generator, start: int, share: tuple[int, int]) -> Iterator[Batch]:
        """What ``epoch`` gives, all random numbers drawn from ``generator``."""

    def generator(self, epoch: int) -> torch.Generator:
        """The source of an epoch's order and augmentation, on the CPU so that every device sees the same."""
        state = np.random.SeedSequence((self.seed or 0, epoch)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def batches(self, generator: torch.Generator, start: int, share: tuple[int, int]) -> Iterator[Tensor]:
        """The indices of this share of each batch, (n,) long."""
        rank, count = share
        order = torch.arange(self.size) if self.seed is None else torch.randperm(self.size, generator=generator)
        for index in order.split(self.batch_size)[start : len(self)]:
            part = index[rank * len(index) // count : (rank + 1) * len(index) // count]
            if len(part):
                yield part
