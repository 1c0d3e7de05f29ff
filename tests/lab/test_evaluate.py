"""`untied evaluate` and `untied export`: the run's own numbers, and weights that the stock model loads."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import untied
from runs import pictures, silent, small, state
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.experiments import train
from untied.lab.experiments.evaluate import evaluate_run, export, load_run, stock_model
from untied.lab.keeping.record import RunFolder
from untied.lab.training.identity import LAST
from untied.lab.training.setup import dataset, network

PICTURES = DataConfig("synthetic", synthetic_shape=(3, 16, 16), synthetic_classes=7, synthetic_count=70, batch_size=14)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs with batch normalisation, one of them with a moving average."""
    folders = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "finish", lambda folder, config: None)
        for name, changes in {"plain": {}, "average": {"ema": 0.8}}.items():
            folders[name] = tmp_path_factory.mktemp(name) / "run"
            config = small(folders[name], model="resnet20-w2", data=PICTURES, epochs=3, rule="sa", **changes)
            assert train.train(config, silent()) == 0
    return folders


@pytest.mark.parametrize("name", ["plain", "average"])
def test_it_gives_the_runs_own_numbers(name: str, finished: dict[str, Path]) -> None:
    folder = RunFolder(finished[name])
    assert evaluate_run(folder.path, accelerator="cpu", console=silent()) == 0
    found, result = folder.read_json("evaluation-test-last.json"), folder.read_json("results.json")
    assert [found[name] for name in ("accuracy", "top5", "loss")] == [result[n] for n in ("accuracy", "top5", "loss")]
    assert (found["split"], found["checkpoint"]) == ("test", "last")
    assert (found["images"], found["damaged"]) == (dataset(PICTURES, 0, "cpu").test.size, 0)
    last = folder.metrics()[-1]
    for key in ("weight_angle", "norm_ratio", "gradient_angle", "layer_gradient_angle"):
        assert (found[key] == last[key]) == (name == "plain"), key  # of the average where there is one
    evaluate_run(folder.path, "validation", "best", accelerator="cpu", console=silent())
    best = folder.read_json("evaluation-validation-best.json")
    assert best["accuracy"] == result["best_validation_accuracy"]
    assert best["loss"] == folder.metrics()[result["best_epoch"] - 1]["validation_loss"]


@pytest.mark.parametrize("name", ["synthetic", "folder"])
def test_training_images_are_evaluated_as_test_images_are(name: str, tmp_path: Path, monkeypatch) -> None:
    """All of them, once, without augmentation."""
    monkeypatch.setattr(train, "finish", lambda folder, config: None)
    data = PICTURES
    if name == "folder":
        root = pictures(tmp_path / "ab", "a", "b")
        data = DataConfig("folder", root=root, batch_size=5, validation=0, workers=0, image_size=8)
    data = dataclasses.replace(data, augment="standard", validation=0)
    train.train(small(tmp_path / "run", data=data, epochs=1), silent())
    read = []
    for _ in range(2):
        evaluate_run(tmp_path / "run", "train", accelerator="cpu", console=silent())
        read.append(RunFolder(tmp_path / "run").read_json("evaluation-train-last.json"))
    assert read[0] == read[1] and read[0]["images"] == (70 if name == "synthetic" else 16)
    loaded = dataset(data, 0, "cpu")
    images, labels = next(iter(loaded.train.still(loaded.test)))
    assert len(images) == loaded.train.size and torch.equal(labels, loaded.train.labels)


def test_its_table_has_every_layer(finished: dict[str, Path]) -> None:
    screen = io.StringIO()
    evaluate_run(finished["plain"], accelerator="cpu", console=Console(file=screen, width=80))
    shown = screen.getvalue()
    assert max(map(len, shown.splitlines()[:2] + shown.splitlines()[3:-1])) <= 80
    model, _, _ = load_run(finished["plain"], "last")
    assert all(name in shown for name in untied.layers.untied_layers(model))
    assert "accuracy" in shown and "whole network" in shown


@pytest.mark.parametrize("name", ["plain", "average"])
def test_exported_weights_are_those_of_the_tied_model(name: str, finished: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "below" / "w.safetensors"
    assert export(finished[name], out, console=silent()) == 0
    model, data, config = load_run(finished[name], "last")
    images, _ = next(iter(data.test))
    with torch.no_grad():
        wanted = model.eval()(images)
    weights = load_file(out)
    assert not any("backward" in key for key in weights)
    plain = untied.lab.models.build(config.model, input_shape=data.input_shape, classes=len(data.classes))
    plain.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), wanted, rtol=0, atol=0)
    with safe_open(out, framework="pt") as file:
        assert {"model": "resnet20-w2", "rule": "sa", "checkpoint": "last"}.items() <= file.metadata().items()


