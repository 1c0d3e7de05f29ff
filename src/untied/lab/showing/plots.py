"""Figures of a comparison: accuracy over epochs and at the end, angles over time, B against W.

Each function takes what the run folder holds and returns a matplotlib Figure; nothing here touches a file but
``save``. A rule has one colour, marker and dash in every figure, and stands at one place in every legend: the table's.
Colours have a contrast of 3:1 on white and on the dark page, and a marker stands for whoever cannot tell two apart. A
value that is missing or null leaves a gap, so that an interrupted run can be drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, MaxNLocator, MultipleLocator
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.keeping.record import file_name, write_atomically
from untied.lab.showing.tables import cells, deviation, known, short_name, split
from untied.lab.tasks.metric import ACCURACY, Metric, metric_of
from untied.metrics import angle

__all__ = [
    "Look",
    "accuracy_bars",
    "accuracy_curves",
    "angles_over_time",
    "by_rule",
    "colours",
    "in_numbers",
    "legend_of",
    "logarithmic",
    "looks",
    "name_ends",
    "over_epochs",
    "pile",
    "save",
    "scattered",
    "shaded",
    "shortened",
    "three_layers",
    "weight_scatter",
]

COLOURS = {
    "bp": "#6B6B6B", "sa": "#0072B2", "aa": "#4A97DB", "ia": "#B8860B", "wm": "#D55E00", "fa": "#8C6D46",
    "kp": "#009E73", "dfa": "#AA4499", "mkp": "#117733", "frozen": "#8B8680", "usf": "#CC79A7", "frsf": "#B03A75",
    "brsf": "#6A5ACD", "sdfa": "#8A8A1E", "drtp": "#B5442E", "dkp": "#7C7FC9", "pfa": "#1F9393", "ldfa": "#7A9A2E",
    "rdd": "#EE3377", "tp": "#9A6FB0", "dtp": "#5C8A3A", "sdtp": "#C0603F", "drl": "#3E86A8", "ldrl": "#B04A8A",
    "ddtp": "#A07D1C",
}  # fmt: skip
SPARE = ("#4F8FBF", "#8F8F00", "#9E5200", "#5560B8", "#A05A5A", "#3B7A7A", "#BB5566")
MARKERS = "osD^vPX*<>"
Dash = Literal["-", "--", ":"]
DASHES: dict[str, Dash] = {"bp": "--", "frozen": ":"}
"""Of the baselines; a rule's line is solid."""
SOFT = "#666666"
"""Of words and lines that stand back."""
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "text.parse_math": False,  # labels are users' text: a $ in it is a dollar
    "svg.hashsalt": "untied",  # with no date in the file, the same data give the same SVG
}
DOTS = 4000
"""At most so many dots a panel of a scatter plot."""

Metrics = Sequence[Mapping[str, Any]]
Curve = dict[float, np.ndarray]  # the values of all seeds, by epoch


@dataclass(frozen=True)
class Look:
    """How a rule is drawn: colour, marker and dash, in matplotlib's words."""

    colour: str
    marker: str
    dash: Dash


_MARKER_OF = {colour: MARKERS[i % len(MARKERS)] for i, colour in enumerate((*COLOURS.values(), *SPARE))}


def looks(rules: Iterable[str]) -> dict[str, Look]:
    """How each rule is drawn, in the order in which they are given."""
    return {
        rule: Look(colour, _MARKER_OF[colour], DASHES.get(short_name(rule), "-"))
        for rule, colour in colours(rules).items()
    }


def colours(rules: Iterable[str]) -> dict[str, str]:
    """A colour for each rule: its own for a named one; for any other one a spare, chosen by its text."""
    chosen: dict[str, str] = {}
    rules = list(dict.fromkeys(rules))
    for rule in sorted(rules, key=lambda rule: rule not in COLOURS):  # plain names take their colours first
        own = COLOURS.get(short_name(rule))
        start = int(hashlib.sha256(rule.encode()).hexdigest(), 16) % len(SPARE)
        wanted = ([own] if own else []) + [*SPARE[start:], *SPARE[:start]]
        chosen[rule] = next((colour for colour in wanted if colour not in chosen.values()), wanted[-1])
    return {rule: chosen[rule] for rule in rules}


