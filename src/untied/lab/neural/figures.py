"""Figures of neural fits: bars by rule (Fig. 6), curves over layers, neuron against neuron."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from untied.lab.neural.summary import BEST, RDM, Row, is_floor, reference, short_names
from untied.lab.neural.tables import main_rows, plus_minus
from untied.lab.showing.findings import Words
from untied.lab.showing.style import STYLE, Look, looks

__all__ = ["bars", "captions", "curves", "finding", "neurons"]

FLOORS = {"random": Look("#AA7744", "d", "--"), "pixels": Look("#8F8040", "p", "--")}
KINDS = {"pls": "PLS", "ridge": "ridge", RDM: "dissimilarities"}


def palette(rules: Iterable[str]) -> dict[str, Look]:
    """How each rule is drawn, the same as in every other figure; the floors have their own."""
    rules = list(rules)
    return {
        **looks(r for r in rules if not is_floor(r)),
        **{r: FLOORS[r.split(", ")[0]] for r in rules if is_floor(r)},
    }


def finding(rows: Sequence[Row]) -> str:
    """Which rule predicts each region best, in a line."""
    main = main_rows(rows)
    names = short_names(list(dict.fromkeys(row.rule for row in main)))
    said = []
    for key in keys(main):
        own = [row for row in main if (row.region, row.map) == key and not is_floor(row.rule) and math.isfinite(row.r)]
        if own:
            best = max(own, key=lambda row: row.r)
            said.append(f"{title(best)}: {names[best.rule]} with {plus_minus(best.r, best.sem)}")
    return f"Highest r. {'; '.join(said)}." if said else ""


def captions(rows: Sequence[Row]) -> dict[str, Words]:
    """The words of the figures, by the name under which they are saved."""
    main = main_rows(rows)
    names = short_names(list(dict.fromkeys(row.rule for row in rows)))
    several = any(row.seeds > 1 for row in main)
    fits = [
        f"{title(own[0])}: " + "; ".join(f"{names[row.rule]} {plus_minus(row.r, row.sem)}" for row in own)
        for own in ([row for row in main if (row.region, row.map) == key] for key in keys(main))
    ]
    layers = [
        f"{title(own[0])}: " + "; ".join(f"{names[row.rule]} {row.r:.3f} in {row.chosen or row.layer}" for row in own)
        for own in ([row for row in main if (row.region, row.map) == key] for key in keys(main))
    ]
    neuron = "; ".join(
        f"{names[row.rule]} {plus_minus(row.difference, row.difference_sem, '+.3f')} in {row.region or 'all'}"
        for row in main
        if row.map != RDM and math.isfinite(row.difference)
    )
    return {
        "fits": Words(
            "How well each rule's networks predict each region, as in Fig. 6: the median over neurons of Pearson's r "
            "on images that the map was not fitted on, in the layer that is best on the images it was fitted on. Error "
            "bars: standard error of the mean over neurons; for dissimilarities Spearman's correlation and its "
            "standard error by bootstrap over images. "
            + ("A dot is a seed; the dotted" if several else "The dotted")
            + " line is the reference rule. Hatched: no training.",
            f"Bars of r, with standard errors. {'. '.join(fits)}.",
        ),
        "layers": Words(
            f"The same by layer, from the input to the output: {'mean over seeds, ' if several else ''}a band of one "
            "standard error. The dotted line is what the pixels alone predict, as the networks see them.",
            f"Lines of r over layers, here the best layer of each rule. {'. '.join(layers)}.",
        ),
        "neurons": Words(
            "Each dot a neuron: r from a rule's networks against r from the reference's"
            f"{', mean over seeds' if several else ''}, best layers. On the diagonal both predict the neuron equally.",
            f"Dots, one a neuron. Median difference of r from the reference: {neuron or 'not known'}.",
        ),
    }


def keys(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.region, row.map) for row in rows))


def title(row: Row) -> str:
    """Of a panel."""
    region = row.region or "neurons"
    count = "" if row.map == RDM else f" ({row.neurons} neurons)"
    return f"{region}{count}, {KINDS[row.map]}"


def label(kind: str) -> str:
    return "Spearman's correlation of\ndissimilarities" if kind == RDM else "median over neurons of r"


def bars(rows: Sequence[Row]) -> Figure:
    """A panel a region and map, a bar a rule."""
    main = main_rows(rows)
    rules = list(dict.fromkeys(row.rule for row in main))
    names, drawn, base = short_names(rules), palette(rules), reference(rules)
    found = keys(main)
    across = min(2, len(found))
    down = -(-len(found) // across)
    long = max(len(name) for name in names.values()) > 7
    with matplotlib.rc_context(STYLE):
        width = max(4.2, 0.62 * len(rules) + 1.4)
        figure = Figure(figsize=(across * width, down * (4.2 if long else 3.3)), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).flatten()
        for axes, key in zip(panels, found, strict=False):
            own = [row for row in main if (row.region, row.map) == key]
            for x, row in enumerate(own):
                hatch = "///" if is_floor(row.rule) else None
                error = row.sem if math.isfinite(row.sem) else 0
                axes.bar(
                    x, row.r, 0.72, yerr=error, capsize=3, color=drawn[row.rule].colour, hatch=hatch, edgecolor="white",
                    linewidth=0, error_kw={"elinewidth": 1.2, "ecolor": "#444444"},
                )  # fmt: skip
                if row.seeds > 1:
                    places = x + np.linspace(-0.2, 0.2, row.seeds)
                    axes.plot(places, row.each, "o", color="white", markeredgecolor="#444444", markersize=3.5, zorder=3)
                if row.rule == base:
                    axes.axhline(row.r, color="black", linestyle=":", linewidth=1)
            axes.set_xticks(range(len(own)), [names[row.rule] for row in own], rotation=60 if long else 0,
                            ha="right" if long else "center", rotation_mode="anchor")  # fmt: skip
            axes.set(title=title(own[0]), ylabel=label(key[1]), ylim=(min(0.0, *(r.r - 0.02 for r in own)), None))
            axes.grid(axis="x", visible=False)
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        return figure


def curves(rows: Sequence[Row]) -> Figure:
    """A panel a region and map, a line a rule, over layers."""
    first = {(row.region, row.map): row.recording for row in reversed(rows)}
    single = [row for row in rows if row.layer != BEST and row.recording == first[row.region, row.map]]
    rules = list(dict.fromkeys(row.rule for row in single))
    names, drawn = short_names(rules), palette(rules)
    found = keys(single)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6 * len(found) + 0.4), layout="constrained")
        for axes, key in zip(figure.subplots(len(found), 1, squeeze=False).flatten(), found, strict=True):
            own = [row for row in single if (row.region, row.map) == key]
            over_layers(axes, own, drawn, names)
            axes.set(title=title(own[0]), ylabel=label(key[1]))
        lines: dict[str, object] = {}
        for axes in figure.axes:
            lines |= {text: line for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles=list(lines.values()), loc="outside right upper", title="rule")
        return figure


def over_layers(axes: Axes, rows: Sequence[Row], drawn: Mapping[str, Look], names: Mapping[str, str]) -> None:
    """One panel's lines: over layers by name if all networks have the same, else from 0 to 1."""
    lines = {rule: sorted((r for r in rows if r.rule == rule), key=lambda r: r.order) for rule in drawn}
    deep = {rule: line for rule, line in lines.items() if len(line) > 1}
    layers = {tuple(row.layer for row in line) for line in deep.values()}
    for rule, line in lines.items():
        if len(line) == 1:
            axes.axhline(line[0].r, color=drawn[rule].colour, linestyle=":", linewidth=2, label=names[rule])
            continue
        x = np.arange(len(line)) if len(layers) == 1 else np.linspace(0, 1, len(line))
        r, error = (np.array([getattr(row, key) for row in line]) for key in ("r", "sem"))
        dash = "--" if is_floor(rule) or rule == reference(list(lines)) else "-"
        axes.fill_between(x, r - error, r + error, color=drawn[rule].colour, alpha=0.13, linewidth=0)
        axes.plot(x, r, dash, color=drawn[rule].colour, marker=drawn[rule].marker, markersize=4.5, linewidth=1.8,
                  label=names[rule])  # fmt: skip
    if len(layers) == 1:
        (ticks,) = layers
        axes.set_xticks(range(len(ticks)), ticks, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    elif deep:
        axes.set_xlabel("depth in the network, from the first layer (0) to the last (1)")


def neurons(rows: Sequence[Row]) -> Figure | None:
    """A panel a rule, a dot a neuron, against the reference; None if there is nothing to compare."""
    main = [row for row in main_rows(rows) if row.map != RDM]
    rules = list(dict.fromkeys(row.rule for row in main))
    base = reference(rules)
    others = [rule for rule in rules if rule != base]
    if base is None or not others:
        return None
    kind = main[0].map
    names, drawn = short_names(rules), palette(rules)
    across = min(4, len(others))
    down = -(-len(others) // across)
    vectors = {(row.region, row.rule): row.vector for row in main if row.map == kind}
    regions = [region for region, rule in vectors if rule == base]
    values = np.concatenate(list(vectors.values()))
    low, high = float(np.nanmin(values)) - 0.03, float(np.nanmax(values)) + 0.03
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * across + 0.4, 2.9 * down + 0.6), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
        for axes, rule in zip(panels, others, strict=False):
            axes.plot([low, high], [low, high], ":", color="black", linewidth=1)
            for region, marker in zip(regions, "o^sDv" * 9, strict=False):
                if (region, rule) in vectors:
                    axes.plot(
                        vectors[region, base], vectors[region, rule], marker, color=drawn[rule].colour, markersize=3.5,
                        alpha=0.75, linewidth=0, label=region,
                    )  # fmt: skip
            axes.set(title=names[rule], xlim=(low, high), ylim=(low, high), aspect="equal")
        for axes in panels[len(others) - across : len(others)]:
            axes.tick_params(labelbottom=True)  # nothing is drawn below some of them
        for axes in panels[len(others) :]:
            axes.set_visible(False)
        if len(regions) > 1:
            panels[0].legend(fontsize=8)
        figure.supxlabel(f"r from {names[base]} ({KINDS[kind]})", fontsize=10)
        figure.supylabel("r from the rule above", fontsize=10)
        return figure