@pytest.mark.parametrize("model", ["resnet18-imagenet", "torchvision:mobilenet_v3_small"])
def test_exported_weights_load_into_torchvision(model: str, tmp_path: Path) -> None:
    """Untrained ones, with batch statistics that are not the initial ones."""
    run, data = tmp_path / "run", dataset(PICTURES, 0, "cpu")
    config = small(run, model=model, data=PICTURES, rule="fa")
    folder = RunFolder.create(run, config)
    own = train.Run(config, folder=run)
    images, _ = next(iter(data.test))
    own.model.train()(images)
    own.save("last")
    screen = io.StringIO()
    export(run, tmp_path / "w.safetensors", console=Console(file=screen, width=80))
    (line,) = [line for line in screen.getvalue().splitlines() if "load it with" in line]
    code = "import safetensors.torch, torchvision; " + line.partition(":")[2].strip()
    names: dict[str, Any] = {}
    exec(code, names)  # what it tells a user to do
    stock = names["model"].eval()
    assert type(stock) is type(torchvision.models.get_model(model.partition(":")[2] or "resnet18"))
    with torch.no_grad():
        torch.testing.assert_close(stock(images), own.model.eval()(images), rtol=0, atol=1e-5)
    assert folder.config()["model"] == model


def test_a_stock_model_is_named_only_where_it_fits() -> None:
    def state_of(name: str, shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000) -> dict:
        with torch.device("meta"):
            return untied.lab.models.build(name, input_shape=shape, classes=classes).state_dict()

    assert stock_model("resnet50", state_of("resnet50")) == "resnet50"
    assert stock_model("resnet152v1", state_of("resnet152v1")) == "resnet152"
    assert stock_model("resnet18", state_of("resnet18", (3, 32, 32), 10)) is None  # another stem
    assert stock_model("resnet50v2", state_of("resnet50v2")) is None
    assert stock_model("mlp-8", state_of("mlp-8", (1, 4, 4), 3)) is None


def test_other_data_is_evaluated_only_with_as_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "finish", lambda folder, config: None)
    data = DataConfig("folder", root=pictures(tmp_path / "ab", "a", "b"), batch_size=4, workers=0, image_size=8)
    run = tmp_path / "run"
    train.train(small(run, data=data, epochs=1), silent())
    pictures(tmp_path / "moved", "a", "b")
    pictures(tmp_path / "abc", "a", "b", "c")
    pictures(tmp_path / "other", "a", "z")
    pictures(tmp_path / "unlike", "a", "b", val=("a", "c"))
    evaluate_run(run, root=tmp_path / "moved", accelerator="cpu", console=silent())
    refusals = {"abc": "its classes: 2; here: 3, c", "other": "its classes: 2, b; here: 2, z",
                "unlike": "they differ in b, c", "nowhere": "no folder"}  # fmt: skip
    for root, words in refusals.items():
        with pytest.raises(UntiedError, match=words):
            evaluate_run(run, root=tmp_path / root, accelerator="cpu", console=silent())


def test_what_cannot_be_evaluated_or_written(finished: dict[str, Path], tmp_path: Path) -> None:
    before = state(finished["plain"])
    for out, words in (("w.pt", "written as .safetensors"), ("file/w.safetensors", "cannot write")):
        (tmp_path / "file").write_text("")
        with pytest.raises(UntiedError, match=words):
            export(finished["plain"], tmp_path / out, console=silent())
    with pytest.raises(UntiedError, match="accelerator quantum"):
        evaluate_run(finished["plain"], accelerator="quantum", console=silent())
    assert state(finished["plain"]) == before
    data = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_count=40, batch_size=20, validation=0)
    config = small(tmp_path / "run", data=data)
    RunFolder.create(tmp_path / "run", config)
    train.Run(config, folder=tmp_path / "run").save("last")
    with pytest.raises(UntiedError, match="validation split has no images"):
        evaluate_run(tmp_path / "run", "validation", accelerator="cpu", console=silent())
    with pytest.raises(UntiedError, match=r"no checkpoint .*best.safetensors: a run writes it once validation"):
        evaluate_run(tmp_path / "run", which="best", accelerator="cpu", console=silent())


def test_a_checkpoint_under_another_configuration(finished: dict[str, Path], tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", small(tmp_path / "run", model="resnet20-w3", data=PICTURES))
    tensors = load_file(finished["plain"] / LAST)
    with safe_open(finished["plain"] / LAST, framework="pt") as file:
        about = json.loads(file.metadata()["untied"])
    del about["digest"], about["format"]  # it is changed below
    (folder.path / LAST).parent.mkdir()
    save_file(tensors, folder.path / LAST, {"untied": json.dumps(about)})
    with pytest.raises(UntiedError, match="of another run: its model: resnet20-w2; here: resnet20-w3"):
        load_run(folder.path, "last")
    about["position"]["identity"]["model"] = "resnet20-w3"
    save_file(tensors, folder.path / LAST, {"untied": json.dumps(about)})
    with pytest.raises(UntiedError, match=r"is of another model or rule: .* there and .* here"):
        load_run(folder.path, "last")
    assert network(small(model="resnet20-w3", data=PICTURES), dataset(PICTURES, 0, "cpu"))
