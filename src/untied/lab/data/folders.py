"""Folders of images, one subfolder a class: too large to hold, so read by worker processes when needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2 as transforms

from untied.errors import UntiedError
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.tensors import Normalise

__all__ = ["FolderLoader", "ImageFiles", "cropped", "list_images", "randomly_cropped"]

IMAGENET_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = 255 * torch.tensor([0.229, 0.224, 0.225])


def list_images(folder: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """The classes (names of subfolders, sorted), the files, and their labels (n,).

    Raises:
        UntiedError: there is no such folder, it has no subfolders, or one of them has no images.
    """
    if not folder.is_dir():
        raise UntiedError(f"no folder {folder}: an image folder holds train/CLASS/IMAGE and val/CLASS/IMAGE")
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise UntiedError(f"{' '.join(str(error).split())}: each class needs a subfolder with images") from error
    files, labels = zip(*found.samples, strict=True)
    return tuple(found.classes), list(files), torch.tensor(labels)


def randomly_cropped(size: int) -> transforms.Transform:
    """The usual training crop at ImageNet: 8 to 100 % of the area, resized, mirrored or not."""
    return transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()])


def cropped(size: int) -> transforms.Transform:
    """The evaluation crop: the shorter side resized to 256/224 of size, the centre of it."""
    return transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)])


class ImageFiles(torch.utils.data.Dataset["tuple[Tensor, int] | UntiedError"]):
    """Image files as uint8 tensors (3, size, size).

    An item is asked for by (number, key). The key seeds the transform, so that it does not matter which
    worker reads it. A file that cannot be read gives the error as a value: raised in a worker, it would
    arrive wrapped in a traceback.
    """

    def __init__(self, files: Sequence[str], labels: Tensor, transform: transforms.Transform) -> None:
        self.files = files
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int] | UntiedError:
        number, key = item
        try:
            with Image.open(self.files[number]) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return UntiedError(f"cannot read the image {self.files[number]} ({error}): repair or remove it")
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(key)
        try:
            image = self.transform(image)
        finally:
            torch.set_rng_state(state)
        return transforms.functional.pil_to_tensor(image), int(self.labels[number])


def collate(items: list[tuple[Tensor, int] | UntiedError]) -> Batch | UntiedError:
    """Stack a batch, or give its first error."""
    good = []
    for item in items:
        if isinstance(item, UntiedError):
            return item
        good.append(item)
    images, labels = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels)


class FolderLoader(Loader):
    """Batches from image files, normalised on the device. See ``Loader``.

    Args:
        images: the files.
        normalise: statistics, on the device.
        batch_size: images in a batch.
        device: where the batches go.
        workers: processes that read; 0 reads in this one.
        seed: None for validation and test.
    """

    def __init__(
        self,
        images: ImageFiles,
        normalise: Normalise,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(images.labels, batch_size, seed)
        self.images = images
        self.normalise = normalise
        self.device = torch.device(device)
        self.workers = workers

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch number ``start`` on.

        Raises:
            UntiedError: an image cannot be read; the message names the file.
        """
        generator = self.generator(epoch)
        keys = torch.randint(2**62, (self.size,), generator=generator)
        batches = [
            list(zip(index.tolist(), keys[index].tolist(), strict=True)) for index in self.batches(generator, start)
        ]
        loader = DataLoader(
            self.images,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            generator=generator,  # else it would draw from the global one
        )
        for batch in loader:
            if isinstance(batch, UntiedError):
                raise batch
            images, labels = batch
            yield (
                self.normalise(images.to(self.device, non_blocking=True)),
                labels.to(self.device, non_blocking=True),
            )
