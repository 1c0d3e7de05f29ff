"""Data sets: their splits, the order they come in, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from untied import UntiedError
from untied.lab.data import DataConfig, Dataset, Loader, Source, from_source, load
from untied.lab.data.sources import read_idx
from untied.lab.data.splits import split
from untied.lab.data.tensors import Normalise, shift_and_mirror

REAL = Path(__file__).parents[2] / ".." / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data beside this project")

SMALL = DataConfig("synthetic", synthetic_shape=(3, 16, 16), synthetic_count=200, batch_size=16)


def numbered(train: int = 100, test: int = 20, classes: int = 5) -> Source:
    """Images that are their own number, 0, 1, ..., so that one can see where each has gone."""

    def part(first: int, count: int) -> tuple[Tensor, Tensor]:
        number = torch.arange(first, first + count)
        return number.float()[:, None, None, None].expand(-1, 1, 4, 4), number % classes

    return Source("numbered", tuple("abcde"[:classes]), *part(0, train), *part(train, test))


def numbers(loader: Loader, normalise: Normalise, epoch: int = 0, start: int = 0) -> list[int]:
    images = [images[:, 0, 0, 0] for images, _ in loader.epoch(epoch, start)]
    return (torch.cat(images) * normalise.std.item() + normalise.mean.item()).round().int().tolist() if images else []


def contents(loader: Loader, epoch: int = 0, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(loader.epoch(epoch, start))


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of noise pictures, 8 for training and 3 for test each, of several sizes and modes."""
    noise = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for label in ("cat", "dog"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 256, (40 + 5 * i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert("L" if i == 0 else "RGB").save(folder / f"{i}.png")
    return tmp_path


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, suffix: str = "") -> None:
    noise = np.random.default_rng(0)
    for half, count in (("train", 60), ("t10k", 20)):
        images = noise.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{half}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{half}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)


def jpeg_fields(count: int = 40, side: int = 32) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    files = []
    for _ in range(count):
        image = Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image.save(buffer := io.BytesIO(), "JPEG")
        files.append(buffer.getvalue()[2:])
    return {
        "header": np.frombuffer(b"\xff\xd8", np.uint8),  # what all JPEG files start with
        "data": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]).astype(np.uint32),
        "labels": (np.arange(count) % 10).astype(np.uint8),
        "split": (np.arange(count) >= count - 10).astype(np.uint8),
        "classes": np.array([f"class {i}" for i in range(10)]),
    }


# the splits


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5])
def test_a_split_is_a_partition_with_the_fraction_of_every_class(fraction: float) -> None:
    labels = torch.arange(400) % 10
    kept, held = split(labels, fraction)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(400))
    assert labels[held].bincount(minlength=10).tolist() == [round(40 * fraction)] * 10


def test_a_limit_is_class_balanced_and_leaves_validation_alone() -> None:
    labels = torch.arange(400) % 10
    kept, held = split(labels, 0.1, limit=7)
    assert labels[kept].bincount().tolist() == [7] * 10
    assert torch.equal(held, split(labels, 0.1)[1])
    assert set(kept.tolist()) < set(split(labels, 0.1)[0].tolist())


def test_no_image_is_in_two_splits_and_the_seed_moves_none() -> None:
    source = numbered()
    parts = []
    for seed in (0, 1):
        dataset = from_source(source, DataConfig("synthetic", batch_size=10, validation=0.2), seed=seed)
        loaders = (dataset.train, dataset.validation, dataset.test)
        normalise = dataset.validation.normalise  # type: ignore[attr-defined]
        parts.append([set(numbers(loader, normalise)) for loader in loaders])
    train, validation, test = parts[0]
    assert parts[0] == parts[1]
    assert train | validation == set(range(100)) and not train & validation
    assert test == set(range(100, 120))
    assert dataset.sizes == {"train": 80, "validation": 20, "test": 20}


def test_validation_can_be_left_out() -> None:
    dataset = load(replace(SMALL, validation=0), seed=0)
    assert dataset.sizes["validation"] == len(dataset.validation) == 0
    assert contents(dataset.validation) == []
    assert dataset.sizes["train"] == 200