def shaded(layers: Sequence[str]) -> dict[str, Any]:
    """A colour for each layer, from blue at the input to red at the output, each with 3:1 on white."""
    return dict(zip(layers, matplotlib.colormaps["plasma"](np.linspace(0, 0.56, len(layers))), strict=True))


def legend_of(palette: Mapping[str, Look]) -> list[Line2D]:
    """What a legend shows of each rule, in the order of the palette."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, markersize=5, label=shortened(rule))
        for rule, look in palette.items()
    ]


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
            return _empty(Figure(figsize=(9.0, 4.0), layout="constrained"), f"no validation {judge.title} yet")
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
            return _empty(Figure(figsize=(9.0, height), layout="constrained"), "no rule has finished yet")
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
            return _empty(figure, "no angles yet")
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
        handles = [Line2D([], [], color=shades[layer], label=layer) for layer in _some(layers, 8)]
        handles.append(Line2D([], [], color="black", linestyle="--", label="gradient of the\nwhole network"))
        figure.legend(handles=handles, loc="outside right center", title="layer")
        return figure


def weight_scatter(weights_by_rule: Mapping[str, Mapping[str, Tensor]], layers: Sequence[str] | None = None) -> Figure:
    """Elements of B against elements of W, as in Fig. 2d-f of the paper: a row a rule, a column a layer.

    The dotted diagonal is weight symmetry. The vertical axis grows with B where B has outgrown W. At most DOTS
    elements are drawn, the same ones each time; the angle and the norm ratio in a panel are of all of them. A rule
    that stores no backward weight in W's layout (backpropagation, sign symmetry, direct feedback) has no row.

    Args:
        weights_by_rule: state dicts with "<layer>.weight" and "<layer>.backward_weight".
        layers: names of the layers; by default the first, a middle and the last one.

    Raises:
        UntiedError: a layer that no rule has.
    """
    rules, layers = scattered(weights_by_rule, layers)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.5, 2.6 * len(layers) + 0.8), 2.4 * len(rules) + 0.6), layout="constrained")
        if not rules or not layers:
            return _empty(figure, "no backward weights yet")
        palette = colours(weights_by_rule)
        grid = figure.subplots(len(rules), len(layers), squeeze=False)
        for line, rule in zip(grid, rules, strict=True):
            for axes, layer in zip(line, layers, strict=True):
                _scatter(axes, weights_by_rule[rule], layer, palette[rule])
            line[0].set_ylabel(shortened(rule), fontsize=12, fontweight="bold")
        for axes, layer in zip(grid[0], layers, strict=True):
            axes.set_title(f"layer {layer}")
        figure.supxlabel("elements of the forward weight W", fontsize=10)
        figure.supylabel("elements of the backward weight B", fontsize=10)
        return figure


def scattered(
    weights_by_rule: Mapping[str, Mapping[str, Tensor]], layers: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """The rules and the layers of which `weight_scatter` has panels; its arguments, and what it raises."""
    names = {rule: _untied_layers(weights) for rule, weights in weights_by_rule.items()}
    there = list(dict.fromkeys(layer for own in names.values() for layer in own))
    layers = three_layers(there) if layers is None else list(layers)
    for layer in layers:
        if layer not in there:
            possible = ", ".join(there) or "none"
            raise UntiedError(f"layer {layer!r} has no backward weight in these weights; layers that have: {possible}")
    return [rule for rule, own in names.items() if own], layers


def in_numbers(weights: Mapping[str, Tensor], layer: str) -> str:
    """The angle between B and W of a layer and the ratio of their norms; or why there are none."""
    found = _elements(weights, layer)
    if found is None:
        return "no backward weight"
    if not np.isfinite(found).all():
        return "not finite"
    W, B = found
    ratio = float(np.linalg.norm(B) / np.linalg.norm(W)) if W.any() else math.nan
    degrees = angle(weights[f"{layer}.weight"], weights[f"{layer}.backward_weight"])
    return f"{degrees:.1f}°, ‖B‖/‖W‖ = {ratio:{'.2f' if 0.1 <= ratio < 100 else '.2g'}}"


def three_layers(layers: Sequence[str]) -> list[str]:
    """The first, a middle and the last of the layers; all of them if there are three or fewer."""
    return list(layers) if len(layers) <= 3 else [layers[0], layers[len(layers) // 2], layers[-1]]


class Plain(LogFormatter):
    """Numbers on a logarithmic axis in plain digits, at the places that matplotlib chooses."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """A number, or nothing where none is to stand."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axis: Axis) -> None:
    """Plain digits on an axis: matplotlib would write mathematics, which STYLE leaves unread."""
    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain())


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write <name>.png and <name>.svg into a folder, which is made if need be. The same figure gives the same bytes."""
    written = []
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            written.append(write_atomically(Path(folder) / f"{file_name(name)}.{kind}", buffer.getvalue()))
    return written


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
        _say(axes, "no angles")
    return largest


def _weight_angle(layer: str, row: Mapping[str, Any]) -> float | None:
    return (row.get("weight_angle") or {}).get(layer)


def _untied_layers(weights: Mapping[str, Tensor]) -> list[str]:
    """Layers whose B lies in W's layout: the two can be compared element by element."""
    names = [key.removesuffix(".backward_weight") for key in weights if key.endswith(".backward_weight")]
    return [n for n in names if f"{n}.weight" in weights and _alike(weights, n)]


