"""`untied dynamics`: phase portraits of rules on scalar weights (the paper's Fig. 2a-c, for weight mirror)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console

from untied.dynamics import REGIMES, ScalarDynamics, scalar, time_constant
from untied.errors import UntiedError
from untied.lab.keeping.record import RunFolder, new_folder, plain
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.dynamics import DynamicsConfig
from untied.lab.showing import report, writers
from untied.lab.showing.findings import listed
from untied.lab.showing.style import STYLE, save

__all__ = ["WEIGHT_MIRROR", "again", "dynamics", "phase_portraits", "summary"]

WEIGHT_MIRROR = ("wm(decay=0.5)", "wm", "wm(decay=2)")
"""Too little decay, balanced, too much, at x = 1. The paper does not give its panels' decay; these are ours."""


def dynamics(config: DynamicsConfig, console: Console | None = None) -> int:
    """Write figures/phase_portraits.png and .svg, results.json and flow.csv, and print the summary. Returns 0.

    Raises:
        UntiedError: a rule without dynamics or not covered, an impossible number, an output folder in use.
    """
    console = console or Console()
    if config.extent is not None and not 0 < config.extent < math.inf:
        raise UntiedError(f"extent is {config.extent}: give half the width of a panel, above 0")
    rules = config.rules or WEIGHT_MIRROR
    found = [scalar(rule, config.x) for rule in rules]
    rows = [summary(d, config.lr, config.momentum) for d in found]
    extent = config.extent or _extent(found)
    out = config.out or new_folder("dynamics")
    folder = RunFolder.create(out, replace(config, rules=rules, out=out), overwrite=config.overwrite)
    write(folder, found, rows, extent)
    if not config.rules:
        _say(console, "no rules given: weight mirror with too little, balanced and too much decay (paper, Fig. 2a-c)")
    for row in rows:
        _say(console, _in_words(row))
    _say(console, f"written to {folder.path}: figures/phase_portraits.png and .svg, results.json, flow.csv")
    return 0


def write(folder: RunFolder, found: Sequence[ScalarDynamics], rows: list[dict[str, Any]], extent: float) -> None:
    """Write figure, table of the flow, results and page."""
    folder.write_json("results.json", rows)
    folder.write_text("flow.csv", _flow_table(found, extent))
    save(phase_portraits(found, extent), folder.path / "figures", "phase_portraits")
    rules = [str(row["rule"]) for row in rows]
    report.write_html(
        folder, rows=[], title=f"Dynamics of {listed(rules) if len(rules) < 5 else f'{len(rules)} rules'}",
        finding=_finding(rows), sections=[report.Section("Where each rule leads", rows=_table(rows), words=WORDS)],
        captions={"phase_portraits": _words(rows)},
    )  # fmt: skip


WORDS = ("rule", "regime", "fixed points (w, b)", "note")


def _table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the page has of each rule; columns of which nothing is known are left out."""
    lines = [
        {
            "rule": row["rule"],
            "x": row["x"],
            "regime": row["regime"],
            "symmetric eigenvalue": row["symmetric_eigenvalue"],
            "skew eigenvalue": row["skew_eigenvalue"],
            "fixed points (w, b)": _points(row) or None,
            "steps till b rests, w = 1": row["time_constants"]["steps"],
            "note": row["note"] or None,
        }
        for row in rows
    ]
    kept = [head for head in (lines[0] if lines else ()) if any(line[head] is not None for line in lines)]
    return [{head: line[head] for head in kept} for line in lines]


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which regime each rule is in, in a line."""
    found = {regime: [str(row["rule"]) for row in rows if row["regime"] == regime] for regime in REGIMES}
    said = "; ".join(f"{regime} ({REGIMES[regime]}): {listed(rules)}" for regime, rules in found.items() if rules)
    return f"{said[:1].upper()}{said[1:]}."


def _words(rows: Sequence[Mapping[str, Any]]) -> report.Words:
    """Of the phase portraits."""
    return report.Words(
        "The flow of a forward weight w and a backward weight b under each rule: direction (arrows), speed (colour), "
        "where w and b rest, fixed points and eigenvectors, as in Fig. 2a-c of the paper.",
        "A phase portrait of each rule. " + " ".join(f"{_in_words(row)}." for row in rows),
    )


def again(path: Path, console: Console | None = None) -> int:
    """Write a folder's figure, table and page again, from its configuration. Returns 0."""
    folder = RunFolder.open(path)
    config = from_mapping(DynamicsConfig, folder.config(), f"config of {path}")
    found = [scalar(rule, config.x) for rule in config.rules]
    rows = [summary(d, config.lr, config.momentum) for d in found]
    write(folder, found, rows, config.extent or _extent(found))
    _say(console or Console(), f"page    {path / 'index.html'}")
    return 0


