"""An entry of a comparison: a rule, its preset, its optimizer."""

from __future__ import annotations

import re
from typing import Any

from untied.errors import UntiedError
from untied.lab.reading.edges import load_yaml, shown
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.optimizer import OptimizerConfig
from untied.rules import parse
from untied.rules.rule import Rule

__all__ = ["PRESETS", "TUNED", "is_called", "label", "parse_entry", "written_out"]

PRESETS = {
    "kp": "kp(decay=0.01)",
    "wm": "wm(positions=mean, noise=normal) @ Adam(lr=0.01)",
    "ia": "ia(null=0.1, positions=mean, noise=normal) @ Adam(lr=0.02)",
    "sa": "sa @ SGD(lr=0.5, momentum=0)",
    "aa": "aa @ Adam(lr=0.04)",
    "dfa": "dfa(kernel=position, scale=0.3)",
    "sdfa": "sdfa(kernel=position, scale=0.0003)",
    "drtp": "drtp(kernel=position, scale=0.003)",
    "dkp": "dkp(copy=0.00001, decay=0.001, kernel=position, scale=0.3)",
    "pfa": "pfa(decay=0.03)",
    "ldfa": "ldfa(rank=4, decay=0.01)",
}
"""What ``tuned:NAME`` stands for: coefficients and the optimizer of the backward weights, chosen from the grids of
benchmarks/tune_digits.py on the validation split of the default task. A bare name is exactly the rule, with
coefficients of 1 and the default optimizer, as in the library."""

TUNED = "tuned:"
DEFINED = {name: f"{name}(kernel=position)" for name in ("dfa", "sdfa", "drtp", "dkp")}
"""What a bare broadcast rule is in a comparison, which says so: the field has two definitions for convolutions."""


def written_out(entry: str) -> str:
    """An entry of ``rules`` with tuned settings in place of ``tuned:NAME``.

    Raises:
        UntiedError: no settings of this name were tuned.
    """
    entry = entry.strip()
    if not entry.startswith(TUNED):
        return entry
    name = entry.removeprefix(TUNED).strip()
    if name not in PRESETS:
        raise UntiedError(
            f"there are no tuned settings for {name!r}: tuned are {', '.join(PRESETS)}; or write the rule"
        )
    return PRESETS[name]


def label(entry: str) -> str:
    """The short form of an entry of ``rules``: ``tuned:NAME`` in place of its text."""
    short = {text: name for name, text in DEFINED.items()} | {t: TUNED + n for n, t in PRESETS.items() if t != n}
    return short.get(entry, entry)


def is_called(label_there: str, entry: str) -> bool:
    """Whether a table's row is of this entry; tables of version 0.1 have no ``tuned:`` before the name."""
    return label_there in (label(entry), label(entry).removeprefix(TUNED))


ENTRY = re.compile(r"(?P<rule>[^@]*)(@\s*(?P<name>\w+)\s*(\((?P<options>[^()]*)\))?\s*)?")
EXPONENT = re.compile(r"[-+]?[\d.]+[eE][-+]?\d+")  # YAML 1.1 reads 1e-3 as a word


def parse_entry(text: str, backward: OptimizerConfig) -> tuple[Rule, OptimizerConfig]:
    """Read ``"aa @ Adam(lr=0.003)"``: a rule, and its backward weights' optimizer (``backward`` if there is none).

    Raises:
        UntiedError: an unknown rule, optimizer or setting.
    """
    text = written_out(text)
    match = ENTRY.fullmatch(text)
    if match is None:
        raise UntiedError(
            f"cannot read {text!r}: write a rule, perhaps with its optimizer, as in 'aa @ Adam(lr=0.003)'"
        )
    rule = parse(match["rule"])
    if rule.forward_decay is not None and "every" in rule.options:
        raise UntiedError(f"{text!r}: {rule.name}'s decay is W's weight decay too, in every step: leave out every")
    if match["name"] is None:
        return rule, backward
    if not rule.aligns or rule.copies_gradient:
        raise UntiedError(f"{text!r}: {rule.name} has no backward weights with an optimizer of their own: leave out @")
    settings: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in (match["options"] or "").split(","))):
        key, equals, word = (p.strip() for p in part.partition("="))
        if not equals or not word:
            raise UntiedError(f"cannot read {part!r} in {text!r}: settings of an optimizer are written key=value")
        settings[key] = (
            float(word) if EXPONENT.fullmatch(word) else load_yaml(word, f"{key} of the optimizer in {shown(text)}")
        )
    return rule, from_mapping(OptimizerConfig, {"name": match["name"], **settings}, f"the optimizer of {text!r}")
