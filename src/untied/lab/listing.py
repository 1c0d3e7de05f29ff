"""`untied rules`: Tables 1 and 2 of the paper, printed from the code."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from untied.primitives import PRIMITIVES
from untied.rules import taxonomy

__all__ = ["print_rules"]

HOW_TO = """\
Write a rule as a name, a name with coefficients and options, or a sum of primitives:
  sa    ia(amp=1, null=2, fraction=1/8)    amp + 0.5*decay + null    align(amp=1, decay=1, noise=normal)
Options: fraction (of the batch), every (k-th step), positions (sum or mean), and the operations of
untied.operations.Operations. untied compare takes the backward weights' optimizer behind it: aa @ Adam(lr=0.003)"""


def print_rules(console: Console | None = None) -> None:
    """Print every primitive and every named rule with locality and counted cost."""
    console = console or Console()
    primitives = Table("primitive", "penalty P", "gradient in B", "local", "because", title="Primitives (Table 1)")
    for name, primitive in PRIMITIVES.items():
        why = "computation and plasticity are local"
        if not primitive.local_computation:
            why = "not local computation: B acts on x, which is not its input"
        elif not primitive.local_plasticity:
            why = "not local plasticity: the update reads W"
        primitives.add_row(name, primitive.formula, primitive.gradient_formula, "yes" if primitive.local else "no", why)
    console.print(primitives)
    rules = Table(
        "rule",
        *PRIMITIVES,
        "local",
        "cost",
        "what it is",
        title="Rules (Table 2; cost in multiplications over backprop)",
    )
    for row in taxonomy():
        has = ["✓" if p in row["primitives"] else "" for p in PRIMITIVES]  # type: ignore[operator]
        rules.add_row(str(row["name"]), *has, "yes" if row["local"] else "no", f"{row['cost']:.2f}", str(row["about"]))
    console.print(rules)
    console.print(HOW_TO, markup=False, highlight=False)
