"""Figures of a comparison: accuracy over epochs and at the end, angles over time, backward against forward weights.

Each function takes what the run folder holds and returns a matplotlib Figure; nothing here touches a file but ``save``.
Colours are those of Okabe and Ito and of Tol, which people with any colour vision tell apart; a rule has the same colour
in every figure. A value that is missing or null leaves a gap, so that an interrupted run can be drawn.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.record import file_name, write_atomically
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
    "bp": "#000000", "sa": "#0072B2", "aa": "#56B4E9", "ia": "#E69F00", "wm": "#D55E00", "fa": "#999999", "kp": "#009E73",
    "usf": "#CC79A7", "frsf": "#882255", "brsf": "#332288",
}  # fmt: skip
SPARE = ("#117733", "#AA4499", "#999933", "#661100", "#6699CC", "#44AA99", "#DDAA33", "#EE3377")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "untied",  # with no date in the file, the same data give the same SVG
}
DOTS = 4000
"""At most so many dots a panel of a scatter plot."""

Metrics = Sequence[Mapping[str, Any]]


def colours(rules: Iterable[str]) -> dict[str, str]:
    """A colour for each rule: its own for a named one; for any other one a spare, chosen by its text."""
    chosen: dict[str, str] = {}
    rules = list(dict.fromkeys(rules))
    for rule in sorted(rules, key=lambda rule: rule not in COLOURS):  # plain names take their colours first
        own = COLOURS.get(re.split(r"\W", rule, maxsplit=1)[0])
        start = int(hashlib.sha256(rule.encode()).hexdigest(), 16) % len(SPARE)
        wanted = [own] * (own is not None) + [*SPARE[start:], *SPARE[:start]]
        chosen[rule] = next((colour for colour in wanted if colour not in chosen.values()), wanted[-1])
    return {rule: chosen[rule] for rule in rules}


def accuracy_curves(metrics: Metrics) -> Figure:
    """Validation accuracy in percent over epochs: a line at the mean over seeds, a band from the worst to the best seed.

    Args:
        metrics: lines with "rule", "seed", "epoch" and "validation_accuracy" (0 to 1, or None).
    """
    curves = {
        rule: _over_epochs(rows, lambda row: row.get("validation_accuracy"))
        for rule, rows in _by_rule(metrics)
    }
    curves = {
        rule: {epoch: 100 * values for epoch, values in curve.items()}
        for rule, curve in curves.items()
        if curve
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.0), layout="constrained")
        whole, close = figure.subplots(1, 2, width_ratios=(1, 1))
        whole.set(title="Validation accuracy", xlabel="epoch", ylabel="validation accuracy (%)")
        close.set(title="The same, close up", xlabel="epoch")
        if not curves:
            return _empty(figure, "no validation accuracy yet")
        last = {rule: float(np.mean(curve[max(curve)])) for rule, curve in curves.items()}
        palette = colours(rule for rule, _ in _by_rule(metrics))
        for rule in sorted(curves, key=last.__getitem__):  # the best on top, and first in the legend
            x = sorted(curves[rule])
            for axes in (whole, close):
                _band(axes, x, [curves[rule][epoch] for epoch in x], palette[rule], rule)
        ends = sorted(last.values())
        floor = max(0.0, min(value for value in ends if value >= ends[-1] - 12) - 3)
        close.set_ylim(
            floor, min(100.4, max(float(v.max()) for c in curves.values() for v in c.values()) + 0.6)
        )
        whole.set_ylim(0, 101)
        for axes in (whole, close):
            axes.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = whole.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside right center", title="rule")
        return figure


def accuracy_bars(rows: Metrics) -> Figure:
    """Test accuracy in percent of each rule: a dot a seed, a bar over mean ± one standard deviation, backprop's mean dotted.

    Args:
        rows: the table's rows, with "rule", "accuracies", "accuracy_mean" and "accuracy_std" (0 to 1, or None).
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 1.3 + 0.42 * max(1, len(rows))), layout="constrained")
        axes = figure.subplots()
        palette = colours(row["rule"] for row in rows)
        drawn = False
        for y, row in enumerate(rows):
            colour = palette[row["rule"]]
            seeds = [100 * float(value) for value in row.get("accuracies") or () if _known(value)]
            mean, std = row.get("accuracy_mean"), row.get("accuracy_std")
            drawn = drawn or bool(seeds)
            if _known(mean):
                spread = 100 * std if _known(std) else 0.0
                axes.barh(
                    y,
                    2 * spread,
                    left=100 * mean - spread,
                    height=0.62,
                    color=colour,
                    alpha=0.25,
                    linewidth=0,
                )
                axes.plot(
                    [100 * mean] * 2, [y - 0.31, y + 0.31], color=colour, linewidth=2.5, solid_capstyle="butt"
                )
                axes.annotate(
                    f"{100 * mean:.1f} ± {spread:.1f}" if len(seeds) > 1 else f"{100 * mean:.1f}",
                    (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9,
                )  # fmt: skip
                if row["rule"] == "bp":
                    axes.axvline(100 * mean, color="black", linestyle=":", linewidth=1, zorder=0)
            else:
                note = "failed" if row.get("failure") else "not finished"
                axes.annotate(
                    note,
                    (1.01, y),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=9,
                    color="#777777",
                )
            axes.plot(
                seeds,
                [y] * len(seeds),
                "o",
                color=colour,
                markersize=4.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
        if not drawn:
            return _empty(figure, "no rule has finished yet")
        axes.set(title="Test accuracy by rule", xlabel="test accuracy (%)", ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [row["rule"] for row in rows])
        axes.grid(axis="y", visible=False)
        return figure


def angles_over_time(metrics: Metrics) -> Figure:
    """The angle between B and W over epochs in degrees, mean over seeds: a panel a rule, a line a layer.

    A dashed line is the angle between the network's pseudogradient and backpropagation's gradient. At 0° the weights are
    symmetric; independent random weights are at about 90°.

    Args:
        metrics: lines with "rule", "seed", "epoch", "weight_angle" (degrees by layer) and "gradient_angle" (degrees).
    """
    by_rule = _by_rule(metrics)
    layers = list(dict.fromkeys(layer for row in metrics for layer in row.get("weight_angle") or ()))
    with matplotlib.rc_context(STYLE):
        columns = min(4, max(1, len(by_rule)))
        lines = math.ceil(max(1, len(by_rule)) / columns)
        figure = Figure(figsize=(max(4.5, 2.2 * columns + 1.6), 2.3 * lines + 0.6), layout="constrained")
        if not by_rule:
            return _empty(figure, "no angles yet")
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(2, len(layers))))
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        top = 95.0
        for axes, (rule, rows) in zip(grid.flat, by_rule, strict=False):
            axes.set_title(rule if len(rule) < 26 else rule[:24] + "…")
            any_line = False
            series = [
                (
                    layer,
                    shades[i],
                    "-",
                    _over_epochs(rows, lambda row, layer=layer: (row.get("weight_angle") or {}).get(layer)),
                )
                for i, layer in enumerate(layers)
            ]
            series.append(
                ("gradient", "black", "--", _over_epochs(rows, lambda row: row.get("gradient_angle")))
            )
            for _, colour, dash, curve in series:
                x = sorted(curve)
                y = [float(curve[epoch].mean()) for epoch in x]
                axes.plot(
                    x,
                    y,
                    dash,
                    color=colour,
                    linewidth=1.5,
                    marker="o" if len(x) == 1 else None,
                    clip_on=False,
                )
                top = max([top, *(value + 5 for value in y)])
                any_line = any_line or bool(x)
            if not any_line:
                axes.text(0.5, 0.5, "no angles", transform=axes.transAxes, ha="center", color="#777777")
        for axes in list(grid.flat)[len(by_rule) :]:
            axes.remove()
        grid[0, 0].set_ylim(0, min(180.0, top))
        grid[0, 0].yaxis.set_major_locator(matplotlib.ticker.MultipleLocator(30))
        grid[0, 0].xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle("Angle between backward and forward weights", fontsize=12)
        figure.supxlabel("epoch", fontsize=10)
        figure.supylabel("weight angle (degrees)", fontsize=10)
        named = (
            layers
            if len(layers) <= 8
            else [layers[i] for i in np.linspace(0, len(layers) - 1, 5).round().astype(int)]
        )
        handles = [Line2D([], [], color=shades[layers.index(layer)], label=layer) for layer in named]
        handles.append(Line2D([], [], color="black", linestyle="--", label="gradient,\nwhole network"))
        figure.legend(handles=handles, loc="outside right center", title="layer")
        return figure


