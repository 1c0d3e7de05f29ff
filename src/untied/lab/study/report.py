"""What a study ends with: a table, figures and a page, made from its rows alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from matplotlib.figure import Figure
from rich.console import Console

from untied.lab.console import say
from untied.lab.keeping.record import RunFolder
from untied.lab.showing import report, style, writers
from untied.lab.showing.findings import Words, listed
from untied.lab.showing.report import Section
from untied.lab.study import figures

__all__ = ["captions", "cells", "crossovers", "finding", "importances", "tabled", "tell", "write"]

Rows = Sequence[Mapping[str, Any]]
EARLY = 1000  # steps: "the alignment loss became NaN within the first thousand steps of training" (Fig. 3)
TITLES = {
    "search": "Metaparameter search",
    "transfer": "Fixed metaparameters across architectures",
    "noise": "Noisy updates",
}


def write(folder: RunFolder, kind: str, rows: Rows, planned: int | None, console: Console) -> None:
    """Write table.md, table.csv, figures and index.html of a study, and print the table.

    Args:
        rows: of the runs that have ended. planned: how many there are to be, if known.
    """
    shares = importances(rows) if kind == "search" else {}
    table, pictures = tabled(kind, rows), drawn(kind, rows, shares)
    for name, figure in pictures.items():
        style.save(figure, folder.path / "figures", name)
    folder.write_text("table.md", markdown(table))
    folder.write_text("table.csv", comma_separated(rows))
    said = summary(kind, rows)
    if planned is not None and planned > len(rows):
        said += f" {planned - len(rows)} of {planned} runs have not ended."
    lines = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    sections = [Section("Results", said, rows=lines, figures=list(pictures), words=("rule", "parameter"))]
    crossed = crossovers(rows) if kind == "noise" else []
    if crossed:
        sections.append(Section("Where a rule becomes more robust than backpropagation", CROSSING, rows=crossed))
    page = report.write_html(
        folder, rows=[], title=f"{TITLES[kind]}, {folder.config()['name']}", finding=finding(kind, rows, shares),
        sections=sections, captions=captions(kind, rows, table, shares),
    )  # fmt: skip
    tell(console, kind, table)
    for line in crossed:
        say(console, ", ".join(f"{key} {value}" for key, value in line.items()))
    say(console, f"folder  {folder.path}")
    say(console, f"page    {page}")


def tabled(kind: str, rows: Rows) -> list[list[str]]:
    """A study's table: heads, then lines."""
    return settings(rows) if kind == "search" else grid(kind, rows)


def drawn(kind: str, rows: Rows, shares: Mapping[str, float]) -> dict[str, Figure]:
    """A study's figures, by the name under which they are saved."""
    if kind == "search":
        more = {"importance": figures.importance(shares)} if shares else {}
        return {"history": figures.history(rows), "parameters": figures.parameters(rows), **more}
    scored = [row for row in rows if row["value"] is not None]
    points, models = groups(scored), list(dict.fromkeys(row["params"]["model"] for row in scored))
    draw = {"transfer": figures.transfer, "noise": figures.noise}[kind]
    return {kind: draw(points, models)} if models else {}


def tell(console: Console, kind: str, table: Sequence[Sequence[str]]) -> None:
    """Print a study's table in the room that a terminal has: of a search as many of the best settings as fit."""
    fixed = 2 if kind == "noise" else 1
    parts = writers.fitting(table[0], table[1:], table[0][:1], fixed=fixed, width=console.width)
    for part in parts[:1] if kind == "search" else parts:
        console.print(part)
    told, best = len(parts[0].columns) - fixed, len(table[0]) - fixed
    if kind == "search" and told < best:
        say(console, f"{told} of the {best} best settings; the others are in table.md, and all runs in table.csv")


CROSSING = (
    "The noise at which the mean accuracy of a rule comes to exceed backpropagation's, interpolated in log σ between "
    "the two values that enclose it. Whether the difference is beyond the spread over seeds is for the table to say."
)


def summary(kind: str, rows: Rows) -> str:
    """The study in words."""
    failed = sum(bool(row["failure"]) for row in rows)
    pruned = sum(row["state"] == "pruned" for row in rows)
    said = f"{len(rows)} runs" + (f", {pruned} of them stopped early" if pruned else "")
    said += f"; in {failed} the loss was not finite or the run could not be trained." if failed else "."
    split = next((r["split"] for row in rows for r in row["results"] if r.get("split")), None)
    if split is not None:
        said += f" Accuracy is on {split} images."
    return said


# What is said of it


def finding(kind: str, rows: Rows, shares: Mapping[str, float]) -> str:
    """What came out, in a line; nothing if no run has ended. Of a search the shares are `importances`."""
    scored = [row for row in rows if row["value"] is not None]
    if kind == "search":
        return _best_setting(scored, shares)
    return _best_rules(scored) if kind == "transfer" else _tolerant(scored)


