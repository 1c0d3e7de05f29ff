"""What `untied bench` has measured, as a table and a figure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from untied.lab.settings.bench import Case
from untied.lab.showing import style, writers
from untied.lab.showing.findings import Words

__all__ = [
    "CONTROL", "HEADS", "NARROW", "PLAIN", "SUMMARY", "by_case", "captions", "cells", "finding", "markdown",
    "shown_columns", "speed_figure", "table_rows",
]  # fmt: skip

PLAIN, CONTROL = "plain", "plain again"


def table_rows(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each case and rule; seconds are medians, ratios are to the plain network in the same round."""
    rows = []
    for case in dict.fromkeys(_case(line) for line in metrics):
        lines = [line for line in metrics if _case(line) == case]
        rounds = [line["rules"] for line in lines if line["kind"] == "round"]
        counted = next((line for line in lines if line["kind"] == "counted"), None)
        profiles = [line["rules"] for line in lines if line["kind"] == "profile"]
        if not rounds or counted is None:
            continue
        for name in rounds[0]:
            own = [r[name] for r in rounds]
            totals = [sum(r.values()) for r in own]
            ratios = sorted(t / sum(r[PLAIN].values()) for t, r in zip(totals, rounds, strict=True))
            about, plain = counted["rules"][name], counted["rules"][PLAIN]
            median = {part: statistics.median(r[part] for r in own) for part in ("forward", "backward", "optimizer")}
            rows.append({
                **dataclasses.asdict(case), "rule": name, "rounds": len(rounds),
                "ratio": statistics.median(ratios), "low": _quantile(ratios, 0.25), "high": _quantile(ratios, 0.75),
                "counted": about["flops"] / plain["flops"],
                "products": _over(profiles, name, "products"), "rest": _over(profiles, name, "rest"),
                **median, "images_per_second": case.batch / statistics.median(totals),
                "peak_mb": about["peak"] / 1e6, "above_plain_mb": (about["peak"] - plain["peak"]) / 1e6,
                "backward_weights_mb": about["backward_weights"] / 1e6,
                "first_step": counted["first_step"].get(name), "ratios": ratios,
            })  # fmt: skip
    return rows


def _case(line: Mapping[str, Any]) -> Case:
    return Case(line["model"], line["batch"], line["precision"], line["compile"])


def _over(profiles: Sequence[Mapping[str, Any]], name: str, what: str) -> float | None:
    """A rule's time in some kernels, beyond the plain network's in them, over the plain network's whole step."""
    plain = [sum(p[PLAIN].values()) for p in profiles]
    found = [(p[name][what] - p[PLAIN][what]) / whole for p, whole in zip(profiles, plain, strict=True) if whole]
    return statistics.median(found) if found else None


def _quantile(values: Sequence[float], q: float) -> float:
    at = q * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


HEADS = {
    "rule": "rule", "ratio": "step / plain", "spread": "middle half", "counted": "counted", "products": "+ products",
    "rest": "+ the rest", "forward": "forward (ms)", "backward": "backward (ms)", "optimizer": "optimizer (ms)",
    "images_per_second": "images/s", "above_plain_mb": "memory above plain (MB)", "first_step": "first step (s)",
}  # fmt: skip