def _alike(weights: Mapping[str, Tensor], layer: str) -> bool:
    factored = f"{layer}.backward_factor" in weights
    return not factored and weights[f"{layer}.weight"].shape == weights[f"{layer}.backward_weight"].shape


def _elements(weights: Mapping[str, Tensor], layer: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The elements of W and of B, in the same order; None where they cannot be compared one by one."""
    forward, backward = weights.get(f"{layer}.weight"), weights.get(f"{layer}.backward_weight")
    if forward is None or backward is None or not _alike(weights, layer):
        return None
    W, B = (tensor.detach().double().cpu().flatten().numpy() for tensor in (forward, backward))
    return W, B


def _scatter(axes: Axes, weights: Mapping[str, Tensor], layer: str, colour: str) -> None:
    said, found = in_numbers(weights, layer), _elements(weights, layer)
    if found is None or not np.isfinite(found).all():
        return _say(axes, said)
    W, B = found
    shown = np.random.default_rng(0).permutation(len(W))[:DOTS]
    width = 1.05 * max(float(np.abs(W).max()), 1e-12)
    height = max(width, 1.05 * float(np.abs(B).max()))
    axes.scatter(W[shown], B[shown], s=4, color=colour, alpha=0.35, linewidths=0, rasterized=True)
    axes.plot([-width, width], [-width, width], ":", color="black", linewidth=1.2)
    axes.set(xlim=(-width, width), ylim=(-height, height))
    axes.locator_params(nbins=5)
    axes.text(
        0.03, 0.97, said.replace(", ", "\n"),
        transform=axes.transAxes, va="top", fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip
    return None


def _some(layers: Sequence[str], count: int) -> list[str]:
    """The layers, or ``count`` of them from the first to the last."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def shortened(rule: str, most: int = 26) -> str:
    """A rule as figures have it: cut where it is long."""
    return rule if len(rule) <= most else rule[: most - 1] + "…"


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=SOFT)


def _empty(figure: Figure, words: str) -> Figure:
    figure.clear()
    figure.text(0.5, 0.5, words, ha="center", va="center", color=SOFT)
    return figure
