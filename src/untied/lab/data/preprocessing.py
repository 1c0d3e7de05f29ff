"""From a picture of any size to what a network for ImageNet sees: crops, distortions, and the scale of the values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import v2 as transforms

from untied.lab.data.config import DataConfig

__all__ = ["Preprocessing", "inception", "preprocessing", "resnet"]


@dataclass(frozen=True)
class Preprocessing:
    """Transforms of decoded pictures to (size, size), and statistics of their values, which run from 0 to 255."""

    train: transforms.Transform
    evaluation: transforms.Transform
    mean: Tensor
    """(3,); subtracted."""
    std: Tensor
    """(3,); divided by."""


def preprocessing(config: DataConfig) -> Preprocessing:
    """What the configuration asks for; without augmentation, training sees the evaluation crops."""
    chosen = {"resnet": resnet, "inception": inception}[config.preprocessing](config.size)
    if config.augment == "standard":
        return chosen
    return Preprocessing(chosen.evaluation, chosen.evaluation, chosen.mean, chosen.std)


def resnet(size: int) -> Preprocessing:
    """The usual preprocessing at ImageNet.

    Training: 8 to 100 % of the area, aspect 3/4 to 4/3, resized; mirrored or not. Evaluation: the shorter side
    resized to 256/224 of size, the centre of it. Values: ImageNet's mean and standard deviation.
    """
    return Preprocessing(
        train=transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]),
        evaluation=transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]),
        mean=255 * torch.tensor([0.485, 0.456, 0.406]),
        std=255 * torch.tensor([0.229, 0.224, 0.225]),
    )


def inception(size: int) -> Preprocessing:
    """Inception preprocessing, with which the TF-Slim code trains v2 ResNets at 299.

    TF-Slim's: in training 5 to 100 % of the area, aspect 3/4 to 4/3, resized; mirrored or not; brightness (up to
    32/255), saturation (0.5 to 1.5), hue (up to 0.2) and contrast (0.5 to 1.5) distorted; in evaluation the central
    87.5 % of each side, resized; values from -1 to 1.

    Ours: the distortions are torchvision's ColorJitter, in its random order of the four (TF-Slim draws one of four
    orders, and its fast mode leaves hue and contrast out), with a brightness that is multiplied, not added; resizing
    is bilinear and antialiased; a crop need not cover a tenth of the image, where TF-Slim's must.
    """
    return Preprocessing(
        train=transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.05, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(brightness=32 / 255, contrast=0.5, saturation=0.5, hue=0.2),
            ]
        ),
        evaluation=transforms.Compose([transforms.Lambda(centre), transforms.Resize((size, size))]),
        mean=torch.full((3,), 127.5),
        std=torch.full((3,), 127.5),
    )


def centre(image: Image | Tensor) -> Image | Tensor:
    """The central 87.5 % of each side, at least a pixel."""
    height, width = (max(1, round(0.875 * side)) for side in transforms.functional.get_size(image))
    cropped: Image | Tensor = transforms.functional.center_crop(image, [height, width])
    return cropped
