"""The lab from Python: what goes in, what comes back, and objects of one's own."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import untied
from untied import lab
from untied.errors import UntiedError
from untied.lab.api import Compared, Trained

SMALL = {"name": "synthetic", "synthetic_shape": (1, 4, 4), "synthetic_classes": 3, "synthetic_count": 60}


def points(count: int, seed: int) -> TensorDataset:
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(noise + 3 * torch.eye(3, 4)[labels], labels)


def test_objects_of_this_process_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def net(classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))

    result = lab.compare(
        ["bp", untied.rules.SymmetricAlignment()], model=net, data=(points(60, 0), points(30, 1)), batch_size=6,
        epochs=2, seeds=2, timing_steps=0, out=tmp_path / "run", quiet=True,
    )  # fmt: skip
    assert capsys.readouterr().out == ""
    assert isinstance(result, Compared) and [row["rule"] for row in result.rows] == ["bp", "sa", "frozen"]
    assert result.rows[0]["accuracy_mean"] > 0.6
    assert set(result.weights("sa")) >= {"0.weight", "0.backward_weight"}
    assert not torch.equal(result.weights("sa")["0.weight"], result.weights("sa", seed=1)["0.weight"])
    assert result.figures["accuracy"]._repr_png_()[:4] == b"\x89PNG" and result.page.is_file()
    assert "| `bp` |" in str(result) and result._repr_markdown_() == str(result)
    assert len(result.history()) == 3 * 2 * 2
    with pytest.raises(UntiedError, match="workers is 2, but network or data are objects"):
        lab.compare(["bp"], model=net, data=(points(60, 0), points(30, 1)), workers=2)
    with pytest.raises(UntiedError, match="no weights"):
        result.weights("aa")


def test_one_network_is_trained(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = lab.train(
        "sa", model="mlp-8", data=SMALL, batch_size=12, epochs=2, forward={"lr": 0.05}, out=out, quiet=True,
        devices={"accelerator": "cpu"},
    )  # fmt: skip
    assert isinstance(result, Trained) and result.failure is None
    assert set(result.scores) == {"accuracy", "loss"} and "accuracy" in str(result)
    config = result.folder.config()
    assert config["forward"]["lr"] == 0.05 and config["forward"]["weight_decay"] == 1e-4  # the rest as by default
    assert config["data"]["batch_size"] == 12
    assert untied.metrics.weight_angles(result.model)["fc1"] < 60
    assert torch.equal(result.weights["fc1.weight"], result.model.state_dict()["fc1.weight"])
    again = lab.open_run(out)
    assert again.rows == result.rows and isinstance(again, Trained)


def test_a_failure_is_kept_and_no_exception(tmp_path: Path) -> None:
    result = lab.train("aa", model="mlp-8", data=SMALL, batch_size=12, epochs=2, backward={"lr": 1e9}, quiet=True,
                       out=tmp_path / "run", devices={"accelerator": "cpu"})  # fmt: skip
    assert "not finite" in str(result.failure) and result.scores == {} and "training failed" in str(result)


def test_metaparameters_are_searched(tmp_path: Path) -> None:
    common = {"epochs": 1, "devices": {"accelerator": "cpu"}}
    found = lab.search(
        "wm", model="mlp-8", data=SMALL, batch_size=12, trials=2, run=common, out=tmp_path / "s", quiet=True
    )
    assert len(found.rows) == 2 and found.best["config"]["model"] == "mlp-8" and 0 <= found.best["value"] <= 1
    assert "best" in str(found) and lab.open_run(tmp_path / "s").rows == found.rows


def test_tables_are_pandas_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = lab.compare(["bp"], model="mlp-8", data=SMALL, batch_size=12, epochs=1, seeds=1, timing_steps=0,
                         out=tmp_path / "run", quiet=True)  # fmt: skip

    class DataFrame:
        def __init__(self, rows: list[dict]) -> None:
            self.rows = rows

    fake = types.ModuleType("pandas")
    fake.DataFrame = DataFrame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", fake)
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    assert isinstance(result.table(), DataFrame) and result.table().rows == result.rows


def test_mistakes_are_one_line() -> None:
    for settings, words in (
        ({"epoks": 3}, "unknown key epoks: did you mean 'epochs'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"forward": {"lrr": 1}}, "unknown key forward.lrr"),
        ({"data": "mnits"}, "did you mean 'mnist'"),
        ({"model": nn.Linear(2, 2)}, "made already"),
    ):
        with pytest.raises(UntiedError, match=words) as error:
            lab.compare(["bp"], **({"timing_steps": 0, "quiet": True} | settings))
        assert "\n" not in str(error.value) and "lab." not in str(error.value)
    with pytest.raises(UntiedError, match=r"not a run folder"):
        lab.open_run("nowhere")


def test_a_progress_bar_is_shown_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from untied.lab import console

    monkeypatch.setattr(console, "find_spec", lambda name: None)
    notebook = Console(force_jupyter=True)
    assert not console.shows_bars(notebook) and console.shows_bars(Console(force_terminal=True))
    monkeypatch.setattr(console, "find_spec", lambda name: object())
    assert console.shows_bars(notebook)
