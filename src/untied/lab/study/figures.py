"""The figures of studies, in the style of `untied.lab.showing.plots`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from untied.lab.showing.plots import name_ends, pile
from untied.lab.showing.style import SOFT, STYLE, Look, legend_of, logarithmic, looks

__all__ = ["history", "importance", "noise", "parameters", "transfer", "word"]

Rows = Sequence[Mapping[str, Any]]
Points = Mapping[tuple[str, str, float | None], Rows]
BLUE, ORANGE = "#0072B2", "#D55E00"


def history(rows: Rows) -> Figure:
    """Accuracy (%) of each setting, by when it was tried, and the best so far."""
    known = sorted((row for row in rows if row["value"] is not None), key=lambda row: row["number"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        axes = figure.subplots()
        _dots(axes, known, list(range(1, len(known) + 1)))
        best, so_far = math.nan, []
        for row in known:
            if row["state"] == "complete":
                best = max(row["value"], best)  # the first one, as nothing is more than NaN
            so_far.append(100 * best)
        axes.step(range(1, len(known) + 1), so_far, where="post", color=ORANGE, linewidth=1.8, label="best so far")
        axes.set(title="Search", xlabel="setting", ylabel="validation accuracy (%)", ylim=(0, 101))
        axes.legend(loc="lower right")
        return figure


def parameters(rows: Rows) -> Figure:
    """Accuracy (%) against each parameter: a panel a parameter."""
    known = [row for row in rows if row["value"] is not None and row["params"]]
    names = list(dict.fromkeys(name for row in known for name in row["params"]))
    wide = min(4, max(1, len(names)))
    high = max(1, -(-len(names) // wide))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * wide + 0.6, 2.3 * high + 0.3), layout="constrained")
        grid = figure.subplots(high, wide, squeeze=False, sharey=True)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes, name in zip(grid.flat, names, strict=False):
            own = [row for row in known if name in row["params"]]
            values = [row["params"][name] for row in own]
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                if min(values) > 0 and max(values) > 20 * min(values):
                    axes.set_xscale("log")
                    logarithmic(axes.xaxis)
                elif len(set(values)) < 5:
                    axes.set_xticks(sorted(set(values)))
                _dots(axes, own, values)
            else:
                words = sorted({word(v) for v in values})
                _dots(axes, own, [words.index(word(v)) for v in values])
                axes.set_xticks(range(len(words)), words, rotation=30 if len(words) > 3 else 0)
                axes.set_xlim(-0.6, len(words) - 0.4)
            axes.set(title=name, ylim=(0, 101))
        figure.supylabel("validation accuracy (%)", fontsize=10)
        return figure


def word(value: Any) -> str:
    """A setting as table and figures have it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def importance(shares: Mapping[str, float]) -> Figure:
    """Shares of the variance of accuracy, by parameter."""
    names = sorted(shares, key=lambda name: shares[name])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.9 + 0.3 * len(names)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, [shares[name] for name in names], color=BLUE, height=0.6)
        axes.set(title="What accuracy depends on", xlabel="share of the variance", xlim=(0, 1))
        axes.grid(axis="y", visible=False)
        return figure


def transfer(points: Points, models: Sequence[str]) -> Figure:
    """Accuracy (%) by architecture: a line a rule, mean ± standard deviation over seeds; also close up, if it helps."""
    rules = list(dict.fromkeys(rule for rule, _, _ in points))
    lines = {rule: _by_model(points, rule, models) for rule in rules}
    lines = {rule: line for rule, line in lines.items() if line}
    palette = {rule: look for rule, look in looks(rules).items() if rule in lines}
    means = [statistics.fmean(values) for line in lines.values() for values, _ in line.values()]
    near = pile(means, 101.0) if means else None
    with matplotlib.rc_context(STYLE):
        count = 2 if near else 1
        figure = Figure(figsize=(1.5 * len(models) + 5.2, 0.6 + 3.6 * count), layout="constrained")
        panels = list(figure.subplots(count, 1, squeeze=False)[:, 0])
        panels[0].set(title="The same metaparameters in every architecture", ylim=(0, 101))
        if near:
            panels[1].set(title="The same, close up", ylim=(near[0], min(near[1], 100.4)))
        for axes in panels:
            ends = {}
            for i, (rule, line) in enumerate(lines.items()):
                shift = 0.24 * (i / max(len(lines) - 1, 1) - 0.5)  # so that bars stand beside each other
                ends[rule] = _line(axes, line, shift, palette[rule])
            _chance(axes, [row for rows in points.values() for row in rows])
            axes.set_xticks(range(len(models)), models)
            axes.set_ylabel("accuracy (%)")
        name_ends(panels, ends, palette)
        figure.legend(handles=legend_of(palette), loc="outside right center", title="rule")
        return figure


Line = Mapping[int, tuple[list[float], bool]]


def _by_model(points: Points, rule: str, models: Sequence[str]) -> Line:
    """Of each architecture that a rule has values in, by its place: the values, and whether some run failed."""
    own = {at: points.get((rule, model, None), []) for at, model in enumerate(models)}
    return {at: (_values(rows), any(row["failure"] for row in rows)) for at, rows in own.items() if _values(rows)}


