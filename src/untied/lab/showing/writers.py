"""A table as text: in Markdown, as comma-separated values, and on a terminal. The one writer of each."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["comma_separated", "fitting", "markdown", "terminal"]


EDGES, GAP, NUMBER = 2, 2, 14
"""Of a terminal's columns: around a table, between two of its own, and for a number with its spread."""


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
        wrapped: columns that may break, also within a word. widths: the least width of a column.
        title: above it. dense: with little room between columns.
    """
    look: dict[str, Any] = {"pad_edge": False, "padding": (0, 1, 0, 0)} if dense else {"header_style": "bold"}
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, **look)
    for head in heads:
        table.add_column(
            (titles or {}).get(head, head), justify="left" if head in words else "right", no_wrap=head not in wrapped,
            overflow="fold", min_width=(widths or {}).get(head),
        )  # fmt: skip
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def fitting(
    heads: Sequence[str], lines: Iterable[Sequence[str]], words: Collection[str] = (), *, width: int, fixed: int = 1
) -> list[Table]:
    """A table that may be wider than a terminal, as one table or several to be printed below each other.

    Each has the first columns, and as many of the others as there is room for, at least one. The first column of all
    breaks where it would take more than two fifths of the room, the others where they are wider than a number.

    Args:
        heads: names of the columns, each once. lines: cells, a sequence a row.
        words: columns that stand on the left. width: of the terminal. fixed: how many columns each table has.

    >>> cells = ["label", *["1234.5 ± 678.9"] * 6]
    >>> [len(part.columns) for part in fitting("abcdefg", [cells], width=80)]
    [5, 3]
    """
    lines = [list(line) for line in lines]
    longest = [max(len(cell) for cell in (head, *(line[i] for line in lines))) for i, head in enumerate(heads)]
    most = [2 * width // 5, *(max(len(head), NUMBER) for head in heads[1:])]
    wanted = [min(pair) for pair in zip(longest, most, strict=True)]
    room = width - EDGES - sum(w + GAP for w in wanted[:fixed])
    parts: list[list[int]] = []
    for i in range(fixed, len(heads)):
        if not parts or sum(wanted[j] + GAP for j in (*parts[-1], i)) > room:
            parts.append([])
        parts[-1].append(i)
    tables = []
    for part in parts or [[]]:
        shown = [*range(fixed), *part]
        broken = [heads[i] for i in shown if longest[i] > wanted[i] or wanted[i] + GAP > room]
        tables.append(terminal(
            [heads[i] for i in shown], [[line[i] for i in shown] for line in lines], words, wrapped=broken,
        ))  # fmt: skip
    return tables