def _best_setting(rows: Rows, shares: Mapping[str, float]) -> str:
    done = ended(rows)
    if not done:
        return ""
    best = cells(values_of(done[:1]))
    said = f"The best of {len(rows)} settings, run {done[0]['run']}, reaches {best} % validation accuracy."
    if shares:
        most = max(shares, key=lambda name: shares[name])
        said += f" Accuracy depends most on {most}, with {100 * shares[most]:.0f} % of its variance over settings."
    return said


def _best_rules(rows: Rows) -> str:
    points, said = groups(rows), []
    for model in dict.fromkeys(model for _, model, _ in points):
        own = {rule: values_of(found) for (rule, m, _), found in points.items() if m == model}
        best = max(own, key=lambda rule: statistics.fmean(own[rule]))
        said.append(f"{best} in {model} ({cells(own[best])} %)")
    return f"Most accurate: {listed(said)}." if said else ""


def _tolerant(rows: Rows) -> str:
    found = crossovers(rows)
    if not found:
        return ""
    said = "; ".join(f"{line['rule']} in {line['architecture']}: {line['crossover σ']}" for line in found)
    return f"The noise σ from which a rule is more accurate than backpropagation: {said}."


def captions(kind: str, rows: Rows, table: Sequence[Sequence[str]], shares: Mapping[str, float]) -> dict[str, Words]:
    """The words of a study's figures, by the name under which they are saved.

    Args:
        table: heads, then lines, as ``tabled`` makes it. shares: of a search, its `importances`.
    """
    scored = [row for row in rows if row["value"] is not None]
    return _of_search(scored, table, shares) if kind == "search" else {kind: _of_grid(kind, scored, table)}


def _of_search(rows: Rows, table: Sequence[Sequence[str]], shares: Mapping[str, float]) -> dict[str, Words]:
    values = [100 * row["value"] for row in rows]
    among = f"{min(values):.1f} to {max(values):.1f} %" if values else "nothing yet"
    pruned = sum(row["state"] == "pruned" for row in rows)
    crosses = " Crosses were stopped early and stand where they were then." if pruned else ""
    names = listed([line[0] for line in table[2:]]) or "nothing"
    best = f"The best has {', '.join(f'{line[0]} {line[1]}' for line in table[1:])}." if len(table[0]) > 1 else ""
    told = "; ".join(f"{name} {100 * shares[name]:.0f} %" for name in sorted(shares, key=lambda name: -shares[name]))
    return {
        "history": Words(
            "Validation accuracy of every setting in the order in which it was tried, and the best so far."
            f"{crosses} A setting whose loss was not finite stands at chance.",
            f"Dots: validation accuracy of {len(rows)} settings, {among}, {pruned} of them stopped early. {best}",
        ),
        "parameters": Words(
            f"Validation accuracy against each parameter of the search, all settings that have it.{crosses} A plateau "
            "means that the parameter needs no tuning.",
            f"Dots: validation accuracy, {among}, against {names}. {best}",
        ),
        "importance": Words(
            "Which parameters the accuracy depends on: the share of its variance over the settings that fANOVA "
            "(Hutter et al. 2014, as Optuna has it) gives to each, of those parameters that every setting has.",
            f"Bars, shares of the variance: {told or 'none'}.",
        ),
    }


def _of_grid(kind: str, rows: Rows, table: Sequence[Sequence[str]]) -> Words:
    several = max(map(len, groups(rows).values()), default=0) > 1
    named = [[f"{head} {cell}" for head, cell in zip(table[0], line, strict=True)] for line in table[1:]]
    lines = "; ".join(", ".join(line) for line in named)
    caption = {
        "transfer": "Accuracy in each architecture, with the metaparameters that were fixed beforehand"
        + (": mean over seeds, bars of one standard deviation." if several else ", one run of each.")
        + " Hollow marks: in some run the loss was not finite, which counts at chance (dotted), as in Fig. 3 of the "
        "paper.",
        "noise": "Accuracy against the standard deviation of Gaussian noise on every update: of the backward weights "
        "for rules that align, of all weights for backpropagation."
        + (" Mean over seeds, bands from worst to best; on" if several else " One run of each; on")
        + " the left, without noise. Fig. 5 of the paper has ImageNet.",
    }[kind]
    return Words(caption, f"Lines of accuracy in percent: {lines or 'nothing yet'}.")


# Search


def settings(rows: Rows, best: int = 10) -> list[list[str]]:
    """The best settings of a search, a column each."""
    done = ended(rows)[:best]
    names = list(dict.fromkeys(name for row in done for name in row["params"]))
    return [
        ["parameter", *(row["run"] for row in done)],
        ["validation accuracy (%)", *(cells(values_of([row])) for row in done)],
        *([name, *(figures.word(row["params"].get(name)) for row in done)] for name in names),
    ]


def ended(rows: Rows) -> list[Mapping[str, Any]]:
    """The settings of a search that were not stopped early, the best first."""
    return sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["value"])


