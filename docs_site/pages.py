"""The pages of the site that the code writes: rules, commands, shapes of B, and one page of API for each module."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

import torch
from torch import nn

import untied
from untied.lab.cli import main
from untied.lab.commands import NAMES
from untied.lab.reading.fields import settings_of
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.entries import PRESETS
from untied.lab.settings.run import TrainConfig
from untied.layers.layer import LAYERS, backward_name, untied_layers
from untied.primitives.primitive import KNOWN
from untied.rules import FEEDBACK, as_rule, taxonomy
from untied.rules.algebra import OPTIONS
from untied.schedules import SCHEDULES
from untied.statistics import STATISTICS

MODULES = {
    "untied": "`untie_`, `record`, `tie_` and `parameter_groups`: the names at the top",
    "untied.rules": "the named rules, and reading one from text",
    "untied.primitives": "the terms of R, each with its gradient",
    "untied.schedules": "coefficients that change over training",
    "untied.statistics": "coefficients that a layer measures",
    "untied.operations": "what a rule sees of a layer",
    "untied.geometry": "a layer as a linear map",
    "untied.layers": "the untied layer classes, and how to add one",
    "untied.layers.recurrent": "RNN, LSTM, GRU and their cells, made of untied kernels",
    "untied.rules.call": "the value that a layer hands to its listeners",
    "untied.tape": "R of one forward pass",
    "untied.layers.foreign": "layers of transformers, torchvision, timm and peft",
    "untied.tape.audit": "what a training loop may have forgotten",
    "untied.routes": "how the error at a layer's output becomes the error at its input",
    "untied.rules.rule": "a rule: a route times a motion",
    "untied.rules.aligned": "the rules of the paper, whose B is moved by R",
    "untied.rules.transport": "rules whose B is a function of W",
    "untied.rules.direct": "rules that broadcast the output's error",
    "untied.rules.product": "rules that carry the error through two kernels",
    "untied.rules.broadcast": "the broadcast route and what it needs of a network",
    "untied.rules.mirror": "the mirrored Kolen–Pollack rule, and calibration by noise",
    "untied.spiking": "spiking units, and what the discontinuity at their threshold says of W",
    "untied.rules.estimated": "the rule whose B follows that estimate",
    "untied.targets": "target propagation on networks made of blocks",
    "untied.targets.reversing": "cutting a network into blocks, and the feedback network of each",
    "untied.metrics": "angles and norm ratios",
    "untied.layers.products": "which matrices carry errors outside of the untied layers",
    "untied.verify": "by number: what carries backpropagation's errors, and which B does not move",
    "untied.layers.oracle": "the gradients that rules ask for, by independent constructions",
    "untied.testing": "tests that one's own rules and layers inherit",
    "untied.dynamics": "flow, fixed points and regimes of a rule",
}
"""The documented modules, in reading order. A test checks that every public module of `untied` is one of them."""

SUBCOMMANDS = {"study": ["study run", "study worker", "study show"], "neural": ["neural", "neural convert"]}
"""Commands whose second word is a command of its own."""


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table. A bar inside a cell would end it, so it is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def rules() -> str:
    """Tables 1 and 2 of the paper, the options and the tuned settings."""
    yes = {True: "yes", False: "no"}
    primitives = [
        (
            f"`{name}`", p.formula, p.gradient_formula, yes[p.local_computation], yes[p.local_plasticity],
            f"{as_rule(p).cost:.2f}",
        )
        for name, p in KNOWN.items()
    ]  # fmt: skip
    functions = [
        (f"`transport({name}{f'({kind.parameter}=…)' if kind.parameter else ''})`", kind.about, kind.possible or "—")
        for name, kind in FEEDBACK.items()
    ]
    named = [
        (
            f"`{r['name']}`", str(r["rule"]), str(r["formula"]) or "—", str(r["sends"]), yes[bool(r["local"])],
            f"{r['cost']:.2f}",
        )
        for r in taxonomy()
    ]  # fmt: skip
    presets = [(f"`tuned:{name}`", f"`{text}`") for name, text in PRESETS.items()]
    return f"""# Rules and primitives

This page is written by the code when the site is built. [Rules](../rules.md) says which one to choose.

## Primitives

Table 1 of the paper, and what extends it: `copy`, in which g is the error at the layer's output. A rule is a sum of
these, each with a coefficient. The cost is that of a rule of one of them alone.

{table(("primitive", "penalty", "gradient in B", "computed locally", "plastic locally", "cost"), primitives)}

## Named rules

Table 2 of the paper, and the rules around it. *Error* is what reaches a layer: the error g at its output, or e, the
error of the network's output. Cost is counted in multiplications over backpropagation's.

{table(("name", "class", "R, with every coefficient at 1", "error", "local", "cost"), named)}

