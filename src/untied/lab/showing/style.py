"""How a rule looks in every figure, and what all figures share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from untied.lab.keeping.record import file_name, write_atomically
from untied.lab.showing.tables import short_name

__all__ = ["Look", "colours", "legend_of", "logarithmic", "looks", "save", "shaded", "shortened"]

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


@dataclass(frozen=True)
class Look:
    """How a rule is drawn: colour, marker and dash, in matplotlib's words."""

    colour: str
    marker: str
    dash: Dash


MARKER_OF = {colour: MARKERS[i % len(MARKERS)] for i, colour in enumerate((*COLOURS.values(), *SPARE))}


def looks(rules: Iterable[str]) -> dict[str, Look]:
    """How each rule is drawn, in the order in which they are given."""
    return {
        rule: Look(colour, MARKER_OF[colour], DASHES.get(short_name(rule), "-"))
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


def shortened(rule: str, most: int = 26) -> str:
    """A rule as figures have it: cut where it is long."""
    return rule if len(rule) <= most else rule[: most - 1] + "…"


def say_on(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=SOFT)


def empty(figure: Figure, words: str) -> Figure:
    figure.clear()
    figure.text(0.5, 0.5, words, ha="center", va="center", color=SOFT)
    return figure
