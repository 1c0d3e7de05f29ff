"""What a data set is, once it has been opened."""

from __future__ import annotations

from dataclasses import dataclass

from untied.lab.data.loader import Loader

__all__ = ["Dataset"]


@dataclass(frozen=True)
class Dataset:
    """Three loaders and what a model needs to know about them."""

    name: str
    """For display, such as "CIFAR-10 (JPEG)"."""
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    """Of an input: channels, height, width of images."""
    train: Loader
    validation: Loader
    """No images, and no batches, where the configured fraction is 0."""
    test: Loader
    task: str = "classification"
    """What the data are for, unless the user says otherwise."""
    outputs: int = 0
    """How many outputs a network needs; by default one for each class."""
    vocabulary: int = 0
    """Number of tokens, where inputs are tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", self.outputs or len(self.classes))

    @property
    def sizes(self) -> dict[str, int]:
        """Images in each split."""
        return {"train": self.train.size, "validation": self.validation.size, "test": self.test.size}

    def __str__(self) -> str:
        sizes = ", ".join(f"{size:,} {split}" for split, size in self.sizes.items())
        what = "images" if self.task == "classification" and len(self.input_shape) == 3 else "examples"
        shape = "×".join(map(str, self.input_shape)) if isinstance(self.input_shape, tuple) else str(self.input_shape)
        kinds = "tokens" if self.vocabulary else "classes"
        return f"{self.name}: {sizes} {what} of {shape}" + (f", {len(self.classes)} {kinds}" if self.classes else "")
