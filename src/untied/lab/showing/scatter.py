"""B against W, weight by weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.showing.style import STYLE, colours, empty, say_on, shortened
from untied.metrics import angle

__all__ = ["in_numbers", "scattered", "three_layers", "weight_scatter"]

DOTS = 4000
"""At most so many dots a panel of a scatter plot."""


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
            return empty(figure, "no backward weights yet")
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
        return say_on(axes, said)
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


def some(layers: Sequence[str], count: int) -> list[str]:
    """The layers, or ``count`` of them from the first to the last."""
    if len(layers) <= count:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]
