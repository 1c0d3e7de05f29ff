"""`untied train` as a user meets it: a whole run with every option, and one line for every mistake."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from runs import WORDS, pictures, silent, small
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.data import DataConfig
from untied.lab.experiments import train
from untied.lab.keeping.record import RunFolder
from untied.lab.settings.devices import DeviceConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.phases import PhaseConfig
from untied.lab.training.step import Objective

PICTURES = DataConfig("synthetic", synthetic_shape=(3, 8, 8), synthetic_classes=3, synthetic_count=60, batch_size=12)


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "finish", lambda folder, config: None)


def test_it_writes_everything(tmp_path: Path) -> None:
    screen = io.StringIO()
    assert train.train(small(tmp_path / "run", rule="sa"), Console(file=screen, width=80)) == 0
    run = RunFolder.open(tmp_path / "run")
    said = screen.getvalue().splitlines()
    assert said.pop(0).startswith("verified: errors go through B alone")
    assert said[0].startswith("mlp-8, sa, on ") and said[1].startswith("epoch 1: loss ") and "test accuracy" in said[3]
    assert said[-1] == f"folder {run.path}" and len(said) == 5
    lines = run.metrics()
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 4), (2, 8)]
    for line in lines:
        assert math.isfinite(line["train_loss"]) and 0 <= line["validation_accuracy"] <= 1
        assert set(line["weight_angle"]) == set(line["local_gradient_angle"]) == {"fc1", "fc2"}
    timing = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in timing] == [1, 2] and all(line["images_per_second"] > 0 for line in timing)
    result = run.read_json("results.json")
    assert result["split"] == "test" and 0 <= result["accuracy"] <= 1 and "top5" not in result
    card = (run.path / "card.md").read_text()
    for words in (
        "# mlp-8, trained with sa",
        f"{100 * result['accuracy']:.1f}",
        "synthetic_count: 60",
        "untied export",
    ):
        assert words in card
    for name in ("environment.json", "index.html", "checkpoints/last.safetensors", "checkpoints/best.safetensors",
                 "figures/accuracy.png", "figures/angles.svg", "figures/scatter.svg"):  # fmt: skip
        assert (run.path / name).stat().st_size > 0
    page = (run.path / "index.html").read_text()
    (run.path / "index.html").unlink()
    assert main(["report", str(run.path)]) == 0
    assert (run.path / "index.html").read_text() == page
    with pytest.raises(UntiedError, match="already holds a run"):
        train.train(small(tmp_path / "run"), silent())
    assert train.train(small(tmp_path / "run", rule="fa", epochs=1, overwrite=True), silent()) == 0
    assert [line["rule"] for line in run.metrics()] == ["fa"]


OPTIONS = {
    "average, label smoothing": dict(ema=0.9, label_smoothing=0.1),
    "bf16, channels last": dict(devices=DeviceConfig(precision="bf16", channels_last=True)),
    "clipping and noise": dict(forward=OptimizerConfig(clip=0.1, clip_by="value", noise=0.01, noise_kind="uniform")),
    "mirror phases after a delay": dict(rule="wm(noise=normal)", phases=PhaseConfig("mirror", delay=1)),
    "parts": dict(accumulate=3),
    "no validation": dict(data=DataConfig("synthetic", synthetic_shape=(3, 8, 8), synthetic_count=60, batch_size=12,
                                          validation=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_whole_runs(name: str, tmp_path: Path, without_pages: None) -> None:
    config = small(tmp_path / "run", **({"model": "resnet20-w2", "data": PICTURES, "rule": "sa"} | OPTIONS[name]))
    assert train.train(config, silent()) == 0
    run = RunFolder.open(tmp_path / "run")
    lines, delay = run.metrics(), config.phases.delay
    assert [line["epoch"] for line in lines] == list(range(1 - delay, 3))
    assert all(math.isfinite(line["train_loss"]) for line in lines)
    assert 0 <= run.read_json("results.json")["accuracy"] <= 1
    assert (run.path / "checkpoints/best.safetensors").exists() == (config.data.validation > 0)


def test_compiled_it_trains_the_same(tmp_path: Path, without_pages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Dynamo's own backend, as Inductor's takes minutes to say the same."""
    compiled = []
    real = Objective.compile
    monkeypatch.setattr(Objective, "compile", lambda self: compiled.append(self) or real(self, backend="eager"))
    found = []
    for compile in (False, True):
        config = small(tmp_path / str(compile), rule="aa", ema=0.9, devices=DeviceConfig(compile=compile))
        assert train.train(config, silent()) == 0
        found.append(RunFolder(config.out).metrics())
    assert len(compiled) == 1
    for plain, other in zip(*found, strict=True):
        assert other["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)
        assert other["weight_angle"] == pytest.approx(plain["weight_angle"], rel=1e-3)
    torch.compiler.reset()


def test_a_failed_run_says_where_and_ends_with_1(tmp_path: Path) -> None:
    screen = io.StringIO()
    config = small(tmp_path / "run", rule="wm(noise=normal)", backward=OptimizerConfig(lr=1e30), epochs=3)
    assert train.train(config, Console(file=screen, width=80)) == 1
    result = RunFolder(config.out).read_json("results.json")
    assert "not finite at step" in result["failure"] and "layer fc" in result["failure"]
    assert result["failure"] in screen.getvalue()
    assert "Training failed" in (config.out / "card.md").read_text()


def test_a_terminal_shows_a_bar_of_one_line(tmp_path: Path, without_pages: None) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    assert train.train(small(tmp_path / "run", model="resnet20-w2", data=PICTURES), console) == 0
    shown = screen.getvalue()
    lines = [re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in shown.replace("\r", "\n").splitlines()]
    bars = [line for line in lines if "/s  loss" in line]
    last = r"epoch 2/2 ━+ 100 % 0?0:00 [\d,]+/s  loss \d\.\d{3}  accuracy [\d.]+ %  worst [\d.]+°"
    assert re.fullmatch(last, bars[-1].strip()), bars[-1]
    assert max(len(bar.strip()) for bar in bars) <= 78 and not any("…" in bar for bar in bars)
    assert sum(line.startswith("epoch 2: loss") for line in lines) == 1


MISTAKES = [
    (["--epochs", "0"], ["epochs is 0", "at least 1"]),
    (["--seed", "-1"], ["seed is -1"]),
    (["--epoch", "3"], ["unknown option '--epoch'", "--epochs"]),
    (["--model", "nosuch"], ["unknown model 'nosuch'"]),
    (["--rule", "xx"], ["'xx'"]),
    (["--rule", ""], ["rule"]),
    (["--set", "accumulate=0"], ["accumulate is 0"]),
    (["--set", "accumulate=5"], ["accumulate is 5 but data.batch_size is 12"]),
    (["--set", "ema=1"], ["ema is 1.0"]),
    (["--set", "ema=0.9", "--devices.strategy", "fsdp"], ["ema is set and devices.strategy is fsdp"]),
    (["--rule", "mkp", "--devices.strategy", "fsdp"], ["rule is mkp and devices.strategy is fsdp", "use ddp"]),
    (["--set", "label_smoothing=1"], ["label_smoothing is 1.0"]),
    (["--evaluate-on", "validation", "--data.validation", "0"], ["evaluate_on is validation but data.validation is 0"]),
    (["--rule", "kp", "--phases.kind", "mirror"], ["rule is kp but phases.kind is mirror"]),
    (["--set", "phases.task_steps=3"], ["phases.task_steps is 3 but phases.kind is simultaneous"]),
    (["--set", "phases.task=0"], ["phases.task is 0"]),
    (["--set", "phases.align=-1"], ["phases.align is -1"]),
    (["--set", "phases.align=nan"], ["phases.align"]),
    (["--set", "checkpoint_minutes=nan"], ["checkpoint_minutes is nan"]),
    (["--set", "phases.align=linear(1"], ["phases.align"]),
    (["--phases.delay", "-1"], ["delay is -1"]),
    (["--set", "checkpoint_minutes=-1"], ["checkpoint_minutes is -1"]),
    (["--forward.name", "Adan"], ["unknown optimizer 'Adan'", "'Adam'"]),
    (["--forward.name", "LBFGS"], ["unknown optimizer 'LBFGS'"]),
    (["--forward.name", "Muon"], ["optimizer Muon refuses", "choose another"]),
    (["--set", "forward.arguments.betas=0.9,0.95"], ["optimizer SGD has no argument 'betas'", "nesterov"]),
    (["--backward.name", "Adam", "--set", "backward.arguments.betas=much"], ["optimizer Adam refuses"]),
    (["--backward.name", "Adam", "--set", "backward.arguments.betas=0.9"], ["optimizer Adam refuses"]),
    (["--set", "forward.arguments.lr=3"], ["give lr itself"]),
    (["--set", "forward.arguments.nesterov=True", "--forward.momentum", "0"], ["optimizer SGD refuses", "momentum"]),
    (["--forward.lr", "nan"], ["lr is nan"]),
    (["--forward.lr", "inf"], ["lr is inf"]),
    (["--forward.weight-decay", "-1"], ["weight_decay is -1"]),
    (["--forward.clip", "0"], ["clip is 0"]),
    (["--forward.warmup", "2"], ["warmup is 2"]),
    (["--devices.devices", "99"], ["99 processes"]),
    (["--devices.devices", "-1"], ["devices is -1"]),
    (["--devices.devices", "5"], ["data.batch_size is 12 and 5 processes share it"]),
    (["--devices.nodes", "0"], ["nodes is 0"]),
    (["--devices.accelerator", "quantum"], ["accelerator quantum"]),
    (["--devices.precision", "16"], ["precision is 16 but the device is cpu"]),
    (["--devices.precision", "8"], ["precision"]),
    (["--data.batch-size", "1000"], ["batch_size is 1000 but there are only 54 training images"]),
    (["--set", "data.synthetic_shape=[1, 4]"], ["synthetic"]),
    (["--data", "mnist", "--data.root", "nowhere"], ["nowhere"]),
    (["--data", "folder", "--data.root", "nowhere"], ["no folder nowhere"]),
    (["--data", "folder"], ["data folder needs root"]),
    (["--data", "shards", "--data.root", "nowhere"], ["nowhere"]),
    (["--model", "resnet18", "--tracker", "nosuch"], ["tracker"]),
    (["--resume"], ["--resume needs the folder of the run"]),
    (["--resume", "nowhere"], ["nowhere is not a run folder"]),
    (["--resume", "nowhere", "--epochs", "3"], ["leave out"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    (["--config"], ["--config needs a YAML file"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_begun(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*WORDS, *words]
    if "--devices.accelerator" in words:
        given = [*WORDS[:-2], *words]
    elif words[0] in ("--resume", "--config"):
        given = words
    said = refusal(given, capsys)
    assert all(text in said for text in expected), said
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_missing_or_half_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = pictures(tmp_path / "good", "a", "b")
    pictures(tmp_path / "unlike", "a", "b", val=("a", "c"))
    (tmp_path / "trainless" / "val" / "a").mkdir(parents=True)
    shutil.copytree(good, tmp_path / "hollow")
    for file in (tmp_path / "hollow" / "train" / "b").iterdir():
        file.unlink()
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
                 "t10k-labels-idx1-ubyte"):  # fmt: skip
        (tmp_path / "mnist" / f"{name}.gz").write_bytes(gzip.compress(bytes(100))[:20])
    (tmp_path / "cifar.npz").write_bytes(b"PK half of it")
    before = sorted(tmp_path.rglob("*"))
    for data, root, expected in (
        ("folder", "unlike", "differ in b, c"),
        ("folder", "trainless", "train"),
        ("folder", "hollow", "b"),
        ("mnist", "mnist", "ubyte"),
        ("cifar10", "cifar.npz", "cifar.npz"),
    ):
        words = ["--data", data, "--data.root", str(tmp_path / root), "--model", "mlp-8", "--data.batch-size", "4"]
        assert expected in refusal([*words, "--out", str(tmp_path / "run")], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_folder_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("")
    for out, expected in (("mine", "not empty"), ("file/below", "cannot write"), ("file", "cannot write")):
        assert expected in refusal([*WORDS, "--overwrite", "--out", str(tmp_path / out)], capsys)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    code = main(["train", *words])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("untied: ") and err.count("\n") == 1, (code, err)
    return err


def test_batch_norm_of_one_image_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(UntiedError, match="batch norm cannot take statistics"):
        train.train(small(tmp_path / "run", model="resnet20-w2", accumulate=12), silent())
    assert not (tmp_path / "run").exists()
