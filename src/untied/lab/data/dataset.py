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