def weight_scatter(
    weights_by_rule: Mapping[str, Mapping[str, Tensor]], layers: Sequence[str] | None = None
) -> Figure:
    """Elements of B against elements of W, as in Fig. 2d-f of the paper: a row a rule, a column a layer.

    The dotted diagonal is weight symmetry. The vertical axis grows with B where B has outgrown W. At most DOTS elements are
    drawn, the same ones each time; the angle and the norm ratio printed in a panel are of all of them.

    Args:
        weights_by_rule: state dicts with "<layer>.weight" and "<layer>.backward_weight".
        layers: names of the layers; by default the first, a middle and the last one.

    Raises:
        UntiedError: a layer that no rule has.
    """
    known = _untied_layers(weights_by_rule.values())
    layers = three_layers(known) if layers is None else list(layers)
    for layer in layers:
        if layer not in known:
            raise UntiedError(
                f"no layer {layer!r} with a backward weight among these weights; there are: {', '.join(known)}"
            )
    with matplotlib.rc_context(STYLE):
        lines, columns = max(1, len(weights_by_rule)), max(1, len(layers))
        figure = Figure(figsize=(max(4.5, 2.6 * columns + 0.8), 2.45 * lines + 0.6), layout="constrained")
        if not weights_by_rule or not layers:
            return _empty(figure, "no backward weights yet")
        palette = colours(weights_by_rule)
        grid = figure.subplots(lines, columns, squeeze=False)
        for line, (rule, weights) in enumerate(weights_by_rule.items()):
            for axes, layer in zip(grid[line], layers, strict=True):
                _scatter(axes, weights, layer, palette[rule])
            grid[line, 0].set_ylabel(f"{rule}\n\nbackward weight B")
        for axes, layer in zip(grid[0], layers, strict=True):
            axes.set_title(layer)
        for axes in grid[-1]:
            axes.set_xlabel("forward weight W")
        return figure


