"""What a study ends with: a table, figures and a page, made from its rows alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from rich.console import Console
from rich.table import Table

from untied.lab import plots, report, writers
from untied.lab.record import RunFolder
from untied.lab.report import Section
from untied.lab.study import figures

__all__ = ["cells", "crossovers", "importances", "write"]

Rows = Sequence[Mapping[str, Any]]
EARLY = 1000  # steps: "the alignment loss became NaN within the first thousand steps of training" (Fig. 3)
TITLES = {
    "search": "Metaparameter search",
    "transfer": "Fixed metaparameters across architectures",
    "noise": "Noisy updates",
}
CAPTIONS = {
    "history": (
        "Validation accuracy of every setting in the order in which it was tried, and the best so far. Crosses were "
        "stopped early and stand where they were then; a setting whose loss was not finite stands at chance."
    ),
    "parameters": (
        "Validation accuracy against each parameter of the search, all settings that have it. Crosses were stopped "
        "early. A plateau means that the parameter needs no tuning."
    ),
    "importance": (
        "Which parameters the accuracy depends on: the share of its variance over the settings that fANOVA (Hutter et "
        "al. 2014, as Optuna has it) gives to each, of those parameters that every setting has."
    ),
    "transfer": (
        "Accuracy in each architecture, with the metaparameters that were fixed beforehand: mean over seeds, bars of "
        "one standard deviation. Hollow marks: in some seed the loss was not finite, which counts at chance (dotted), "
        "as in Fig. 3 of the paper."
    ),
    "noise": (
        "Accuracy against the standard deviation of Gaussian noise on every update: of the backward weights for rules "
        "that align, of all weights for backpropagation. Mean over seeds, bands from worst to best; on the left, "
        "without noise. Fig. 5 of the paper has ImageNet."
    ),
}


def write(folder: RunFolder, kind: str, rows: Rows, planned: int | None, console: Console) -> None:
    """Write table.md, table.csv, figures and index.html of a study, and print the table.

    Args:
        rows: of the runs that have ended. planned: how many there are to be, if known.
    """
    table, drawn = {"search": search, "transfer": grid, "noise": grid}[kind](kind, rows)
    for name, figure in drawn.items():
        plots.save(figure, folder.path / "figures", name)
    folder.write_text("table.md", markdown(table))
    folder.write_text("table.csv", comma_separated(rows))
    said = summary(kind, rows)
    if planned is not None and planned > len(rows):
        said += f" {planned - len(rows)} of {planned} runs have not ended."
    lines = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
    sections = [Section("Results", said, rows=lines, figures=list(drawn))]
    if kind == "noise" and (crossing := crossovers(rows)):
        sections.append(Section("Where a rule becomes more robust than backpropagation", CROSSING, rows=crossing))
    page = report.write_html(folder, rows=[], title=f"{TITLES[kind]}: {folder.config()['name']}", sections=sections,
                             captions=CAPTIONS)  # fmt: skip
    shown = Table(box=None, header_style="bold")
    for name in table[0]:
        shown.add_column(name)
    for line in table[1:]:
        shown.add_row(*line)
    console.print(shown)
    for crossed in crossovers(rows) if kind == "noise" else []:
        console.print(", ".join(f"{k} {v}" for k, v in crossed.items()), highlight=False)
    console.print(f"folder  {folder.path}\npage    {page}", highlight=False, soft_wrap=True)


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


# Search


def search(kind: str, rows: Rows, best: int = 10) -> tuple[list[list[str]], dict[str, Any]]:
    """The best settings, and the figures of a search."""
    done = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["value"])
    names = list(dict.fromkeys(name for row in done[:best] for name in row["params"]))
    table = [["run", "validation accuracy (%)", *names]]
    for row in done[:best]:
        table.append([row["run"], cells(values_of([row])), *(_word(row["params"].get(name)) for name in names)])
    drawn = {"history": figures.history(rows), "parameters": figures.parameters(rows)}
    if shares := importances(rows):
        drawn["importance"] = figures.importance(shares)
    return table, drawn


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


def grid(kind: str, rows: Rows) -> tuple[list[list[str]], dict[str, Any]]:
    """Accuracy by rule and architecture, and noise where there is some, and the figure."""
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
    draw = figures.noise if noisy else figures.transfer
    return table, {kind: draw(points, models)} if models else {}


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


def _word(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


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
