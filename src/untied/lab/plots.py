"""Figures of a comparison: accuracy over epochs and at the end, angles over time, B against W.

Each function takes what the run folder holds and returns a matplotlib Figure; nothing here touches a file but
``save``. Colours are those of Okabe and Ito and of Tol, which people with any colour vision tell apart; a rule has
the same colour in every figure. A value that is missing or null leaves a gap, so that an interrupted run can be
drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, MaxNLocator, MultipleLocator
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.record import file_name, write_atomically
from untied.lab.tables import short_name, split
from untied.lab.tasks.metric import ACCURACY, Metric, metric_of
from untied.metrics import angle

__all__ = [
    "accuracy_bars",
    "accuracy_curves",
    "angles_over_time",
    "colours",
    "save",
    "three_layers",
    "weight_scatter",
]

COLOURS = {
    "bp": "#000000", "sa": "#0072B2", "aa": "#56B4E9", "ia": "#E69F00", "wm": "#D55E00", "fa": "#999999",
    "kp": "#009E73", "usf": "#CC79A7", "frsf": "#882255", "brsf": "#332288",
    "mkp": "#117733", "dfa": "#AA4499", "sdfa": "#999933", "drtp": "#661100", "dkp": "#6699CC", "pfa": "#44AA99",
    "ldfa": "#DDAA33",
}  # fmt: skip
SPARE = ("#EE3377", "#77AADD", "#AAAA00", "#994F00", "#222255", "#663333", "#225555", "#BB5566")
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


def accuracy_curves(metrics: Metrics, judge: Metric = ACCURACY) -> Figure:
    """Validation accuracy (%) over epochs: the mean over seeds, and a band from the worst to the best seed.

    Args:
        metrics: lines with "rule", "seed", "epoch" and "validation_accuracy" (0 to 1, or None).
        judge: another metric in place of accuracy.
    """
    by_rule = _by_rule(metrics)
    key = f"validation_{judge.name}"
    curves = {rule: _over_epochs(rows, lambda row: row.get(key), judge.scale) for rule, rows in by_rule}
    curves = {rule: curve for rule, curve in curves.items() if curve}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.0), layout="constrained")
        if not curves:
            return _empty(figure, f"no validation {judge.title} yet")
        whole, close = figure.subplots(1, 2)
        whole.set(title=f"Validation {judge.title}", xlabel="epoch", ylabel=f"validation {judge.head}")
        close.set(title="The same, close up", xlabel="epoch")
        if judge.unit == "%":
            whole.set_ylim(0, 101)
        _zoom(close, curves.values(), judge)
        palette = colours(rule for rule, _ in by_rule)
        # the best is drawn last, on top, and comes first in the legend
        ends = {rule: float(curve[max(curve)].mean()) for rule, curve in curves.items()}
        for rule in sorted(curves, key=lambda rule: ends[rule], reverse=not judge.higher):
            for axes in (whole, close):
                _band(axes, curves[rule], palette[rule], rule)
        for axes in (whole, close):
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
        handles, _ = whole.get_legend_handles_labels()
        figure.legend(handles=handles[::-1], loc="outside right center", title="rule")
        return figure


def accuracy_bars(rows: Metrics) -> Figure:
    """Accuracy (%) at the end: a dot a seed, a bar over mean ± standard deviation, backprop's mean dotted. Beside it,
    the angle (degrees) between the network's pseudogradient and backpropagation's gradient, where it is known.

    Args:
        rows: the table's rows, with "rule", "accuracies", "accuracy_mean" and "accuracy_std" (0 to 1, or None), and
            "gradient_angle" (degrees, or None).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.3 + 0.42 * max(1, len(rows))), layout="constrained")
        if not any(_known(row.get("accuracy_mean")) for row in rows):
            return _empty(figure, "no rule has finished yet")
        judge, palette = metric_of(rows), colours(row["rule"] for row in rows)
        if any(_known(row.get("gradient_angle")) for row in rows):
            axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
            _gradient_angles(beside, rows, palette)
        else:
            axes = figure.subplots()
        for y, row in enumerate(rows):
            _spread(axes, y, row, palette[row["rule"]])
        axes.use_sticky_edges = False  # or the widest bar would touch the frame
        axes.set(
            title=f"{split(rows).capitalize()} {judge.title}",
            xlabel=f"{split(rows)} {judge.head}",
            ylim=(len(rows) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(rows)), [_short(row["rule"]) for row in rows])
        axes.grid(axis="y", visible=False)
        return figure


