"""`untied check`: a verdict on a network and a rule."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

import untied
from untied.lab.cli import main
from untied.lab.data import DataConfig
from untied.lab.experiments.check import verdict
from untied.lab.tasks import make
from untied.lab.training.setup import dataset


def test_a_network_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mlp-8-8", "--rule", "sa"]) == 0
    said = capsys.readouterr().out
    assert "parameter" in said and "backward_weight" in said and "verified: errors go through B alone" in said


def test_a_verdict_never_stops_a_training() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such shape\nhere")

    config = DataConfig("synthetic", synthetic_shape=(1, 2, 2), synthetic_classes=2, synthetic_count=20, batch_size=4)
    model, data = Fails(), dataset(config, 0, "cpu")
    untied.untie_(model, "sa")
    goal = make("", data)
    assert verdict(model, data, goal) == "not verified: no such shape here"
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    untied.untie_(plain, "drtp")
    assert verdict(plain, data, goal).startswith("verified")


def test_what_is_impossible_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mlp-8-8", "--rule", "saa"]) == 2
    assert main(["check", "--examples", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err
