"""Figures of a comparison: accuracy over epochs and at the end, angles over time, B against W.

Each function takes what the run folder holds and returns a matplotlib Figure; nothing here touches a file but
``save``. A rule has one colour, marker and dash in every figure, and stands at one place in every legend: the table's.
Colours have a contrast of 3:1 on white and on the dark page, and a marker stands for whoever cannot tell two apart. A
value that is missing or null leaves a gap, so that an interrupted run can be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, MultipleLocator

from untied.lab.showing.scatter import some
from untied.lab.showing.style import STYLE, Look, empty, legend_of, looks, say_on, shaded, shortened
from untied.lab.showing.tables import cells, deviation, known, split
from untied.lab.tasks.metric import ACCURACY, Metric, metric_of

__all__ = ["accuracy_bars", "accuracy_curves", "angles_over_time", "by_rule", "name_ends", "over_epochs", "pile"]

Metrics = Sequence[Mapping[str, Any]]
Curve = dict[float, np.ndarray]  # the values of all seeds, by epoch


def accuracy_curves(metrics: Metrics, judge: Metric = ACCURACY, rules: Sequence[str] = ()) -> Figure:
    """Validation accuracy (%) over epochs: the mean over seeds, and a band from the worst to the best seed.

    Beside it the same close up, where rules pile up. A name stands at the end of each line.

    Args:
        metrics: lines with "rule", "seed", "epoch" and "validation_accuracy" (0 to 1, or None).
        judge: another metric in place of accuracy.
        rules: the order of the legend, which is the table's; by default that of the lines.
    """
    groups = by_rule(metrics, rules)
    key = f"validation_{judge.name}"
    curves = {rule: over_epochs(rows, lambda row: row.get(key), judge.scale) for rule, rows in groups}
    curves = {rule: curve for rule, curve in curves.items() if curve}
    ends = {rule: (max(curve), float(curve[max(curve)].mean())) for rule, curve in curves.items()}
    with matplotlib.rc_context(STYLE):
        if not curves:
            return empty(Figure(figsize=(9.0, 4.0), layout="constrained"), f"no validation {judge.title} yet")
        near = pile([y for _, y in ends.values()], _span(curves.values(), judge), judge.higher)
        figure = Figure(figsize=(10.0 if near else 7.0, 4.0), layout="constrained")
        panels = figure.subplots(1, 2 if near else 1, squeeze=False)[0]
        palette = {rule: look for rule, look in looks(rule for rule, _ in groups).items() if rule in curves}
        # the best is drawn last, on top
        for rule in sorted(curves, key=lambda rule: ends[rule][1], reverse=not judge.higher):
            for axes in panels:
                _band(axes, curves[rule], palette[rule], rule)
        for axes in panels:
            _epochs(axes, (epoch for curve in curves.values() for epoch in curve))
            axes.set_xlabel("epoch")
        panels[0].set(title=f"Validation {judge.title}", ylabel=f"validation {judge.head}")
        if judge.unit == "%":
            panels[0].set_ylim(0, 101)
        if near:
            low, high = near
            panels[1].set(title="The same, close up", ylim=(low, min(high, 100.4) if judge.unit == "%" else high))
            seen = [x for curve in curves.values() for x, values in curve.items() if low <= values.mean() <= high]
            if min(seen) < max(seen):  # of one epoch in sight the way there is shown
                panels[1].set_xlim(left=min(seen) - 0.3 * (max(seen) - min(seen)))
        if len(curves) > 1:
            name_ends(panels, ends, palette)
            figure.legend(handles=legend_of(palette), loc="outside right center", title="rule")
        return figure


def accuracy_bars(rows: Metrics) -> Figure:
    """Accuracy (%) at the end: a mark a seed, a bar over mean ± standard deviation, backprop's mean dotted. Beside it
    the same close up, where rules pile up, and the angle (degrees) between the network's pseudogradient and
    backpropagation's gradient, where it is known.

    Args:
        rows: the table's rows, with "rule", "accuracies", "accuracy_mean" and "accuracy_std" (0 to 1, or None), and
            "gradient_angle" (degrees, or None).
    """
    with matplotlib.rc_context(STYLE):
        height = 1.3 + 0.42 * max(1, len(rows))
        if not any(known(row.get("accuracy_mean")) for row in rows):
            return empty(Figure(figsize=(9.0, height), layout="constrained"), "no rule has finished yet")
        judge, palette = metric_of(rows), looks(row["rule"] for row in rows)
        near, angles = _near(rows), any(known(row.get("gradient_angle")) for row in rows)
        shares = [3.0, *([2.2] if near else []), *([2.0] if angles else [])]
        figure = Figure(figsize=(10.5 if near else 9.0, height), layout="constrained")
        panels = figure.subplots(1, len(shares), sharey=True, squeeze=False, width_ratios=shares)[0]
        for axes in panels[: 2 if near else 1]:
            for y, row in enumerate(rows):
                _spread(axes, y, row, palette[row["rule"]])
            axes.use_sticky_edges = False  # or the widest bar would touch the frame
            axes.set(xlabel=f"{split(rows)} {judge.head}", ylim=(len(rows) - 0.5, -0.5))
        for y, row in enumerate(rows):
            panels[0].annotate(_shown(row), (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        panels[0].set_title(f"{split(rows).capitalize()} {judge.title}")
        panels[0].set_yticks(range(len(rows)), [shortened(row["rule"]) for row in rows])
        if near:
            panels[1].set(title="The same, close up", xlim=near)
        if angles:
            _gradient_angles(panels[-1], rows, palette)
        for axes in panels:
            axes.grid(axis="y", visible=False)
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        return figure


def angles_over_time(metrics: Metrics, rules: Sequence[str] = ()) -> Figure:
    """The angle between B and W (degrees) over epochs, mean over seeds: a panel a rule, a line a layer.

    A dashed line is the angle between the network's pseudogradient and backpropagation's gradient. At 0 the weights
    are symmetric; independent random weights are at about 90.

    Args:
        metrics: lines with "rule", "seed", "epoch", "weight_angle" (degrees by layer) and "gradient_angle".
        rules: the order of the panels, which is the table's; by default that of the lines.
    """
    groups = by_rule(metrics, rules)
    layers = list(dict.fromkeys(layer for row in metrics for layer in row.get("weight_angle") or ()))
    with matplotlib.rc_context(STYLE):
        columns = min(4, max(1, len(groups)))
        lines = math.ceil(max(1, len(groups)) / columns)
        figure = Figure(figsize=(max(4.5, 2.2 * columns + 1.6), 2.3 * lines + 0.6), layout="constrained")
        if not groups:
            return empty(figure, "no angles yet")
        shades = shaded(layers)
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        drawn = [_angles(axes, *group, shades) for axes, group in zip(grid.flat, groups, strict=False)]
        for axes in list(grid.flat)[len(groups) :]:
            axes.remove()
        grid[0, 0].set_ylim(-2, min(182.0, max(92.0, 5 + max(drawn))))
        grid[0, 0].yaxis.set_major_locator(MultipleLocator(30))
        _epochs(grid[0, 0], (row["epoch"] for row in metrics))
        figure.suptitle("Angle between backward and forward weights", fontsize=12)
        figure.supxlabel("epoch", fontsize=10)
        figure.supylabel("angle (degrees)", fontsize=10)
        handles = [Line2D([], [], color=shades[layer], label=layer) for layer in some(layers, 8)]
        handles.append(Line2D([], [], color="black", linestyle="--", label="gradient of the\nwhole network"))
        figure.legend(handles=handles, loc="outside right center", title="layer")
        return figure


def by_rule(metrics: Metrics, rules: Sequence[str] = ()) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Lines by rule, in the order that is given and then in that in which the rules appear."""
    groups: dict[str, list[Mapping[str, Any]]] = {rule: [] for rule in rules}
    for row in metrics:
        groups.setdefault(row["rule"], []).append(row)
    return [(rule, rows) for rule, rows in groups.items() if rows]