NARROW = {
    "rule": "rule", "ratio": "step /\nplain", "spread": "middle half", "counted": "counted",
    "images_per_second": "images/s", "above_plain_mb": "memory\n+MB", "first_step": "first\nstep (s)",
}  # fmt: skip


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as text, by the keys of ``HEADS``."""
    texts = {"rule": str(row["rule"])}
    for key, form, scale in (
        ("ratio", ".3f", 1.0), ("counted", ".3f", 1.0), ("products", "+.3f", 1.0), ("rest", "+.3f", 1.0),
        ("forward", ".1f", 1e3), ("backward", ".1f", 1e3), ("optimizer", ".1f", 1e3),
        ("images_per_second", ".1f", 1.0), ("above_plain_mb", ".1f", 1.0), ("first_step", ".1f", 1.0),
    ):  # fmt: skip
        value = row.get(key)
        texts[key] = "–" if value is None else f"{scale * value:{form}}"
    return texts | {"spread": f"{row['low']:.3f} – {row['high']:.3f}"}


def shown_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of which something is known."""
    return [key for key in HEADS if key == "spread" or any(row.get(key) is not None for row in rows)]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each case."""
    text = ""
    for case, own in by_case(rows):
        shown = shown_columns(own)
        lines = [[f"`{cells(row)[key]}`" if key == "rule" else cells(row)[key] for key in shown] for row in own]
        table = writers.markdown([HEADS[key] for key in shown], lines, [HEADS["rule"]])
        text += f"**{case}**\n\n{table}\n"
    return text


def by_case(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Case, list[Mapping[str, Any]]]]:
    cases = dict.fromkeys(_case(row) for row in rows)
    return [(case, [row for row in rows if _case(row) == case]) for case in cases]


SUMMARY = (
    "The time of a whole training step (forward, loss, R, backward, optimizers) over that of the same network of plain "
    "PyTorch layers with its optimizer, step by step in turn: the median over rounds of the ratio within a round, and "
    "the range of its middle half. 'plain again' is a second copy of the plain network: what differs from 1 there is "
    "the machine's noise. Counted: floating-point operations of products, over the plain network's. + products and + "
    "the rest: where the additional time goes, in parts of a plain step, by PyTorch's profiler. Memory: tensors at "
    "their highest, weights and optimizer state included. mkp is taken where its mirror rests; until then a step costs "
    "what mkp(until=0) does."
)


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """The cheapest and the dearest rule of each case, in a line."""
    said = []
    for case, own in by_case(rows):
        ranked = sorted(_rules(own), key=lambda row: row["ratio"])
        ends = [f"{row['rule']} {row['ratio']:.2f}" for row in (ranked[:1] + ranked[1:][-1:])]
        if ends:
            said.append(f"{case}: {' to '.join(ends)}")
    return f"Steps of plain PyTorch that a step of a rule costs: {'; '.join(said)}." if said else ""


def captions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Words]:
    """The words of the figure."""
    said = [
        f"{case}: "
        + "; ".join(f"{row['rule']} {row['ratio']:.3f} (counted {row['counted']:.3f})" for row in _rules(own))
        for case, own in by_case(rows)
    ]
    caption = (
        "A dot is a round, the bar the median, the diamond what is counted in multiplications. At 1: plain PyTorch."
    )
    return {"cost": Words(caption, f"The time of a step over plain PyTorch's, the median. {'. '.join(said)}.")}


def _rules(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that are not of plain PyTorch."""
    return [row for row in rows if row["rule"] not in (PLAIN, CONTROL)]


def speed_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel a case: the ratio of each round, the median, and what is counted."""
    cases = by_case(rows)
    with matplotlib.rc_context(style.STYLE):
        height = sum(0.9 + 0.32 * len(own) for _, own in cases)
        figure = Figure(figsize=(8.5, 0.5 + height), layout="constrained")
        grid = figure.subplots(
            len(cases), 1, squeeze=False, sharex=True, height_ratios=[0.9 + 0.32 * len(own) for _, own in cases]
        )
        highest = max(max(row["counted"], _quantile(sorted(row["ratios"]), 0.9)) for row in rows)
        palette = style.colours([row["rule"] for row in rows])
        for axes, (case, own) in zip(grid[:, 0], cases, strict=True):
            own = [row for row in own if row["rule"] != PLAIN]
            for y, row in enumerate(own):
                colour = palette[row["rule"]]
                axes.plot(row["ratios"], [y] * len(row["ratios"]), "o", color=colour, alpha=0.35, markersize=4)
                axes.plot([row["ratio"]] * 2, [y - 0.35, y + 0.35], color=colour, linewidth=2.5)
                axes.plot(row["counted"], y, "D", color="black", markersize=5, markerfacecolor="none")
                axes.annotate(
                    f"{row['ratio']:.2f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9
                )
            axes.axvline(1, color="black", linestyle=":", linewidth=1, zorder=0)
            axes.set_yticks(range(len(own)), [row["rule"] for row in own])
            axes.set(title=str(case), ylim=(len(own) - 0.5, -0.5), xlim=(0.85, max(1.15, highest + 0.1)))
            axes.grid(axis="y", visible=False)
        grid[-1, 0].set_xlabel("time of a step over plain PyTorch's (◇ counted)")
        return figure
