"""Reads a coefficient's text, without eval; and what every text is read with.

coefficient  =  number | [ number "*" ] schedule | [ (number | schedule) "*" ] statistic
                number = 0.5, 1e-3, -2, 1/8             statistic = power, mean_power
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import UntiedError
from .coefficient import STATISTICS, Coefficient, Schedule, Statistic, multiply
from .courses import SCHEDULES

__all__ = ["Reader", "Token", "parse_coefficient"]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_]\w*(?:\.\w+)*)"
    r"|(?P<quoted>\"[^\"]*\")|(?P<sign>[-+*/(),=]))"
)


SHOWN = 200
"""At most so many characters of a text, before a mistake, of it and after it, stand in a message."""


@dataclass
class Token:
    """A word of a text, and where it starts.

    >>> Token("number", "0.5", 0).text
    '0.5'
    """

    kind: str
    text: str
    start: int


class Reader:
    """A text as tokens, with a place in it; reads numbers, schedules and coefficients.

    >>> reader = Reader("1/8 * sa", "rule")
    >>> reader.number(), reader.take("*"), reader.next.text
    (0.125, True, 'sa')
    """

    def __init__(self, text: str, what: str) -> None:
        self.text = text
        self.what = what
        self.tokens: list[Token] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                start = at + len(text[at:]) - len(text[at:].lstrip())
                self.fail(
                    Token("unknown", text[start], start),
                    f"a {what} is made of names, numbers and + - * / ( ) , =",
                )
            kind = str(match.lastgroup)
            self.tokens.append(Token(kind, match[kind], match.start(kind)))
            at = match.end()
        self.tokens.append(Token("end", "", len(text)))
        self.at = 0

    def fail(self, token: Token, way_out: str) -> NoReturn:
        """One line that marks the place: ``'amp + >>>amq<<<'``. Of a long text it shows what stands there.

        Raises:
            UntiedError: always, with that line.
        """
        word = token.text if len(token.text) <= SHOWN else f"{token.text[:SHOWN]}..."
        before, after = self.text[: token.start], self.text[token.start + len(token.text) :]
        before = before if len(before) <= SHOWN else f"...{before[-SHOWN:]}"
        after = after if len(after) <= SHOWN else f"{after[:SHOWN]}..."
        found = "the end" if token.kind == "end" else repr(word)
        marked = f"{before}>>>{word}<<<{after}"
        raise UntiedError(
            f"cannot read {self.what} at {found}, column {token.start + 1}, in '{' '.join(marked.split())}': {way_out}"
        )

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self, text: str) -> bool:
        if self.next.text == text and self.next.kind == "sign":
            self.at += 1
            return True
        return False

    def expect(self, kind: str, what: str) -> Token:
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


def parse_coefficient(text: str) -> Coefficient:
    """Read a coefficient; `untied.schedules.parse` is its public name.

    Raises:
        UntiedError: what is wrong, where, and what is possible.

    >>> parse_coefficient("1/8")
    0.125
    """
    reader = Reader(text, "coefficient")
    found = reader.coefficient()
    if reader.next.kind != "end":
        reader.fail(reader.next, "expected the end")
    return found