def three_layers(layers: Sequence[str]) -> list[str]:
    """The first, a middle and the last of the layers; all of them if there are three or fewer."""
    return list(layers) if len(layers) <= 3 else [layers[0], layers[len(layers) // 2], layers[-1]]


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


def _over_epochs(rows: Metrics, value: Any) -> dict[float, np.ndarray]:
    """The known values of all seeds, by epoch."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if _known(number := value(row)):
            found.setdefault(row["epoch"], []).append(float(number))
    return {epoch: np.array(values) for epoch, values in found.items()}


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _band(axes: Axes, x: list[float], values: list[np.ndarray], colour: str, label: str) -> None:
    axes.fill_between(
        x, [v.min() for v in values], [v.max() for v in values], color=colour, alpha=0.15, linewidth=0
    )
    axes.plot(
        x,
        [v.mean() for v in values],
        color=colour,
        label=label,
        linewidth=1.8,
        linestyle="--" if label == "bp" else "-",
        marker="o" if len(x) == 1 else None,
    )


def _untied_layers(many: Iterable[Mapping[str, Tensor]]) -> list[str]:
    keys = dict.fromkeys(key for weights in many for key in weights if key.endswith(".backward_weight"))
    return [key.removesuffix(".backward_weight") for key in keys]


def _scatter(axes: Axes, weights: Mapping[str, Tensor], layer: str, colour: str) -> None:
    forward, backward = weights.get(f"{layer}.weight"), weights.get(f"{layer}.backward_weight")
    if forward is None or backward is None:
        axes.set(xticks=[], yticks=[])
        axes.text(
            0.5,
            0.5,
            "no B is stored:\nit is made from W",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color="#777777",
        )
        return
    W, B = (tensor.detach().double().flatten().numpy() for tensor in (forward, backward))
    if not (np.isfinite(W).all() and np.isfinite(B).all()):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not finite", transform=axes.transAxes, ha="center", va="center", color="#777777")
        return
    shown = np.random.default_rng(0).permutation(len(W))[:DOTS]
    width = 1.05 * max(float(np.abs(W).max()), 1e-12)
    height = max(width, 1.05 * float(np.abs(B).max()))
    axes.scatter(W[shown], B[shown], s=4, color=colour, alpha=0.35, linewidths=0, rasterized=True)
    axes.plot([-width, width], [-width, width], ":", color="black", linewidth=1.2)
    axes.set(xlim=(-width, width), ylim=(-height, height))
    axes.locator_params(nbins=5)
    ratio = np.linalg.norm(B) / np.linalg.norm(W) if W.any() else math.nan
    axes.text(
        0.03, 0.97, f"{angle(forward, backward):.1f}°\n‖B‖/‖W‖ = {ratio:.3g}",
        transform=axes.transAxes, va="top", fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip


def _empty(figure: Figure, words: str) -> Figure:
    figure.clear()
    figure.text(0.5, 0.5, words, ha="center", va="center", color="#777777")
    return figure
