"""Pictures in files: decoded and cropped by worker processes when needed; damaged ones are passed over."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as transforms

from untied.errors import UntiedError
from untied.lab.data.config import Decoder
from untied.lab.data.decoders import decoder
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.tensors import Normalise
from untied.lab.reading.edges import expect_file, printable

__all__ = ["Damaged", "ImageLoader", "Item", "Reader", "collate"]


class Item(NamedTuple):
    """An image that is to be read."""

    name: str
    """Its file."""
    content: bytes | None
    """The bytes of the file, where they are already there."""
    label: int
    key: int
    """Seeds the transform, so that it does not matter which process reads the image."""


class Damaged(NamedTuple):
    """An image that could not be read. A value: an exception would leave its worker wrapped in a traceback."""

    name: str
    reason: str


class Reader(torch.utils.data.Dataset["tuple[Tensor, int] | Damaged"]):
    """Items to uint8 tensors (3, size, size) and labels. What random numbers the transform draws are the item's."""

    def __init__(self, transform: transforms.Transform, decoded_by: Decoder = "pillow") -> None:
        self.transform = transforms.Compose([transform, transforms.PILToTensor()])  # which lets tensors pass
        self.decode = decoder(decoded_by)

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | Damaged:
        try:
            if item.content is None:
                expect_file(Path(item.name))
            content = Path(item.name).read_bytes() if item.content is None else item.content
            image = self.decode(content)
        except UnidentifiedImageError:
            return Damaged(printable(item.name), "not an image of a known format" if content else "an empty file")
        except Exception as error:  # decoders raise whatever their code runs into in broken files
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or repr(error)
            return Damaged(printable(item.name), printable(reason))
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(item.key)
        try:
            pixels: Tensor = self.transform(image)
        finally:
            torch.set_rng_state(state)
        return pixels, item.label


def collate(items: Sequence[tuple[Tensor, int] | Damaged], fill: bool = False) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Stack the readable images of a batch.

    Args:
        items: what ``Reader`` gave.
        fill: whether the next readable image (after the last, the first) takes the place of a damaged one.

    Returns:
        Images (n, 3, size, size) uint8, labels (n,), and the damaged ones with their reasons. If nothing is
        readable, n is 0.
    """
    damaged = {item.name: item.reason for item in items if isinstance(item, Damaged)}
    good = [item for item in items if not isinstance(item, Damaged)]
    if not good:
        return torch.empty(0), torch.empty(0), damaged
    if fill and damaged:
        following, filled = good[0], []
        for item in reversed(items):
            following = following if isinstance(item, Damaged) else item
            filled.append(following)
        good = filled[::-1]
    images, labels = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels), damaged


def deaf(worker: int) -> None:
    """A terminal's Ctrl-C and a cluster's SIGTERM reach every process: the main one decides, and ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class ImageLoader(Loader):
    """Batches from image files, normalised on the device. See ``Loader``.

    Args:
        size: number of images.
        transform: of what the decoder gives.
        normalise: statistics, on the device.
        batch_size: images in a batch.
        device: where the batches go.
        workers: processes that read; 0 reads in this one.
        seed: None for validation and test.
        strict: whether a damaged image is an error.
        decoded_by: the library that decodes.

    Raises:
        UntiedError: that library is not installed.
    """

    def __init__(
        self,
        size: int,
        transform: transforms.Transform,
        normalise: Normalise,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        seed: int | None = None,
        strict: bool = False,
        decoded_by: Decoder = "pillow",
    ) -> None:
        super().__init__(size, batch_size, seed)
        self.reader = Reader(transform, decoded_by)
        self.decoded_by = decoded_by
        self.transform = transform
        self.normalise = normalise
        self.device = torch.device(device)
        self.workers = workers
        self.strict = strict

    def as_in(self, like: Loader) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a loader that prepares its images as another one does."""
        assert isinstance(like, ImageLoader)  # of the same data set
        return (like.transform, like.normalise, like.batch_size), {
            "device": self.device, "workers": self.workers, "strict": self.strict, "decoded_by": self.decoded_by,
        }  # fmt: skip

    def serve(self, batches: Iterable[list[Item]]) -> Iterator[Batch]:
        """Read batches of items. Damaged ones are noted in ``damaged``; in training the batches stay full.

        Raises:
            UntiedError: an image cannot be read, if strict; or no image of a training batch can. One that
                ``batches`` raises comes when the batches before it have been served.
        """
        failures: list[UntiedError] = []

        def until_failure() -> Iterator[list[Item]]:  # raised inside of DataLoader, it leaves broken pipes behind
            try:
                yield from batches
            except UntiedError as error:
                failures.append(error)

        loader = DataLoader(
            self.reader,
            batch_sampler=until_failure(),  # Reader is asked for items, not for numbers
            num_workers=self.workers,
            collate_fn=partial(collate, fill=self.seed is not None),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=deaf,
            generator=torch.Generator(),  # else it would draw from the global one; items bring their own seeds
        )
        for images, labels, damaged in loader:
            self.damaged |= damaged
            for name, reason in damaged.items():
                if self.strict:
                    raise UntiedError(f"cannot read the image {name} ({reason}): repair or remove it, or be not strict")
                if not len(images) and self.seed is not None:
                    raise UntiedError(
                        f"cannot read any image of a batch, such as {name} ({reason}): is the data still there?"
                    )
            if not len(images):
                continue
            yield (
                self.normalise(images.to(self.device, non_blocking=True)),
                labels.to(self.device, non_blocking=True),
            )
        for failure in failures:
            raise failure
