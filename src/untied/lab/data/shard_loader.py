"""Serving shards: tar files are read from front to back, so that no storage has to jump from image to image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset
from untied.lab.data.folders import folder_of_test
from untied.lab.data.images import ImageLoader, Item
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.preprocessing import preprocessing
from untied.lab.data.shards import Index, Sample, open_index, samples
from untied.lab.data.tensors import Normalise

__all__ = ["ShardLoader", "hold_out", "load_shards"]

BUFFER = 2000
"""An image moves by less than so many places in the order of the shards: the most that is held in memory, in images."""


class ShardLoader(ImageLoader):
    """Batches from shards. See ``Loader``; what follows the index is ``ImageLoader``'s.

    An epoch shuffles the shards, and within their sequence each image moves by less than ``BUFFER`` places. The
    sequence is cut into as many contiguous parts as there are processes, each of which reads its own. So no image
    comes twice, but other than elsewhere the parts are not those of one process's batches: which images make up
    a batch depends on the number of processes.

    The tar files are read in this process, and the images decoded by the workers. ``start`` opens no shard of
    which nothing is left.
    """

    def __init__(self, index: Index, *arguments: Any, **options: Any) -> None:
        super().__init__(sum(index.shards.values()), *arguments, **options)
        self.index = index

    def still(self, like: Loader) -> ShardLoader:
        arguments, options = self.as_in(like)
        return ShardLoader(self.index, *arguments, **options)

    def read(self, generator: torch.Generator, start: int, share: tuple[int, int]) -> Iterator[Batch]:
        rank, count = share
        keys = torch.randint(2**62, (self.size,), generator=generator)
        shards = list(self.index.shards)
        served, skipped = self.size, 0
        places = torch.arange(self.size)
        if self.seed is not None:
            shards = [shards[i] for i in torch.randperm(len(shards), generator=generator).tolist()]
            served = len(self) * self.batch_size
            skipped = int(torch.randint(self.size - served + 1, (), generator=generator))  # not always the same ones
            places = places + torch.randint(BUFFER, (self.size,), generator=generator)
        first, stop = (skipped + part * served // count for part in (rank, rank + 1))
        order = first + places[first:stop].argsort(stable=True)
        batches = [batch for batch in order.split(-(-self.batch_size // count))[start:] if len(batch)]
        return self.serve(self.items(batches, shards, keys))

    def items(self, batches: list[Tensor], shards: list[Path], keys: Tensor) -> Iterator[list[Item]]:
        """The images of each batch of positions in the sequence of the shards."""
        wanted = torch.zeros(self.size, dtype=torch.bool)
        for batch in batches:
            wanted[batch] = True
        stream, held = self.stream(shards, wanted), dict[int, Sample]()
        for batch in batches:
            items = []
            for position, key in zip(batch.tolist(), keys[batch].tolist(), strict=True):
                while position not in held:
                    held.update([next(stream)])
                items.append(Item(*held.pop(position), key))
            yield items

    def stream(self, shards: list[Path], wanted: Tensor) -> Iterator[tuple[int, Sample]]:
        """The wanted images, and their positions, in the order in which they lie."""
        first = 0
        for path in shards:
            count = self.index.shards[path]
            flags = wanted[first : first + count].tolist()
            number = -1
            for number, sample in enumerate(samples(path) if any(flags) else ()):
                if number < count and flags[number]:
                    if sample.label >= (classes := len(self.index.classes)):
                        raise UntiedError(
                            f"{sample.name} is of class {sample.label}, but {classes} classes are 0 to {classes - 1}"
                        )
                    yield first + number, sample
            if any(flags) and number + 1 != count:
                raise UntiedError(
                    f"{path} has {number + 1} images, but {count} in index.json: fetch it again, or delete index.json"
                )
            first += count


def hold_out(index: Index, fraction: float) -> tuple[Index, Index]:
    """Divide shards into those kept and those held out.

    The last ones are held out, as many as come nearest to the fraction, and at least one if it is above 0. They
    stand for the rest only if the shards are mixed, as ``write_shards`` mixes them.

    Raises:
        UntiedError: nothing would be kept.
    """
    shards = list(index.shards.items())
    count = max(1, round(fraction * len(shards))) if fraction else 0
    if count >= len(shards):
        raise UntiedError(
            f"holding out {fraction:g} of {len(shards)} shards leaves none, as shards are held out whole: "
            "make smaller ones, or set validation to 0"
        )
    kept = len(shards) - count
    return replace(index, shards=dict(shards[:kept])), replace(index, shards=dict(shards[kept:]))


def load_shards(config: DataConfig, *, seed: int, device: torch.device | str) -> Dataset:
    """Training and validation from root/train; the test split is root/val, or root/test without a val."""
    assert config.root is not None  # DataConfig has seen to it
    index = open_index(config.root / "train")
    test = open_index(folder_of_test(config.root))
    if test.classes != index.classes[: len(test.classes)]:
        raise UntiedError(
            f"{config.root}: the training shards have {len(index.classes)} classes and those of the test split "
            f"{len(test.classes)}, which are not among the first of these: both need the same classes"
        )
    if test.smaller != index.smaller:
        one, other = (
            f"side {i.smaller.side}, quality {i.smaller.quality}" if i.smaller else "full size" for i in (index, test)
        )
        raise UntiedError(
            f"{config.root}: the training shards have {one} and those of the test split {other}: pack both alike"
        )
    kept, held = hold_out(index, config.validation)
    chosen = preprocessing(config)
    normalise = Normalise(chosen.mean, chosen.std, device)
    options: dict[str, Any] = dict(
        device=device, workers=config.workers, strict=config.strict, decoded_by=config.decoder
    )
    evaluation = (chosen.evaluation, normalise, config.evaluation_batch_size)
    return Dataset(
        config.root.resolve().name,
        index.classes,
        (3, config.size, config.size),
        ShardLoader(kept, chosen.train, normalise, config.batch_size, seed=seed, **options),
        ShardLoader(held, *evaluation, **options),
        ShardLoader(test, *evaluation, **options),
    )
