"""Shards: packing a folder, the order in which tar files are read, and every way in which they can be wrong."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from untied import UntiedError
from untied.lab.cli import main
from untied.lab.data import Batch, DataConfig, Loader, load, shard_loader, shards
from untied.lab.data.shards import open_index, samples, write_shards
from untied.lab.data.smaller import Smaller

fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training and 11 test images in 2 classes; the n-th is of the colour n."""
    root = tmp_path_factory.mktemp("folder")
    for part, count in (("train", 64), ("val", 11)):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
        for number in range(count):
            path = root / part / ("cat", "dog")[number % 2] / f"{number}.picture{'.PNG' if number % 3 else '.jpeg'}"
            Image.new("RGB", (12, 10), (number, number, number)).save(path)
    return root


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Path:
    write_shards(folder, tmp_path / "shards", per_shard=10)
    return tmp_path / "shards"


def config(root: Path, **changes: object) -> DataConfig:
    common = DataConfig(
        "shards",
        root=root,
        preprocessing="inception",  # values of which the number of an image can be seen
        image_size=8,
        batch_size=12,
        evaluation_batch_size=4,
        validation=0,
        workers=0,
    )
    return replace(common, **changes)  # type: ignore[arg-type]


def numbers(batches: Iterable[Batch]) -> list[list[int]]:
    """Which images are in each batch; their classes are seen to on the way."""
    found = []
    for images, labels in batches:
        number = (images[:, 0, 4, 4] * 127.5 + 127.5).round().int()
        assert torch.equal(number % 2, labels.int())
        found.append(number.tolist())
    return found


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def train(root: Path, seed: int = 0, **changes: object) -> Loader:
    return load(config(root, **changes), seed=seed).train


# packing


def test_a_folder_is_packed_as_it_is(folder: Path, root: Path) -> None:
    index = open_index(root / "train")
    assert index.classes == ("cat", "dog")
    assert [(path.name, count) for path, count in index.shards.items()] == [
        (f"{i:06d}.tar", 4 if i == 6 else 10) for i in range(7)
    ]
    packed = [sample for path in index.shards for sample in samples(path)]
    files = [path for path in folder.glob("train/*/*")]
    assert sorted(sample.content for sample in packed) == sorted(path.read_bytes() for path in files)
    assert all({sample.label for sample in samples(path)} == {0, 1} for path in index.shards)  # they are mixed
    with tarfile.open(root / "val" / "000000.tar") as tar:
        members = tar.getnames()
    assert len(members) == 20 and {Path(name).suffix for name in members} == {".cls", ".png", ".jpeg"}