def test_digits_have_a_fixed_stratified_split() -> None:
    dataset = load(DataConfig(), seed=3)
    assert str(dataset) == ("handwritten digits: 1,211 train, 136 validation, 450 test images of 1×8×8, 10 classes")
    assert dataset.validation.labels.bincount().min() >= 13
    assert dataset.test.labels.bincount().min() >= 43
    again = load(DataConfig(batch_size=7), seed=4)
    assert same(contents(dataset.test), contents(again.test))
    assert same(contents(dataset.validation), contents(again.validation))


# the order, and what comes out


@pytest.mark.parametrize("config", [DataConfig(), SMALL, replace(SMALL, augment="standard")], ids=str)
def test_what_loaders_give(config: DataConfig) -> None:
    dataset = load(config, seed=0)
    images, labels = next(iter(dataset.train))
    assert images.shape == (config.batch_size, *dataset.input_shape) and images.dtype == torch.float32
    assert labels.shape == (config.batch_size,) and labels.dtype == torch.int64
    for loader in (dataset.train, dataset.validation, dataset.test):
        assert len(contents(loader)) == len(loader)
        assert all(y.min() >= 0 and y.max() < len(dataset.classes) for _, y in loader)


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_an_epoch_is_a_function_of_seed_and_number(augment: str) -> None:
    config = replace(SMALL, augment=augment)
    dataset = load(config, seed=5)
    state = torch.get_rng_state()
    first = contents(dataset.train, epoch=3)
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers are touched
    contents(dataset.train, epoch=4)
    torch.manual_seed(99)
    assert same(first, contents(dataset.train, epoch=3))
    assert same(first, contents(load(config, seed=5).train, epoch=3))
    assert not same(first, contents(dataset.train, epoch=4))
    assert not same(first, contents(load(config, seed=6).train, epoch=3))
    assert same(first[4:], contents(dataset.train, epoch=3, start=4))
    assert contents(dataset.train, epoch=3, start=len(dataset.train)) == []


def test_training_is_shuffled_in_full_batches_and_the_rest_is_in_order() -> None:
    dataset = from_source(
        numbered(), DataConfig("synthetic", batch_size=16, evaluation_batch_size=7, validation=0.1), seed=0
    )
    normalise = dataset.test.normalise  # type: ignore[attr-defined]
    train = numbers(dataset.train, normalise)
    assert len(train) == len(set(train)) == 80  # 90 are 5 batches of 16, and 10 that are left out
    assert train != sorted(train)
    assert {number for epoch in range(20) for number in numbers(dataset.train, normalise, epoch)} == set(
        range(100)
    ) - set(numbers(dataset.validation, normalise))  # not always the same ones
    assert numbers(dataset.test, normalise) == list(range(100, 120))
    assert [len(labels) for _, labels in dataset.test] == [7, 7, 6]


def test_the_training_split_alone_is_normalised() -> None:
    source = numbered()
    source = replace(source, test_images=source.test_images + 1e6)
    dataset = from_source(source, DataConfig("synthetic", batch_size=90), seed=0)
    images = torch.cat([images for images, _ in dataset.train])
    assert images.mean().abs() < 1e-6
    assert images.std(unbiased=False) == pytest.approx(1, abs=1e-6)
    assert torch.cat([images for images, _ in dataset.test]).mean() > 1e4


def test_statistics_of_bytes_and_of_constant_channels() -> None:
    images = torch.randint(256, (5000, 3, 4, 4), dtype=torch.uint8)
    images[:, 1] = 77
    normalise = Normalise.fit(images)
    expected = images.double()
    torch.testing.assert_close(normalise.mean.flatten(), expected.mean((0, 2, 3)).float())
    std = expected.std((0, 2, 3), unbiased=False)
    std[1] = 1
    torch.testing.assert_close(normalise.std.flatten(), std.float())
    assert (normalise(images)[:, 1] == 0).all()


def test_shift_and_mirror_against_one_image_at_a_time() -> None:
    images, reach = torch.randn(9, 2, 5, 6), 2
    shifts, mirrored = torch.randint(2 * reach + 1, (9, 2)), torch.arange(9) % 2 == 0
    shifts[0], mirrored[0] = reach, False
    result = shift_and_mirror(images, shifts, mirrored, reach)
    assert torch.equal(result[0], images[0])
    for image, (top, left), flip, got in zip(images, shifts, mirrored, result, strict=True):
        crop = torch.nn.functional.pad(image, (reach,) * 4)[:, top : top + 5, left : left + 6]
        assert torch.equal(got, crop.flip(-1) if flip else crop)