def summary(d: ScalarDynamics, lr: float = 0.1, momentum: float = 0.0) -> dict[str, Any]:
    """What is known of a rule's scalar dynamics, in plain values.

    ``time_constants`` is of b alone, for a w that is held fixed at 1: in flow time, and in steps of SGD; None if b does
    not come to rest.
    """
    rate = d.following_rate(w=1.0)
    times = {"flow": float(time_constant(rate)), "steps": float(time_constant(rate, lr, momentum))}
    return {
        "rule": str(d.rule),
        "x": d.x,
        "regime": d.regime,
        "A": None if d.A is None else d.A.tolist(),
        "symmetric_eigenvalue": None if d.eigenvalues is None else d.eigenvalues[0],
        "skew_eigenvalue": None if d.eigenvalues is None else d.eigenvalues[1],
        "fixed_points": plain(d.fixed_points),
        "line_of_fixed_points": d.has_line,
        "time_constants": {**times, "lr": lr, "momentum": momentum},
        "note": d.note,
    }


def phase_portraits(found: Sequence[ScalarDynamics], extent: float | None = None) -> Figure:
    """A panel a rule: direction of the flow (arrows), its magnitude (colour), nullclines, fixed points, eigenvectors.

    Args:
        found: as `untied.dynamics.scalar` makes them.
        extent: half the width of a panel; enough to hold every fixed point if None.
    """
    extent = extent or _extent(found)
    columns = min(4, len(found))
    lines = math.ceil(len(found) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.9 * columns + 1.6, 3.6 * lines + 0.9), layout="constrained")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        magnitudes = [_magnitude(d, _mesh(extent, 121)) for d in found]
        top = max([float(m.max()) for m in magnitudes]) or 1.0
        levels = np.geomspace(top / 256, top, 17)
        for axes, d, magnitude in zip(grid.flat, found, magnitudes, strict=False):
            colours = _panel(axes, d, extent, magnitude, levels)
        for axes in list(grid.flat)[len(found) :]:
            axes.remove()
        for axes in grid[:, 0]:
            axes.set_ylabel("backward weight b")
        for axes in list(grid.flat)[max(0, len(found) - columns) : len(found)]:  # the lowest of each column
            axes.set_xlabel("forward weight w")
            axes.xaxis.set_tick_params(labelbottom=True)
        bar = figure.colorbar(colours, ax=grid.ravel().tolist()[: len(found)], shrink=0.7, pad=0.02, format="%.2g")
        bar.set_label("magnitude of the flow", fontsize=9)
        bar.set_ticks(levels[::4].tolist())
        figure.legend(handles=_legend(found), loc="outside lower center", ncols=min(4, 2 * columns), fontsize=9)
        return figure


def _extent(found: Sequence[ScalarDynamics]) -> float:
    """Half a width that shows every fixed point with room around it."""
    furthest = max([max(abs(p.w), abs(p.b)) for d in found for p in d.fixed_points], default=0.0)
    free = any(d.is_linear or d.has_line for d in found)  # a linear flow looks the same at every scale
    return max(1.6 * furthest, 1.5 if free or not furthest else 0.0)