def angles_over_time(metrics: Metrics) -> Figure:
    """The angle between B and W (degrees) over epochs, mean over seeds: a panel a rule, a line a layer.

    A dashed line is the angle between the network's pseudogradient and backpropagation's gradient. At 0 the weights
    are symmetric; independent random weights are at about 90.

    Args:
        metrics: lines with "rule", "seed", "epoch", "weight_angle" (degrees by layer) and "gradient_angle".
    """
    by_rule = _by_rule(metrics)
    layers = list(dict.fromkeys(layer for row in metrics for layer in row.get("weight_angle") or ()))
    with matplotlib.rc_context(STYLE):
        columns = min(4, max(1, len(by_rule)))
        lines = math.ceil(max(1, len(by_rule)) / columns)
        figure = Figure(figsize=(max(4.5, 2.2 * columns + 1.6), 2.3 * lines + 0.6), layout="constrained")
        if not by_rule:
            return _empty(figure, "no angles yet")
        shades = dict(zip(layers, matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers))), strict=True))
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        drawn = [_angles(axes, *group, shades) for axes, group in zip(grid.flat, by_rule, strict=False)]
        for axes in list(grid.flat)[len(by_rule) :]:
            axes.remove()
        grid[0, 0].set_ylim(-2, min(182.0, max(92.0, 5 + max(drawn))))
        grid[0, 0].yaxis.set_major_locator(MultipleLocator(30))
        grid[0, 0].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
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
    names = {rule: _untied_layers(weights) for rule, weights in weights_by_rule.items()}
    known = list(dict.fromkeys(layer for own in names.values() for layer in own))
    layers = three_layers(known) if layers is None else list(layers)
    for layer in layers:
        if layer not in known:
            there = ", ".join(known) or "none"
            raise UntiedError(f"layer {layer!r} has no backward weight in these weights; layers that have: {there}")
    rules = [rule for rule, own in names.items() if own]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.5, 2.6 * len(layers) + 0.8), 2.4 * len(rules) + 0.6), layout="constrained")
        if not rules or not layers:
            return _empty(figure, "no backward weights yet")
        palette = colours(weights_by_rule)
        grid = figure.subplots(len(rules), len(layers), squeeze=False)
        for line, rule in zip(grid, rules, strict=True):
            for axes, layer in zip(line, layers, strict=True):
                _scatter(axes, weights_by_rule[rule], layer, palette[rule])
            line[0].set_ylabel(_short(rule), fontsize=12, fontweight="bold")
        for axes, layer in zip(grid[0], layers, strict=True):
            axes.set_title(f"layer {layer}")
        figure.supxlabel("elements of the forward weight W", fontsize=10)
        figure.supylabel("elements of the backward weight B", fontsize=10)
        return figure


