"""Tables, figures and the page: complete runs, interrupted runs, runs with nothing in them."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from untied import UntiedError
from untied.lab import plots, report
from untied.lab.record import RunFolder
from untied.rules import NAMED

RULES = ("bp", "sa", "wm", "0.5*amp + decay")
LAYERS = ("conv1", "layer1.0.conv1", "layer1.1.conv1", "fc")


@dataclass(frozen=True)
class Config:
    rules: tuple[str, ...] = RULES
    model: str = "<b>mlp</b>"
    epochs: int = 3


def make_metrics() -> list[dict[str, Any]]:
    return [
        {
            "rule": rule, "seed": seed, "epoch": epoch, "step": 10 * epoch,
            "validation_accuracy": 0.3 * epoch + 0.01 * seed,
            "weight_angle": {layer: 90.0 - 20 * epoch for layer in LAYERS}, "gradient_angle": 60.0 - 15 * epoch,
        }
        for rule in RULES for seed in range(2) for epoch in range(1, 4)
    ]  # fmt: skip


def make_rows() -> list[dict[str, Any]]:
    return [
        {
            "rule": rule, "text": f"{rule} in full", "local": rule == "wm", "accuracies": [0.9, 0.92],
            "accuracy_mean": 0.91, "accuracy_std": 0.0141, "weight_angle": 12.34, "gradient_angle": 5.0, "cost": 1.335,
            "seeds": 2, "finished": True, "failure": None,
        }
        for rule in RULES
    ]  # fmt: skip


def make_weights() -> dict[str, torch.Tensor]:
    weights = {f"{layer}.weight": torch.randn(20, 30) for layer in LAYERS}
    weights |= {f"{layer}.backward_weight": 2 * weights[f"{layer}.weight"] for layer in LAYERS}
    return weights | {"fc.bias": torch.zeros(20)}


EMPTY_ROW = {"rule": "sa", "text": "sa", "local": None, "accuracies": [], "accuracy_mean": None, "accuracy_std": None,
             "weight_angle": None, "gradient_angle": math.nan, "cost": None, "seeds": 0, "finished": False,
             "failure": None}  # fmt: skip


def texts(figure: Figure) -> str:
    found = [
        text.get_text()
        for axes in figure.axes
        for text in (*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label)
    ]
    return "\n".join(found + [text.get_text() for text in figure.texts])


# figures


def test_every_named_rule_has_its_own_colour() -> None:
    palette = plots.colours(NAMED)
    assert len(set(palette.values())) == len(NAMED)
    assert {rule: plots.colours([rule])[rule] for rule in NAMED} == palette


def test_other_rules_get_colours_that_stay_and_differ() -> None:
    texts = ["sa(decay=2)", "sa", "amp + decay", "0.5*amp + decay", "amp + null", "self"]
    palette = plots.colours(texts)
    assert list(palette) == texts
    assert len(set(palette.values())) == len(texts)
    assert palette["sa"] == plots.COLOURS["sa"]
    assert plots.colours(["sa(decay=2)"])["sa(decay=2)"] == plots.COLOURS["sa"]
    many = plots.colours(f"amp + {i}*decay" for i in range(30))
    assert len(many) == 30


def test_accuracy_curves_are_the_mean_over_seeds_in_percent() -> None:
    figure = plots.accuracy_curves(make_metrics())
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == set(RULES)
    assert list(lines["sa"].get_xdata()) == [1, 2, 3]
    assert lines["sa"].get_ydata() == pytest.approx([30.5, 60.5, 90.5])
    assert "epoch" in texts(figure) and "(%)" in texts(figure)


def test_angles_have_a_panel_a_rule_and_a_line_a_layer() -> None:
    figure = plots.angles_over_time(make_metrics())
    assert [axes.get_title() for axes in figure.axes] == list(RULES)
    assert all(len(axes.lines) == len(LAYERS) + 1 for axes in figure.axes)
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([70, 50, 30])
    assert "degrees" in figure.get_supylabel()


def test_angles_of_a_deep_network_name_a_few_layers() -> None:
    row = {"rule": "sa", "seed": 0, "epoch": 1, "weight_angle": {f"l{i}": 10.0 for i in range(50)}}
    (legend,) = plots.angles_over_time([row]).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "l0" and "l49" in names and len(names) == 9


def test_scatter_shows_three_layers_with_angle_and_ratio() -> None:
    figure = plots.weight_scatter({"sa": make_weights(), "wm": make_weights(), "bp": {"fc.weight": torch.ones(2, 2)}})
    assert len(figure.axes) == 6  # backpropagation stores no B and has no row
    assert [axes.get_title() for axes in figure.axes[:3]] == ["layer conv1", "layer layer1.1.conv1", "layer fc"]
    for axes in figure.axes:
        assert "0.0°" in axes.texts[0].get_text() and "= 2.00" in axes.texts[0].get_text()
        assert axes.get_ylim()[1] > 1.5 * axes.get_xlim()[1]  # B has outgrown W


def test_scatter_draws_at_most_so_many_dots_and_the_same_ones() -> None:
    weights = {"fc.weight": torch.randn(100, 100), "fc.backward_weight": torch.randn(100, 100)}
    dots = [plots.weight_scatter({"fa": weights}).axes[0].collections[0].get_offsets() for _ in range(2)]
    assert len(dots[0]) == plots.DOTS and (dots[0] == dots[1]).all()


def test_scatter_of_weights_that_are_not_finite_or_zero() -> None:
    weights = make_weights()
    weights["conv1.backward_weight"] = torch.full((20, 30), math.nan)
    weights["fc.weight"] = torch.zeros(20, 30)
    assert "not finite" in texts(plots.weight_scatter({"wm": weights}))


def test_scatter_of_an_unknown_layer() -> None:
    with pytest.raises(UntiedError, match=r"'nope'.*conv1.*fc"):
        plots.weight_scatter({"sa": make_weights()}, ["nope"])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_three_layers(count: int) -> None:
    layers = [str(i) for i in range(count)]
    chosen = plots.three_layers(layers)
    assert len(chosen) == min(3, count) and chosen[:1] == layers[:1] and chosen[-1:] == layers[-1:]


def test_bars_show_mean_spread_and_what_is_missing() -> None:
    rows = [*make_rows(), EMPTY_ROW, EMPTY_ROW | {"rule": "fa", "failure": "NaN"}]
    shown = texts(plots.accuracy_bars(rows))
    assert "91.0 ± 1.4" in shown and "not finished" in shown and "failed" in shown
    assert "Validation accuracy" in texts(plots.accuracy_bars([row | {"split": "validation"} for row in rows]))


def test_bars_show_the_gradient_angle_where_it_is_known() -> None:
    rows = [
        row | {"gradient_angle": angle} for row, angle in zip([*make_rows(), EMPTY_ROW], (12.3, None), strict=False)
    ]
    figure = plots.accuracy_bars(rows)
    assert [t.get_text() for t in figure.axes[1].texts] == ["12.3"]
    assert len(plots.accuracy_bars([row | {"gradient_angle": None} for row in make_rows()]).axes) == 1


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"rule": "sa", "seed": 0, "epoch": 1}],
        [
            {
                "rule": "sa",
                "seed": 0,
                "epoch": 1,
                "validation_accuracy": None,
                "weight_angle": None,
                "gradient_angle": None,
            }
        ],
        [{"rule": "sa", "seed": 0, "epoch": 1, "validation_accuracy": 0.5, "weight_angle": {"fc": None}}],
        make_metrics()[:7],
    ],
    ids=["nothing", "bare", "null", "partly null", "interrupted"],
)
def test_what_is_missing_can_still_be_drawn(metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    for name, figure in (("a", plots.accuracy_curves(metrics)), ("b", plots.angles_over_time(metrics))):
        assert len(plots.save(figure, tmp_path, name)) == 2
    for figure in (plots.accuracy_bars([]), plots.accuracy_bars([EMPTY_ROW]), plots.weight_scatter({})):
        plots.save(figure, tmp_path, "c")


def test_the_same_data_give_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        paths = plots.save(plots.accuracy_curves(make_metrics()), tmp_path / name, "accuracy")
        paths += plots.save(plots.weight_scatter({"sa": {k: v for k, v in FIXED.items()}}), tmp_path / name, "scatter")
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG") and b"<svg" in contents[0][1] and b"<dc:date>" not in contents[0][1]


FIXED = {"fc.weight": torch.linspace(-1, 1, 50), "fc.backward_weight": torch.linspace(-1, 1, 50) ** 3}


# tables


def test_markdown_table() -> None:
    lines = report.markdown_table(make_rows()).splitlines()
    assert len(lines) == 2 + len(RULES) and len({line.count("|") for line in lines}) == 1
    assert lines[3] == "| `sa` | symmetric alignment | no | 91.0 ± 1.4 | 12.3 | 5.0 | 1.33× | 2 |"
    assert "test accuracy (%)" in lines[0] and "note" not in lines[0]


def test_tables_show_dashes_and_notes() -> None:
    rows = [*make_rows(), EMPTY_ROW, EMPTY_ROW | {"rule": "fa", "failure": "NaN at\nstep 3 | wm"}]
    lines = report.markdown_table(rows).splitlines()
    assert lines[-2] == "| `sa` | symmetric alignment | – | – | – | – | – | 0 | not finished |"
    assert lines[-1].endswith(r"NaN at step 3 \| wm |")
    assert report.markdown_table([]).count("\n") == 2


def test_csv_table_keeps_every_digit() -> None:
    rows = [*make_rows(), EMPTY_ROW]
    read = list(csv.DictReader(io.StringIO(report.csv_table(rows))))
    assert [row["rule"] for row in read] == [*RULES, "sa"]
    assert float(read[0]["accuracy_std"]) == 0.0141 and float(read[0]["accuracy_1"]) == 0.92
    assert read[-1]["accuracy_mean"] == "" and read[-1]["accuracy_0"] == ""
    assert report.csv_table([]).count("\n") == 1


def test_the_terminal_table_fits_80_columns() -> None:
    out = io.StringIO()
    rows = [*make_rows(), EMPTY_ROW | {"rule": "fa", "failure": "NaN [bold]at step 3"}]
    Console(file=out, width=80).print(report.rich_table(rows))
    shown = out.getvalue()
    for words in ("91.0 ± 1.4", "accuracy (%)", "gradient", "1.33×", "NaN [bold]at step 3"):
        assert words in shown


# the page


class Page(HTMLParser):
    """Checks that tags are closed in order; collects tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", Config())


