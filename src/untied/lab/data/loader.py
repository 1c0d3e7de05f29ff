"""What every loader of images has in common: an epoch is a function of (seed, epoch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from untied.errors import UntiedError

__all__ = ["Batch", "Loader"]

Batch = tuple[Tensor, Tensor]
"""Images (n, channels, height, width) float, normalised; labels (n,) long."""


class Loader(ABC):
    """Batches of images and labels.

    ``loader.epoch(7)`` gives the batches of epoch 7, and always the same ones: nothing is remembered between
    epochs, and the global random state is neither read nor changed. ``loader.epoch(7, start=100)`` leaves out
    the first 100 batches without computing them, which is how an interrupted run goes on.

    With a seed (training), images come shuffled, in batches that are all full. Without one (validation and
    test), all images come in their stored order.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int | None) -> None:
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        if seed is not None and seed < 0:
            raise UntiedError(f"seed is {seed}: it must be 0 or more")
        if seed is not None and batch_size > self.size:
            raise UntiedError(f"batch_size is {batch_size} but there are only {self.size} training images: use less")

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self.size // self.batch_size) if self.seed is None else self.size // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    @abstractmethod
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch number ``start`` on."""

    def generator(self, epoch: int) -> torch.Generator:
        """The source of an epoch's order and augmentation, on the CPU so that every device sees the same."""
        state = np.random.SeedSequence((self.seed or 0, epoch)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def batches(self, generator: torch.Generator, start: int) -> Iterator[Tensor]:
        """The indices of each batch, (batch_size,) long."""
        order = torch.arange(self.size) if self.seed is None else torch.randperm(self.size, generator=generator)
        yield from order.split(self.batch_size)[start : len(self)]
