"""What a study ends with, made from rows alone: tables that fit a terminal, what is said, figures, the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from runs import Page
from untied.lab.keeping.record import RunFolder
from untied.lab.showing import style, writers
from untied.lab.study import report
from untied.lab.study.space import Space, space

OPERATIONS = Space.of(space("wm-operations"), "the space")
LONG = "wm(amp=0.000117229, decay=0.0148281, noise=normal, noise_std=0.0284617)"
MODELS = ("resnet18-w8", "resnet34-w8", "resnet18v2-w8", "resnet34v2-w8")


def run_of(
    number: int, value: float, state: str = "complete", failure: str | None = None, **params: Any
) -> dict[str, Any]:
    result = {"value": value, "split": "test", "failure": failure, "step": 9, "chance": 0.1, "seconds": 1.0}
    return {"run": f"{number:04d}", "number": number, "state": state, "value": value, "params": params,
            "failure": failure, "results": [result], "config": {"rule": "wm"}}  # fmt: skip


def searched(count: int = 12) -> list[dict[str, Any]]:
    """Settings of the largest space that is shipped, the last one the best, every fourth stopped early."""
    rows = []
    for number in range(count):
        params = {
            p.name: p.choices[number % len(p.choices)] if p.choices else p.low + (p.high - p.low) * number / 17
            for p in OPERATIONS.parameters
        }
        rows.append(run_of(number, 0.7 + 0.02 * number, "pruned" if number % 4 == 0 else "complete", **params))
    return rows


def transferred(seeds: int = 2, sigmas: tuple[float | None, ...] = (None,)) -> list[dict[str, Any]]:
    rules = {"bp": 0.95, "tuned:sa": 0.94, LONG: 0.6}
    points = [(r, m, s, seed) for seed in range(seeds) for m in MODELS for s in sigmas for r in rules]
    return [
        run_of(
            number, rules[r] + 0.01 * seed - (s or 0) * (0.5 if r == "bp" else 0.1), rule=r, model=m, seed=seed,
            failure="not finite" if r == LONG and m == MODELS[0] and seed == 0 else None,
            **({} if s is None else {"sigma": s}),
        )
        for number, (r, m, s, seed) in enumerate(points)
    ]  # fmt: skip


def folder(path: Path, kind: str) -> RunFolder:
    config = {"kind": kind, "name": "here", "models": [] if kind == "search" else MODELS[:2],
              "run": {"model": "resnet18-w8", "data": {"name": "digits"}, "epochs": 7}}  # fmt: skip
    return RunFolder.create(path / "study", config)


def printed(kind: str, rows: list[dict[str, Any]], width: int = 80) -> list[str]:
    out = io.StringIO()
    report.tell(Console(file=out, width=width), kind, report.tabled(kind, rows))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("kind", ["search", "transfer", "noise"])
def test_a_table_can_be_read_in_a_terminal(kind: str, width: int) -> None:
    """Every name is there in full, no cell is cut, and no line is only dots."""
    rows = searched() if kind == "search" else transferred(sigmas=(0.0, 0.1) if kind == "noise" else (None,))
    lines = printed(kind, rows, width)
    table = [line for line in lines if "best settings" not in line]
    assert all(len(line) <= width for line in table) and not any("…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    names = [p.name for p in OPERATIONS.parameters] if kind == "search" else [*MODELS, "bp", "tuned:sa"]
    for name in names:
        assert name in text or width < 80, name
    if kind != "search":
        assert text.count("95.5 ± 0.7") >= len(MODELS)  # nothing is left out


def test_the_best_setting_of_a_search_stands_first() -> None:
    lines = printed("search", searched())
    assert len(OPERATIONS.parameters) > 20 and lines[1].split()[:2] == ["parameter", "0011"]
    assert "92.0" in lines[3] and lines[-1] == (
        "3 of the 9 best settings; the others are in table.md, and all runs in table.csv"
    )
    assert not any("best settings" in line for line in printed("search", searched(), 250))


def test_a_setting_that_is_not_there_is_a_dash() -> None:
    rows = [run_of(0, 0.9, amp=1.0, noise="normal", centre=True), run_of(1, 0.8, amp=0.123456, centre=False)]
    assert report.tabled("search", rows) == [
        ["parameter", "0000", "0001"], ["validation accuracy (%)", "90.0", "80.0"], ["amp", "1", "0.123"],
        ["noise", "normal", "–"], ["centre", "yes", "no"],
    ]  # fmt: skip


def test_a_table_without_more_columns_or_with_one_too_wide_is_one_table() -> None:
    (alone,) = writers.fitting(["rule"], [["bp"]], width=80)
    assert len(alone.columns) == 1
    out = io.StringIO()
    for part in writers.fitting(["rule", "a", "b"], [["x" * 90, "y " * 60, "z"]], width=80):
        Console(file=out, width=80).print(part)
    shown = out.getvalue()
    assert shown.count("x") == 90 and shown.count("y") == 60 and "…" not in shown


@pytest.mark.parametrize(
    ("kind", "rows", "title", "words", "numbers"),
    [
        ("search", searched(), "Metaparameter search, here: resnet18-w8 on digits",
         "The best of 12 settings, run 0011, reaches 92.0", ("12 settings, 70.0 to 92.0 %", "3 of them stopped early")),
        ("transfer", transferred(), "Fixed metaparameters across architectures, here: resnet18-w8 and resnet34-w8 on "
         "digits", "Most accurate: bp in resnet18-w8 (95.5 ± 0.7", ("rule tuned:sa, resnet18-w8 94.5 ± 0.7",)),
        ("noise", transferred(sigmas=(0.0, 0.1)), "Noisy updates, here: resnet18-w8 and resnet34-w8 on digits",
         "tuned:sa in resnet34-w8: below 0.1", ("rule bp, σ 0.1, resnet18-w8 90.5 ± 0.7",)),
    ],
)  # fmt: skip
def test_the_page_of_a_study(
    kind: str, rows: list[dict[str, Any]], title: str, words: str, numbers: tuple[str, ...], tmp_path: Path
) -> None:
    run = folder(tmp_path, kind)
    report.write(run, kind, rows, None, Console(file=io.StringIO(), width=80))
    page = Page((run.path / "index.html").read_text(encoding="utf-8"))
    assert page.of("h1") == title and words in page.text.replace("\u00a0", " ")
    alts = page.values("img", "alt")
    assert all(number in alts[0] for number in numbers), alts[0]
    assert len(set(alts)) == len(alts) and "studies.md" in " ".join(page.values("a", "href"))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_legends_of_studies_have_the_tables_order() -> None:
    for kind, sigmas in (("transfer", (None,)), ("noise", (0.0, 0.1))):
        rows = transferred(sigmas=sigmas)
        order = list(dict.fromkeys(line[0] for line in report.tabled(kind, rows)[1:]))
        assert legend(report.drawn(kind, rows, {})[kind]) == [style.shortened(rule) for rule in order]


def test_a_transfer_is_shown_close_up_where_rules_pile_up() -> None:
    whole, close = report.drawn("transfer", transferred(), {})["transfer"].axes
    assert close.get_title() == "The same, close up" and close.get_ylim()[0] > 85
    assert [text.get_text() for text in whole.texts] == [style.shortened(LONG, 16)]
    assert [text.get_text() for text in close.texts] == ["tuned:sa", "bp"]


def test_noise_is_shown_close_up_where_rules_pile_up() -> None:
    figure = report.drawn("noise", transferred(sigmas=(0.0, 0.1)), {})["noise"]
    wholes, closes = figure.axes[: len(MODELS)], figure.axes[len(MODELS) :]
    assert [axes.get_title() for axes in wholes] == list(MODELS) and all(a.get_ylim() == (0, 101) for a in wholes)
    assert [axes.get_title() for axes in closes] == ["The same, close up"] * len(MODELS)
    for whole, close in zip(wholes, closes, strict=True):
        low, high = close.get_ylim()
        assert low > 80 and high <= 100.4
        named = [text.get_text() for axes in (whole, close) for text in axes.texts]
        assert sorted(named) == sorted(set(named)) and {"tuned:sa", "bp"} <= set(named)  # each line once
    rows = [row for row in transferred(sigmas=(0.0, 0.1)) if row["params"]["rule"] == "bp"]
    assert len(report.drawn("noise", rows, {})["noise"].axes) == len(MODELS)  # one rule is no pile


@pytest.mark.parametrize(("kind", "sigmas"), [("transfer", (None,)), ("noise", (0.0, 0.1))])
def test_captions_of_studies_know_whether_there_are_several_seeds(kind: str, sigmas: tuple[float | None, ...]) -> None:
    for seeds, said in ((1, False), (2, True)):
        rows = transferred(seeds, sigmas)
        caption = report.captions(kind, rows, report.tabled(kind, rows), {})[kind].caption
        assert ("over seeds" in caption) == said and ("ne run of each" in caption) == (not said)


def test_a_study_of_which_nothing_has_ended_says_so() -> None:
    for kind in ("search", "transfer", "noise"):
        assert report.finding(kind, [], {}) == ""
        said = report.captions(kind, [], report.tabled(kind, []), {})
        assert all("nothing" in words.alt or "none" in words.alt for words in said.values()), said
