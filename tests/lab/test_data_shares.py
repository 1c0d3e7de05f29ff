"""Several processes: their shares of an epoch together are the epoch of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from untied import UntiedError
from untied.lab.data import Batch, DataConfig, Dataset, Loader, load

SYNTHETIC = DataConfig(
    "synthetic",
    synthetic_shape=(3, 16, 16),
    synthetic_count=100,
    batch_size=12,
    evaluation_batch_size=7,
    augment="standard",
)


@pytest.fixture(params=["tensors", "folder"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    if request.param == "tensors":
        return load(SYNTHETIC, seed=3)
    noise = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 8)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.png")
    return load(replace(SYNTHETIC, name="folder", root=tmp_path, image_size=16, workers=0), seed=3)


def parts(loader: Loader, count: int, start: int = 0) -> list[list[Batch]]:
    return [list(loader.epoch(5, start, share=(rank, count))) for rank in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_of_a_batch_make_the_batch(dataset: Dataset, count: int) -> None:
    whole = list(dataset.train.epoch(5))
    shares = parts(dataset.train, count)
    assert [len(share) for share in shares] == [len(dataset.train)] * count
    for batch, *pieces in zip(whole, *shares, strict=True):
        assert [len(labels) for _, labels in pieces] == [12 // count] * count
        for tensor, *piece in zip(batch, *pieces, strict=True):
            assert torch.equal(tensor, torch.cat(piece))


def test_a_share_goes_on_where_it_was_interrupted(dataset: Dataset) -> None:
    for share, rest in zip(parts(dataset.train, 2), parts(dataset.train, 2, start=1), strict=True):
        for (images, labels), (x, y) in zip(share[1:], rest, strict=True):
            assert torch.equal(images, x) and torch.equal(labels, y)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_evaluation_sees_every_image_once(dataset: Dataset, count: int) -> None:
    whole = list(dataset.test.epoch(5))
    shares = parts(dataset.test, count)
    assert all(len(labels) for share in shares for _, labels in share)  # the last batch is smaller than count
    images = torch.cat([images for share in shares for images, _ in share])
    expected = torch.cat([images for images, _ in whole])
    assert len(images) == len(expected) == dataset.test.size
    assert torch.equal(images.flatten(1).sum(1).sort().values, expected.flatten(1).sum(1).sort().values)


def test_a_batch_that_cannot_be_shared(dataset: Dataset) -> None:
    with pytest.raises(UntiedError, match=r"batch_size is 12, which 5 processes cannot share .* such as 15"):
        dataset.train.epoch(0, share=(0, 5))
    with pytest.raises(UntiedError, match=r"share is \(2, 2\)"):
        dataset.test.epoch(0, share=(2, 2))