def _line(axes: Axes, line: Line, shift: float, look: Look) -> tuple[float, float]:
    """One rule in a panel. Returns where it ends."""
    x, mean = [at + shift for at in line], [statistics.fmean(values) for values, _ in line.values()]
    spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values, _ in line.values()]
    axes.errorbar(x, mean, spread, linestyle=look.dash, color=look.colour, linewidth=1.6, capsize=2)
    for place, value, (_, failed) in zip(x, mean, line.values(), strict=True):
        filling = "white" if failed else look.colour
        axes.plot(place, value, look.marker, color=look.colour, markerfacecolor=filling)
    return x[-1], mean[-1]


def noise(points: Points, models: Sequence[str]) -> Figure:
    """Accuracy (%) against σ: a panel an architecture, a line a rule, bands from worst to best seed; also close up, if
    it helps.
    """
    rules = list(dict.fromkeys(rule for rule, _, _ in points))
    palette = looks(rules)
    sigmas = sorted({sigma for _, _, sigma in points if sigma is not None})
    above = [sigma for sigma in sigmas if sigma > 0]
    left = above[0] / 10 if above else 1.0  # where σ = 0 is drawn
    lines = {model: _by_noise(points, rules, model, sigmas) for model in models}
    near = {model: _crowded(line) for model, line in lines.items()}
    with matplotlib.rc_context(STYLE):
        count = 2 if any(near.values()) else 1
        figure = Figure(figsize=(4.0 * len(models) + 2.0, 0.2 + 3.6 * count), layout="constrained")
        grid = figure.subplots(count, len(models), squeeze=False)
        for column, model in zip(grid.T, models, strict=True):
            column[0].set(title=model, ylim=(0, 101))
            limits = near[model]
            if limits:
                column[1].set(title="The same, close up", ylim=(max(limits[0], 0), min(limits[1], 100.4)))
            elif count == 2:
                column[1].set_axis_off()
            panels = list(column[: 2 if limits else 1])
            ends = {}
            for axes in panels:
                for rule, line in lines[model].items():
                    x, means = [s or left for s in line], [statistics.fmean(v) for v in line.values()]
                    _band(axes, x, list(line.values()), palette[rule])
                    ends[rule] = (x[-1], means[-1])
                axes.set_xscale("log")
                logarithmic(axes.xaxis)
                if 0.0 in sigmas:
                    axes.set_xticks([left, *above], ["0", *(f"{s:g}" for s in above)])
                    axes.minorticks_off()
                _chance(axes, [row for rows in points.values() for row in rows])
            panels[-1].set_xlabel("standard deviation of the noise")
            name_ends(panels, ends, palette)
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy (%)")
        figure.legend(handles=legend_of(palette), loc="outside right center", title="rule")
        return figure


def _by_noise(
    points: Points, rules: Sequence[str], model: str, sigmas: Sequence[float]
) -> dict[str, dict[float, list[float]]]:
    """Of each rule that an architecture has values of: these, by σ."""
    own = {rule: {s: _values(points.get((rule, model, s), [])) for s in sigmas} for rule in rules}
    found = {rule: {s: values for s, values in line.items() if values} for rule, line in own.items()}
    return {rule: line for rule, line in found.items() if line}


def _crowded(lines: Mapping[str, Mapping[float, Sequence[float]]]) -> tuple[float, float] | None:
    """The limits of a close-up on what two rules or more have in common; None if there is no such place."""
    means = {rule: [statistics.fmean(values) for values in line.values()] for rule, line in lines.items()}
    near = pile([value for line in means.values() for value in line], 101.0) if means else None
    inside = [rule for rule, line in means.items() if near and any(near[0] <= value <= near[1] for value in line)]
    return near if len(inside) > 1 else None


def _band(axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], look: Look) -> None:
    """One rule in a panel: the mean, and a band from worst to best."""
    axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=look.colour, alpha=0.15, linewidth=0)
    axes.plot(x, [statistics.fmean(v) for v in values], look.dash, color=look.colour, marker=look.marker,
              markersize=4.5, linewidth=1.8)  # fmt: skip


def _values(rows: Rows) -> list[float]:
    return [100 * r["value"] for row in rows for r in row["results"]]


def _chance(axes: Any, rows: Rows) -> None:
    """A dotted line at the accuracy of guessing."""
    chances = {r["chance"] for row in rows for r in row["results"]}
    for chance in chances:
        axes.axhline(100 * chance, color=SOFT, linestyle=":", linewidth=1, zorder=0)


def _dots(axes: Any, rows: Rows, x: Sequence[float]) -> None:
    """Settings as dots, those that were stopped early as crosses."""
    for state, mark in (("complete", "o"), ("pruned", "x")):
        at = [i for i, row in enumerate(rows) if row["state"] == state]
        axes.plot([x[i] for i in at], [100 * rows[i]["value"] for i in at], mark, color=BLUE, markersize=5, alpha=0.75,
                  label={"complete": "ended", "pruned": "stopped early"}[state] if at else None)  # fmt: skip