def _mesh(extent: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points w and b [count, count], b along the first dimension."""
    along = torch.linspace(-extent, extent, count, dtype=torch.float64)
    b, w = torch.meshgrid(along, along, indexing="ij")
    return w, b


def _magnitude(d: ScalarDynamics, at: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    return np.asarray(torch.hypot(*d.flow(*at)).numpy())


_EIGENVECTORS = {"symmetric": ((1, 1), "#0072B2"), "skew": ((1, -1), "#D55E00")}
_KINDS = {"stable": "black", "saddle": "#AAAAAA", "unstable": "white", "neutral": "#F0E442"}
_NULLCLINE = "#882255"
_SHADES = LinearSegmentedColormap.from_list("flow", matplotlib.colormaps["YlGnBu"](np.linspace(0, 0.6, 64)))


def _panel(axes: Axes, d: ScalarDynamics, extent: float, magnitude: np.ndarray, levels: np.ndarray) -> Any:
    """One rule's portrait. Returns what the colour bar describes."""
    shown = np.clip(magnitude, levels[0], levels[-1])  # where nothing moves, the lowest colour
    w, b = (t.numpy() for t in _mesh(extent, 121))
    colours = axes.contourf(w, b, shown, levels=levels, cmap=_SHADES, norm=LogNorm())
    colours.set_rasterized(True)
    w, b = (t.numpy() for t in _mesh(extent * 0.93, 15))
    dw, db = (f.numpy() for f in d.flow(*_mesh(extent * 0.93, 15)))
    length = np.hypot(dw, db)
    moves = length > 1e-9 * max(float(magnitude.max()), 1e-300)
    unit = np.where(moves, length, 1.0)
    axes.quiver(
        w[moves], b[moves], (dw / unit)[moves], (db / unit)[moves],
        color="#444444", pivot="mid", scale=20, width=0.006, headwidth=4, headlength=4.5,
    )  # fmt: skip
    if d.regime != "still":
        _nullclines(axes, d, extent)
        _eigenvectors(axes, d, extent)
    for point in d.fixed_points:
        axes.plot(point.w, point.b, "o", markersize=8, color=_KINDS[point.kind], markeredgecolor="black", zorder=5)
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal", title=_title(d))
    axes.locator_params(nbins=5)
    axes.grid(visible=False)
    return colours


def _nullclines(axes: Axes, d: ScalarDynamics, extent: float) -> None:
    """Where w rests (dashed) and where b rests (solid); thick and black where both do on a line."""
    w, b = _mesh(extent, 201)
    flows = d.flow(w, b)
    small = 1e-3 * float(torch.hypot(*flows).max())
    for flow, dash in zip(flows, ("dashed", "solid"), strict=True):
        if not flow.min() < 0 < flow.max():
            continue
        curves = axes.contour(w, b, flow, levels=[0], colors=[_NULLCLINE], linestyles=[dash], linewidths=1)
        for curve in curves.allsegs[0] if d.has_line else ():
            at = torch.from_numpy(np.asarray(curve))
            rests = (torch.hypot(*d.flow(at[:, 0], at[:, 1])) < small).numpy()
            axes.plot(*np.where(rests, np.asarray(curve).T, np.nan), color="black", linewidth=2.4, zorder=3)


def _eigenvectors(axes: Axes, d: ScalarDynamics, extent: float) -> None:
    """The directions u and v: through the whole panel where the flow is linear, else close to each symmetric point."""
    at = [0.0] if d.is_linear else [p.w for p in d.fixed_points if abs(p.w - p.b) < 1e-6 * extent]
    reach = np.array([-1, 1]) * extent * (1 if d.is_linear else 0.2)
    for centre in at:
        for (u, v), colour in _EIGENVECTORS.values():
            axes.plot(centre + u * reach, centre + v * reach, ":", color=colour, linewidth=1.8, zorder=4)


def _title(d: ScalarDynamics) -> str:
    """The rule, its regime, and A's eigenvalues where there are some."""
    rule = str(d.rule) if len(str(d.rule)) <= 30 else str(d.rule)[:29] + "…"
    values = "R is not quadratic"
    if d.eigenvalues is not None:
        values = "  ".join(f"λ_{i} = {v:.3g}" for i, v in zip("uv", d.eigenvalues, strict=True))
    alone = " (R alone)" if d.note else ""
    return f"{rule} at x = {d.x:g}\n{d.regime}{alone}\n{values}".replace("= -", "= −")


def _legend(found: Sequence[ScalarDynamics]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, linestyle=":", linewidth=1.8, label=f"{name} direction {letter}")
        for (name, (_, colour)), letter in zip(_EIGENVECTORS.items(), "uv", strict=True)
    ]
    handles.append(Line2D([], [], color=_NULLCLINE, linestyle="--", linewidth=1, label="w rests"))
    handles.append(Line2D([], [], color=_NULLCLINE, linewidth=1, label="b rests"))
    if any(d.has_line for d in found):
        handles.append(Line2D([], [], color="black", linewidth=2.4, label="line of fixed points"))
    kinds = {p.kind for d in found for p in d.fixed_points}
    for kind in (k for k in _KINDS if k in kinds):
        dot: Any = {"linestyle": "", "marker": "o", "markersize": 7, "markeredgecolor": "black"}
        handles.append(Line2D([], [], color=_KINDS[kind], label=f"{kind} fixed point", **dot))
    return handles


def _flow_table(found: Sequence[ScalarDynamics], extent: float) -> str:
    """CSV: the flow on a grid of 21 × 21 points for each rule."""
    lines: list[list[Any]] = []
    w, b = _mesh(extent, 21)
    for d in found:
        columns = (t.flatten().tolist() for t in (w, b, *d.flow(w, b)))
        lines += [[str(d.rule), d.x, *values] for values in zip(*columns, strict=True)]
    return writers.comma_separated(["rule", "x", "w", "b", "dw_dt", "db_dt"], lines)


def _points(row: Mapping[str, Any]) -> str:
    """A rule's fixed points."""
    return ", ".join(f"({p['w']:.4g}, {p['b']:.4g}) {p['kind']}" for p in row["fixed_points"])


def _in_words(row: Mapping[str, Any]) -> str:
    """One rule's line."""
    parts = [f"{row['rule']} at x = {row['x']:g}: {row['regime']} ({REGIMES[row['regime']]})"]
    if row["A"] is not None:
        parts.append(f"eigenvalues {row['symmetric_eigenvalue']:.4g} symmetric, {row['skew_eigenvalue']:.4g} skew")
    if row["fixed_points"]:
        parts.append(f"fixed points {_points(row)}")
    times = row["time_constants"]
    if math.isfinite(times["steps"]):
        parts.append(f"with w fixed at 1, b nears its rest in {times['steps']:.3g} steps (lr {times['lr']:g})")
    elif math.isfinite(times["flow"]):
        parts.append(f"lr {times['lr']:g} is too large for b's rate at w = 1, {1 / times['flow']:.3g}")
    return "; ".join([*parts, *([row["note"]] if row["note"] else [])])


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