def importances(rows: Rows) -> dict[str, float]:
    """Share of the variance of accuracy by parameter, of the settings that have ended; empty if there are too few."""
    done = [row for row in rows if row["state"] == "complete" and row["params"]]
    if len(done) < 5 or len({row["value"] for row in done}) < 2:
        return {}
    seen: dict[str, list[Any]] = {}
    for row in done:
        for name, value in row["params"].items():
            seen.setdefault(name, []).append(value)
    study = optuna.create_study(direction="maximize")
    spread: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, values in seen.items():
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) and min(values) < max(values):
            log = min(values) > 0 and max(values) / min(values) > 100
            spread[name] = optuna.distributions.FloatDistribution(min(values), max(values), log=log)
        else:
            spread[name] = optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    for row in done:
        own = {name: float(v) if isinstance(spread[name], optuna.distributions.FloatDistribution) else v
               for name, v in row["params"].items()}  # fmt: skip
        study.add_trial(optuna.trial.create_trial(
            params=own, distributions={name: spread[name] for name in own}, value=row["value"]))  # fmt: skip
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    except (ValueError, RuntimeError):  # no parameter that all settings have
        return {}


# Transfer and noise


def grid(kind: str, rows: Rows) -> list[list[str]]:
    """Accuracy by rule and architecture, and noise where there is some."""
    rows = [row for row in rows if row["value"] is not None]
    models = list(dict.fromkeys(row["params"]["model"] for row in rows))
    points = groups(rows)
    noisy = kind == "noise"
    table = [["rule", *(["σ"] if noisy else []), *models]]
    for rule, sigma in dict.fromkeys((rule, sigma) for rule, _, sigma in points):
        line = [rule, *([f"{sigma:g}"] if noisy else [])]
        for model in models:
            own = points.get((rule, model, sigma), [])
            early = sum(is_early(row) for row in own)
            failed = sum(bool(row["failure"]) for row in own)
            note = f" ({failed} not finite{', early' if early else ''})" if failed else ""
            line.append(cells(values_of(own)) + note)
        table.append(line)
    return table


def groups(rows: Rows) -> dict[tuple[str, str, float | None], list[Mapping[str, Any]]]:
    """Rows of the same rule, architecture and noise together."""
    found: dict[tuple[str, str, float | None], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["number"]):
        params = row["params"]
        found.setdefault((params["rule"], params["model"], params.get("sigma")), []).append(row)
    return found


def is_early(row: Mapping[str, Any]) -> bool:
    """Whether the loss stopped being finite within the first thousand steps."""
    steps = [r["step"] for r in row["results"] if r["failure"] and r.get("step") is not None]
    return bool(steps) and min(steps) < EARLY


def crossovers(rows: Rows) -> list[dict[str, str]]:
    """For each architecture and rule, the σ at which its mean accuracy comes to exceed backpropagation's."""
    points = groups([row for row in rows if row["value"] is not None])
    found = []
    for model in dict.fromkeys(model for _, model, _ in points):
        sigmas = sorted({s for _, m, s in points if m == model and s is not None})
        for rule in dict.fromkeys(r for r, m, _ in points if m == model and r != "bp"):
            gaps = []
            for sigma in sigmas:
                mine, its = (values_of(points.get((name, model, sigma), [])) for name in (rule, "bp"))
                if mine and its:
                    gaps.append((sigma, statistics.fmean(mine) - statistics.fmean(its)))
            if gaps:
                found.append({"architecture": model, "rule": rule, "crossover σ": crossing(gaps)})
    return found


def crossing(gaps: Sequence[tuple[float, float]]) -> str:
    """Where differences over σ turn positive first, and up to which σ they stay so, in words."""
    first = next((i for i, (_, gap) in enumerate(gaps) if gap > 0), None)
    if first is None:
        return "none up to the largest σ"
    end = next((i for i in range(first, len(gaps)) if gaps[i][1] <= 0), None)
    until = "" if end is None else f", until {gaps[end - 1][0]:g}"
    if first == 0:
        return f"already without noise{until}"
    (low, under), (high, over) = gaps[first - 1], gaps[first]
    if low == 0:
        return f"below {high:g}{until}"
    share = under / (under - over)
    return f"{math.exp(math.log(low) + share * (math.log(high) - math.log(low))):.2g}{until}"


def values_of(rows: Rows) -> list[float]:
    """The accuracies of some rows: of every seed."""
    return [r["value"] for row in rows for r in row["results"]] or [row["value"] for row in rows]


def cells(values: Sequence[float]) -> str:
    """Mean ± standard deviation, in percent."""
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown, its first column on the left."""
    return writers.markdown(table[0], table[1:], table[0][:1])


def comma_separated(rows: Rows) -> str:
    """Every run of every seed, in full precision."""
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    columns = ("value", "weight_angle", "gradient_angle", "seconds")
    lines = []
    for row in rows:
        for r in row["results"] or [{}]:
            numbers = [r.get(name) for name in columns]
            own = [row["params"].get(name) for name in names]
            lines.append([row["run"], row["state"], r.get("folder"), *numbers, row["failure"], *own])
    return writers.comma_separated(["run", "state", "folder", "accuracy", *columns[1:], "failure", *names], lines)
