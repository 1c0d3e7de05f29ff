"""The table of a comparison, for the terminal, for Markdown, for HTML and for a spreadsheet.

A row, as results.json has it: "rule", "text" (the rule with its coefficients), "local", "accuracies" (test accuracy of
each seed, 0 to 1; where "metric" describes another score, that one), "accuracy_mean", "accuracy_std", "weight_angle"
and "gradient_angle" (degrees), "cost" (time of a step over the plain network's), "seeds", "finished", "failure";
"signs" (of fake learning, in words), "chance", "gradient_angle_std" (over batches), "gradient_norm" and "growth" (by
layer); and "split", where the accuracy is not on the test split. A value that is missing or null is shown as a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from rich.table import Table
from rich.text import Text

from untied.lab.rules.signs import angle_cell
from untied.lab.showing import writers
from untied.lab.tasks.metric import metric_of
from untied.rules import NAMED, named

__all__ = ["Rows", "cells", "csv_table", "deviation", "heads", "known", "long_name", "markdown_table", "rich_table",
           "short_name", "split"]  # fmt: skip

Rows = Sequence[Mapping[str, Any]]

LEFT = ("rule", "", "local", "note")  # columns of words; the others are numbers and stand on the right
CSV_COLUMNS = (
    "rule", "text", "local", "accuracy_mean", "accuracy_std", "weight_angle", "gradient_angle", "cost", "seeds",
    "finished", "failure", "gradient_angle_std", "chance", "signs",
)  # fmt: skip


def short_name(rule: str) -> str:
    """The name that a rule's label begins with: sa of ``tuned:sa``, ia of ``ia(null=2) @ Adam``."""
    return re.split(r"\W", rule.removeprefix("tuned:"), maxsplit=1)[0]


def long_name(rule: str) -> str:
    """A named rule's name in words, as the rule itself has it; nothing for a free combination."""
    name = short_name(rule)
    return named(name).title if name in NAMED else ""


def heads(rows: Rows) -> list[str]:
    """The names of the columns, with units. The last one is there only if a rule failed or did not finish."""
    accuracy = f"{split(rows)} {metric_of(rows).head}"
    names = ["rule", "", "local", accuracy, "weight angle (°)", "gradient angle (°)", "step cost", "seeds"]
    return [*names, "note"] if any(_note(row) for row in rows) else names


def split(rows: Rows) -> str:
    """The split on which the accuracies were measured, "test" unless the rows say otherwise."""
    return str(rows[0].get("split") or "test") if rows else "test"


def known(value: Any) -> TypeGuard[float]:
    """Whether a number is there and finite."""
    return value is not None and math.isfinite(value)


def deviation(row: Mapping[str, Any]) -> float | None:
    """The standard deviation of a row's score over seeds; None of one seed, or where it is not known."""
    std = row.get("accuracy_std")
    return std if len(row.get("accuracies") or ()) > 1 and known(std) else None


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text, in the order of ``heads``, the note always last."""
    metric = metric_of([row])
    accuracy, std = metric.shown(row.get("accuracy_mean")), metric.shown(deviation(row))
    local = row.get("local")
    return [
        str(row["rule"]),
        long_name(row["rule"]),
        "–" if local is None else "yes" if local else "no",
        f"{accuracy} ± {std}" if accuracy != "–" and std != "–" else accuracy,
        _number(row, "weight_angle", 1, ".1f"),
        angle_cell(row),
        _number(row, "cost", 1, ".2f", "×"),
        str(row.get("seeds", "–")),
        _note(row),
    ]


def rich_table(rows: Rows, title: str | None = None) -> Table:
    """A table that rich prints, fit for 80 columns: the rules' long names are left out, notes stand below."""
    names = heads(rows)
    shown = [i for i, name in enumerate(names) if name and name != "note"]
    broken = {name: re.sub(r" (?=accuracy|angle|cost|R²|F1|perplexity|mean)", "\n", name) for name in names}
    lines = [[cells(row)[i] for i in shown] for row in rows]
    table = writers.terminal(
        [names[i] for i in shown], lines, LEFT, titles=broken, wrapped=["rule"], title=title, dense=False
    )
    notes = [f"{row['rule']}: {_note(row)}" for row in rows if _note(row)]
    if notes:
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    return table


def markdown_table(rows: Rows) -> str:
    """The table in GitHub's Markdown."""
    return writers.markdown(heads(rows), [[f"`{first}`", *rest] for first, *rest in map(cells, rows)], LEFT)


def csv_table(rows: Rows) -> str:
    """The table in full precision, fractions and degrees, with a column for the accuracy of each seed."""
    seeds = max((len(row.get("accuracies") or ()) for row in rows), default=0)
    lines = []
    for row in rows:
        accuracies = list(row.get("accuracies") or ())
        known = {**row, "signs": "; ".join(row.get("signs") or ())}
        lines.append([*(known.get(name) for name in CSV_COLUMNS), *accuracies, *[None] * (seeds - len(accuracies))])
    return writers.comma_separated([*CSV_COLUMNS, *(f"accuracy_{i}" for i in range(seeds))], lines)


def _number(row: Mapping[str, Any], key: str, scale: float, form: str, unit: str = "") -> str:
    value = row.get(key)
    return f"{scale * value:{form}}{unit}" if known(value) else "–"


def _note(row: Mapping[str, Any]) -> str:
    if row.get("failure"):
        return " ".join(str(row["failure"]).split())
    said = [] if row.get("finished", True) else ["not finished"]
    return "; ".join([*said, *(row.get("signs") or ())])
