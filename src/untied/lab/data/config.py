"""What the user says about the data."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from untied.errors import UntiedError
from untied.lab.reading import own
from untied.lab.reading.edges import bounded
from untied.lab.reading.fields import Rare

__all__ = ["Augment", "DataConfig", "DataName", "Decoder", "Preprocess"]

DataName = Literal[
    "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "folder", "shards", "synthetic", "text", "series"
]  # fmt: skip
Augment = Literal["none", "standard"]
Preprocess = Literal["resnet", "inception"]
Decoder = Literal["pillow", "simplejpeg"]

GENERATED = ("text", "series")
DOWNLOADABLE = ("mnist", "fashion-mnist", "cifar10", "cifar100")


@dataclass(frozen=True)
class DataConfig:
    """Which data set, how it is split, and how it is served.

    Raises:
        UntiedError: a value is impossible, or two contradict each other.
    """

    name: str = "digits"
    """The data set: digits (shipped with scikit-learn), mnist, fashion-mnist, cifar10, cifar100, folder, shards,
    synthetic, text (characters of a text that scikit-learn ships) or series (a chaotic time series). Your own function
    that returns torch Datasets is package.module:function or path/to/file.py:function. A folder holds
    root/train/CLASS/IMAGE and root/val. Shards are root/train/*.tar and root/val/*.tar, as untied shards packs a
    folder."""
    root: Path | None = None
    """Where the data lies: a folder in torchvision's layout (default: data), the folder of MNIST's raw files,
    gzipped or not, an .npz of JPEG images for cifar10, an image folder, or a folder of shards."""
    download: bool = False
    """Whether MNIST, Fashion-MNIST or CIFAR is fetched into root where it is missing."""
    batch_size: int = 64
    """How many examples a training step has. An epoch leaves its incomplete last batch out."""
    evaluation_batch_size: Rare[int] = 500
    """How many examples a batch of validation or test has."""
    validation: float = 0.1
    """The fraction of each class's training images that is held out for model selection, in place of the test split. Of
    shards the last ones are held out, whole, and at least one."""
    augment: Augment = "none"
    """Whether training images are varied. With standard they are shifted by up to an eighth of the image, and all but
    digits are mirrored. Of a folder or shards, standard is the training half of preprocessing."""
    preprocessing: Rare[Preprocess] = "resnet"
    """How a folder or shards are cropped and scaled. With resnet there are random resized crops and mirroring,
    ImageNet's mean and deviation. With inception there are also smaller crops and colour distortion, and values from -1
    to 1, for v2 ResNets at 299."""
    decoder: Rare[Decoder] = "pillow"
    """What decodes the JPEG files of a folder or shards. simplejpeg is the faster one, and comes with the
    extra images. Its pixels are the same, and resizing them differs by a rounding."""
    image_size: Rare[int | None] = None
    """The side in pixels of what a folder or shards yield. By default it is 224, or 299 for inception."""
    strict: Rare[bool] = False
    """Whether an image that cannot be read ends the run. Otherwise it is named, counted and passed over."""
    limit: Rare[int | None] = None
    """The most training images of each class, counted after validation is held out. Shards do not have it."""
    workers: Rare[int] = 2
    """How many processes decode a folder or shards. 0 decodes in the main process. They do not change what is read."""
    synthetic_shape: Rare[tuple[int, int, int]] = (3, 32, 32)
    """The channels, height and width of synthetic images."""
    synthetic_classes: Rare[int] = 10
    """The number of classes of synthetic images."""
    synthetic_count: Rare[int] = 1000
    """The number of synthetic training images, validation included. There are a quarter as many test images."""

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root).expanduser())  # text will do, and so will ~
        if self.name not in get_args(DataName) and not own.is_own("data", self.name):
            known = (*get_args(DataName), *own.offered("data"))
            near = difflib.get_close_matches(str(self.name), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UntiedError(
                f"unknown data set {self.name!r}: possible are {', '.join(known)}, and your own as "
                f"package.module:function{hint}"
            )
        sizes = dict.fromkeys(("image_size",), 2**14) | dict.fromkeys(("synthetic_classes", "synthetic_count"), 10**8)
        bounded(self, batch_size=10**9, evaluation_batch_size=10**9, workers=1024, limit=10**9, **sizes)
        for field, possible in (
            ("augment", get_args(Augment)),
            ("preprocessing", get_args(Preprocess)),
            ("decoder", get_args(Decoder)),
        ):
            if (given := getattr(self, field)) not in possible:
                raise UntiedError(f"unknown {field} {given!r}: possible are {', '.join(possible)}")
        for field in (
            "batch_size",
            "evaluation_batch_size",
            "image_size",
            "synthetic_classes",
            "synthetic_count",
        ):
            if (number := getattr(self, field)) is not None and number < 1:
                raise UntiedError(f"{field} is {number}: it must be at least 1")
        if self.workers < 0:
            raise UntiedError(f"workers is {self.workers}: it must be 0 (read in the main process) or more")
        if not 0 <= self.validation < 1:
            raise UntiedError(f"validation is {self.validation}: it is a fraction, at least 0 and below 1")
        if self.limit is not None and self.limit < 1:
            raise UntiedError(f"limit is {self.limit}: it must be at least 1 image per class, or left out")
        if len(self.synthetic_shape) != 3 or min(self.synthetic_shape) < 1:
            raise UntiedError(f"synthetic_shape is {self.synthetic_shape}: it must be positive channels, height, width")
        if self.name in (*GENERATED, "digits", "synthetic") and self.root is not None:
            raise UntiedError(
                f"root is {str(self.root)!r} but {self.name} reads no files: leave root out, or change name"
            )
        if self.name in ("folder", "shards") and self.root is None:
            raise UntiedError(f"data {self.name} needs root, the path that holds train/ and val/")
        if self.name == "shards" and self.limit is not None:
            raise UntiedError("limit needs the class of every image, which shards do not list: leave it out")
        if self.decoder != "pillow" and self.name not in ("folder", "shards"):
            raise UntiedError(
                f"decoder is {self.decoder}, but {self.name} has no image files: it is for folder and shards"
            )
        if self.is_own or self.name in GENERATED:
            way_out = "is data of your own: do it in its Dataset" if self.is_own else "has no images: leave it out"
            for field in ("limit", "augment", "image_size"):
                if getattr(self, field) not in (None, "none"):
                    raise UntiedError(f"{field} is set, but {self.name} {way_out}")
        if not self.is_own and self.download and self.name not in DOWNLOADABLE:
            raise UntiedError(
                f"download is set, but {self.name} needs none: leave it out, or choose one of {', '.join(DOWNLOADABLE)}"
            )

    @property
    def is_own(self) -> bool:
        """Whether a user's function, or an installed package, makes the data."""
        return self.name not in get_args(DataName)

    @property
    def size(self) -> int:
        """Side in pixels of what a folder or shards yield."""
        return self.image_size or {"resnet": 224, "inception": 299}[self.preprocessing]
