"""Where small data sets come from: each function reads one kind of file into whole tensors."""

from __future__ import annotations

import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.data.config import DataConfig
from untied.lab.data.splits import split

if TYPE_CHECKING:
    import torchvision

__all__ = ["SOURCES", "Source", "read_idx"]

DEFAULT_ROOT = Path("data")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Source:
    """A data set in memory, before it is split into training and validation.

    Images are (n, channels, height, width), uint8 or float, of one shape; labels are (n,) long.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mirror: bool = False
    """Whether a mirrored image is still of its class (not so for digits)."""


@lru_cache(maxsize=1)  # a worker asks for another split with every seed
def digits(config: DataConfig) -> Source:
    """1,797 scans of handwritten digits, 8x8 (Alpaydin and Kaynak, 1998), shipped with scikit-learn.

    They come without a test split; a fixed quarter of each class is it.
    """
    from sklearn.datasets import load_digits  # here, as it is slow to import and only this needs it

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1)
    labels = torch.from_numpy(data.target).long()
    train, test = split(labels, 0.25)
    classes = tuple(map(str, range(10)))
    return Source("handwritten digits", classes, images[train], labels[train], images[test], labels[test])


def mnist(config: DataConfig) -> Source:
    """MNIST (LeCun et al., 1998) from its raw files."""
    return _idx_files(config, "MNIST", "MNIST", tuple(map(str, range(10))), mirror=False)


def fashion_mnist(config: DataConfig) -> Source:
    """Fashion-MNIST (Xiao et al., 2017) from its raw files."""
    return _idx_files(config, "Fashion-MNIST", "FashionMNIST", FASHION, mirror=True)


def _idx_files(config: DataConfig, name: str, torchvision_name: str, classes: tuple[str, ...], mirror: bool) -> Source:
    root = config.root or DEFAULT_ROOT
    folders = (root, root / torchvision_name / "raw")

    def find(stem: str) -> Path | None:
        paths = (folder / (stem + suffix) for folder in folders for suffix in ("", ".gz"))
        return next((path for path in paths if path.is_file()), None)

    stems = [f"{half}-{kind}" for half in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if config.download and not all(map(find, stems)):
        import torchvision  # here, as it is slow to import

        _download(config, root, getattr(torchvision.datasets, torchvision_name))
    paths = [find(stem) for stem in stems]
    arrays = []
    for stem, path in zip(stems, paths, strict=True):
        if path is None:
            looked = " or ".join(map(str, folders))
            raise UntiedError(
                f"{config.name}: no {stem}, gzipped or not, in {looked}: give the folder as root, or download=True"
            )
        arrays.append(torch.from_numpy(read_idx(path)))
    train_images, train_labels, test_images, test_labels = arrays
    return Source(
        name,
        classes,
        train_images.unsqueeze(1),
        train_labels.long(),
        test_images.unsqueeze(1),
        test_labels.long(),
        mirror,
    )


def read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes in MNIST's IDX format, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit number, the values.

    Raises:
        UntiedError: the file cannot be read, is of another format, or is cut short.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UntiedError(f"cannot read {path} ({error}): download it again") from error
    dimensions = raw[3] if len(raw) > 3 else 0
    start = 4 + 4 * dimensions
    if raw[:3] != b"\0\0\x08" or not 1 <= dimensions <= 3 or len(raw) < start:
        raise UntiedError(f"{path} is not an IDX file of unsigned bytes, as MNIST's are: download it again")
    shape = np.frombuffer(raw, ">u4", dimensions, 4).tolist()
    if len(raw) != start + math.prod(shape):
        raise UntiedError(
            f"{path} has {len(raw) - start} values, its header says {math.prod(shape)}: download it again"
        )
    return (
        np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
    )  # a copy can be written to, as torch expects


def cifar10(config: DataConfig) -> Source:
    """CIFAR-10 (Krizhevsky, 2009) in torchvision's layout, or from an .npz of JPEG images."""
    if config.root is not None and config.root.suffix == ".npz":
        return _jpeg_archive(config.root)
    import torchvision

    return _cifar(config, "CIFAR-10", torchvision.datasets.CIFAR10)


def cifar100(config: DataConfig) -> Source:
    """CIFAR-100 (Krizhevsky, 2009) in torchvision's layout."""
    import torchvision

    return _cifar(config, "CIFAR-100", torchvision.datasets.CIFAR100)


