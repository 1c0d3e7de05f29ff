"""Two libraries decode JPEG: the pixels are the same, and what one refuses the other takes."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2 as transforms

from untied import UntiedError
from untied.lab.data import DataConfig, load
from untied.lab.data.decoders import decoder

fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def picture(mode: str = "RGB", size: tuple[int, int] = (97, 61), form: str = "JPEG", **options: object) -> bytes:
    """A file with a smooth picture of noise, of odd sides."""
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(size[0]))
    smooth = torch.nn.functional.interpolate(noise, size=size[::-1], mode="bicubic")[0].clamp(0, 1)
    kept = io.BytesIO()
    transforms.functional.to_pil_image(smooth).convert(mode).save(kept, form, **options)
    return kept.getvalue()


def pixels(name: str, content: bytes) -> torch.Tensor:
    return transforms.functional.to_image(decoder(name)(content)).as_subclass(torch.Tensor)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(97, 61), (16, 16), (1, 5), (500, 375)])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 30}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_pixels_are_the_same(mode: str, options: dict[str, object], size: tuple[int, int]) -> None:
    pytest.importorskip("simplejpeg")
    content = picture(mode, size, **options)
    assert torch.equal(pixels("simplejpeg", content), pixels("pillow", content))


@pytest.mark.parametrize(
    "content",
    [picture(form="PNG"), picture("CMYK"), picture(form="BMP"), picture(form="GIF")],
    ids=["png", "four inks", "bmp", "gif"],
)
def test_what_it_does_not_take_goes_to_pillow(content: bytes) -> None:
    pytest.importorskip("simplejpeg")
    assert torch.equal(pixels("simplejpeg", content), pixels("pillow", content))


@pytest.mark.parametrize("content", [picture()[:-200], b"", b"\xff\xd8\xff", b"no image"])
def test_damage_is_said_as_pillow_says_it(content: bytes) -> None:
    pytest.importorskip("simplejpeg")
    with pytest.raises(Exception) as by_pillow:
        decoder("pillow")(content)
    with pytest.raises(type(by_pillow.value)):
        decoder("simplejpeg")(content)


def test_a_picture_too_large_to_be_honest_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        decoder("simplejpeg")(picture())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for number in range(8):
            folder = tmp_path / part / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(picture(size=(60 + number, 90 - number)))
    return tmp_path


@fork
@pytest.mark.parametrize("preprocessing", ["resnet", "inception"])
def test_batches_differ_by_a_rounding(root: Path, preprocessing: str) -> None:
    pytest.importorskip("simplejpeg")
    config = DataConfig(
        "folder",
        root=root,
        image_size=32,
        batch_size=4,
        workers=0,
        validation=0,
        preprocessing=preprocessing,  # type: ignore[arg-type]
    )
    fast = replace(config, decoder="simplejpeg")
    scale = load(config, seed=0).test.normalise.std.min()  # type: ignore[attr-defined]
    for (images, labels), (others, same) in zip(load(config, seed=0).test, load(fast, seed=0).test, strict=True):
        assert torch.equal(labels, same)
        assert (images - others).abs().max() * scale <= 1.01  # of 255
    augmented = replace(fast, augment="standard", workers=2)
    one, two = (load(replace(augmented, workers=n), seed=3).train.epoch(1) for n in (0, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))


def test_a_library_that_is_missing_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(UntiedError, match=r"pip install torch-untied\[images\]"):
        load(DataConfig("folder", root=root, decoder="simplejpeg", batch_size=2, validation=0), seed=0)


def test_it_is_for_files() -> None:
    with pytest.raises(UntiedError, match="digits has no image files"):
        DataConfig("digits", decoder="simplejpeg")
    with pytest.raises(UntiedError, match="unknown decoder 'opencv': possible are pillow, simplejpeg"):
        DataConfig("folder", root=Path(), decoder="opencv")  # type: ignore[arg-type]


def test_real_photographs(shared_data: Path) -> None:
    pytest.importorskip("simplejpeg")
    found = sorted((shared_data / "imagenette224_subset").rglob("*.JPEG"))[::100]
    assert len(found) > 30
    for path in found:
        content = path.read_bytes()
        assert torch.equal(pixels("simplejpeg", content), pixels("pillow", content)), path
