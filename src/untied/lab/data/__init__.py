"""Data sets for the lab, with training, validation and test splits.

    dataset = load(DataConfig("digits", batch_size=32), seed=0)
    for images, labels in dataset.train.epoch(3):  # the batches of epoch 3: a function of (seed, 3) alone
        ...

The splits never depend on the seed: validation is a fixed part of the training images, drawn class by class,
and the test split is the data set's own. Images come as float (n, channels, height, width), normalised by the
mean and standard deviation of the training split (image folders: by ImageNet's); labels as long (n,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from untied.errors import UntiedError
from untied.lab.data.config import DataConfig
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.sources import SOURCES, Source
from untied.lab.data.splits import split
from untied.lab.data.tensors import Normalise, TensorLoader, check

__all__ = ["Batch", "DataConfig", "Dataset", "Loader", "Source", "from_source", "load"]


@dataclass(frozen=True)
class Dataset:
    """Three loaders and what a model needs to know about them."""

    name: str
    """For display, such as "CIFAR-10 (JPEG)"."""
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    """Channels, height, width."""
    train: Loader
    validation: Loader
    """No images, and no batches, where the configured fraction is 0."""
    test: Loader

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": self.train.size, "validation": self.validation.size, "test": self.test.size}

    def __str__(self) -> str:
        sizes = ", ".join(f"{size:,} {split}" for split, size in self.sizes.items())
        shape = "×".join(map(str, self.input_shape))
        return f"{self.name}: {sizes} images of {shape}, {len(self.classes)} classes"


def load(config: DataConfig, *, seed: int, device: torch.device | str = "cpu") -> Dataset:
    """Read a data set.

    Args:
        config: which one, and how.
        seed: with the epoch, it decides the order and augmentation of the training images, and nothing else.
        device: where the batches are wanted; small data sets are held there whole.

    Raises:
        UntiedError: files are missing or damaged, values are NaN, or sizes do not fit together.
    """
    if config.name == "folder":
        return _folder(config, seed, device)
    return from_source(SOURCES[config.name](config), config, seed=seed, device=device)


def from_source(source: Source, config: DataConfig, *, seed: int, device: torch.device | str = "cpu") -> Dataset:
    """Split and serve a data set that is in memory, such as one's own tensors."""
    check("training", source.train_images, source.train_labels, len(source.classes))
    check("test", source.test_images, source.test_labels, len(source.classes))
    channels, height, width = shape = tuple(source.train_images.shape[1:])
    if shape != (test_shape := tuple(source.test_images.shape[1:])):
        raise UntiedError(f"training images are {shape} and test images {test_shape}: they must have the same shape")
    kept, held = split(source.train_labels, config.validation, config.limit)
    train, labels = source.train_images[kept], source.train_labels[kept].to(device)
    normalise = Normalise.fit(train, device)
    size = config.evaluation_batch_size
    standard = config.augment == "standard"
    return Dataset(
        source.name,
        source.classes,
        (channels, height, width),
        TensorLoader(
            train.to(device),
            labels,
            normalise,
            config.batch_size,
            seed=seed,
            reach=min(height, width) // 8 if standard else 0,
            mirror=source.mirror and standard,
        ),
        TensorLoader(source.train_images[held].to(device), source.train_labels[held].to(device), normalise, size),
        TensorLoader(source.test_images.to(device), source.test_labels.to(device), normalise, size),
    )


def _folder(config: DataConfig, seed: int, device: torch.device | str) -> Dataset:
    """Training and validation from root/train; the test split is root/val, or root/test without a val."""
    from untied.lab.data.folders import (  # here, as they need torchvision, which is slow to import
        IMAGENET_MEAN,
        IMAGENET_STD,
        FolderLoader,
        ImageFiles,
        cropped,
        list_images,
        randomly_cropped,
    )

    assert config.root is not None  # DataConfig has seen to it
    if not config.root.is_dir():
        raise UntiedError(f"no folder {config.root}: root must hold train/CLASS/IMAGE and val/CLASS/IMAGE")
    classes, files, labels = list_images(config.root / "train")
    test_folder = next((path for path in (config.root / "val", config.root / "test") if path.is_dir()), None)
    if test_folder is None:
        raise UntiedError(f"{config.root} has train/ but neither val/ nor test/: add one, it is the test split")
    test_classes, test_files, test_labels = list_images(test_folder)
    if test_classes != classes:
        differing = ", ".join(sorted(set(classes) ^ set(test_classes))[:3])
        raise UntiedError(
            f"{config.root}: train/ has {len(classes)} classes and {test_folder.name}/ {len(test_classes)}, "
            f"and they differ in {differing}: both need the same subfolders"
        )
    kept, held = split(labels, config.validation, config.limit)
    evaluated = cropped(config.image_size)
    trained = randomly_cropped(config.image_size) if config.augment == "standard" else evaluated
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, device)

    def loader(images: ImageFiles, batch_size: int, seed: int | None = None) -> FolderLoader:
        return FolderLoader(images, normalise, batch_size, device=device, workers=config.workers, seed=seed)

    return Dataset(
        config.root.resolve().name,
        classes,
        (3, config.image_size, config.image_size),
        loader(ImageFiles([files[i] for i in kept], labels[kept], trained), config.batch_size, seed),
        loader(ImageFiles([files[i] for i in held], labels[held], evaluated), config.evaluation_batch_size),
        loader(ImageFiles(test_files, test_labels, evaluated), config.evaluation_batch_size),
    )