def test_augmentation_changes_training_images_only_and_never_mirrors_digits() -> None:
    plain, augmented = (load(replace(SMALL, augment=augment), seed=0) for augment in ("none", "standard"))
    assert not same(contents(plain.train), contents(augmented.train))
    assert same(contents(plain.test), contents(augmented.test))
    assert augmented.train.mirror and augmented.train.reach == 2  # type: ignore[attr-defined]
    digits = load(DataConfig(augment="standard"), seed=0)
    assert not digits.train.mirror and digits.train.reach == 1  # type: ignore[attr-defined]


# files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_mnist_from_raw_files(tmp_path: Path, suffix: str, inside: str) -> None:
    write_mnist(tmp_path / inside, suffix)
    dataset = load(DataConfig("mnist", root=tmp_path, validation=0.5, batch_size=8), seed=0)
    assert str(dataset) == "MNIST: 30 train, 30 validation, 20 test images of 1×28×28, 10 classes"


def test_a_root_can_be_text() -> None:
    assert DataConfig("mnist", root="~/data").root == Path.home() / "data"  # type: ignore[arg-type]


def test_fashion_mnist_has_its_own_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw")
    dataset = load(DataConfig("fashion-mnist", root=tmp_path, validation=0.5, batch_size=8), seed=0)
    assert dataset.name == "Fashion-MNIST" and "Sneaker" in dataset.classes


def test_damaged_idx_files(tmp_path: Path) -> None:
    good = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(good, np.zeros((5, 3, 3), np.uint8))
    assert read_idx(good).shape == (5, 3, 3)
    cut, other, short = tmp_path / "cut.gz", tmp_path / "other", tmp_path / "short"
    cut.write_bytes(good.read_bytes()[:-12])
    other.write_bytes(b"<html>not found</html>")
    short.write_bytes(gzip.decompress(good.read_bytes())[:-2])
    for path in (cut, other, short):
        with pytest.raises(UntiedError, match=path.name) as caught:
            read_idx(path)
        assert "\n" not in str(caught.value)