def three_layers(layers: Sequence[str]) -> list[str]:
    """The first, a middle and the last of the layers; all of them if there are three or fewer."""
    return list(layers) if len(layers) <= 3 else [layers[0], layers[len(layers) // 2], layers[-1]]


def logarithmic(axis: Axis) -> None:
    """Powers of ten in plain digits: matplotlib would write them as mathematics, which STYLE leaves unread."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write <name>.png and <name>.svg into a folder, which is made if need be. The same figure gives the same bytes."""
    written = []
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            written.append(write_atomically(Path(folder) / f"{file_name(name)}.{kind}", buffer.getvalue()))
    return written


def _by_rule(metrics: Metrics) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Lines by rule, in the order in which the rules appear."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in metrics:
        groups.setdefault(row["rule"], []).append(row)
    return list(groups.items())


def _over_epochs(rows: Metrics, value: Callable[[Mapping[str, Any]], float | None], scale: float = 1.0) -> Curve:
    """The known values of all seeds, by epoch, times a scale."""
    found: dict[float, list[float]] = {}
    for row in rows:
        number = value(row)
        if number is not None and math.isfinite(number):
            found.setdefault(row["epoch"], []).append(scale * float(number))
    return {epoch: np.array(values) for epoch, values in found.items()}


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _zoom(axes: Axes, curves: Iterable[Curve], judge: Metric) -> None:
    """Look at the ends of the curves that come close to the best: for accuracy, within 12 points of it."""
    curves = list(curves)
    ends = [float(curve[max(curve)].mean()) for curve in curves]
    values = [float(v) for curve in curves for several in curve.values() for v in several]
    if judge.unit == "%" and judge.higher:
        low = max(0.0, min(end for end in ends if end >= max(ends) - 12) - 3)
        axes.set_ylim(low, min(100.4, max(values) + 0.6))
        return
    best, worst = (max(values), min(ends)) if judge.higher else (min(values), max(ends))
    room = 0.1 * abs(worst - best) or 0.1 * abs(best) or 0.1
    axes.set_ylim(min(best, worst) - room, max(best, worst) + room)


def _band(axes: Axes, curve: Curve, colour: str, rule: str) -> None:
    x = sorted(curve)
    values = [curve[epoch] for epoch in x]
    axes.fill_between(x, [v.min() for v in values], [v.max() for v in values], color=colour, alpha=0.15, linewidth=0)
    axes.plot(
        x, [v.mean() for v in values], "--" if rule == "bp" else "-",
        color=colour, label=_short(rule), linewidth=1.8, marker="o" if len(x) == 1 else None,
    )  # fmt: skip


def _spread(axes: Axes, y: int, row: Mapping[str, Any], colour: str) -> None:
    """One rule's line of dots, its bar, and the numbers beside it."""
    judge = metric_of([row])
    seeds = [judge.scale * float(value) for value in row.get("accuracies") or () if _known(value)]
    axes.plot(seeds, [y] * len(seeds), "o", color=colour, markersize=4.5, markeredgecolor="white", markeredgewidth=0.6)
    words = "failed" if row.get("failure") else "not finished"
    if _known(row.get("accuracy_mean")):
        mean = judge.scale * row["accuracy_mean"]
        std = judge.scale * row["accuracy_std"] if len(seeds) > 1 and _known(row.get("accuracy_std")) else 0.0
        words = judge.shown(row["accuracy_mean"]) + (f" ± {std:.{judge.digits}f}" if len(seeds) > 1 else "")
        axes.barh(y, 2 * std, left=mean - std, height=0.62, color=colour, alpha=0.25, linewidth=0)
        axes.plot([mean, mean], [y - 0.31, y + 0.31], color=colour, linewidth=2.5, solid_capstyle="butt")
        if row["rule"] == "bp":
            axes.axvline(mean, color="black", linestyle=":", linewidth=1, zorder=0)
    axes.annotate(words, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)


def _gradient_angles(axes: Axes, rows: Metrics, palette: Mapping[str, str]) -> None:
    """A bar a rule, from 0, where backpropagation is, to 90, where nothing is left of its gradient."""
    for y, row in enumerate(rows):
        if _known(row.get("gradient_angle")):
            angle = float(row["gradient_angle"])
            axes.barh(y, angle, height=0.62, color=palette[row["rule"]], alpha=0.6, linewidth=0)
            axes.annotate(f"{angle:.1f}", (angle, y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.axvline(90, color="black", linestyle=":", linewidth=1, zorder=0)
    axes.set(title="Angle to backpropagation's gradient", xlabel="gradient angle (degrees)", xlim=(0, 105))
    axes.xaxis.set_major_locator(MultipleLocator(30))
    axes.tick_params(labelleft=False)
    axes.grid(axis="y", visible=False)


def _angles(axes: Axes, rule: str, rows: Metrics, shades: Mapping[str, Any]) -> float:
    """One rule's panel. Returns the largest angle in it."""
    series = [(shades[layer], "-", _over_epochs(rows, partial(_weight_angle, layer))) for layer in shades]
    series.append(("black", "--", _over_epochs(rows, lambda row: row.get("gradient_angle"))))
    largest = 0.0
    for colour, dash, curve in series:
        x = sorted(curve)
        y = [float(curve[epoch].mean()) for epoch in x]
        axes.plot(x, y, dash, color=colour, linewidth=1.5, marker="o" if len(x) == 1 else None)
        largest = max([largest, *y])
    axes.set_title(_short(rule))
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


def _scatter(axes: Axes, weights: Mapping[str, Tensor], layer: str, colour: str) -> None:
    forward, backward = weights.get(f"{layer}.weight"), weights.get(f"{layer}.backward_weight")
    if forward is None or backward is None or not _alike(weights, layer):
        return _say(axes, "no backward weight")
    W, B = (tensor.detach().double().cpu().flatten().numpy() for tensor in (forward, backward))
    if not (np.isfinite(W).all() and np.isfinite(B).all()):
        return _say(axes, "not finite")
    shown = np.random.default_rng(0).permutation(len(W))[:DOTS]
    width = 1.05 * max(float(np.abs(W).max()), 1e-12)
    height = max(width, 1.05 * float(np.abs(B).max()))
    axes.scatter(W[shown], B[shown], s=4, color=colour, alpha=0.35, linewidths=0, rasterized=True)
    axes.plot([-width, width], [-width, width], ":", color="black", linewidth=1.2)
    axes.set(xlim=(-width, width), ylim=(-height, height))
    axes.locator_params(nbins=5)
    ratio = float(np.linalg.norm(B) / np.linalg.norm(W)) if W.any() else math.nan
    axes.text(
        0.03, 0.97, f"{angle(forward, backward):.1f}°\n‖B‖/‖W‖ = {ratio:{'.2f' if 0.1 <= ratio < 100 else '.2g'}}",
        transform=axes.transAxes, va="top", fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip
    return None


def _some(layers: Sequence[str], count: int) -> list[str]:
    """The layers, or ``count`` of them from the first to the last."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]


def _short(rule: str) -> str:
    return rule if len(rule) <= 26 else rule[:25] + "…"


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="#777777")


def _empty(figure: Figure, words: str) -> Figure:
    figure.clear()
    figure.text(0.5, 0.5, words, ha="center", va="center", color="#777777")
    return figure
