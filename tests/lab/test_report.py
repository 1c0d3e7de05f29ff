"""Tables, figures and the page: complete runs, interrupted runs, runs with nothing in them."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from rich.console import Console

from runs import Page, silent
from untied import UntiedError
from untied.lab.commands import makers
from untied.lab.experiments import diagnose
from untied.lab.experiments.compare import finish
from untied.lab.keeping.record import RunFolder
from untied.lab.neural.figures import FLOORS
from untied.lab.rules.signs import FROZEN
from untied.lab.settings.compare import CompareConfig
from untied.lab.showing import plots, report, scatter, style
from untied.lab.showing.findings import Words, captions, finding
from untied.lab.study import figures as studies
from untied.lab.tasks.metric import Metric
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
    palette = style.colours(NAMED)
    assert len(set(palette.values())) == len(NAMED)
    assert {rule: style.colours([rule])[rule] for rule in NAMED} == palette


def test_other_rules_get_colours_that_stay_and_differ() -> None:
    texts = ["sa(decay=2)", "sa", "amp + decay", "0.5*amp + decay", "amp + null", "self"]
    palette = style.colours(texts)
    assert list(palette) == texts
    assert len(set(palette.values())) == len(texts)
    assert palette["sa"] == style.COLOURS["sa"]
    assert style.colours(["sa(decay=2)"])["sa(decay=2)"] == style.COLOURS["sa"]
    many = style.colours(f"amp + {i}*decay" for i in range(30))
    assert len(many) == 30


def test_accuracy_curves_are_the_mean_over_seeds_in_percent() -> None:
    figure = plots.accuracy_curves(make_metrics())
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert set(lines) == set(RULES)
    assert list(lines["sa"].get_xdata()) == [1, 2, 3]
    assert lines["sa"].get_ydata() == pytest.approx([30.5, 60.5, 90.5])
    assert "epoch" in texts(figure) and "(%)" in texts(figure)


def contrast(colour: Any, other: Any) -> float:
    """Of two colours, as WCAG 2 has it: 1 to 21."""

    def luminance(colour: Any) -> float:
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))

    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEMPLATE = Path(report.__file__).parent / "templates" / "page.html"
PAGES = re.findall(r"--page: (#\w{6})", TEMPLATE.read_text(encoding="utf-8"))


def test_the_pages_are_light_and_dark_and_contrast_is_what_it_should_be() -> None:
    assert len(PAGES) == 2 and contrast(*PAGES) > 15
    assert contrast("#ffffff", "#000000") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )


@pytest.mark.parametrize("page", PAGES)
def test_rules_have_a_contrast_of_3_on_the_light_and_on_the_dark_page(page: str) -> None:
    """In figures they stand on white; in the page's table each rule has its mark on the page itself."""
    rules = [*NAMED, FROZEN, *(f"amp + {i}*decay" for i in range(30))]
    for rule, look in style.looks(rules).items():
        assert contrast(look.colour, page) >= 3, (rule, look.colour, contrast(look.colour, page))
    assert set(NAMED) | {FROZEN} <= set(style.COLOURS)
    for colour in (*style.COLOURS.values(), *style.SPARE):
        assert contrast(colour, page) >= 3, colour


def test_what_else_is_drawn_has_a_contrast_of_3_on_white() -> None:
    layers = style.shaded([f"layer{i}" for i in range(50)])
    others = [look.colour for look in FLOORS.values()] + [studies.BLUE, studies.ORANGE, *diagnose.COLOURS.values()]
    for colour in (*layers.values(), *others, style.SOFT):
        assert contrast(colour, "white") >= 3, colour


def test_a_marker_tells_the_default_rules_apart_without_colour() -> None:
    default = style.looks(CompareConfig().rules)
    assert len({(look.marker, look.dash) for look in default.values()}) == len(default)
    assert len(set(style.looks([*NAMED, FROZEN]).values())) == len({*NAMED, FROZEN})
    assert set(report.SHAPES) == set(style.MARKERS)
    assert style.looks(["bp"])["bp"].dash == "--" and style.looks([FROZEN])[FROZEN].dash == ":"
    lines = plots.accuracy_curves(make_metrics()).axes[0].lines
    assert len({line.get_marker() for line in lines}) == len(RULES)


