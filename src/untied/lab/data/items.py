"""Data of a user's own: torch Datasets, served as every other data set is.

What is named by ``--data package.module:function`` is called, and returns its splits:

    {"train": ..., "test": ...}     perhaps with "validation", with "classes": their number or their names (for
                                    sequences: the tokens), and with "task": what they are for
    (train, test) or (train, validation, test)

A split is a torch Dataset with a length, whose items are pairs (input, target), or a DataLoader: of that the dataset,
``collate_fn`` and ``num_workers`` are taken. The order and the batch size are ours, so that a run can be continued.
Without a validation split, a fixed part of the training items is held out, as ``data.validation`` says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from untied.errors import UntiedError
from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset as Splits
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.splits import SEED
from untied.lab.reading import own

__all__ = ["ItemLoader", "Part", "from_parts", "load_own"]

KEYS = ("train", "validation", "test", "classes", "task", "name")


@dataclass(frozen=True)
class Part:
    """A split: its items, what makes a batch of several, and how many processes read them."""

    items: Dataset[Any]
    collate: Callable[[list[Any]], Any] = default_collate
    workers: int = 0

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def only(self, index: Tensor) -> Part:
        """Some of the items."""
        items = self.items
        some: Dataset[Any] = (
            TensorDataset(*(t[index] for t in items.tensors))
            if isinstance(items, TensorDataset)
            else Subset(items, index.tolist())
        )
        return Part(some, self.collate, self.workers)


def load_own(config: DataConfig, *, seed: int, device: torch.device | str) -> Splits:
    """The data that an import path or an entry point names.

    Raises:
        UntiedError: what it names raised, or returned something else than splits.
    """
    what = f"data {config.name}"
    found = own.called("data", config.name, root=config.root, download=config.download)
    if isinstance(found, Splits):
        return found
    if isinstance(found, tuple | list) and len(found) in (2, 3):
        names = ("train", "test") if len(found) == 2 else ("train", "validation", "test")
        found = dict(zip(names, found, strict=True))
    if not isinstance(found, Mapping):
        raise UntiedError(
            f"{what} returned {own.a(found)}: return (train, test), (train, validation, test), or a mapping "
            "of these names, each a torch Dataset or a DataLoader"
        )
    if unknown := [key for key in found if key not in KEYS]:
        raise UntiedError(f"{what} returned {unknown[0]!r}: possible are {', '.join(KEYS)}")
    if missing := [key for key in ("train", "test") if key not in found]:
        raise UntiedError(f"{what} returned no {missing[0]!r}: train and test are needed, validation may be there")
    parts = {key: part_of(found[key], f"{what}: {key}") for key in ("train", "validation", "test") if key in found}
    return from_parts(
        str(found.get("name") or config.name), parts, config, what=what, classes=found.get("classes"), seed=seed,
        device=device, task=str(found.get("task") or "classification"),
    )  # fmt: skip


def part_of(found: Any, what: str) -> Part:
    """A split from a torch Dataset or DataLoader.

    Raises:
        UntiedError: it is neither, has no length, or is empty.
    """
    part = Part(found)
    if isinstance(found, DataLoader):
        part = Part(found.dataset, found.collate_fn or default_collate, found.num_workers)
    items = part.items
    if isinstance(items, IterableDataset) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise UntiedError(
            f"{what} is {own.a(items)}, without a length or items by number: give a torch Dataset with "
            "__len__ and __getitem__"
        )
    if not len(part):
        raise UntiedError(f"{what} has no items")
    return part


def from_parts(
    name: str,
    parts: Mapping[str, Part],
    config: DataConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    what: str = "",
    classes: int | Sequence[str] | None = None,
    **about: Any,
) -> Splits:
    """Serve splits that are there as items.

    Args:
        name: for display. parts: "train", "test", perhaps "validation". config: batch sizes and what is held out.
        what: to blame in errors. classes: their number or names. about: further fields of ``Dataset``.

    Raises:
        UntiedError: an item is no pair, or raised; nothing says how many classes there are.
    """
    what = what or f"data {name}"
    train, held = parts["train"], parts.get("validation")
    if held is None:
        train, held = held_out(train, config.validation, what)
    inputs, target = fetched(train, 0, what)
    if not all(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs)):
        raise UntiedError(f"{what}: an input is {own.a(inputs)}, not a tensor or tensors: convert it")
    single = isinstance(target, Tensor) and not target.dim() and not target.is_floating_point()
    if classes is None and single:
        classes = classes_of(train, what)
    if classes is None and isinstance(target, Tensor):
        about.setdefault("outputs", target.numel())
    if isinstance(inputs, Tensor) and inputs.dtype == torch.int64 and classes is not None:
        about.setdefault("vocabulary", classes if isinstance(classes, int) else len(classes))
    size = config.evaluation_batch_size
    return Splits(
        name,
        tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(map(str, classes or ())),
        tree_map(lambda t: tuple(t.shape), inputs),
        ItemLoader(train, config.batch_size, what, device, seed=seed),
        ItemLoader(held, size, what, device),
        ItemLoader(parts["test"], size, what, device),
        **about,
    )


def held_out(train: Part, fraction: float, what: str) -> tuple[Part, Part]:
    """Training items kept and held out, at random, and the same ones for every seed."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED))
    count = round(fraction * len(train))
    if count == len(train) or (fraction > 0 and not count):
        raise UntiedError(f"{what}: holding out {fraction:g} of {len(train)} items leaves nothing on one side")
    return train.only(order[count:].sort().values), train.only(order[:count].sort().values)


