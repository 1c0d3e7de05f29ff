"""`untied rules`: Tables 1 and 2 of the paper, printed from the code; `untied list`: all that can be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from untied.lab import models, tasks
from untied.lab.data.config import DataName
from untied.lab.reading import own
from untied.lab.rules.signs import FROZEN
from untied.lab.settings.entries import PRESETS, TUNED
from untied.layers.layer import LAYERS
from untied.primitives.primitive import KNOWN
from untied.rules import FEEDBACK, NAMED, as_rule, taxonomy
from untied.rules.algebra import OPTIONS
from untied.rules.naming import offer_all
from untied.statistics import STATISTICS

__all__ = ["moves", "print_all", "print_rules"]

HOW_TO = """\
What is sent to a layer: g, the error at its output; e, the error of the network's output, or sign(e); t, the target.
A rule is a name, perhaps with coefficients and options, or a sum of primitives:
  sa
  ia(amp=1, null=2, fraction=1/8)
  amp + 0.5*decay + null
  align(amp=1, decay=1, noise=normal, noise_std=0.5)
Options: {options}.
Coefficients change over training, linear(0, 1, stop=0.1), or are measured in each layer, for decay alone:
  wm(decay=balanced)     amp + 0.5*power*decay     {statistics}
Commands that train take the optimizer of the backward weights with the rule, and settings tuned on digits by name:
  aa @ Adam(lr=0.003, schedule=cosine)
{presets}"""


MOVES = {
    "transport": "a function of W", "alignment": "nothing", "estimate": "measurements of W", FROZEN: "nothing",
    "targets": "its own loss, in G", "mkp": "W's updates, measurements of W",
}  # fmt: skip
"""What moves B, by the rule's name or its motion, where no primitive does."""
LOOK: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}


def moves(row: Mapping[str, Any]) -> str:
    """What moves B under a rule, a row of `untied.rules.taxonomy`, in a word or two."""
    kind = str(row["kind"])
    return " + ".join(row["primitives"]) or MOVES.get(str(row["name"]), MOVES.get(kind, kind))


def print_rules(console: Console | None = None) -> None:
    """Print every primitive, every named rule and every function of W, with locality and counted cost, and how to
    write a rule."""
    console = console or Console()
    offer_all()
    primitives = Table(
        "primitive", "penalty P", "gradient in B", "computation", "plasticity", "cost",
        title="Primitives (Table 1, and beyond it; g is the error at the layer's output)", **LOOK,
    )  # fmt: skip
    for name, p in KNOWN.items():
        primitives.add_row(
            name,
            getattr(p, "formula", ""),  # one's own may have none
            getattr(p, "gradient_formula", ""),
            "local" if p.local_computation else "not local",
            "local" if p.local_plasticity else "not local",
            f"{as_rule(p).cost:.2f}",
        )
    console.print(primitives)
    rules = Table(
        "rule", "sends", "B moves by", "local", "cost", "",
        title="Rules (Table 2, and around it; cost in multiplications over backprop's)", **LOOK,
    )  # fmt: skip
    for row in taxonomy():
        local, cost = "yes" if row["local"] else "no", f"{row['cost']:.2f}"
        rules.add_row(str(row["name"]), str(row["sends"]).partition(",")[0], moves(row), local, cost, str(row["title"]))
    console.print(rules)
    functions = Table("rule", "B", title="Functions of W (not local; cost 1.00)", **LOOK)
    for name, feedback in FEEDBACK.items():
        number = f"({feedback.parameter}=…)" if feedback.parameter else ""
        functions.add_row(f"transport({name}{number})", escape(feedback.about))
    console.print(functions)
    presets = "\n".join(f"  {TUNED + name:<11}{text}" for name, text in PRESETS.items())
    how_to = HOW_TO.format(options=", ".join(OPTIONS), statistics=", ".join(STATISTICS), presets=presets)
    console.print(how_to, markup=False, highlight=False)


def known() -> dict[str, list[str]]:
    """Everything that a command takes by name, by the option that takes it."""
    return {
        "--rule": [*NAMED, "any sum of primitives, such as 'amp + 0.5*decay'"],
        "--model": [*models.names(), "mlp-WIDTH-..., resnetDEPTH-wWIDTH", "torchvision:NAME", "timm:NAME"],
        "--data": [*get_args(DataName)],
        "--task": [*tasks.TASKS],
        "layers": sorted({kind.__name__ for kind in LAYERS if kind.__module__.startswith("torch.nn.modules")}),
    }


def print_all(console: Console | None = None) -> None:
    """Print what every option takes by name: ours, what installed packages offer, and how one's own is named."""
    console = console or Console()
    kinds = {"--rule": "rule", "--model": "model", "--data": "data", "--task": "task", "layers": "layer"}
    for option, names in known().items():
        console.print(f"[bold]{option}[/bold]  {', '.join(names)}", highlight=False)
        for name, point in own.offered(kinds[option]).items():
            package = point.dist.name if point.dist is not None else "?"
            console.print(f"    {name}  from {package} ({point.value})", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "Your own: --model package.module:Net or path/to/nets.py:Net, and likewise --data, --task; "
        "rules by untied.register_rule, layers by untied.register_layer. Packages offer theirs as entry points: "
        + ", ".join(own.GROUPS.values()) + ".",
        markup=False, highlight=False,
    )  # fmt: skip