def test_packing_is_reproducible(folder: Path, root: Path, tmp_path: Path) -> None:
    write_shards(folder, tmp_path / "again", per_shard=10)
    for path in root.glob("*/*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(root)).read_bytes()


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", str(folder), str(tmp_path / "out"), "--per-shard", "30"]) == 0
    train, val = capsys.readouterr().out.splitlines()
    assert train.endswith("train: 64 images in 3 shards") and val.endswith("val: 11 images in 1 shards")
    assert main(["shards", str(folder), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_packing_leaves_nothing_half_done(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_index", full)
        with pytest.raises(UntiedError, match="No space left"):
            write_shards(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()
    write_shards(folder, tmp_path / "out", per_shard=40)
    assert len(open_index(tmp_path / "out" / "train").shards) == 2


# the order


def test_what_shards_give(root: Path) -> None:
    dataset = load(config(root, validation=0.3), seed=0)
    assert str(dataset) == "shards: 50 train, 14 validation, 11 test images of 3×8×8, 2 classes"
    trained, held, tested = (flat(numbers(loader)) for loader in (dataset.train, dataset.validation, dataset.test))
    assert len(set(trained)) == 48 and len(set(held)) == 14 and not set(trained) & set(held)
    assert sorted(tested) == list(range(11))
    assert [len(batch) for batch in numbers(dataset.test)] == [4, 4, 3]
    assert numbers(dataset.test) == numbers(load(config(root), seed=1).test)


@fork
@pytest.mark.parametrize("augment", ["none", "standard"])
def test_an_epoch_is_a_function_of_seed_and_number(root: Path, augment: str) -> None:
    def same(a: list[Batch], b: list[Batch]) -> bool:
        return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))

    loader = train(root, augment=augment)
    state = torch.get_rng_state()
    first = list(loader.epoch(3))
    assert torch.equal(state, torch.get_rng_state())
    assert [len(labels) for _, labels in first] == [12] * 5
    assert same(first, list(train(root, augment=augment, workers=2).epoch(3)))
    assert not same(first, list(loader.epoch(4)))
    assert not same(first, list(train(root, seed=1, augment=augment).epoch(3)))
    for start in range(6):
        assert same(first[start:], list(loader.epoch(3, start=start)))


def test_shards_are_shuffled_and_nothing_is_always_left_out(root: Path) -> None:
    loader = train(root)
    epochs = [flat(numbers(loader.epoch(epoch))) for epoch in range(20)]
    assert all(len(set(epoch)) == 60 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(flat(epochs)) == set(range(64))


def test_images_move_by_less_than_the_buffer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_loader, "BUFFER", 8)
    loader = train(root, batch_size=1)
    seen = flat(numbers(loader.epoch(0)))
    assert len(set(seen)) == 64
    shard_of = {}
    for path in open_index(root / "train").shards:
        for sample in samples(path):
            shard_of[int(Path(sample.name).name.split("-")[1].split("_")[0])] = path.name
    places = [shard_of[number] for number in seen]
    for name in set(places):  # the images of a shard come together, but for 8 places
        at = [place for place, shard in enumerate(places) if shard == name]
        assert at[-1] - at[0] < 10 + 2 * 8


def test_skipping_opens_no_shard_of_which_nothing_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_loader, "BUFFER", 4)
    opened = []

    def noted(path: Path) -> object:
        opened.append(path)
        return samples(path)

    monkeypatch.setattr(shard_loader, "samples", noted)
    loader = train(root)
    list(loader.epoch(0))
    everything = opened.copy()
    assert len(everything) in (6, 7)
    opened.clear()
    list(loader.epoch(0, start=4))
    assert opened == everything[-len(opened) :] and len(opened) <= 3
    opened.clear()
    assert list(loader.epoch(0, start=5)) == [] and not opened


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_share_the_images(root: Path, count: int) -> None:
    loader = train(root)
    shares = [numbers(loader.epoch(2, share=(rank, count))) for rank in range(count)]
    assert [[len(batch) for batch in share] for share in shares] == [[12 // count] * 5] * count
    together = [number for share in shares for number in flat(share)]
    assert sorted(together) == sorted(flat(numbers(loader.epoch(2))))  # each once, the same as for one process
    rest = numbers(loader.epoch(2, start=3, share=(1, count)))
    assert rest == shares[1][3:]


@pytest.mark.parametrize("count", [2, 3, 16])
def test_processes_share_evaluation(root: Path, count: int) -> None:
    loader = load(config(root), seed=0).test
    shares = [numbers(loader.epoch(0, share=(rank, count))) for rank in range(count)]
    assert flat([flat(share) for share in shares]) == flat(numbers(loader.epoch(0)))
    assert all(len(share) <= len(loader) and all(share) for share in shares)


def test_a_batch_that_cannot_be_shared(root: Path) -> None:
    with pytest.raises(UntiedError, match="batch_size is 12, which 5 processes cannot share"):
        train(root).epoch(0, share=(0, 5))


# what can be wrong


def repack(path: Path, change: str = "", label: bytes | None = None) -> None:
    """Write a shard again, with image 3 cut short, or without its class, or with another."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            if info.name.startswith("000003"):
                if info.name.endswith(".cls"):
                    if change == "no class":
                        continue
                    content = content if label is None else label
                elif change == "cut":
                    content = content[:-30]
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@fork
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_passed_over(root: Path, workers: int) -> None:
    for shard in (root / "train" / "000002.tar", root / "val" / "000000.tar"):
        repack(shard, "cut")
    dataset = load(config(root, workers=workers, batch_size=16), seed=0)
    assert [len(batch) for batch in numbers(dataset.train)] == [16] * 4
    assert len(flat(numbers(dataset.test))) == 10
    for loader, shard in ((dataset.train, "000002.tar"), (dataset.test, "000000.tar")):
        ((name, reason),) = loader.damaged.items()
        assert f"{shard}/000003-" in name and reason
    with pytest.raises(UntiedError, match=r"cannot read the image .*000000.tar/000003-") as caught:
        list(load(config(root, workers=workers, strict=True), seed=0).test)
    assert "\n" not in str(caught.value)


def test_an_index_is_made_where_there_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = numbers(train(root).epoch(0))
    path = root / "train" / "index.json"
    counts = json.loads(path.read_text())["shards"]
    path.unlink()
    with monkeypatch.context() as patched:  # a folder that cannot be written to

        def refuse(*args: object) -> None:
            raise PermissionError

        patched.setattr(shards, "write_index", refuse)
        assert list(open_index(root / "train").shards.values()) == list(counts.values()) and not path.exists()
    index = open_index(root / "train")
    assert json.loads(path.read_text()) == {"classes": ["0", "1"], "shards": counts}
    assert open_index(root / "train") == index
    (root / "val" / "index.json").unlink()
    assert numbers(train(root).epoch(0)) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def damage_middle(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[1024:1536] = b"\xff" * 512
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda train: cut(train / "000001.tar"), "000001.tar is cut short"),
        (lambda train: (train / "000001.tar").write_bytes(b""), "000001.tar is cut short"),
        (lambda train: (train / "000001.tar").unlink(), "000001.tar is missing, but in index.json"),
        (lambda train: (train / "000001.tar").rename(train / "9.tar"), "000001.tar is missing"),
        (lambda train: (train / "9.tar").write_bytes((train / "000001.tar").read_bytes()), "9.tar is there, but not"),
        (lambda train: (train / "index.json").write_text("{"), "cannot read .*index.json"),
        (lambda train: (train / "index.json").write_text("[]"), "cannot read .*index.json"),
        (lambda train: [path.unlink() for path in train.glob("*.tar")], r"no .*train/\*.tar"),
        (lambda train: train.rename(train.parent / "other"), r"no .*train/\*.tar"),
        (lambda train: (train.parent / "val").rename(train.parent / "other"), "neither val/ nor test/"),
        (lambda train: damage_middle(train / "000001.tar"), "000001.tar"),
        (lambda train: (train / "000001.tar").write_bytes(bytes(10240)), "000001.tar has 0 images, but 10"),
        (lambda train: (train / "000001.tar").write_bytes((train / "000006.tar").read_bytes()), "4 images, but 10"),
        (lambda train: (train / "000006.tar").write_bytes((train / "000001.tar").read_bytes()), "10 images, but 4"),
        (lambda train: repack(train / "000001.tar", "no class"), "000001.tar: 000003-.* must be one image"),
        (lambda train: repack(train / "000001.tar", label=b"dog"), "000001.tar: 000003-.* must be one image"),
        (lambda train: repack(train / "000001.tar", label=b"2"), "of class 2, but 2 classes are 0 to 1"),
    ],
)
def test_shards_that_are_wrong(root: Path, damage: object, message: str) -> None:
    damage(root / "train")  # type: ignore[operator]
    with pytest.raises(UntiedError, match=message) as caught:
        for epoch in range(5):  # more images than in the index are found where the shard is not the last one read
            list(train(root, batch_size=64).epoch(epoch))
    assert "\n" not in str(caught.value) and " object at " not in str(caught.value)


@fork
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_cut_short_while_a_run_goes_on(root: Path, workers: int) -> None:
    loader = train(root, batch_size=64, workers=workers)
    cut(root / "train" / "000001.tar")
    with pytest.raises(UntiedError, match=r"000001.tar") as caught:
        list(loader)
    assert "\n" not in str(caught.value) and " object at " not in str(caught.value)
    (root / "train" / "000001.tar").unlink()
    with pytest.raises(UntiedError, match=r"cannot read the shard .*000001.tar \(No such file"):
        list(loader)


def test_splits_that_do_not_fit(root: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UntiedError, match=r"holding out 0.99 of 7 shards leaves none"):
        train(root, validation=0.99)
    assert load(config(root, validation=0.001), seed=0).validation.size == 4
    index = root / "val" / "index.json"
    index.write_text(index.read_text().replace("dog", "fox"))
    with pytest.raises(UntiedError, match="need the same classes"):
        train(root)
    with pytest.raises(UntiedError, match="per_shard is 0"):
        write_shards(folder, tmp_path / "out", per_shard=0)
    with pytest.raises(UntiedError, match="no folder"):
        write_shards(folder / "nowhere", tmp_path / "out")


# real data


def test_real_images(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "imagenette224_subset"
    write_shards(source, tmp_path / "shards")
    packed, loose = (
        load(DataConfig(name, root=root, workers=0, image_size=64, validation=0.2, augment="standard"), seed=0)  # type: ignore[arg-type]
        for name, root in (("shards", tmp_path / "shards"), ("folder", source))
    )
    assert packed.classes == loose.classes
    assert packed.sizes == {"train": 4000, "validation": 500, "test": 1000}
    for loader in (packed.train, packed.validation):
        for _, (images, labels) in zip(range(2), loader, strict=False):
            assert images.shape == (loader.batch_size, 3, 64, 64) and images.mean().abs() < 0.5
            assert len(labels.unique()) > 7  # mixed
    assert packed.train.damaged == {}


# made smaller


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Large and small images of several formats."""
    for part in ("train", "val"):
        for number, size in enumerate([(300, 200), (90, 100), (40, 260), (120, 120)]):
            name = f"{number}.{'png' if number else 'jpg'}"
            path = tmp_path / "photographs" / part / ("cat", "dog")[number % 2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (50 * number, 9, 200)).save(path)
    return tmp_path / "photographs"


@pytest.mark.parametrize("workers", [0, 3])
def test_large_images_are_made_smaller_and_small_ones_stay(photographs: Path, tmp_path: Path, workers: int) -> None:
    write_shards(photographs, tmp_path / "out", per_shard=3, smaller=Smaller(100, 80), workers=workers)
    index = open_index(tmp_path / "out/train")
    assert index.smaller == Smaller(100, 80)
    packed = {s.name.rpartition("-")[2]: s for path in index.shards for s in samples(path)}
    assert set(packed) == {"0.jpg", "1.png", "2.jpg", "3.jpg"}
    sizes = {name: Image.open(io.BytesIO(sample.content)).size for name, sample in packed.items()}
    assert sizes == {"0.jpg": (100, 67), "1.png": (90, 100), "2.jpg": (15, 100), "3.jpg": (100, 100)}
    assert packed["1.png"].content == (photographs / "train/dog/1.png").read_bytes()
    assert {name: sample.label for name, sample in packed.items()} == {"0.jpg": 0, "1.png": 1, "2.jpg": 0, "3.jpg": 1}


def test_splits_of_different_sides_do_not_go_together(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(photographs, out, smaller=Smaller(100))
    (out / "val").rename(tmp_path / "away")
    write_shards(photographs, tmp_path / "other", smaller=Smaller(80, 70))
    (tmp_path / "other/val").rename(out / "val")
    with pytest.raises(
        UntiedError, match=r"training shards have side 100, quality 90 and .* side 80, quality 70: pack"
    ):
        load(config(out, batch_size=2), seed=0)
    fields = json.loads((out / "val/index.json").read_text())
    (out / "val/index.json").write_text(json.dumps({k: fields[k] for k in ("classes", "shards")}))
    with pytest.raises(UntiedError, match="side 100, quality 90 and those of the test split full size"):
        load(config(out, batch_size=2), seed=0)


def test_making_smaller_with_the_command(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", str(photographs), str(tmp_path / "out"), "--side", "100", "--quality", "75"]) == 0
    assert open_index(tmp_path / "out/val").smaller == Smaller(100, 75)
    for words, said in (
        (["--quality", "75"], "quality is set, but no image is made smaller: add --side"),
        (["--side", "0"], "side is 0: it is a number of pixels from 1 to"),
        (["--side", "9", "--quality", "96"], "quality is 96: JPEG has 1 to 95"),
        (["--side", "9", "--workers", "-1"], "workers is -1"),
    ):
        capsys.readouterr()
        assert main(["shards", str(photographs), str(tmp_path / "more"), *words]) == 2
        assert said in capsys.readouterr().err
    (photographs / "train/cat/0.jpg").write_bytes((photographs / "train/cat/0.jpg").read_bytes()[:400])
    assert main(["shards", str(photographs), str(tmp_path / "more"), "--side", "9"]) == 2
    said = capsys.readouterr().err
    assert "0.jpg smaller" in said and "leave side out" in said and said.count("\n") == 1
