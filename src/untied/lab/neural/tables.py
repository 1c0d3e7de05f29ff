"""The tables of a comparison: for the terminal, for Markdown, for a page, for a spreadsheet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich.table import Table

from untied.lab.neural.fits import Fit
from untied.lab.neural.scores import mean
from untied.lab.neural.summary import BEST, RDM, Row, reference, short_names
from untied.lab.showing import writers

__all__ = ["csv_table", "main_rows", "markdown_table", "neurons_table", "rich_table", "shown"]

WORDS = ("region", "map", "rule", "recording", "best layer")


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Best layers, over all recordings of a region."""
    first = {(row.region, row.map): row.recording for row in reversed(rows)}
    return [row for row in rows if row.layer == BEST and row.recording == first[row.region, row.map]]


def shown(rows: Sequence[Row], recording: bool = False) -> list[dict[str, str]]:
    """Rows as text by column; columns of which nothing is known are left out.

    Args:
        rows: of best layers. recording: whether to name the recording.
    """
    names = short_names(list(dict.fromkeys(row.rule for row in rows)))
    base = names.get(reference(list(names)) or "", "")
    table = []
    for row in rows:
        table.append(
            {
                "region": row.region or "–",
                **({"recording": row.recording} if recording else {}),
                "map": row.map,
                "rule": names[row.rule],
                "accuracy (%)": number(100 * row.accuracy, ".1f"),
                "r": plus_minus(row.r, row.sem),
                "noise-corrected": number(row.corrected, ".3f")
                + (f" ({row.reliable})" if 0 < row.reliable < row.neurons else ""),
                f"minus {base}": plus_minus(row.difference, row.difference_sem, "+.3f"),
                "seeds": str(row.seeds),
                "sd over seeds": number(row.spread, ".3f"),
                f"minus {base} by seed": plus_minus(mean_of(row.apart), row.apart_sem, "+.3f"),
                "best layer": f"{row.chosen} ({100 * row.share:.0f} %)" if row.chosen else "–",
                "neurons": str(row.neurons) if row.map != RDM else "–",
            }
        )
    empty = [column for column in table[0] if all(line[column] == "–" for line in table)] if table else []
    return [{k: v for k, v in line.items() if k not in empty} for line in table]


def number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "–"


def mean_of(values: Sequence[float]) -> float:
    """NaN of fewer than two."""
    return statistics.fmean(values) if len(values) > 1 else math.nan


def plus_minus(value: float, error: float, form: str = ".3f") -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:{form}}" + (f" ± {error:.3f}" if math.isfinite(error) else "")


def markdown_table(lines: Sequence[dict[str, str]]) -> str:
    """In GitHub's Markdown."""
    if not lines:
        return ""
    return writers.markdown(list(lines[0]), [list(line.values()) for line in lines], WORDS)


def rich_table(lines: Sequence[dict[str, str]]) -> Table:
    """For a terminal of 80 columns: without what the files have besides."""
    left_out = ("seeds", "sd over seeds", "neurons", "accuracy (%)")  # and differences by seed
    heads = [head for head in (lines[0] if lines else []) if head not in left_out and not head.endswith("by seed")]
    return writers.terminal(
        heads, [[line[head].partition(" (")[0] for head in heads] for line in lines], WORDS,
        titles={head: head.replace(" ", "\n").replace("-", "-\n") for head in heads}, wrapped=["rule"],
        widths={"rule": min(max((len(line["rule"]) for line in lines), default=0), 14)},
    )  # fmt: skip


def csv_table(rows: Sequence[Row]) -> str:
    """Every row in full precision: pooled and single recordings, best and single layers."""
    names = [f.name for f in fields(Row) if f.name not in ("vector", "each", "apart")]
    lines: list[list[Any]] = []
    for row in rows:
        values = [getattr(row, name) for name in names]
        cells = ["" if isinstance(v, float) and not math.isfinite(v) else v for v in values]
        cells = [
            "" if name in ("order", "width", "used") and v == -1 else v for name, v in zip(names, cells, strict=True)
        ]
        lines.append([*cells, *(" ".join(f"{v:.6g}" for v in seeds) for seeds in (row.each, row.apart))])
    return writers.comma_separated([*names, "each_seed", "minus_reference_each_seed"], lines)


def neurons_table(fits: Sequence[Fit]) -> str:
    """Every neuron's r, mean over splits, for each network and layer; and its reliability."""
    heads = ["rule", "seed", "recording", "layer", "map", "region", "subject", "neuron", "r", "reliability"]
    lines: list[list[Any]] = []
    for fit in fits:
        for name in (key.removesuffix(".test") for key in fit.tensors if key.endswith(".test")):
            values = mean(fit.tensors[f"{name}.test"])
            for j, r in enumerate(values):
                about = [
                    fit.rule,
                    fit.seed,
                    fit.recording,
                    fit.layer,
                    name,
                    fit.region[j],
                    fit.subject[j],
                    fit.neurons[j],
                ]
                rho = fit.tensors["reliability"][j]
                lines.append([*about, number(r, ".5f").replace("–", ""), number(rho, ".5f").replace("–", "")])
    return writers.comma_separated(heads, lines)
