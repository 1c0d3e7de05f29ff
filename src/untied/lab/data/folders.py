"""Folders of images, one subfolder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import ImageFolder

from untied.errors import UntiedError
from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset
from untied.lab.data.images import ImageLoader, Item
from untied.lab.data.loader import Batch, Loader
from untied.lab.data.preprocessing import preprocessing
from untied.lab.data.splits import split
from untied.lab.data.tensors import Normalise
from untied.lab.reading.edges import printable

__all__ = ["FolderLoader", "folder_of_test", "list_images", "list_splits", "load_folder"]


def list_images(folder: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """The classes (names of subfolders, sorted), the files, and their labels (n,).

    Raises:
        UntiedError: there is no such folder, it has no subfolders, or one of them has no images.
    """
    if not folder.is_dir():
        raise UntiedError(f"no folder {folder}: an image folder holds train/CLASS/IMAGE and val/CLASS/IMAGE")
    try:
        for entry in sorted(folder.iterdir()):
            expect_plain(entry, folder)
        found = ImageFolder(str(folder))
    except OSError as error:
        raise UntiedError(f"{' '.join(str(error).split())}: each class needs a subfolder with images") from error
    files, labels = zip(*found.samples, strict=True)
    return tuple(map(printable, found.classes)), list(files), torch.tensor(labels)


def expect_plain(entry: Path, within: Path) -> None:
    """Raise UntiedError at the first thing in a split that would be an image twice, another's, or no file at all.

    A link may lead to an image of its own class. ImageFolder follows every other one too: into a loop, into another
    class, or out of the folder, wherever whoever packed it wanted to look.
    """
    shown = printable(str(entry))
    if entry.is_symlink():
        try:
            target = entry.resolve(strict=True)
        except (OSError, RuntimeError):
            raise UntiedError(f"{shown} is a link that leads nowhere, or in a circle: remove it") from None
        if not target.is_relative_to(within.resolve()):
            raise UntiedError(f"{shown} is a link out of {within}: put the file itself there, or a copy")
        if target.is_dir() or target.parent != entry.parent.resolve():
            raise UntiedError(f"{shown} is a link to {printable(str(target))}, whose images would be there twice")
        return
    if not entry.is_dir():
        return
    with os.scandir(entry) as inner:  # the kinds of entries come with their names: no look at each file
        for each in inner:
            if each.is_symlink() or each.is_dir(follow_symlinks=False):
                expect_plain(Path(each.path), within)
            elif not each.is_file(follow_symlinks=False):
                raise UntiedError(f"{printable(each.path)} is a pipe, socket or device: only regular files are read")


def folder_of_test(root: Path) -> Path:
    """root/val, or root/test without a val.

    Raises:
        UntiedError: there is neither.
    """
    for folder in (root / "val", root / "test"):
        if folder.is_dir():
            return folder
    raise UntiedError(f"{root} has train/ but neither val/ nor test/: add one, it is the test split")


def list_splits(root: Path) -> tuple[tuple[str, ...], dict[str, tuple[list[str], Tensor]]]:
    """The classes, and the files and labels in train and in val or test, by the name of the folder.

    Raises:
        UntiedError: a folder is missing or empty, or the two have different classes.
    """
    if not root.is_dir():
        raise UntiedError(f"no folder {root}: root must hold train/CLASS/IMAGE and val/CLASS/IMAGE")
    classes, train_files, train_labels = list_images(root / "train")
    tested = folder_of_test(root)
    test_classes, test_files, test_labels = list_images(tested)
    if test_classes != classes:
        differing = ", ".join(sorted(set(classes) ^ set(test_classes))[:3])
        raise UntiedError(
            f"{root}: train/ has {len(classes)} classes and {tested.name}/ {len(test_classes)}, "
            f"and they differ in {differing}: both need the same subfolders"
        )
    return classes, {"train": (train_files, train_labels), tested.name: (test_files, test_labels)}


class FolderLoader(ImageLoader):
    """Batches from image files. See ``Loader``; what follows labels is ``ImageLoader``'s."""

    def __init__(self, files: Sequence[str], labels: Tensor, *arguments: Any, **options: Any) -> None:
        super().__init__(len(files), *arguments, **options)
        self.files = files
        self.labels = labels

    def still(self, like: Loader) -> FolderLoader:
        arguments, options = self.as_in(like)
        return FolderLoader(self.files, self.labels, *arguments, **options)

    def read(self, generator: torch.Generator, start: int, share: tuple[int, int]) -> Iterator[Batch]:
        # drawn for the whole epoch at once, so that leaving out batches or parts of them changes no other
        keys = torch.randint(2**62, (self.size,), generator=generator)
        batches = (
            [
                Item(self.files[number], None, label, key)
                for number, label, key in zip(
                    *(t.tolist() for t in (index, self.labels[index], keys[index])), strict=True
                )
            ]
            for index in self.batches(generator, start, share)
        )
        return self.serve(batches)


def load_folder(config: DataConfig, *, seed: int, device: torch.device | str) -> Dataset:
    """Training and validation from root/train; the test split is root/val, or root/test without a val."""
    assert config.root is not None  # DataConfig has seen to it
    classes, splits = list_splits(config.root)
    (files, labels), (test_files, test_labels) = splits.values()
    kept, held = split(labels, config.validation, config.limit)
    chosen = preprocessing(config)
    normalise = Normalise(chosen.mean, chosen.std, device)
    options: dict[str, Any] = dict(
        device=device, workers=config.workers, strict=config.strict, decoded_by=config.decoder
    )
    evaluation = (chosen.evaluation, normalise, config.evaluation_batch_size)
    return Dataset(
        config.root.resolve().name,
        classes,
        (3, config.size, config.size),
        FolderLoader(
            [files[i] for i in kept], labels[kept], chosen.train, normalise, config.batch_size, seed=seed, **options
        ),
        FolderLoader([files[i] for i in held], labels[held], *evaluation, **options),
        FolderLoader(test_files, test_labels, *evaluation, **options),
    )