def fetched(part: Part, index: int, what: str) -> tuple[Any, Any]:
    """One item, as a batch of one without its first dimension.

    Raises:
        UntiedError: it raised, or is no pair (input, target) of tensors.
    """
    batch = checked(Collate(part.collate)([Keyed(part.items)[index, 0]]), what)
    return tree_map(lambda t: t[0], batch)  # type: ignore[no-any-return]


def checked(batch: Any, what: str) -> tuple[Any, Any]:
    """A collated batch as a pair.

    Raises:
        UntiedError: it is none, or an item raised something.
    """
    if isinstance(batch, Failed):
        raise UntiedError(f"{what}: {batch.why}")
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise UntiedError(f"{what}: an item is {own.a(batch)}{size}: it must be a pair (input, target)")
    return batch[0], batch[1]


def classes_of(part: Part, what: str) -> int | Sequence[str]:
    """The classes of a data set, as it says them itself, or as its targets have them.

    Raises:
        UntiedError: it says nothing of them.
    """
    items = part.items
    while isinstance(items, Subset):
        items = items.dataset
    named = getattr(items, "classes", None)
    if isinstance(named, Sequence) and not isinstance(named, str) and named:
        return named
    targets = items.tensors[-1] if isinstance(items, TensorDataset) else getattr(items, "targets", None)
    if targets is None:
        raise UntiedError(
            f"{what} does not say how many classes there are: return a mapping with classes=10, or their names"
        )
    targets = torch.as_tensor(targets)
    return int(targets.max()) + 1


class ItemLoader(Loader):
    """Batches of a torch Dataset, see ``Loader``. What an item draws at random depends on seed, epoch and item."""

    def __init__(
        self, part: Part, batch_size: int, what: str, device: torch.device | str = "cpu", seed: int | None = None
    ) -> None:
        super().__init__(len(part), batch_size, seed)
        self.part, self.what, self.device = part, what, torch.device(device)
        items = part.items
        whole = isinstance(items, TensorDataset) and part.collate is default_collate and len(items.tensors) == 2
        self.tensors = [t.to(device) for t in items.tensors] if whole else None  # type: ignore[attr-defined]

    def still(self, like: Loader) -> ItemLoader:
        return ItemLoader(self.part, like.batch_size, self.what, self.device)

    def read(self, generator: torch.Generator, start: int, share: tuple[int, int]) -> Iterator[Batch]:
        # drawn for the whole epoch at once, so that leaving out batches or parts of them changes no other
        keys = torch.randint(2**62, (self.size,), generator=generator)
        indices = self.batches(generator, start, share)
        if self.tensors is not None:
            for index in indices:
                index = index.to(self.device)
                yield self.tensors[0][index], self.tensors[1][index]
            return
        batches = DataLoader(
            Keyed(self.part.items),
            batch_sampler=[list(zip(index.tolist(), keys[index].tolist(), strict=True)) for index in indices],
            collate_fn=Collate(self.part.collate),
            num_workers=self.part.workers,
        )
        for batch in batches:
            yield tree_map(lambda t: t.to(self.device), checked(batch, self.what))


@dataclass(frozen=True)
class Failed:
    """Stands for an item that raised: an error that crosses processes would bring its traceback as its message."""

    why: str


class Keyed(Dataset[Any]):
    """Items by (number, key): an item's random numbers are a function of the key."""

    def __init__(self, items: Dataset[Any]) -> None:
        self.items = items

    def __getitem__(self, at: tuple[int, int]) -> Any:
        index, key = at
        try:
            with seeded(key):
                return self.items[index]
        except Exception as error:
            return Failed(str(own.blame(f"item {index}", error)))


class Collate:
    """A batch of items, unless one of them has failed."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        failed = next((item for item in items if isinstance(item, Failed)), None)
        if failed is not None:
            return failed
        try:
            return self.collate(items)
        except Exception as error:
            return Failed(str(own.blame("making a batch of items", error)))


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Random numbers of torch, NumPy and Python from a key; afterwards they go on as if nothing had been drawn."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(key)
    np.random.seed(key % 2**32)
    random.seed(key)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
