"""Which images go where: a function of the labels alone, the same for every seed of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from untied.errors import UntiedError

__all__ = ["split"]

SEED = 2020  # one split for every run, so that runs with different seeds can be compared and averaged


def split(labels: Tensor, fraction: float, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """Divide images into those kept and those held out, class by class.

    Args:
        labels: (n,) class of each image.
        fraction: of each class to hold out, rounded to whole images.
        limit: keep at most so many images of each class. What is held out does not depend on it.

    Returns:
        The indices kept and the indices held out, each sorted; they have nothing in common.

    Raises:
        UntiedError: the fraction leaves a class without an image, or asks for a split that would be empty.
    """
    generator = torch.Generator().manual_seed(SEED)
    kept, held = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = round(fraction * len(members))
        if count == len(members):
            raise UntiedError(
                f"holding out {fraction:g} of class {label} leaves none of its {count} images: hold out less"
            )
        held.append(members[:count])
        kept.append(members[count:][:limit])
    if fraction > 0 and not any(map(len, held)):
        raise UntiedError(
            f"holding out {fraction:g} of each class is less than half an image of any: hold out more, or 0"
        )
    return torch.cat(kept).sort().values, torch.cat(held).sort().values
