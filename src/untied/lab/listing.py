"""`untied rules`: Tables 1 and 2 of the paper, printed from the code."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from untied.algebra import OPTIONS
from untied.lab.config import PRESETS
from untied.primitives import PRIMITIVES
from untied.rules import taxonomy
from untied.statistics import STATISTICS

__all__ = ["print_rules"]

HOW_TO = """\
A rule is a name, perhaps with coefficients and options, or a sum of primitives:
  sa
  ia(amp=1, null=2, fraction=1/8)
  amp + 0.5*decay + null
  align(amp=1, decay=1, noise=normal, noise_std=0.5)
Options: {options}.
Coefficients change over training, linear(0, 1, stop=0.1), or are measured in each layer, for decay alone:
  wm(decay=balanced)     amp + 0.5*power*decay     {statistics}
untied compare also takes the optimizer of the backward weights, and gives bare names settings tuned on digits:
  aa() @ Adam(lr=0.003, schedule=cosine)
{presets}"""


LOOK: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}


def print_rules(console: Console | None = None) -> None:
    """Print every primitive and every named rule with locality and counted cost, and how to write a rule."""
    console = console or Console()
    primitives = Table(
        "primitive", "penalty P", "gradient in B", "computation", "plasticity",
        title="Primitives (Table 1)", **LOOK,
    )  # fmt: skip
    for name, p in PRIMITIVES.items():
        primitives.add_row(
            name,
            p.formula,
            p.gradient_formula,
            "local" if p.local_computation else "not local",
            "local" if p.local_plasticity else "not local",
        )
    console.print(primitives)
    rules = Table(
        "rule", *PRIMITIVES, "local", "cost", "",
        title="Rules (Table 2; cost in multiplications over backprop's)", **LOOK,
    )  # fmt: skip
    for row in taxonomy():
        used = row["primitives"]
        assert isinstance(used, list)
        has = ["✓" if p in used else "" for p in PRIMITIVES]
        rules.add_row(str(row["name"]), *has, "yes" if row["local"] else "no", f"{row['cost']:.2f}", str(row["rule"]))
    console.print(rules)
    presets = "\n".join(f"  {name:<4}{text}" for name, text in PRESETS.items())
    how_to = HOW_TO.format(options=", ".join(OPTIONS), statistics=", ".join(STATISTICS), presets=presets)
    console.print(how_to, markup=False, highlight=False)