def legends(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_legends_and_panels_have_the_tables_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which runs have ended, and whichever rule is the best."""
    rows = make_rows()[::-1]
    run = RunFolder.create(tmp_path / "run", CompareConfig(rules=tuple(row["rule"] for row in rows)))
    for line in make_metrics():
        run.append(line | {"validation_accuracy": 0.1 * len(line["rule"])})
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(style, "save", lambda figure, folder, name: drawn.update({name: figure}))
    finish(run, CompareConfig(rules=tuple(row["rule"] for row in rows)), rows, silent())
    order = [row["rule"] for row in rows]
    table = Page((run.path / "index.html").read_text(encoding="utf-8")).of("b").split("  ")
    assert " ".join(table) == " ".join(order)
    assert legends(drawn["accuracy"]) == order
    assert [axes.get_title() for axes in drawn["angles"].axes] == order
    assert [text.get_text() for text in drawn["results"].axes[0].get_yticklabels()] == order


def crowd(*ends: float) -> list[dict[str, Any]]:
    rules = ["bp", "sa", "aa", "kp", "fa"][: len(ends)]
    return [
        {"rule": rule, "seed": 0, "epoch": epoch, "validation_accuracy": end * min(1, epoch / 7)}
        for rule, end in zip(rules, ends, strict=True)
        for epoch in range(1, 11)
    ]


def named(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_there_is_a_close_up_where_rules_pile_up_and_each_line_has_its_name_once() -> None:
    figure = plots.accuracy_curves(crowd(0.98, 0.975, 0.97, 0.96, 0.6))
    whole, close = figure.axes
    assert close.get_title() == "The same, close up" and whole.get_ylim() == (0, 101)
    low, high = close.get_ylim()
    assert 90 < low < 96 and 98 < high <= 100.4 and close.get_xlim()[0] > 5
    assert named(figure) == [["fa"], ["kp", "aa", "sa", "bp"]]  # from below; those in the pile in the close-up
    places = [text.get_position()[1] for text in close.texts]
    assert all(b - a > 0.05 for a, b in itertools.pairwise(places)) and places[0] >= 0 and places[-1] <= 1


def test_there_is_no_close_up_of_nothing() -> None:
    assert named(plots.accuracy_curves(crowd(0.98, 0.6, 0.3))) == [["aa", "sa", "bp"]]
    assert named(plots.accuracy_curves(crowd(0.98))) == [[]]  # of one rule the title says all
    assert not plots.accuracy_curves(crowd(0.98)).legends
    assert plots.pile([0.5, 0.5], 0.0) is None


def test_bars_have_a_close_up_too() -> None:
    rows = [
        row | {"accuracy_mean": a, "accuracies": [a - 0.002, a + 0.002], "accuracy_std": 0.0028}
        for row, a in zip(make_rows(), (0.98, 0.975, 0.4, 0.97), strict=True)
    ]
    whole, close, angles = plots.accuracy_bars(rows).axes
    assert close.get_title() == "The same, close up" and "gradient" in angles.get_title()
    assert whole.get_xlim()[0] < 40 and 90 < close.get_xlim()[0] < 97
    assert len(plots.accuracy_bars(make_rows()).axes) == 2  # all are equal


def test_names_that_would_stand_on_each_other_move_apart() -> None:
    places = plots._apart([0.5, 0.5, 0.5, 0.9, 1.0], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(places)) and places[0] >= 0 and places[-1] <= 1
    assert plots._apart([0.1, 0.5], 0.1) == [0.1, 0.5]


def test_a_single_epoch_has_one_tick() -> None:
    for figure in (plots.accuracy_curves(make_metrics()[::3]), plots.angles_over_time(make_metrics()[::3])):
        assert list(figure.axes[0].get_xticks()) == [1]


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
    figure = scatter.weight_scatter({"sa": make_weights(), "wm": make_weights(), "bp": {"fc.weight": torch.ones(2, 2)}})
    assert len(figure.axes) == 6  # backpropagation stores no B and has no row
    assert [axes.get_title() for axes in figure.axes[:3]] == ["layer conv1", "layer layer1.1.conv1", "layer fc"]
    for axes in figure.axes:
        assert "0.0°" in axes.texts[0].get_text() and "= 2.00" in axes.texts[0].get_text()
        assert axes.get_ylim()[1] > 1.5 * axes.get_xlim()[1]  # B has outgrown W


def test_scatter_draws_at_most_so_many_dots_and_the_same_ones() -> None:
    weights = {"fc.weight": torch.randn(100, 100), "fc.backward_weight": torch.randn(100, 100)}
    dots = [scatter.weight_scatter({"fa": weights}).axes[0].collections[0].get_offsets() for _ in range(2)]
    assert len(dots[0]) == scatter.DOTS and (dots[0] == dots[1]).all()


def test_scatter_of_weights_that_are_not_finite_or_zero() -> None:
    weights = make_weights()
    weights["conv1.backward_weight"] = torch.full((20, 30), math.nan)
    weights["fc.weight"] = torch.zeros(20, 30)
    assert "not finite" in texts(scatter.weight_scatter({"wm": weights}))


def test_scatter_of_an_unknown_layer() -> None:
    with pytest.raises(UntiedError, match=r"'nope'.*conv1.*fc"):
        scatter.weight_scatter({"sa": make_weights()}, ["nope"])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_three_layers(count: int) -> None:
    layers = [str(i) for i in range(count)]
    chosen = scatter.three_layers(layers)
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
        assert len(style.save(figure, tmp_path, name)) == 2
    for figure in (plots.accuracy_bars([]), plots.accuracy_bars([EMPTY_ROW]), scatter.weight_scatter({})):
        style.save(figure, tmp_path, "c")


def test_the_same_data_give_the_same_files(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        paths = style.save(plots.accuracy_curves(make_metrics()), tmp_path / name, "accuracy")
        paths += style.save(
            scatter.weight_scatter({"sa": {k: v for k, v in FIXED.items()}}), tmp_path / name, "scatter"
        )
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


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", Config())


def page_of(run: RunFolder, **options: Any) -> Page:
    return Page(report.write_html(run, **options).read_text(encoding="utf-8"))


def test_the_page_shows_all_of_a_run_and_needs_no_network(run: RunFolder) -> None:
    run.write_json("results.json", make_rows())
    style.save(plots.accuracy_curves(make_metrics()), run.path / "figures", "accuracy")
    style.save(plots.accuracy_bars(make_rows()), run.path / "figures", "results")
    style.save(plots.accuracy_bars(make_rows()), run.path / "figures", "mine")
    said = captions(make_rows(), make_metrics(), {}) | {"mine": Words("My own.", "Two numbers: 1 and 2.")}
    page = page_of(run, summary="One.\n\nTwo & three.", captions=said)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [said[name].alt for name in ("accuracy", "results", "mine")]
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    for attributes in (attributes for _, attributes in page.tags):
        for name in ("src", "href"):
            target = str(attributes.get(name, ""))
            outside = target.startswith("data:") or (name == "href" and target == report.PAPER)
            assert not target or outside or (run.path / target).exists(), target
    html = (run.path / "index.html").read_text(encoding="utf-8")
    loaded = re.sub(r'src="data:[^"]*"|<a href="[^"]*"', "", html)  # a link is loaded by nobody who does not follow it
    assert not re.search(r"https?:|@import|url\(|<script", loaded)
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
    style.save(plots.accuracy_bars(make_rows()), run.path / "figures", "extra")
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


def test_the_page_says_what_was_trained_what_came_out_and_where_to_read_on(run: RunFolder) -> None:
    page = page_of(run, rows=make_rows(), finding=finding(make_rows()))
    assert page.of("h1") == "Learning rules compared: <b>mlp</b>" and page.of("title") == page.of("h1")
    assert "Backpropagation reaches 91.0 ± 1.4\u00a0% test accuracy." in page.text
    paper, guide = page.values("a", "href")[1::-1]
    assert paper == "https://arxiv.org/abs/2003.01513" and guide.endswith("docs/index.md")
    marks = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert [mark["fill"] for mark in marks] == [look.colour for look in style.looks(RULES).values()]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model": "mlp-8", "data": {"name": "digits"}}, "mlp-8 on digits"),
        ({"model": "mlp-8", "data": "digits"}, "mlp-8 on digits"),
        ({"models": ["a", "b"], "run": {"model": "c", "data": {"name": "cifar10"}}}, "a and b on cifar10"),
        ({"models": [*"abcde"], "run": {}}, "5 networks"),
        ({"rules": ["wm"]}, ""),
    ],
)
def test_the_subject_of_a_page(config: dict[str, Any], words: str) -> None:
    assert report.subject(config) == words


def test_the_documentation_is_on_the_packages_site_or_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in makers():
        address, name = report.documentation(tmp_path, command)
        assert (tmp_path / address).is_file() and name == f"docs/{report.GUIDES[command]}.md"
    described = Message()
    described["Project-URL"] = "Documentation, https://example.org/untied/"
    monkeypatch.setattr(report.importlib.metadata, "metadata", lambda name: described)
    assert report.documentation(tmp_path, "dynamics") == ("https://example.org/untied/theory.html", "theory")
    monkeypatch.undo()
    monkeypatch.setattr(report, "__file__", str(tmp_path / "a/b/c/d/e.py"))  # installed, and the package names no site
    assert report.documentation(tmp_path, "dynamics") == ("", "docs/theory.md")
    run = RunFolder.create(tmp_path / "run", Config())
    assert "docs/index.md of the documentation" in page_of(run).text


def test_the_note_below_the_table_fits_one_run(run: RunFolder) -> None:
    assert "accuracy is the mean over seeds ± one standard deviation" in page_of(run, rows=make_rows()).text
    single = [row | {"accuracies": [0.9], "metric": vars(Metric("loss", "loss", higher=False))} for row in make_rows()]
    page = page_of(run, rows=single)
    assert "The loss is that of one run" in page.text and "±" not in page.text


def test_columns_of_words_stand_on_the_left_and_break(run: RunFolder) -> None:
    rows = [{"layer": "fc", "ratio": 1.0, "regime": "stable"}]
    page = page_of(run, rows=[], sections=[report.Section("Layers", rows=rows, words=("regime",))])
    assert [name.split() for name in page.values("td", "class")] == [["left"], [], ["left", "words"]]
