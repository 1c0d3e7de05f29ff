"""A trained network as a folder: what is written is loaded, and what was changed since is refused."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import untied
from runs import silent, small
from untied import UntiedError, lab
from untied.lab.data import DataConfig
from untied.lab.experiments import exported, train
from untied.lab.experiments.evaluate import export, load_run

DATA = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_classes=3, synthetic_count=60, batch_size=15)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.train(small(folder, model="mlp-6", data=DATA, rule="kp", epochs=1), silent()) == 0
    return folder


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    assert export(run, tmp_path / "net", console=silent()) == 0
    return tmp_path / "net"


def test_what_is_exported_is_loaded(run: Path, folder: Path) -> None:
    model, trained = lab.load(folder), load_run(run, "last")[0].eval()
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(model(x), trained(x)) and not model.training
    assert {n: layer.rule for n, layer in untied.layers.untied_layers(model).items()} == {
        n: layer.rule for n, layer in untied.layers.untied_layers(trained).items()
    }
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    assert any("backward_weight" in name for name in model.state_dict())
    assert model.untied_record["accuracy"] == json.loads((run / "results.json").read_text())["accuracy"]
    assert (folder / "card.md").read_text() == (run / "card.md").read_text()
    assert "verified: errors go through B alone" in (folder / "verify.txt").read_text()


def test_a_network_of_ones_own_is_given(folder: Path) -> None:
    wanted = lab.load(folder)
    plain = untied.lab.models.build("mlp-6", input_shape=(1, 4, 4), classes=3)
    assert torch.equal(lab.load(folder, model=plain)(torch.ones(1, 1, 4, 4)), wanted(torch.ones(1, 1, 4, 4)))
    with pytest.raises(UntiedError, match="the weights are of another network"):
        lab.load(folder, model=torch.nn.Linear(2, 2))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def repacked(folder: Path) -> None:
    """Other weights, with a digest that fits, and no result in the header."""
    file = folder / "weights.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    about = json.loads((folder / "model.json").read_text())
    change(folder / "model.json", digests=about["digests"] | {"weights.safetensors": exported.digest(file)})


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (lambda f: (f / "card.md").write_text("99 %"), "card.md is not the file that was exported"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"x"), "its digest differs"),
        (lambda f: (f / "verify.txt").unlink(), "has no verify.txt"),
        (lambda f: change(f / "model.json", result={"accuracy": 1.0}), "is not the one that the weights were exported"),
        (repacked, "is not the one that the weights were exported"),
        (lambda f: change(f / "model.json", digests={}), "says nothing of weights.safetensors"),
        (lambda f: (f / "model.json").write_text("{}"), "says nothing of model, rule"),
        (lambda f: (f / "model.json").write_text("{"), "model.json"),
        (lambda f: (f / "model.json").unlink(), "has no model.json"),
        (lambda f: change(f / "model.json", model="nets:Net"), "whose code is not in the folder"),
        (lambda f: change(f / "model.json", rule="sa("), "cannot read rule"),
        (lambda f: change(f / "model.json", digests={"../x": "", "weights.safetensors": ""}), "has no ../x"),
    ],
)
def test_what_was_changed_is_refused_in_one_line(folder: Path, tamper: Callable[[Path], Any], said: str) -> None:
    tamper(folder)
    with pytest.raises(UntiedError) as error:
        lab.load(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_there(folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "a/b/c", "../nowhere"):
        with pytest.raises(UntiedError, match="there is no folder"):
            lab.load(name)
    with pytest.raises(UntiedError, match="is there already"):
        export(run, folder, console=silent())
    hub: Any = ModuleType("huggingface_hub")

    def refuse(name: str, **options: Any) -> str:
        raise OSError(f"no\nrepository {name}")

    hub.snapshot_download, hub.__spec__ = refuse, sys.__spec__
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(UntiedError, match="the hub did not give it: OSError: no repository some/one"):
        lab.load("some/one")
    hub.snapshot_download = lambda name, **options: str(folder)
    assert lab.load("some/one").untied_record
    shutil.rmtree(folder)
