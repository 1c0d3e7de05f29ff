"""Small data sets, held whole on the device: shuffled, normalised and augmented there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from untied.errors import UntiedError
from untied.lab.data.loader import Batch, Loader

__all__ = ["Normalise", "TensorLoader", "check", "shift_and_mirror"]


class Normalise:
    """Subtract a mean and divide by a standard deviation, channel by channel."""

    def __init__(self, mean: Tensor, std: Tensor, device: torch.device | str = "cpu") -> None:
        self.mean = mean.float().reshape(1, -1, 1, 1).to(device)
        self.std = std.float().reshape(1, -1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std

    @classmethod
    def fit(cls, images: Tensor, device: torch.device | str = "cpu") -> Normalise:
        """The statistics of images (n, c, h, w). A channel that never changes is only centred."""
        total, squares = torch.zeros(2, images.shape[1], dtype=torch.float64)
        for part in images.split(4096):  # in double precision, but never all of it at once
            total += (values := part.double()).sum((0, 2, 3))
            squares += values.square().sum((0, 2, 3))
        count = images.numel() / images.shape[1]
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        return cls(mean, torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std)), device)


def check(split: str, images: Tensor, labels: Tensor, classes: int) -> None:
    """Raise UntiedError, naming the split, unless these are images and labels that can be trained on."""
    if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels):
        raise UntiedError(
            f"{split} images have shape {tuple(images.shape)} and labels {tuple(labels.shape)}: "
            "they must be (n, channels, height, width) and (n,)"
        )
    if not len(images):
        raise UntiedError(f"the {split} split has no images")
    if images.is_floating_point() and not (finite := images.isfinite().flatten(1).all(1)).all():
        first = int((~finite).nonzero()[0])
        raise UntiedError(
            f"the {split} split has NaN or infinite values in {int((~finite).sum())} of {len(images)} images "
            f"(the first is image {first}): repair or remove them"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UntiedError(
            f"{split} labels run from {int(labels.min())} to {int(labels.max())}, "
            f"but {classes} classes need labels 0 to {classes - 1}"
        )


def shift_and_mirror(images: Tensor, shifts: Tensor, mirrored: Tensor, reach: int) -> Tensor:
    """Crop each image after padding it with its mean (zero, as it is normalised), and mirror some.

    Args:
        images: (n, c, h, w).
        shifts: (n, 2) long, top and left of the crop, 0 to 2 * reach; reach leaves the image in place.
        mirrored: (n,) bool, which ones to mirror.
        reach: the padding in pixels.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (reach,) * 4)
    device = images.device
    rows = shifts[:, :1] + torch.arange(h, device=device)  # (n, h)
    columns = torch.arange(w, device=device)
    columns = shifts[:, 1:] + torch.where(mirrored[:, None], columns.flip(0), columns)  # (n, w)
    image = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(c, device=device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class TensorLoader(Loader):
    """Batches from tensors that stay on the device. See ``Loader``.

    Args:
        images: (n, c, h, w), uint8 or float, on the device.
        labels: (n,) long, on the device.
        normalise: statistics of the training split, on the device.
        batch_size: images in a batch.
        seed: None for validation and test.
        reach: augment by shifts of up to so many pixels (0: none).
        mirror: augment by mirroring every other image on average.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        normalise: Normalise,
        batch_size: int,
        *,
        seed: int | None = None,
        reach: int = 0,
        mirror: bool = False,
    ) -> None:
        super().__init__(len(labels), batch_size, seed)
        self.images = images
        self.labels = labels
        self.normalise = normalise
        self.reach = reach
        self.mirror = mirror

    def still(self, like: Loader) -> TensorLoader:
        return TensorLoader(self.images, self.labels, self.normalise, like.batch_size)

    def read(self, generator: torch.Generator, start: int, share: tuple[int, int]) -> Iterator[Batch]:
        device = self.images.device
        # drawn for the whole epoch at once, so that leaving out batches or parts of them changes no other
        shifts = torch.randint(2 * self.reach + 1, (self.size, 2), generator=generator).to(device)
        mirrored = (torch.rand(self.size, generator=generator) < (0.5 if self.mirror else 0.0)).to(device)
        for index in self.batches(generator, start, share):
            index = index.to(device)
            images = self.normalise(self.images[index])
            if self.reach or self.mirror:
                images = shift_and_mirror(images, shifts[index], mirrored[index], self.reach)
            yield images, self.labels[index]