def page_of(run: RunFolder, **options: Any) -> Page:
    return Page(report.write_html(run, **options).read_text(encoding="utf-8"))


def test_the_page_shows_all_of_a_run_and_needs_no_network(run: RunFolder) -> None:
    run.write_json("results.json", make_rows())
    plots.save(plots.accuracy_curves(make_metrics()), run.path / "figures", "accuracy")
    plots.save(plots.accuracy_bars(make_rows()), run.path / "figures", "results")
    plots.save(plots.accuracy_bars(make_rows()), run.path / "figures", "mine")
    page = page_of(run, summary="One.\n\nTwo & three.", captions={"mine": "My own."})
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [report.CAPTIONS["accuracy"], report.CAPTIONS["results"], "My own."]
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    for attributes in (attributes for _, attributes in page.tags):
        for name in ("src", "href"):
            target = str(attributes.get(name, ""))
            assert not target or target.startswith("data:") or (run.path / target).exists(), target
    html = (run.path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|<script", re.sub(r'src="data:[^"]*"', "", html))
    for words in ("91.0 ± 1.4", "wm in full", "Two & three.", "<b>mlp</b>", "12.3", "section 3.1", torch.__version__):
        assert words in page.text
    assert "came to its end" not in page.text and "prefers-color-scheme: dark" in html and "viewport" in html


@pytest.mark.parametrize("rows", [None, [], [EMPTY_ROW], [*make_rows(), EMPTY_ROW | {"failure": "<NaN> at step 3"}]])
def test_the_page_of_an_unfinished_run(run: RunFolder, rows: list[dict[str, Any]] | None) -> None:
    if rows is not None:
        run.write_json("results.json", rows)
    page = page_of(run)
    assert ("No rule has finished" in page.text) == (not rows)
    assert ("came to its end" in page.text) == bool(rows)
    assert ("<NaN> at step 3" in page.text) == (rows is not None and len(rows) > 1)


def test_an_experiment_adds_sections(run: RunFolder) -> None:
    plots.save(plots.accuracy_bars(make_rows()), run.path / "figures", "extra")
    section = report.Section(
        "Dynamics",
        "First.\n\nSecond.",
        [{"layer": "fc", "eigenvalue": 1 / 3, "stable": True, "n": None}],
        ["extra", "gone"],
    )
    page = page_of(run, title="Another", sections=[section])
    for words in ("Another", "Dynamics", "Second.", "eigenvalue", "0.3333", "yes", "–", "“gone” is not there"):
        assert words in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 1  # in its section, and not among the figures once more


def test_the_page_wants_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UntiedError, match="is not a run folder"):
        report.write_html(tmp_path)
