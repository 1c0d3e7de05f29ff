"""Fake learning: what catches a network that does not learn in depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from untied.lab.rules.signs import Frozen, freeze, looks, marks, table, trained_as
from untied.lab.showing import report
from untied.lab.showing.tables import cells, csv_table, heads
from untied.rules import parse


def network(gain: float = 1.0) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].weight.mul_(gain)
    return model


def batches(model: nn.Module, scale: float = 1.0, count: int = 3) -> list[Any]:
    def of(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        x, labels = torch.randn(16, 8, generator=generator), torch.randint(3, (16,), generator=generator)

        def loss() -> Tensor:
            return scale * nn.functional.cross_entropy(model(x), labels)

        return loss, None

    return [of(seed) for seed in range(count)]


def test_a_network_that_is_well_has_no_signs() -> None:
    model = network()
    untied.untie_(model, "bp")
    found = looks(model, batches(model))
    assert found["signs"] == [] and found["gradient_angle_std"] == pytest.approx(0, abs=1e-3)
    assert list(found["gradient_norm"]) == list("01234") and min(found["gradient_norm"].values()) > 0
    assert list(found["growth"]) == list("1234")  # nothing comes before the first layer


def test_activity_that_grows_is_named() -> None:
    model = network(gain=500)
    untied.untie_(model, "fa")
    assert looks(model, batches(model))["signs"][0].startswith("activity grows") and "layer 2" in str(
        looks(model, batches(model))["signs"]
    )


def test_a_gradient_that_vanishes_is_named() -> None:
    model = network()
    with torch.no_grad():
        model[4].weight.mul_(1e-12)
    untied.untie_(model, "fa")
    assert "backprop's gradient vanishes in 4 of 5 layers" in looks(model, batches(model))["signs"]


def test_an_angle_that_jumps_over_batches_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    untied.untie_(model, "fa")
    angles = iter([10.0, 90.0])
    monkeypatch.setattr(untied.metrics, "gradient_angle", lambda model, loss, targets: next(angles))
    assert "varies by ±" in looks(model, batches(model))["signs"][-1]
    monkeypatch.undo()
    assert looks(model, batches(model, count=1))["gradient_angle_std"] is None


def test_marks_of_an_accuracy() -> None:
    def of(accuracy: float | None, rule: str = "wm", baseline: float | None = 0.6) -> list[str]:
        return marks({"rule": rule, "accuracy_mean": accuracy}, 0.1, baseline)

    assert of(0.05) == [
        "at chance (10 %): it has not learned",
        "not above frozen: its hidden layers have learned nothing that helps",
    ]
    assert of(0.6)[0].startswith("not above frozen") and of(0.61) == of(None) == of(0.6, "frozen") == []
    assert marks({"rule": "wm", "accuracy_mean": 0.54}, 0.5, None) != [] == marks({"accuracy_mean": 0.56}, 0.5, None)


def test_the_table_has_them_in_its_note() -> None:
    rows = [{"rule": "wm", "accuracy_mean": 0.05, "accuracies": [0.05], "signs": ["at chance", "vanishes"]}]
    assert heads(rows)[-1] == "note" and cells(rows[0])[-1] == "at chance; vanishes"
    assert "at chance; vanishes" in csv_table(rows)


def test_the_page_has_a_table_of_them() -> None:
    def row(rule: str, accuracy: float, **more: Any) -> dict[str, Any]:
        norms = {"fc1": 0.002, "fc2": 0.3}
        return {"rule": rule, "accuracy_mean": accuracy, "gradient_norm": norms, "growth": {"fc2": 1.25}} | more

    rows = [
        row("bp", 0.9, gradient_angle=0.0, gradient_angle_std=0.0),
        row("wm", 0.5, gradient_angle=31.25, gradient_angle_std=2.04),
        row("frozen", 0.6),
    ]
    assert table(rows)[1] == {
        "rule": "wm",
        "gradient angle (°)": "31.2 ± 2.0",
        "smallest ‖gradient‖": "2.0e-03 (fc1)",
        "largest growth": "1.2-fold (fc2)",
        "above frozen": False,
    }
    assert [found["rule"] for found in table(rows)] == ["bp", "wm"] and table(rows)[0]["above frozen"]
    assert "above frozen" not in table(rows[:2])[0]
    (section,) = report.in_depth(rows)
    assert section.rows == table(rows) and "± its standard deviation" in section.text
    assert report.in_depth([{"rule": "wm", "accuracy_mean": 0.5}]) == []


def test_the_angle_is_looked_at_over_batches_where_validation_is_one() -> None:
    """As on the digits: 269 images in one batch of up to 500."""
    from untied.lab.data import DataConfig
    from untied.lab.settings.run import TrainConfig
    from untied.lab.training.loop import Run

    run = Run(TrainConfig(rule="fa", model="mlp-8", epochs=1, data=DataConfig("digits")))
    assert run.train(lambda metrics: None)["gradient_angle_std"] > 0


def test_frozen_leaves_the_last_layer_alone_to_learn() -> None:
    model = network()
    rule = parse("frozen")
    with pytest.raises(untied.UntiedError, match="in a loop of your own, untie with 'bp'"):
        untied.untie_(model, rule)  # nothing would freeze a layer there
    untied.untie_(model, trained_as(rule))
    freeze(model, rule)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["4.weight", "4.bias"]
    other = network()
    untied.untie_(other, "bp")
    freeze(other, parse("bp"))
    assert isinstance(rule, Frozen) and all(p.requires_grad for p in other.parameters())