def _cifar(config: DataConfig, name: str, dataset: Callable[..., torchvision.datasets.CIFAR10]) -> Source:
    root = config.root or DEFAULT_ROOT
    if config.download:
        _download(config, root, dataset)
    try:  # torchvision compares checksums before it reads a file
        train, test = dataset(str(root), train=True), dataset(str(root), train=False)
    except (RuntimeError, OSError) as error:
        folder = root / getattr(dataset, "base_folder", "")
        raise UntiedError(
            f"{config.name}: no complete data in {folder}: give its parent as root, or download=True"
        ) from error

    def images(half: torchvision.datasets.CIFAR10) -> Tensor:
        return torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous()

    return Source(
        name,
        tuple(train.classes),
        images(train),
        torch.tensor(train.targets),
        images(test),
        torch.tensor(test.targets),
        mirror=True,
    )


def _download(config: DataConfig, root: Path, dataset: Callable[..., object]) -> None:
    try:
        dataset(str(root), download=True)
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UntiedError(f"{config.name}: could not download into {root}: {reason}") from error


def _jpeg_archive(path: Path) -> Source:
    """CIFAR-10 recompressed as JPEG, about a tenth of the size. Lossy, so its name says so.

    Image i is ``header + data[offsets[i]:offsets[i + 1]]`` and ``labels[i]`` its class; ``split[i]`` is 0 for
    training, 1 for test; ``classes`` are the names.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            fields = {name: archive[name] for name in ("header", "data", "offsets", "labels", "split", "classes")}
    except KeyError as error:
        raise UntiedError(f"{path} has no field {error.args[0].split()[0]}: it must have {_FIELDS}") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UntiedError(f"cannot read {path} ({error}): give an .npz with {_FIELDS}") from error
    for name, field in fields.items():
        if field.ndim != 1 or (name != "classes" and field.dtype.kind not in "biuf"):
            kind = f"{field.dtype} of shape {field.shape}"
            raise UntiedError(
                f"{path}: {name} is {kind}: it must be a list of {'names' if name == 'classes' else 'numbers'}"
            )
    header, data, offsets = fields["header"].tobytes(), fields["data"].tobytes(), fields["offsets"].tolist()
    labels = torch.from_numpy(fields["labels"].astype(np.int64))
    test = torch.from_numpy(fields["split"] == 1)
    if not len(offsets) - 1 == len(labels) == len(test):
        raise UntiedError(
            f"{path} has {len(labels)} labels, {len(test)} entries in split and {len(offsets)} offsets: "
            "it must have as many of each, and one more offset"
        )
    images = torch.empty(len(labels), 3, 32, 32, dtype=torch.uint8)
    for i, (start, stop) in enumerate(pairwise(offsets)):
        try:
            image = np.array(Image.open(io.BytesIO(header + data[start:stop])).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise UntiedError(
                f"cannot read image {i} of {path} ({type(error).__name__}): make the file again"
            ) from error
        if image.shape != (32, 32, 3):
            raise UntiedError(f"image {i} of {path} is {image.shape[1]}x{image.shape[0]} pixels: CIFAR-10 is 32x32")
        images[i] = torch.from_numpy(image).permute(2, 0, 1)
    classes = tuple(map(str, fields["classes"]))
    return Source("CIFAR-10 (JPEG)", classes, images[~test], labels[~test], images[test], labels[test], mirror=True)


_FIELDS = "header, data, offsets, labels, split, classes"


def synthetic(config: DataConfig) -> Source:
    """One random picture for each class, plus Gaussian noise of standard deviation 1: for timing and tests.

    The pictures of two classes are some 8 standard deviations of the noise apart, whatever the shape, so that
    the classes can be told apart. The data does not depend on the seed of a run.
    """
    generator = torch.Generator().manual_seed(0)
    shape, classes = config.synthetic_shape, config.synthetic_classes
    pictures = 8 / math.sqrt(2 * math.prod(shape)) * torch.randn(classes, *shape, generator=generator)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % classes
        return pictures[labels] + torch.randn(count, *shape, generator=generator), labels

    train, test = draw(config.synthetic_count), draw(-(-config.synthetic_count // 4))
    return Source("synthetic", tuple(map(str, range(classes))), *train, *test, mirror=True)


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "synthetic": synthetic,
}