def over_epochs(rows: Metrics, value: Callable[[Mapping[str, Any]], float | None], scale: float = 1.0) -> Curve:
    """The known values of all seeds, by epoch, times a scale."""
    found: dict[float, list[float]] = {}
    for row in rows:
        number = value(row)
        if number is not None and math.isfinite(number):
            found.setdefault(row["epoch"], []).append(scale * float(number))
    return {epoch: np.array(values) for epoch, values in found.items()}


def pile(values: Sequence[float], span: float, higher: bool = True, more: float = 0.0) -> tuple[float, float] | None:
    """The limits of a close-up on the values that crowd at the best one; None if there is nothing to be seen in it.

    A value crowds where it comes within an eighth of ``span``, the length of the whole axis.

    Args:
        higher: whether more is better. more: the room that each value takes to both sides, such as a deviation's.

    >>> pile([98.0, 97.5, 60.0], span=100)
    (95.5, 100.0)
    >>> pile([98.0, 60.0], span=100)
    """
    best = max(values) if higher else min(values)
    near = [value for value in values if abs(value - best) <= span / 8]
    room = max(0.6 * (max(near) - min(near)), span / 50) + more
    limits = min(near) - room, max(near) + room
    return limits if len(near) > 1 and limits[1] - limits[0] < span / 2 else None