## Functions of W

B may be a function of W. Such a rule is not local, and its cost is 1.00.

{table(("rule", "B", "its number"), functions)}

## Options

A rule takes these after its coefficients, as in `ia(null=2, fraction=1/8)`: {", ".join(f"`{o}`" for o in OPTIONS)}.

## Coefficients

A coefficient is a number, a schedule, or one of the statistics {", ".join(f"`{s}`" for s in STATISTICS)}.

{table(("schedule", "write"), [(f"`{n}`", f"`{s.usage}`") for n, s in SCHEDULES.items()])}

## Tuned settings

A bare name is exactly the rule, in the library and in every command. `tuned:NAME` has the settings that were tuned on
digits.

{table(("name", "stands for"), presets)}
"""


def help_of(command: str) -> str:
    """What ``untied COMMAND --help`` prints, without colours and frames, which Markdown would not keep."""
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        main([*command.split(), "--help"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    return "\n".join(line.rstrip() for line in plain.splitlines()).rstrip()


def commands() -> str:
    """Every command with its own help text."""
    names = [word for command in NAMES for word in SUBCOMMANDS.get(command, [command])]
    parts = [
        "# Commands\n\nThis page is what the commands print for `--help`, written when the site is built.",
        table(("command", "what it does"), [(f"`untied {name}`", said) for name, said in NAMES.items()]),
    ]
    parts += [f"## untied {name}\n\n```text\n{help_of(name)}\n```" for name in names]
    parts += [f"## Settings of untied {kind.command}\n\n{settings(kind)}" for kind in (TrainConfig, CompareConfig)]
    return "\n\n".join(parts) + "\n"


def settings(kind: type[TrainConfig] | type[CompareConfig]) -> str:
    """Every setting, with a flag of its own or without."""
    rows = [
        (f"`{path}`", f"`{default}`", text, "" if rare else "yes") for path, default, text, rare in settings_of(kind)
    ]
    return "`--set PATH=VALUE` sets any of them, and so does YAML.\n\n" + table(
        ("path", "default", "what it is", "has a flag"), rows
    )


def examples() -> dict[str, nn.Module]:
    """A small layer of each type that `untie_` knows, by the call that makes it."""
    made: dict[str, nn.Module] = {}
    for kind in LAYERS:
        if kind.__module__.startswith("torch.nn") and kind.__name__ in vars(nn):
            size = (
                "8, 2" if kind is nn.MultiheadAttention else "4, 8, 3, groups=2" if "Conv" in kind.__name__ else "4, 8"
            )
            made[f"{kind.__name__}({size})"] = eval(f"kind({size})", {"kind": kind})
    made["MultiheadAttention(8, 2, kdim=4, vdim=6)"] = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    return made


def shapes() -> str:
    """The shape of W and B of each layer type, measured on a layer that has been untied."""
    rows = []
    for call, layer in examples().items():
        untied.untie_(layer, "fa")
        for part, inner in untied_layers(layer).items():
            for weight in inner.own_weights():
                B = backward_name(weight)
                prefix = f"{part}." if part else ""
                size = tuple(getattr(inner, weight).shape), tuple(getattr(inner, B).shape)
                rows.append((f"`nn.{call}`", f"`{prefix}{weight}`", str(size[0]), f"`{prefix}{B}`", str(size[1])))
    return f"""# The shape of B

B lies in the layout of its W, so both always have one shape. The paper's B is the transpose of ours.
This table was measured when the site was built, with torch {torch.__version__.partition("+")[0]}.

{table(("layer", "W", "its shape", "B", "its shape"), rows)}

Transport rules (`bp`, `usf`, `frsf`, `brsf`) make B from W at each call, so they store no parameter B.
"""


def api() -> dict[str, str]:
    """One page for each documented module, and one that lists them."""
    listed = [(f"[`{name}`]({name}.md)", what) for name, what in MODULES.items()]
    head = "# API\n\nThese pages are made from the docstrings.\n\n" + table(("module", "what it holds"), listed) + "\n"
    return {"reference/api/index.md": head} | {
        f"reference/api/{name}.md": f"# {name}\n\nIt holds {what}.\n\n::: {name}\n    options:\n"
        f"      show_root_heading: false\n      members: {public(name)}\n"
        for name, what in MODULES.items()
    }


def public(module: str) -> list[str]:
    """The names that a page documents. The page of `untied` leaves its modules to pages of their own."""
    found = __import__(module, fromlist=["__all__"])
    return [n for n in found.__all__ if f"untied.{n}" not in MODULES]


def generated() -> dict[str, str]:
    """Every generated page by its place in the site."""
    return {
        "reference/rules.md": rules(),
        "reference/commands.md": commands(),
        "reference/shapes.md": shapes(),
        **api(),
    }
