"""`untied dynamics`: what it writes and says, the figure, and the one line that a mistake gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from untied.dynamics import scalar
from untied.lab.cli import main
from untied.lab.experiments.dynamics import WEIGHT_MIRROR, phase_portraits, summary
from untied.lab.showing.style import save


def test_the_default_is_figure_2_and_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "portraits"
    assert main(["dynamics", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "no rules given" in said and "Fig. 2a-c" in said and said.count("\n") == 5
    rows = json.loads((out / "results.json").read_text())
    assert [row["regime"] for row in rows] == ["diverging", "stable line", "collapsing"]
    assert [row["rule"] for row in rows] == list(WEIGHT_MIRROR)
    for kind in ("png", "svg"):
        assert (out / "figures" / f"phase_portraits.{kind}").stat().st_size > 10_000
    assert (out / "config.yaml").is_file() and (out / "environment.json").is_file()


def test_the_data_are_the_flow(tmp_path: Path) -> None:
    out = tmp_path / "ia"
    words = ["ia(decay=0.5)", "sa", "--x", "0.8", "--lr", "0.2", "--momentum", "0.5", "--extent", "1.25"]
    assert main(["dynamics", *words, "--out", str(out)]) == 0
    with (out / "flow.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 21**2 and max(float(row["w"]) for row in table) == 1.25
    for row in (table[17], table[700]):
        wanted = scalar(row["rule"], float(row["x"])).flow(float(row["w"]), float(row["b"]))
        assert (float(row["dw_dt"]), float(row["db_dt"])) == pytest.approx([float(v) for v in wanted])
    first, second = json.loads((out / "results.json").read_text())
    assert first["A"] is None and [p["kind"] for p in first["fixed_points"]] == ["stable", "saddle", "stable"]
    assert second["symmetric_eigenvalue"] == 0 and second["line_of_fixed_points"]
    assert second["time_constants"] == {"flow": 1.0, "steps": pytest.approx(2.89, abs=0.01), "lr": 0.2, "momentum": 0.5}


def test_a_second_call_needs_overwrite_and_a_config_repeats_the_first(tmp_path: Path) -> None:
    out = tmp_path / "here"
    assert main(["dynamics", "fa", "--out", str(out)]) == 0
    assert main(["dynamics", "fa", "--out", str(out)]) == 2
    assert main(["dynamics", "kp", "--out", str(out), "--overwrite"]) == 0
    again = tmp_path / "again"
    assert main(["dynamics", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert json.loads((again / "results.json").read_text())[0]["rule"] == "kp"


def test_every_kind_of_panel_is_drawn(tmp_path: Path) -> None:
    rules = ["wm", "ia(decay=0.5)", "ia(decay=0)", "null", "fa", "ia(null=-1)", "kp", "-1*decay", "ia(null=1e6)"]
    found = [scalar(rule) for rule in rules]
    figure = phase_portraits(found)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == len(rules) and "(R alone)" in titles[6] and "not quadratic" in titles[1]
    png = save(figure, tmp_path, "all")[0]
    assert imread(png).shape[0] > 1000


def test_a_summary_is_plain() -> None:
    row = summary(scalar("kp(decay=0.25)", 2.0), lr=1.0)
    assert json.loads(json.dumps(row)) == row
    assert row["A"] == torch.diag(torch.tensor([0.25, 0.25])).tolist() and row["note"].startswith("kp: ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bp"], ["bp computes B from W", "wm"]),
        (["wm(amq=1)"], [">>>amq<<<", "amp"]),
        (["wm", "frsf"], ["frsf computes B from W"]),
        (["wm(normalise_input=true)"], ["normalise_input", "not covered"]),
        (["wm", "--x", "nan"], ["x=nan"]),
        (["wm", "--x", "one"], ["--x", "'one'"]),
        (["wm(noise=normal)", "--x", "1"], ["leave x out"]),
        (["--lr", "0"], ["lr=0.0"]),
        (["--momentum", "1"], ["momentum=1.0"]),
        (["--extent", "-1"], ["extent is -1.0"]),
        (["--exten", "1"], ["unknown option '--exten'", "--extent"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["dynamics", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("untied: ") and said.err.count("\n") == 1
    for text in expected:
        assert text in said.err
    assert list(tmp_path.iterdir()) == []
