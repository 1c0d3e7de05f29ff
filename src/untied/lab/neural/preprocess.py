"""A recording's pictures as a network has learned to see them: its size, its colours, its scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import v2 as transforms

from untied.errors import UntiedError
from untied.lab.data import DataConfig, Dataset
from untied.lab.data.preprocessing import preprocessing
from untied.lab.data.tensors import TensorLoader
from untied.lab.neural.recording import Recording

__all__ = ["Prepared", "Seeing", "as_trained", "prepare"]

BATCH = 64


@dataclass(frozen=True)
class Seeing:
    """How a network sees a picture.

    Attributes:
        transform: of a PIL image in RGB to uint8 (channels, height, width).
        normalise: of a batch of these to float.
        words: the same for people. shape: (channels, height, width).
    """

    transform: Callable[[Image], Tensor]
    normalise: Callable[[Tensor], Tensor]
    words: str
    shape: tuple[int, ...]

    @property
    def key(self) -> str:
        """What tells two of them apart."""
        probe = torch.linspace(0, 255, 5).round().byte()[:, None, None, None].expand(5, *self.shape)
        return f"{self.words} {[round(v, 5) for v in self.normalise(probe)[:, :, 0, 0].flatten().tolist()]}"


@dataclass(frozen=True)
class Prepared:
    """Pictures that were decoded and cropped once: uint8 (n, channels, height, width)."""

    pixels: Tensor
    normalise: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """Normalised, in their order, (at most 64, channels, height, width) each."""
        for part in self.pixels.split(BATCH):
            yield self.normalise(part).to(device)


def as_trained(data: Dataset, config: DataConfig) -> Seeing:
    """How a network that was trained on this data sees a picture.

    Image folders and shards: their evaluation crop and normalisation. Data sets in memory: the picture resized
    (bilinear, antialiased) to cover the size of their images, the centre of it; grey by luminance where they have
    one channel; 0 to 255 brought to the range of their values; their mean and standard deviation.
    """
    if len(data.input_shape) != 3:
        raise UntiedError(f"{data.name} has inputs of {data.input_shape}: only networks that see images can be fitted")
    channels, height, width = data.input_shape
    shape = (channels, height, width)
    loader = data.train
    if not isinstance(loader, TensorLoader):
        chosen = preprocessing(config)
        mean, std = (t.reshape(1, -1, 1, 1) for t in (chosen.mean, chosen.std))
        return Seeing(
            lambda image: transforms.functional.pil_to_tensor(chosen.evaluation(image)),
            lambda pixels: (pixels.float() - mean) / std,
            f"{config.preprocessing} preprocessing for evaluation, {height}×{width} RGB",
            shape,
        )
    low, high = 0.0, 255.0
    if loader.images.dtype != torch.uint8:
        low, high = float(loader.images.min()), float(loader.images.max())

    def transform(image: Image) -> Tensor:
        scale = max(height / image.height, width / image.width)
        size = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        if channels == 1:
            image = image.convert("L")
        resized = transforms.functional.resize(image, size, antialias=True)
        pixels: Tensor = transforms.functional.pil_to_tensor(
            transforms.functional.center_crop(resized, [height, width])
        )
        return pixels

    def normalise(pixels: Tensor) -> Tensor:
        return loader.normalise(low + pixels.float() * ((high - low) / 255))

    values = "" if high == 255 else f", 0 to 255 brought to {low:g} to {high:g}"
    return Seeing(
        transform,
        normalise,
        f"resized (bilinear, antialiased) to {height}×{width}, the centre, {'grey' if channels == 1 else 'RGB'}"
        f"{values}, mean and standard deviation of {data.name}",
        shape,
    )


def prepare(recording: Recording, seeing: Seeing) -> Prepared:
    """Decode and crop every picture of a recording.

    Raises:
        UntiedError: one cannot be read.
    """
    pixels = torch.empty(len(recording), *seeing.shape, dtype=torch.uint8)
    for i in range(len(recording)):
        pixels[i] = seeing.transform(recording.open(i))
    return Prepared(pixels, seeing.normalise)