def test_cifar_from_an_archive_of_jpeg_images(tmp_path: Path) -> None:
    np.savez(path := tmp_path / "cifar.npz", **jpeg_fields())
    dataset = load(DataConfig("cifar10", root=path, validation=0.34, batch_size=8), seed=0)
    assert str(dataset) == "CIFAR-10 (JPEG): 20 train, 10 validation, 10 test images of 3×32×32, 10 classes"
    assert dataset.classes[3] == "class 3"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda fields: fields | {"labels": None}, "no field labels"),
        (lambda fields: fields | {"labels": fields["labels"][:-1]}, "39 labels"),
        (lambda fields: fields | {"data": fields["data"][:-400]}, "image 39"),
        (lambda fields: fields | {"classes": np.array([{}, []], dtype=object)}, "cannot read"),
        (
            lambda fields: fields | {"labels": fields["classes"][fields["labels"]]},
            "labels is .*: it must be a list of n",
        ),
        (lambda fields: fields | {"split": np.zeros((40, 1))}, r"split is float64 of shape \(40, 1\)"),
        (lambda fields: fields | {"classes": np.array("cats")}, "classes is .*: it must be a list of names"),
        (lambda fields: jpeg_fields(side=28), "28x28"),
        (lambda fields: fields | {"split": np.zeros(40)}, "test split has no images"),
        (lambda fields: fields | {"classes": fields["classes"][:4]}, "4 classes need labels 0 to 3"),
    ],
)
def test_damaged_archives(tmp_path: Path, damage: Callable[..., dict[str, np.ndarray]], message: str) -> None:
    fields = {name: value for name, value in damage(jpeg_fields()).items() if value is not None}
    np.savez(path := tmp_path / "cifar.npz", **fields)
    with pytest.raises(UntiedError, match=message):
        load(DataConfig("cifar10", root=path), seed=0)


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (path := tmp_path / "cifar.npz").write_bytes(b"PK\x03\x04 half a download")
    with (other := tmp_path / "one_array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    for missing in (path, other, tmp_path / "nowhere.npz"):
        with pytest.raises(UntiedError, match="cannot read"):
            load(DataConfig("cifar10", root=missing), seed=0)


def test_cifar_in_torchvisions_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []

    def dataset(root: str, train: bool = True, download: bool = False) -> SimpleNamespace:
        downloads.append(download)
        count = 40 if train else 10
        data = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(data=data, targets=[i % 10 for i in range(count)], classes=list("abcdefghij"))

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", dataset)
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", dataset)
    for name, title in (("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")):
        for download in (False, True):
            downloads.clear()
            config = DataConfig(name, validation=0.25, batch_size=8, download=download)  # type: ignore[arg-type]
            assert str(load(config, seed=0)) == (
                f"{title}: 30 train, 10 validation, 10 test images of 3×32×32, 10 classes"
            )
            assert any(downloads) == download


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    for name, folder in {
        "mnist": "MNIST/raw",
        "fashion-mnist": "FashionMNIST/raw",
        "cifar10": "cifar-10-batches-py",
        "cifar100": "cifar-100-python",
    }.items():
        with pytest.raises(UntiedError, match="download=True") as caught:
            load(DataConfig(name, root=tmp_path), seed=0)  # type: ignore[arg-type]
        assert str(tmp_path / folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(UntiedError, match=r"could not download .* no route to host"):
        load(DataConfig(name, root=tmp_path, download=True), seed=0)  # type: ignore[arg-type]


# image folders


def folder_config(root: Path, **changes: object) -> DataConfig:
    config = DataConfig(
        "folder", root=root, image_size=32, batch_size=4, validation=0.25, workers=0, evaluation_batch_size=5
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def test_an_image_folder(image_folder: Path) -> None:
    dataset = load(folder_config(image_folder), seed=0)
    assert dataset.sizes == {"train": 12, "validation": 4, "test": 6} and dataset.classes == ("cat", "dog")
    assert dataset.validation.labels.tolist() == [0, 0, 1, 1]
    batches = contents(dataset.test)
    assert [tuple(images.shape) for images, _ in batches] == [(5, 3, 32, 32), (1, 3, 32, 32)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    images = torch.cat([images for images, _ in batches])
    assert images.dtype == torch.float32 and images.mean().abs() < 1  # noise around 128, in units of ImageNet's


def test_a_folder_is_split_without_overlap(image_folder: Path) -> None:
    dataset = load(folder_config(image_folder, limit=2), seed=0)
    files = [set(loader.files) for loader in (dataset.train, dataset.validation, dataset.test)]  # type: ignore[attr-defined]
    assert [len(part) for part in files] == [4, 4, 6]
    assert len(files[0] | files[1] | files[2]) == 14


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("augment", ["none", "standard"])
def test_workers_do_not_change_a_folders_epoch(image_folder: Path, augment: str) -> None:
    dataset = load(folder_config(image_folder, augment=augment), seed=1)
    state = torch.get_rng_state()
    first = contents(dataset.train, epoch=2)
    assert torch.equal(state, torch.get_rng_state())
    again = load(folder_config(image_folder, augment=augment, workers=2), seed=1).train
    assert same(first, contents(again, epoch=2))
    assert same(first[2:], contents(again, epoch=2, start=2))
    assert not same(first, contents(dataset.train, epoch=3))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_strict_stops_at_a_damaged_image(image_folder: Path, workers: int) -> None:
    bad = image_folder / "val" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UntiedError, match="cannot read the image") as caught:
        contents(load(folder_config(image_folder, workers=workers, strict=True), seed=0).test)
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)


def test_a_test_folder_serves_where_there_is_no_val(image_folder: Path) -> None:
    (image_folder / "val").rename(image_folder / "test")
    assert load(folder_config(image_folder), seed=0).sizes["test"] == 6
    (image_folder / "test").rename(image_folder / "elsewhere")
    with pytest.raises(UntiedError, match="neither val/ nor test/"):
        load(folder_config(image_folder), seed=0)


def test_folders_that_are_wrong(image_folder: Path) -> None:
    with pytest.raises(UntiedError, match="no folder"):
        load(folder_config(image_folder / "nowhere"), seed=0)
    with pytest.raises(UntiedError, match=r"no folder .*train"):
        load(folder_config(image_folder / "val"), seed=0)
    (image_folder / "val" / "fox").mkdir()
    with pytest.raises(UntiedError, match="fox") as caught:
        load(folder_config(image_folder), seed=0)
    assert "\n" not in str(caught.value)
    (image_folder / "val" / "cat" / "0.png").rename(image_folder / "val" / "fox" / "0.png")
    with pytest.raises(UntiedError, match="2 classes and val/ 3, and they differ in fox"):
        load(folder_config(image_folder), seed=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("augment", ["none", "standard"])
def test_a_gpu_sees_what_the_cpu_sees(image_folder: Path, augment: str) -> None:
    for config in (replace(SMALL, augment=augment), folder_config(image_folder, augment=augment)):
        on_cpu, on_gpu = (load(config, seed=0, device=device) for device in ("cpu", "cuda"))
        for (images, labels), (x, y) in zip(on_cpu.train.epoch(1), on_gpu.train.epoch(1), strict=True):
            assert x.is_cuda and torch.equal(labels, y.cpu())
            torch.testing.assert_close(images, x.cpu())


# mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "minst"}, "did you mean 'mnist'"),
        ({"augment": "strong"}, "none, standard"),
        ({"preprocessing": "vgg"}, "unknown preprocessing 'vgg': possible are resnet, inception"),
        ({"image_size": 0}, "image_size is 0"),
        ({"name": "shards"}, "shards needs root"),
        ({"name": "shards", "root": Path("data"), "limit": 5}, "limit needs the class"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"validation": 1.0}, "below 1"),
        ({"limit": 0}, "limit is 0"),
        ({"name": "synthetic", "synthetic_shape": (3, 0, 8)}, "synthetic_shape"),
        ({"root": Path("data")}, "digits reads no files"),
        ({"name": "folder"}, "needs root"),
        ({"download": True}, "download is set"),
    ],
)
def test_impossible_configurations(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UntiedError, match=message) as caught:
        DataConfig(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def spoiled(part: str) -> Source:
    source = numbered()
    images = getattr(source, f"{part}_images").clone()
    images[7, 0, 1, 2] = torch.nan
    return replace(source, **{f"{part}_images": images})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (spoiled("train"), "the training split has NaN .* image 7"),
        (spoiled("test"), "the test split has NaN .* image 7"),
        (replace(numbered(), train_images=torch.zeros(100, 16)), r"training images have shape \(100, 16\)"),
        (replace(numbered(), train_labels=torch.zeros(99).long()), r"labels \(99,\)"),
        (replace(numbered(), classes=("a", "b")), "labels run from 0 to 4, but 2 classes"),
        (replace(numbered(), test_images=torch.zeros(20, 1, 5, 5)), "same shape"),
        (replace(numbered(), test_images=torch.zeros(0, 1, 4, 4), test_labels=torch.zeros(0).long()), "no images"),
    ],
)
def test_data_that_cannot_be_trained_on(source: Source, message: str) -> None:
    with pytest.raises(UntiedError, match=message) as caught:
        from_source(source, DataConfig("synthetic", batch_size=10), seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"batch_size": 500}, 0, "batch_size is 500 but there are only 180"),
        ({"validation": 0.99}, 0, "leaves none"),
        ({"validation": 0.001}, 0, "hold out more, or 0"),
        ({}, -1, "seed is -1"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, float], seed: int, message: str) -> None:
    with pytest.raises(UntiedError, match=message):
        load(replace(SMALL, **changes), seed=seed)  # type: ignore[arg-type]


# real data


@needs_real_data
@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            DataConfig("mnist", root=REAL / "mnist", limit=100),
            "MNIST: 1,000 train, 5,999 validation, 10,000 test images of 1×28×28, 10 classes",
        ),
        (
            DataConfig("cifar10", root=REAL / "cifar10" / "cifar10_subset_10k_2k_jpeg.npz", augment="standard"),
            "CIFAR-10 (JPEG): 9,000 train, 1,000 validation, 2,000 test images of 3×32×32, 10 classes",
        ),
        (
            DataConfig("folder", root=REAL / "tiny_imagenet_20class", image_size=64, workers=0, augment="standard"),
            "tiny_imagenet_20class: 9,000 train, 1,000 validation, 1,000 test images of 3×64×64, 20 classes",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, DataConfig) else "",
)
def test_real_data(config: DataConfig, text: str) -> None:
    dataset: Dataset = load(config, seed=0)
    assert str(dataset) == text
    images, _ = next(iter(dataset.train))
    assert images.mean().abs() < 0.5 and 0.5 < images.std() < 1.5
    assert len(dataset.train.labels.unique()) == len(dataset.classes)
