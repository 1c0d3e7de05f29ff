"""A table as text: in Markdown, as comma-separated values, and on a terminal. The one writer of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["comma_separated", "markdown", "terminal"]


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]], words: Collection[str] = ()) -> str:
    """A table in GitHub's Markdown; a bar in a cell is escaped.

    Args:
        heads: names of the columns. lines: cells, a sequence a row; what exceeds the heads is left out.
        words: columns that stand on the left; numbers stand on the right.

    >>> print(markdown(["rule", "angle"], [["a|b", "3.0"]], words=["rule"]), end="")
    | rule | angle |
    | :-- | --: |
    | a\\|b | 3.0 |
    """
    table = [heads, [":--" if head in words else "--:" for head in heads]]
    table += [[cell.replace("|", r"\|") for cell in line[: len(heads)]] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def comma_separated(heads: Sequence[str], lines: Iterable[Sequence[Any] | Mapping[str, Any]]) -> str:
    """A table for a spreadsheet, in full precision. A row is a sequence, or a mapping with the heads among its keys.

    >>> print(comma_separated(["a", "b"], [[1, None], {"b": 2.5, "a": "x", "c": 0}]), end="")
    a,b
    1,
    x,2.5
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([line.get(head) for head in heads] if isinstance(line, Mapping) else line for line in lines)
    return out.getvalue()


def terminal(
    heads: Sequence[str],
    lines: Iterable[Sequence[str]],
    words: Collection[str] = (),
    *,
    titles: Mapping[str, str] | None = None,
    wrapped: Collection[str] = (),
    widths: Mapping[str, int] | None = None,
    title: str | None = None,
    dense: bool = True,
) -> Table:
    """A table that rich prints; nothing in a cell is read as markup.

    Args:
        heads: names of the columns. lines: cells, a sequence a row.
        words: columns that stand on the left.
        titles: what is shown instead of a head, such as one with line breaks.
        wrapped: columns that may break. widths: the least width of a column.
        title: above it. dense: with little room between columns.
    """
    look: dict[str, Any] = {"pad_edge": False, "padding": (0, 1, 0, 0)} if dense else {"header_style": "bold"}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, **look)
    for head in heads:
        table.add_column(
            (titles or {}).get(head, head), justify="left" if head in words else "right", no_wrap=head not in wrapped,
            min_width=(widths or {}).get(head),
        )  # fmt: skip
    for line in lines:
        table.add_row(*map(Text, line))
    return table