def name_ends(panels: Sequence[Axes], ends: Mapping[str, tuple[float, float]], palette: Mapping[str, Look]) -> None:
    """Write a name beside the right end of each line, once: in the last of the panels in which the end is in sight.

    Names are moved up or down where lines end close to each other.

    Args:
        panels: whole and perhaps close up; limits of axes are set before. ends: x and y of each line's end.
    """
    left = dict(ends)
    for axes in reversed(panels):
        low, high = axes.get_ylim()
        _name(
            axes, {rule: left.pop(rule) for rule, (_, y) in ends.items() if rule in left and low <= y <= high}, palette
        )


def _name(axes: Axes, ends: Mapping[str, tuple[float, float]], palette: Mapping[str, Look]) -> None:
    """The names in one panel."""
    low, high = axes.get_ylim()
    seen = sorted(ends, key=lambda rule: ends[rule][1])
    places = _apart([(ends[rule][1] - low) / (high - low) for rule in seen], min(0.058, 1 / max(1, len(seen))))
    for rule, place in zip(seen, places, strict=True):
        axes.annotate(
            shortened(rule, 16), ends[rule], (1.04, place), textcoords="axes fraction", va="center", fontsize=8,
            arrowprops={"arrowstyle": "-", "color": palette[rule].colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 2},
            annotation_clip=False,
        )  # fmt: skip


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Sorted places between 0 and 1, moved until each is at least ``gap`` above the one before."""
    up, down = list(places), list(places)
    for i in range(1, len(up)):
        up[i] = max(up[i], up[i - 1] + gap)
    for i in range(len(down) - 2, -1, -1):
        down[i] = min(down[i], down[i + 1] - gap)
    middle = [(a + b) / 2 for a, b in zip(up, down, strict=True)]  # each of the three has the gaps
    for i in range(len(middle) - 1, -1, -1):
        middle[i] = min(middle[i], middle[i + 1] - gap if i + 1 < len(middle) else 1.0)
    for i in range(len(middle)):
        middle[i] = max(middle[i], middle[i - 1] + gap if i else 0.0)
    return middle


def _span(curves: Iterable[Curve], judge: Metric) -> float:
    """The length of the axis that shows curves whole: for a percentage from 0 to 101."""
    values = [float(v) for curve in curves for several in curve.values() for v in several]
    return 101.0 if judge.unit == "%" else max(values) - min(values)


def _near(rows: Metrics) -> tuple[float, float] | None:
    """The limits of a close-up on the best rows of a table, with room for their deviations."""
    judge = metric_of(rows)
    scored = [row for row in rows if known(row.get("accuracy_mean"))]
    marks = [judge.scale * a for row in scored for a in (row["accuracy_mean"], *(row.get("accuracies") or ()))]
    marks = [mark for mark in marks if known(mark)]
    means = [judge.scale * row["accuracy_mean"] for row in scored]
    span, best = max(marks) - min(marks), max(means) if judge.higher else min(means)
    near = [row for row, mean in zip(scored, means, strict=True) if abs(mean - best) <= span / 8]
    return pile(means, span, judge.higher, max(judge.scale * (deviation(row) or 0.0) for row in near))


def _epochs(axes: Axes, epochs: Iterable[float]) -> None:
    """Whole numbers below the axis; of one epoch only its own."""
    there = set(epochs)
    if len(there) == 1:
        axes.set_xticks(list(there))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))


def _band(axes: Axes, curve: Curve, look: Look, rule: str) -> None:
    x = sorted(curve)
    values = [curve[epoch] for epoch in x]
    axes.fill_between(
        x, [v.min() for v in values], [v.max() for v in values], color=look.colour, alpha=0.15, linewidth=0
    )
    axes.plot(
        x, [v.mean() for v in values], look.dash, color=look.colour, label=shortened(rule), linewidth=1.8,
        marker=look.marker, markersize=5.5, markevery=max(1, len(x) // 8),
    )  # fmt: skip


def _shown(row: Mapping[str, Any]) -> str:
    """A row's score, or why there is none."""
    if known(row.get("accuracy_mean")):
        return cells(row)[3]
    return "failed" if row.get("failure") else "not finished"


