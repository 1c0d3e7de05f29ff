"""Data sets for the lab, with training, validation and test splits.

    dataset = load(DataConfig("digits", batch_size=32), seed=0)
    for images, labels in dataset.train.epoch(3):  # the batches of epoch 3: a function of (seed, 3) alone
        ...

The splits never depend on the seed: validation is a fixed part of the training images, drawn class by class,
and the test split is the data set's own. Images come as float (n, channels, height, width), normalised by the
mean and standard deviation of the training split (image folders and shards: by those of their preprocessing);
labels as long (n,).
"""

from __future__ import annotations

import torch

from untied.errors import UntiedError
from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.sources import SOURCES, Source
from untied.lab.data.splits import split
from untied.lab.data.tensors import Normalise, TensorLoader, check

__all__ = ["Batch", "DataConfig", "Dataset", "Loader", "Source", "from_source", "load"]


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
        from untied.lab.data.folders import load_folder  # here, as it needs torchvision, which is slow to import

        return load_folder(config, seed=seed, device=device)
    if config.name == "shards":
        from untied.lab.data.shard_loader import load_shards

        return load_shards(config, seed=seed, device=device)
    if config.name == "text":
        from untied.lab.data.text import load_text

        return load_text(config, seed=seed, device=device)
    if config.name == "series":
        from untied.lab.data.series import load_series

        return load_series(config, seed=seed, device=device)
    if config.is_own:
        from untied.lab.data.items import load_own

        return load_own(config, seed=seed, device=device)
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
