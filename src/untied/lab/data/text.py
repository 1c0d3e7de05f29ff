"""A small text, a character at a time: scikit-learn's descriptions of its data sets, which are installed with it."""

from __future__ import annotations

from importlib.resources import files

import torch
from torch.utils.data import TensorDataset

from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset
from untied.lab.data.items import Part, from_parts

__all__ = ["LENGTH", "load_text"]

LENGTH = 32
"""Characters in an example."""


def load_text(config: DataConfig, *, seed: int, device: torch.device | str) -> Dataset:
    """Inputs are (n, 32) characters, as numbers; targets the characters that follow each of them.

    The last fifth of the text is the test split, and of the rest the last part is validation: no sentence is in two
    splits. With another version of scikit-learn the text may be another; environment.json has the version.
    """
    folder = files("sklearn.datasets.descr")
    pages = sorted((page for page in folder.iterdir() if page.name.endswith(".rst")), key=lambda page: page.name)
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    tokens = torch.tensor([number[character] for character in text])
    blocks = tokens[: (len(tokens) - 1) // LENGTH * LENGTH + 1].unfold(0, LENGTH + 1, LENGTH)
    items = Part(TensorDataset(blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()))
    return from_parts(
        "text of scikit-learn", in_order(items, config.validation), config, seed=seed, device=device,
        classes=characters, task="next-token",
    )  # fmt: skip


def in_order(items: Part, validation: float) -> dict[str, Part]:
    """Splits of a sequence, one after the other: training, validation, and the last fifth, the test split."""
    known = len(items) * 4 // 5
    kept = known - round(validation * known)
    order = torch.arange(len(items))
    return {"train": items.only(order[:kept]), "validation": items.only(order[kept:known]),
            "test": items.only(order[known:])}  # fmt: skip
