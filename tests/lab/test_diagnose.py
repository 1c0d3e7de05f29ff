"""`untied diagnose`: predictions against closed form and descent, the command, layers with nothing to see."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import untied
from runs import Page
from untied.dynamics import layer, time_constant
from untied.lab.cli import main
from untied.lab.experiments.diagnose import Diagnosis, diagnosis, regime, rich_table, suggestion, three
from untied.lab.measuring.probe import Probe, probed, spread
from untied.lab.settings.optimizer import OptimizerConfig
from untied.metrics import angle
from untied.rules import Alignment, parse


def a_probe(rule: str, module: nn.Module, *inputs: Tensor) -> Probe:
    """The one probe of a layer that has been given these inputs, a pass each."""
    torch.manual_seed(0)
    model = nn.Sequential(module).double()
    untied.untie_(model, rule)
    (found,) = probed(model, list(inputs), 1000)
    return found


def data(n: int = 40, i: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, i, dtype=torch.float64, generator=g) + 0.3
    return x @ torch.diag(torch.linspace(0.3, 2.0, i, dtype=torch.float64))


RULES = ["wm(amp=2, decay=0.5)", "aa", "ia(decay=0.3)", "sa(self=2)", "wm(decay=balanced)", "wm(decay=mean_power)"]


@pytest.mark.parametrize("rule", RULES)
def test_a_dense_layer_is_predicted_as_in_closed_form(rule: str) -> None:
    x = data()
    probe = a_probe(rule, nn.Linear(5, 3), x[:20], x[20:])
    found = layer(rule, probe.W, x.T @ x / len(x))
    assert probe.is_affine
    rest = probe.rest()
    assert rest is not None and found.fixed_point is not None
    torch.testing.assert_close(rest, found.fixed_point, rtol=1e-3, atol=1e-3)
    assert probe.fastest(60) == pytest.approx(float(found.rates.max()), rel=0.02)
    assert float(found.rates.min()) - 1e-9 <= probe.rate() <= float(found.rates.max()) + 1e-9
    assert probe.power == pytest.approx(float(x.square().mean()))
    condition, rank, channels = spread(probe)
    values = torch.linalg.eigvalsh(x.T @ x)
    assert (condition, rank, channels) == (
        pytest.approx(float(values.max() / values.min())),
        pytest.approx(float(values.sum() ** 2 / values.square().sum())),
        5,
    )


@pytest.mark.parametrize(
    "rule", ["wm(decay=2, positions=mean)", "ia(decay=4, null=0.1)", "wm(decay=balanced, positions=mean)"]
)
def test_a_convolution_is_predicted_as_descent_ends(rule: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64).relu()
    module = nn.Conv2d(2, 3, 3, padding=1)
    probe = a_probe(rule, module, x)
    predicted, eta = probe.rest(), 1 / probe.fastest()
    assert predicted is not None
    B = module.backward_weight  # type: ignore[attr-defined]
    for _ in range(600):
        B.grad = None
        with untied.record(module) as tape:
            module(x)
        tape.penalty().backward()
        with torch.no_grad():
            B.sub_(B.grad, alpha=eta)  # type: ignore[operator]
    torch.testing.assert_close(predicted, B.detach(), rtol=1e-2, atol=1e-2)


def test_noise_is_predicted_from_its_shape_alone() -> None:
    probe = a_probe("wm(decay=balanced, noise=normal)", nn.Conv2d(2, 3, 3, padding=1), torch.zeros(4, 2, 6, 6).double())
    rest = probe.rest()
    assert rest is not None and angle(rest, probe.W) < 12
    before = torch.random.get_rng_state()
    assert probe.power == pytest.approx(
        36 * (4 * (5 / 6) ** 2 + 4 * 5 / 6 + 1) / 9 * 1.0, rel=0.1
    )  # padding is not seen
    assert torch.equal(before, torch.random.get_rng_state())


def test_where_B_runs_away_or_nothing_is_affine() -> None:
    x = data()
    assert a_probe("amp - decay", nn.Linear(5, 3), x).rest() is None
    found = diagnosis(a_probe("amp - decay", nn.Linear(5, 3), x), OptimizerConfig())
    assert found.regime == "diverging" and found.ratio == math.inf
    odd = diagnosis(a_probe("aa(backward_activation=tanh)", nn.Linear(5, 3), x), OptimizerConfig())
    assert odd.regime == "unknown" and math.isnan(odd.ratio)
    assert diagnosis(a_probe("fa", nn.Linear(5, 3), x), OptimizerConfig()).regime == "still"


@pytest.mark.parametrize("rule", ["wm", "aa", "ia(normalised=true)", "wm(decay=balanced)", "sa"])
def test_layers_with_nothing_to_see(rule: str) -> None:
    """No input, a single channel, no weights: nothing divides by zero."""
    zero = diagnosis(a_probe(rule, nn.Linear(5, 3), torch.zeros(8, 5).double()), OptimizerConfig())
    assert zero.effective_rank == 0 and math.isnan(zero.condition) and not zero.power > 0
    one = diagnosis(a_probe(rule, nn.Conv2d(1, 1, 1), torch.ones(2, 1, 3, 3).double()), OptimizerConfig())
    assert one.condition == 1 and one.effective_rank == pytest.approx(1) and one.channels == 1
    probe = a_probe(rule, nn.Linear(5, 3), data())
    probe.W = torch.zeros_like(probe.W)
    assert math.isnan(diagnosis(probe, OptimizerConfig()).ratio)
    assert "–" in str(rich_table([zero, one]).columns[1]._cells) + "–"


def test_a_called_again_layer_counts_as_the_rule_counts_it() -> None:
    shared = nn.Linear(5, 5, bias=False)
    model = nn.Sequential(shared, shared).double()
    for rule, share in (("amp + power*decay", 1.0), ("align(amp=1, decay=power, positions=mean)", 0.5)):
        untied.untie_(model, rule)
        (probe,) = probed(model, [data()], 1000)
        with untied.record(model) as tape:
            model(data())
        tape.penalty().backward()
        torch.testing.assert_close(probe.gradient(probe.B), shared.backward_weight.grad)  # type: ignore[attr-defined]
        assert share and len(probe.calls) == 2
        untied.tie_(model)


def test_suggestions() -> None:
    def said(rule: str, ratio: float) -> str:
        r = parse(rule)
        assert isinstance(r, Alignment)
        return suggestion(r, ratio)

    assert said("wm(decay=2)", 3.0) == "decay=6" and said("wm(decay=2)", 0.1) == "decay=0.2"
    assert said("wm(decay=0.5*power)", 4.0) == "decay=2*power" and said("wm", 1.3) == said("wm", math.inf) == ""
    assert said("wm", 0.0) == "no input to learn from" and said("ia", 9.0) == said("sa", 9.0) == ""
    assert [regime(r, 1.0) for r in (3.0, 1.0, 0.2, math.inf, math.nan)] == [
        "diverging", "stable", "collapsing", "diverging", "unknown"
    ]  # fmt: skip


# The command


def test_one_network_under_weight_mirror_has_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The paper's Fig. 2d-f: a diverging, a stable and a collapsing layer in one ResNet-18."""
    out = tmp_path / "d"
    words = ["resnet18-w4", "--rule", "wm(decay=3) @ SGD(lr=0.02)", "--batches", "1", "--examples", "8"]
    assert main(["diagnose", *words, "--out", str(out)]) == 0
    rows = json.loads((out / "results.json").read_text())
    assert {row["regime"] for row in rows} == {"diverging", "stable", "collapsing"} and len(rows) == 21
    first, last = rows[0], rows[-2]
    assert first["regime"] == "diverging" and last["regime"] == "collapsing"
    assert first["suggestion"] == f"decay={3 * first['ratio']:.3g}"
    assert first["steps"] == pytest.approx(float(time_constant(3.0, 0.02, 0.9)), rel=1e-3)
    said = capsys.readouterr().out
    assert "diverging: " in said and "collapsing: " in said and "decay=balanced" in said
    with (out / "table.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == [row["layer"] for row in rows]
    assert (out / "table.md").read_text().startswith("| layer | mean x² |")
    for kind in ("png", "svg"):
        assert (out / "figures" / f"diagnosis.{kind}").stat().st_size > 5_000


def test_a_short_run_shows_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "d"
    rule = "wm(decay=balanced, noise=normal, positions=mean) @ SGD(lr=0.1, momentum=0)"
    words = ["mlp-16-12-8", "--rule", rule, "--data.batch-size", "200", "--data.validation", "0"]
    assert main(["diagnose", *words, "--steps", "40", "--out", str(out)]) == 0
    for row in json.loads((out / "results.json").read_text()):
        assert row["regime"] == "stable" and row["suggestion"] == ""
        assert 0.8 < row["measured_ratio"] < 1.2 and row["measured_angle"] < 30
    assert (out / "figures" / "scatter.png").is_file() and "measured" in (out / "table.md").read_text()
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    assert (
        "After 40 steps ‖B‖ over ‖W‖ lies between" in page.text and "as measured after 40 training steps" in page.text
    )
    predicted, scattered = page.values("img", "alt")
    assert "Crosses, measured after 40 steps: fc1 " in predicted and "°, ‖B‖/‖W‖ = " in scattered
    assert main(["diagnose", *words, "--out", str(out)]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "d"
    words = ["--rule", "wm", "--model", "mlp-8", "--epochs", "1", "--set", "angles=weights"]
    assert main(["train", *words, "--out", str(run)]) == 0
    assert main(["diagnose", str(run), "--out", str(out)]) == 0
    assert [row["layer"] for row in json.loads((out / "results.json").read_text())]
    assert "rule: wm" in (out / "config.yaml").read_text()
    assert main(["diagnose", str(run), "--rule", "sa", "--out", str(tmp_path / "e")]) == 2


def test_a_training_that_fails_is_still_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "wm(decay=50) @ SGD(lr=10)"
    words = ["mlp-8", "--rule", rule, "--steps", "60", "--out", str(tmp_path / "d")]
    assert main(["diagnose", *words]) == 1
    said = capsys.readouterr().out
    assert "lr 10 makes B oscillate away" in said and "training stopped" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rule", "bp"], "nothing to diagnose"),
        (["--rule", "kp"], "pseudogradient"),
        (["--rule", "wm(amq=1)"], ">>>amq<<<"),
        (["resnet17"], "resnet17"),
        (["--batches", "0"], "at least 1"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", *words]) in (2, 3)
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1


def test_three_layers_of_different_fate() -> None:
    def row(name: str, ratio: float) -> Diagnosis:
        return Diagnosis(name, 1.0, 1.0, 1.0, 1, "stable", 1.0, 0.0, 1.0, 1.0, "", ratio)

    rows = [row("a", 30.0), row("b", 0.9), row("c", 5.0), row("d", 0.01), row("e", math.nan)]
    weights = {"wm": {f"{r.layer}.backward_weight": torch.ones(1) for r in rows}}
    assert [r.layer for r in three(rows, weights)] == ["a", "b", "d"]
