"""Image files: what is done about damaged ones, and how they are cropped and scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from untied import UntiedError
from untied.lab.data import DataConfig, load
from untied.lab.data.images import Damaged, collate
from untied.lab.data.preprocessing import inception, preprocessing, resnet

fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of JPEG pictures of one colour each, 8 for training and 4 for test."""
    for part, count in (("train", 8), ("val", 4)):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((40, 50, 3), 100 * number + 10 * i, dtype=np.uint8)
                pixels[:3] = np.random.default_rng(i).integers(0, 256, (3, 50, 3))  # so that it is not tiny
                Image.fromarray(pixels).save(tmp_path / part / label / f"{i}.jpg")
    return tmp_path


def config(root: Path, **changes: object) -> DataConfig:
    common = DataConfig(
        "folder", root=root, image_size=32, batch_size=8, validation=0, workers=0, evaluation_batch_size=5
    )
    return replace(common, **changes)  # type: ignore[arg-type]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(b"<html>not found</html>")


@fork
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated"),
        (empty, "an empty file"),
        (garble, "not an image of a known format"),
        (Path.unlink, "No such file"),
    ],
)
def test_a_damaged_image_is_named_and_passed_over(root: Path, damage: object, reason: str, workers: int) -> None:
    dataset = load(config(root, workers=workers), seed=0)
    whole = list(dataset.train.epoch(2)), list(dataset.test)
    assert dataset.train.damaged == dataset.test.damaged == {}
    bad = [root / part / "dog" / "1.jpg" for part in ("train", "val")]
    for path in bad:
        damage(path)  # type: ignore[operator]  # after loading: it happens while a run goes on

    batches = list(dataset.train.epoch(2))
    assert [len(labels) for _, labels in batches] == [8, 8]
    differing = [
        (batch, row)
        for batch, ((images, _), (before, _)) in enumerate(zip(batches, whole[0], strict=True))
        for row in range(8)
        if not torch.equal(images[row], before[row])
    ]
    ((batch, row),) = differing
    following = (row + 1) % 8  # the next readable image stands in
    assert torch.equal(batches[batch][0][row], batches[batch][0][following])
    assert batches[batch][1][row] == batches[batch][1][following]

    assert [len(labels) for _, labels in dataset.test] == [5, 2]
    assert torch.equal(torch.cat([labels for _, labels in dataset.test]), torch.tensor([0] * 4 + [1] * 3))
    for loader, path in zip((dataset.train, dataset.test), bad, strict=True):
        assert list(loader.damaged) == [str(path)] and reason in loader.damaged[str(path)]
        assert "\n" not in loader.damaged[str(path)]


def test_a_batch_without_a_readable_image(root: Path) -> None:
    """In training it is an error, for there is nothing to fill it with; in evaluation its images do not count."""
    for path in root.glob("*/*/*"):
        truncate(path)
    data = load(config(root), seed=0)
    with pytest.raises(UntiedError, match=r"cannot read any image of a batch, such as .*\.jpg") as caught:
        list(data.train.epoch(0))
    assert "\n" not in str(caught.value)
    assert list(data.test) == [] and len(data.test.damaged) == data.test.size


@pytest.mark.parametrize(
    ("readable", "filled"),
    [("a.cd", "accd"), ("ab..", "abaa"), ("...d", "dddd"), ("a..d.", "addda"), ("abc", "abc")],
)
def test_the_next_readable_image_stands_in(readable: str, filled: str) -> None:
    items: list[tuple[Tensor, int] | Damaged] = [
        Damaged(str(i), "torn") if c == "." else (torch.tensor([ord(c)]), ord(c)) for i, c in enumerate(readable)
    ]
    images, labels, damaged = collate(items, fill=True)
    assert "".join(map(chr, labels.tolist())) == filled and torch.equal(images[:, 0], labels)
    assert list(damaged) == [str(i) for i, c in enumerate(readable) if c == "."]
    _, labels, _ = collate(items)
    assert "".join(map(chr, labels.tolist())) == readable.replace(".", "")


# preprocessing


def test_the_size_follows_the_preprocessing() -> None:
    assert DataConfig().size == 224 and DataConfig(preprocessing="inception").size == 299
    assert DataConfig(preprocessing="inception", image_size=64).size == 64


def test_evaluation_crops() -> None:
    ramp = Image.fromarray(np.broadcast_to(np.arange(160, dtype=np.uint8)[:, None, None], (160, 320, 3)).copy())
    cropped = np.asarray(resnet(56).evaluation(ramp)).astype(int)[:, 0, 0]  # 160 to 64 pixels, the central 56 of which
    assert (
        cropped.shape == (56,) and cropped[0] == pytest.approx(10, abs=2) and cropped[-1] == pytest.approx(149, abs=2)
    )
    cropped = np.asarray(inception(70).evaluation(ramp)).astype(int)  # the central 140 x 280
    assert cropped.shape == (70, 70, 3)
    assert cropped[0, 0, 0] == pytest.approx(10, abs=2) and cropped[-1, 0, 0] == pytest.approx(149, abs=2)


def test_inception_values_are_from_minus_one_to_one(root: Path) -> None:
    for path in root.glob("val/*/*"):
        Image.new("RGB", (20, 10), "white" if "dog" in str(path) else "black").save(path)
    dataset = load(config(root, preprocessing="inception", image_size=None, evaluation_batch_size=8), seed=0)
    assert dataset.input_shape == (3, 299, 299)
    ((images, _),) = dataset.test
    assert images[:4].eq(-1).all() and images[4:].eq(1).all()


@pytest.mark.parametrize("name", ["resnet", "inception"])
def test_training_is_augmented_only_if_asked_for(root: Path, name: str) -> None:
    plain, augmented = (
        preprocessing(config(root, preprocessing=name, augment=augment)) for augment in ("none", "standard")
    )
    assert plain.train is plain.evaluation and augmented.train is not augmented.evaluation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    assert augmented.train(image).size == plain.train(image).size == (32, 32)


def test_inception_distorts_colours() -> None:
    grey = Image.new("RGB", (50, 50), (120, 90, 60))
    colours = {inception(32).train(grey).getpixel((16, 16)) for _ in range(10)}
    assert len(colours) > 5
    assert {resnet(32).train(grey).getpixel((16, 16)) for _ in range(10)} == {(120, 90, 60)}


def test_very_small_images() -> None:
    for size in ((1, 1), (1, 7), (300, 2)):
        for chosen in (resnet(32), inception(32)):
            assert chosen.train(Image.new("RGB", size)).size == (32, 32)
            assert chosen.evaluation(Image.new("RGB", size)).size == (32, 32)