def _spread(axes: Axes, y: int, row: Mapping[str, Any], look: Look) -> None:
    """One rule's line of marks, and its bar."""
    scale = metric_of([row]).scale
    seeds = [scale * float(value) for value in row.get("accuracies") or () if known(value)]
    edge: Any = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.plot(seeds, [y] * len(seeds), look.marker, color=look.colour, markersize=6.5, **edge)
    if known(row.get("accuracy_mean")):
        mean, std = scale * row["accuracy_mean"], scale * (deviation(row) or 0.0)
        axes.barh(y, 2 * std, left=mean - std, height=0.62, color=look.colour, alpha=0.25, linewidth=0)
        axes.plot([mean, mean], [y - 0.31, y + 0.31], color=look.colour, linewidth=2.5, solid_capstyle="butt")
        if row["rule"] == "bp":
            axes.axvline(mean, color="black", linestyle=":", linewidth=1, zorder=0)


def _gradient_angles(axes: Axes, rows: Metrics, palette: Mapping[str, Look]) -> None:
    """A bar a rule, from 0, where backpropagation is, to 90, where nothing is left of its gradient."""
    for y, row in enumerate(rows):
        if known(row.get("gradient_angle")):
            angle = float(row["gradient_angle"])
            axes.barh(y, angle, height=0.62, color=palette[row["rule"]].colour, linewidth=0)
            axes.annotate(f"{angle:.1f}", (angle, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(90, color="black", linestyle=":", linewidth=1, zorder=0)
    axes.set(title="Angle to backprop's gradient", xlabel="gradient angle (degrees)", xlim=(0, 105))
    axes.xaxis.set_major_locator(MultipleLocator(30))


def _angles(axes: Axes, rule: str, rows: Metrics, shades: Mapping[str, Any]) -> float:
    """One rule's panel. Returns the largest angle in it."""
    series = [(shades[layer], "-", over_epochs(rows, partial(_weight_angle, layer))) for layer in shades]
    series.append(("black", "--", over_epochs(rows, lambda row: row.get("gradient_angle"))))
    largest = 0.0
    for colour, dash, curve in series:
        x = sorted(curve)
        y = [float(curve[epoch].mean()) for epoch in x]
        axes.plot(x, y, dash, color=colour, linewidth=1.5, marker="o" if len(x) == 1 else None)
        largest = max([largest, *y])
    axes.set_title(shortened(rule))
    if not any(curve for *_, curve in series):
        say_on(axes, "no angles")
    return largest


def _weight_angle(layer: str, row: Mapping[str, Any]) -> float | None:
    return (row.get("weight_angle") or {}).get(layer)
