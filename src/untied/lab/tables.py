"""The table of a comparison, for the terminal, for Markdown, for HTML and for a spreadsheet.

A row, as results.json has it: "rule", "text" (the rule with its coefficients), "local", "accuracies" (test accuracy of
each seed, 0 to 1), "accuracy_mean", "accuracy_std", "weight_angle" and "gradient_angle" (degrees), "cost" (time of a
step over the plain network's), "seeds", "finished", "failure"; and "split", where the accuracy is not on the test
split. A value that is missing or null is shown as a dash.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["Rows", "cells", "csv_table", "heads", "long_name", "markdown_table", "rich_table", "split"]

Rows = Sequence[Mapping[str, Any]]

LONG_NAMES = {
    "bp": "backpropagation",
    "fa": "feedback alignment",
    "kp": "Kolen-Pollack",
    "wm": "weight mirror",
    "ia": "information alignment",
    "sa": "symmetric alignment",
    "aa": "activation alignment",
    "usf": "sign symmetry, uniform",
    "frsf": "sign symmetry, fixed random",
    "brsf": "sign symmetry, redrawn",
}
LEFT = ("rule", "", "local", "note")  # columns of words; the others are numbers and stand on the right
CSV_COLUMNS = (
    "rule", "text", "local", "accuracy_mean", "accuracy_std", "weight_angle", "gradient_angle", "cost", "seeds",
    "finished", "failure",
)  # fmt: skip


def long_name(rule: str) -> str:
    """A named rule's name in words; nothing for a free combination."""
    return LONG_NAMES.get(re.split(r"\W", rule, maxsplit=1)[0], "")


def heads(rows: Rows) -> list[str]:
    """The names of the columns, with units. The last one is there only if a rule failed or did not finish."""
    accuracy = f"{split(rows)} accuracy (%)"
    names = ["rule", "", "local", accuracy, "weight angle (°)", "gradient angle (°)", "step cost", "seeds"]
    return [*names, "note"] if any(_note(row) for row in rows) else names


def split(rows: Rows) -> str:
    """The split on which the accuracies were measured, "test" unless the rows say otherwise."""
    return str(rows[0].get("split") or "test") if rows else "test"


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text, in the order of ``heads``, the note always last."""
    accuracy, std = _number(row, "accuracy_mean", 100, ".1f"), _number(row, "accuracy_std", 100, ".1f")
    several = len(row.get("accuracies") or ()) > 1
    local = row.get("local")
    return [
        str(row["rule"]),
        long_name(row["rule"]),
        "–" if local is None else "yes" if local else "no",
        f"{accuracy} ± {std}" if several and accuracy != "–" and std != "–" else accuracy,
        _number(row, "weight_angle", 1, ".1f"),
        _number(row, "gradient_angle", 1, ".1f"),
        _number(row, "cost", 1, ".2f", "×"),
        str(row.get("seeds", "–")),
        _note(row),
    ]


def rich_table(rows: Rows, title: str | None = None) -> Table:
    """A table that rich prints, fit for 80 columns: the rules' long names are left out, notes stand below."""
    names = heads(rows)
    shown = [i for i, name in enumerate(names) if name and name != "note"]
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for i in shown:
        broken = re.sub(r" (?=accuracy|angle|cost)", "\n", names[i])
        table.add_column(broken, justify="left" if names[i] in LEFT else "right", no_wrap=names[i] != "rule")
    for row in rows:
        texts = cells(row)
        table.add_row(*(Text(texts[i]) for i in shown))
    notes = [f"{row['rule']}: {_note(row)}" for row in rows if _note(row)]
    if notes:
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    return table


def markdown_table(rows: Rows) -> str:
    """The table in GitHub's Markdown."""
    names = heads(rows)
    lines = [names, [":--" if name in LEFT else "--:" for name in names]]
    for row in rows:
        first, *rest = (cell.replace("|", r"\|") for cell in cells(row)[: len(names)])
        lines.append([f"`{first}`", *rest])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(rows: Rows) -> str:
    """The table in full precision, fractions and degrees, with a column for the accuracy of each seed."""
    seeds = max((len(row.get("accuracies") or ()) for row in rows), default=0)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *(f"accuracy_{i}" for i in range(seeds))])
    for row in rows:
        accuracies = list(row.get("accuracies") or ())
        writer.writerow([*(row.get(name) for name in CSV_COLUMNS), *accuracies, *[None] * (seeds - len(accuracies))])
    return out.getvalue()


def _number(row: Mapping[str, Any], key: str, scale: float, form: str, unit: str = "") -> str:
    value = row.get(key)
    return "–" if value is None or not math.isfinite(value) else f"{scale * value:{form}}{unit}"


def _note(row: Mapping[str, Any]) -> str:
    if row.get("failure"):
        return " ".join(str(row["failure"]).split())
    return "" if row.get("finished", True) else "not finished"
