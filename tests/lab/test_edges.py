"""What comes from outside: whatever it is, one line says what is wrong, within bounds of time and memory."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.data.folders import list_images
from untied.lab.data.pixels import rgb
from untied.lab.data.shards import read_index
from untied.lab.reading.edges import check_archive, expect_file, load_yaml, printable
from untied.lab.settings.entries import parse_entry
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.training import checkpoint
from untied.lab.training.checkpoint import Position
from untied.lab.training.identity import same_run
from untied.lab.training.identity import settings as settings_of
from untied.rules import parse

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_sixteen_bits_are_scaled_and_floats_refused() -> None:
    ramp = np.array([[0, 257, 32768, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    with Image.open(buffer) as opened:
        assert np.asarray(rgb(opened))[0, :, 0].tolist() == [0, 1, 128, 255]
    for mode in "FI":
        with pytest.raises(ValueError, match="8 or 16 bits"):
            rgb(Image.new(mode, (2, 2)))


def saved(folder: Path, steps: int = 2) -> Path:
    path = folder / "last.safetensors"
    for step in range(1, steps + 1):
        checkpoint.save(path, Position(step=step), {"model.w": torch.arange(100.0) + step})
    return path


def test_flipped_bytes_are_found_and_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(content)
    with pytest.raises(UntiedError, match=r"not those that were written.*previous\.safetensors"):
        checkpoint.read(path)
    os.replace(tmp_path / "previous.safetensors", path)
    assert checkpoint.read(path)[1].step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.safetensors"]


@pytest.mark.parametrize("change", [{"step": -1}, {"step": 1.5}, {"lines": "a"}, {"best": [1]}, {"more": 1}])
def test_headers_follow_a_schema(change: dict[str, object], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "last.safetensors"
    save_file({"model.w": torch.zeros(1)}, path, {"untied": json.dumps({"position": change})})
    with pytest.raises(UntiedError, match=f"position.{next(iter(change))}"):
        checkpoint.read(path)


def test_an_edited_setting_is_named(tmp_path: Path) -> None:
    before = TrainConfig(data=DataConfig("digits"))
    after = TrainConfig(data=DataConfig("digits"), forward=OptimizerConfig(lr=0.3), tracker="wandb")
    with pytest.raises(UntiedError, match=r"edited.*forward\.lr") as caught:
        same_run(tmp_path, {"settings": settings_of(before)}, {"settings": settings_of(after)})
    assert "tracker" not in str(caught.value)


BOMB = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize("text", [BOMB, "[" * 20000, "a: &x [*x]", "a: " + "9" * 5000, "a: *b", "x" * 2_000_000])
def test_yaml_is_bounded(text: str) -> None:
    with pytest.raises(UntiedError) as caught:
        load_yaml(text, "config x")
    assert len(str(caught.value)) < 600


def test_numbers_beyond_their_field() -> None:
    for kind, name in ((TrainConfig, "seed"), (DataConfig, "batch_size")):
        with pytest.raises(UntiedError, match=f"{name} is .*at most"):
            kind(**{name: 2**64})
    for text in ("amp @ SGD(lr=*a)", "wm(every=1e300/1e-300)"):
        with pytest.raises(UntiedError):
            parse_entry(text, OptimizerConfig())


@pytest.mark.parametrize("count", [-5, 30.7, 10**12, float("inf"), None, "3"])
def test_indices_follow_a_schema(count: object, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(json.dumps({"classes": ["a"], "shards": {"0.tar": count}}))
    with pytest.raises(UntiedError, match=r"index\.json.*0\.tar|index\.json"):
        read_index(path)


def test_an_archive_bomb_is_refused_by_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        for _ in range(400):
            member.write(bytes(2**20))
    with path.open("rb") as file, pytest.raises(UntiedError, match="would unpack"):
        check_archive(file, "bomb")


def test_pipes_and_links_are_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "train" / name / "1.png")
    train = tmp_path / "train"
    assert len(list_images(train)[1]) == 2
    for target in (train, train / "b", tmp_path, tmp_path / "nowhere", train / "b" / "1.png"):
        link = train / "a" / "link"
        link.symlink_to(target)
        with pytest.raises(UntiedError, match="link"):
            list_images(train)
        link.unlink()
    os.mkfifo(train / "a" / "2.png")
    for call in (lambda: list_images(train), lambda: expect_file(train / "a" / "2.png")):
        with pytest.raises(UntiedError, match="pipe"):
            call()


def test_a_dollar_in_a_label_is_a_dollar(tmp_path: Path) -> None:
    import matplotlib

    from untied.lab.showing.plots import Figure
    from untied.lab.showing.style import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure()
        figure.subplots().set_title(r"$\frac{$")
        figure.savefig(tmp_path / "a.svg")


@quick
@given(st.text(alphabet="amp+-*/()=, 0123456789.esabpia_klinear@", max_size=60))
def test_any_rule_text(text: str) -> None:
    try:
        parse(text)
    except UntiedError as error:
        assert "\n" not in str(error)


@quick
@given(st.text(alphabet="[]{}&*:-?!|>'\"#ab01 \n", max_size=80))
def test_any_yaml(text: str) -> None:
    try:
        load_yaml(text, "it")
    except UntiedError as error:
        assert "\n" not in str(error)


@quick
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_any_flipped_byte_of_a_checkpoint(tmp_path: Path, at: int, flip: int) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, Position(step=1), {"model.w": torch.arange(8.0)})
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(content)
    try:  # padding may change without a loss
        tensors, position, _ = checkpoint.read(path)
        assert tensors["model.w"].tolist() == list(range(8)) and position.step == 1
    except UntiedError as error:
        assert "\n" not in str(error)


@quick
@given(st.text(alphabet=st.characters(), max_size=20))
def test_any_name(name: str) -> None:
    assert printable(name).isprintable()
    printable(name).encode("utf-8")
