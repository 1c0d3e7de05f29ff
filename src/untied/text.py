"""The text form of a rule, and of a coefficient, read without eval.

    rule         =  term { ("+" | "-") term }
    term         =  [ coefficient "*" ] atom
    atom         =  name [ "(" [ key "=" value { "," key "=" value } ] ")" ]
    value        =  coefficient | word
    coefficient  =  number | [ number "*" ] schedule | [ (number | schedule) "*" ] statistic
                    number = 0.5, 1e-3, -2, 1/8             statistic = power, mean_power

A name is a primitive (amp), a named rule (sa), or ``align(amp=1, decay=0.5, fraction=1/8)``: any combination
with options. A schedule is called as in Python: ``linear(0, 1, stop=0.1)``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from .algebra import OPTIONS, Alignment, Rule
from .errors import UntiedError
from .primitives import KNOWN, Combination
from .rules import NAMED, as_rule, named, options_of
from .schedules import SCHEDULES, Coefficient, Composed, Schedule, multiply
from .statistics import STATISTICS, Statistic

__all__ = ["parse_coefficient", "parse_rule"]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*)|(?P<sign>[-+*/(),=]))"
)


@dataclass
class _Token:
    kind: str
    text: str
    start: int


class _Reader:
    def __init__(self, text: str, what: str) -> None:
        self.text = text
        self.what = what
        self.tokens: list[_Token] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                start = at + len(text[at:]) - len(text[at:].lstrip())
                self.fail(
                    _Token("unknown", text[start], start),
                    f"a {what} is made of names, numbers and + - * / ( ) , =",
                )
            kind = str(match.lastgroup)
            self.tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        self.tokens.append(_Token("end", "", len(text)))
        self.at = 0

    def fail(self, token: _Token, way_out: str) -> NoReturn:
        """One line that marks the place: ``'amp + >>>amq<<<'``."""
        found = "the end" if token.kind == "end" else repr(token.text)
        marked = f"{self.text[: token.start]}>>>{token.text}<<<{self.text[token.start + len(token.text) :]}"
        raise UntiedError(
            f"cannot read {self.what} at {found}, column {token.start + 1}, in '{' '.join(marked.split())}': {way_out}"
        )

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self, text: str) -> bool:
        if self.next.text == text and self.next.kind == "sign":
            self.at += 1
            return True
        return False

    def expect(self, kind: str, what: str) -> _Token:
        if self.next.kind != kind:
            self.fail(self.next, f"expected {what}")
        self.at += 1
        return self.tokens[self.at - 1]

    def number(self) -> float:
        sign = -1.0 if self.take("-") else 1.0
        token = self.expect("number", "a number")
        v = sign * float(token.text)
        if not math.isfinite(v):
            self.fail(token, "expected a finite number")
        if self.take("/"):
            below = self.expect("number", "a number")
            if float(below.text) == 0:
                self.fail(below, "expected a number other than 0")
            v /= float(below.text)
            if not math.isfinite(v):
                self.fail(token, "expected a finite number")
        return v

    def coefficient(self) -> Coefficient:
        start = self.next
        c: Coefficient = -1.0 if self.take("-") else 1.0
        if self.next.kind not in ("number", "word"):
            self.fail(self.next, "expected a number or a schedule, such as linear(0, 1)")
        if self.next.kind == "number":
            c = multiply(c, self.number())
            if not self.times((*SCHEDULES, *STATISTICS)):
                return c
        if self.next.text not in STATISTICS:
            schedule = self.schedule()
            try:
                c = multiply(c, schedule)
            except UntiedError as error:
                self.fail(start, str(error))
            if not self.times(STATISTICS):
                return c
        return multiply(c, Statistic(self.expect("word", "a statistic").text))

    def times(self, names: Iterable[str]) -> bool:
        """Pass over a "*" in front of one of these names."""
        there = self.next.text == "*" and self.tokens[self.at + 1].text in names
        self.at += there
        return there

    def schedule(self) -> Schedule:
        name = self.next
        if name.text not in SCHEDULES:
            self.fail(
                name,
                f"possible are numbers, {', '.join(STATISTICS)} and {'; '.join(s.usage for s in SCHEDULES.values())}",
            )
        self.at += 1
        kind = SCHEDULES[name.text]
        if not self.take("("):
            self.fail(self.next, f"expected (: write {kind.usage}")
        values: list[float] = []
        options: dict[str, Any] = {}
        while not self.take(")"):
            if (values or options) and not self.take(","):
                self.fail(self.next, "expected , or )")
            if self.next.kind == "word":
                key = self.expect("word", "a name")
                if key.text in options:
                    self.fail(key, "it is given twice")
                if not self.take("="):
                    self.fail(self.next, "expected =")
                options[key.text] = self.numbers() if self.take("(") else self.number()
            elif options:
                self.fail(self.next, f"expected a name: write {kind.usage}")
            else:
                values.append(self.number())
        try:
            return kind(*values, **options)
        except UntiedError as error:
            self.fail(name, str(error))
        except TypeError:  # too few, too many, an unknown name
            self.fail(name, f"write {kind.usage}")

    def numbers(self) -> list[float]:
        found = [self.number()]
        while self.take(","):
            found.append(self.number())
        if not self.take(")"):
            self.fail(self.next, "expected , or )")
        return found

    def option(self, key: str) -> Any:
        if key in KNOWN and (self.next.kind != "word" or self.next.text in (*SCHEDULES, *STATISTICS)):
            return self.coefficient()
        if self.next.kind != "word":
            v = self.number()
            return int(v) if v == int(v) else v
        if self.next.text in SCHEDULES and self.tokens[self.at + 1].text == "(":
            self.fail(self.next, f"{key} is not a coefficient: only those take a schedule")
        word = self.expect("word", "a value").text
        return {"true": True, "false": False, "none": None}.get(word.lower(), word)

    def atom(self) -> Rule | Combination:
        token = self.next
        if token.kind != "word" or token.text not in (*NAMED, *KNOWN, "align"):
            known = f"rules {', '.join(NAMED)}; primitives {', '.join(KNOWN)}; align(...)"
            self.fail(token, f"possible are {known}")
        self.at += 1
        name = token.text
        options: dict[str, Any] = {}
        if self.take("("):
            possible = [*KNOWN, *OPTIONS] if name == "align" else options_of(name) if name in NAMED else []
            while not self.take(")"):
                if options and not self.take(","):
                    self.fail(self.next, "expected , or )")
                key = self.expect("word", "an option, such as amp=0.5")
                if key.text not in possible:
                    self.fail(key, f"{name} takes {', '.join(possible)}" if possible else f"{name} takes no options")
                if key.text in options:
                    self.fail(key, "it is given twice")
                if not self.take("="):
                    self.fail(self.next, "expected =")
                options[key.text] = self.option(key.text)
        if name in KNOWN:
            return Combination({KNOWN[name]: 1.0})
        try:
            if name == "align":
                coefficients = {k: options.pop(k) for k in list(options) if k in KNOWN}
                return Alignment(coefficients, **options)
            return named(name, **options)
        except UntiedError as error:
            self.fail(token, str(error))

    def term(self, sign: float) -> Rule | Combination:
        start = self.next
        factor: Coefficient = sign
        if self.next.kind == "number" or self.next.text in ("-", *SCHEDULES, *STATISTICS):
            factor = multiply(sign, self.coefficient())
            if not self.take("*"):
                if factor == 0 and self.next.kind in ("end", "sign"):
                    return Combination({})
                self.fail(self.next, "expected * and a name after a coefficient")
        atom = self.atom()
        if factor == 1:
            return atom
        if not isinstance(atom, Combination | Alignment):
            self.fail(start, f"{atom} has no coefficients: it cannot be multiplied")
        try:
            return _writable(atom * factor)
        except UntiedError as error:
            self.fail(start, str(error))

    def rule(self) -> Rule | Combination:
        total = self.term(-1.0 if self.take("-") else 1.0)
        while self.next.kind != "end":
            sign = self.next
            if not (self.take("+") or self.take("-")):
                self.fail(sign, "expected +, - or the end")
            other = self.term(-1.0 if sign.text == "-" else 1.0)
            if not (isinstance(total, Combination | Alignment) and isinstance(other, Combination | Alignment)):
                self.fail(sign, "only alignment rules and primitives add")
            if isinstance(total, Combination) and isinstance(other, Alignment):
                total, other = other, total
            try:
                total = _writable(total + other)
            except UntiedError as error:
                self.fail(sign, str(error))
        return total


def _writable(result: Alignment | Combination) -> Alignment | Combination:
    """Refuse what Python computes with, but no text says."""
    for primitive, c in (result if isinstance(result, Combination) else result.combination).items():
        if isinstance(c.factor if isinstance(c, Statistic) else c, Composed):
            raise UntiedError(f"{primitive} gets {c}, which is not one schedule: give {primitive} a single one")
    return result


def parse_rule(text: str) -> Rule:
    """Read a rule; `untied.rules.parse` is its public name.

    Raises:
        UntiedError: what is wrong, where, and what is possible.
    """
    if not text.strip():
        raise UntiedError(
            f"the rule is empty: write one of {', '.join(NAMED)}, or a combination such as 'amp + 0.5*decay + null'"
        )
    return as_rule(_Reader(text, "rule").rule())


def parse_coefficient(text: str) -> Coefficient:
    """Read a coefficient; `untied.schedules.parse` is its public name.

    Raises:
        UntiedError: what is wrong, where, and what is possible.
    """
    reader = _Reader(text, "coefficient")
    found = reader.coefficient()
    if reader.next.kind != "end":
        reader.fail(reader.next, "expected the end")
    return found
