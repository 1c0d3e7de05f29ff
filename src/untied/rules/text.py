"""The text form of a rule, and of a coefficient, read without eval.

    rule         =  term { ("+" | "-") term }
    term         =  [ coefficient "*" ] atom
    atom         =  name [ "(" [ key "=" value { "," key "=" value } ] ")" ]
    value        =  coefficient | word | route [ "(" ... ")" ]
    coefficient  =  number | [ number "*" ] schedule | [ (number | schedule) "*" ] statistic
                    number = 0.5, 1e-3, -2, 1/8             statistic = power, mean_power

A name is a primitive (amp), a named rule (sa), or ``align(amp=1, decay=0.5, fraction=1/8)``: any combination
with options. A schedule is called as in Python: ``linear(0, 1, stop=0.1)``.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..coefficients.coefficient import STATISTICS, Coefficient, Composed, Statistic, multiply
from ..coefficients.courses import SCHEDULES
from ..coefficients.reading import Reader
from ..errors import UntiedError
from ..primitives.primitive import KNOWN
from ..routes.route import ROUTES
from .algebra import OPTIONS, Alignment
from .naming import NAMED, named, offer, options_of
from .rule import Rule
from .transport import FEEDBACK, Transported

__all__ = ["parse_rule"]


class _RuleReader(Reader):
    def option(self, key: str) -> Any:
        if key in KNOWN and (self.next.kind != "word" or self.next.text in (*SCHEDULES, *STATISTICS)):
            return self.coefficient()
        if self.next.kind == "quoted":
            return self.expect("quoted", "a name").text[1:-1]
        if self.next.kind != "word":
            v = self.number()
            return int(v) if v == int(v) else v
        if self.next.text in SCHEDULES and self.tokens[self.at + 1].text == "(":
            self.fail(self.next, f"{key} is not a coefficient: only those take a schedule")
        word = self.expect("word", "a value").text
        if key == "route" and self.next.text == "(":
            return self.route(word)
        return {"true": True, "false": False, "none": None}.get(word.lower(), word)

    def route(self, name: str) -> Any:
        """``product(expand=2)``, as the value of an option."""
        start = self.tokens[self.at - 1]
        kind = ROUTES.get(name)
        if kind is None:
            self.fail(start, f"possible routes are {', '.join(ROUTES)}")
        options = self.options([f.name for f in fields(kind)], name)  # type: ignore[arg-type]
        try:
            return kind(**options)
        except UntiedError as error:
            self.fail(start, str(error))

    def transport(self) -> Rule:
        """What follows ``transport``: ``(sign)``, ``(noise(0.1))``, ``(quantise(bits=4))``."""
        if not self.take("("):
            self.fail(self.next, f"expected (: write transport(sign), or another of {', '.join(FEEDBACK)}")
        token, value = self.expect("word", f"one of {', '.join(FEEDBACK)}"), None
        if self.take("("):
            if self.next.kind == "word":
                key = self.expect("word", "a name")
                wanted = FEEDBACK[token.text].parameter if token.text in FEEDBACK else key.text
                if key.text != wanted:
                    self.fail(key, f"{token.text} takes {wanted or 'no number'}")
                if not self.take("="):
                    self.fail(self.next, "expected =")
            value = self.number()
            if not self.take(")"):
                self.fail(self.next, "expected )")
        if not self.take(")"):
            self.fail(self.next, "expected )")
        try:
            return Transported(token.text, value)
        except UntiedError as error:
            self.fail(token, str(error))

    def options(self, possible: list[str], name: str) -> dict[str, Any]:
        """``(key=value, ...)``, if it is there."""
        options: dict[str, Any] = {}
        if self.take("("):
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
        return options

    def atom(self) -> Rule:
        token = self.next
        if token.kind == "word" and token.text not in (*KNOWN, "align", "transport"):
            offer(token.text)
        if token.kind != "word" or token.text not in (*NAMED, *KNOWN, "align", "transport"):
            known = f"rules {', '.join(NAMED)}; primitives {', '.join(KNOWN)}; align(...); transport(...)"
            self.fail(token, f"possible are {known}")
        self.at += 1
        name = token.text
        if name == "transport":
            return self.transport()
        possible = [*KNOWN, *OPTIONS] if name == "align" else options_of(name) if name in NAMED else []
        options = self.options(possible, name)
        if name in KNOWN:
            return Alignment({KNOWN[name]: 1.0})
        try:
            if name == "align":
                coefficients = {k: options.pop(k) for k in list(options) if k in KNOWN}
                return Alignment(coefficients, **options)
            return named(name, **options)
        except UntiedError as error:
            self.fail(token, str(error))

    def term(self, sign: float) -> Rule:
        start = self.next
        factor: Coefficient = sign
        if self.next.kind == "number" or self.next.text in ("-", *SCHEDULES, *STATISTICS):
            factor = multiply(sign, self.coefficient())
            if not self.take("*"):
                if factor == 0 and self.next.kind in ("end", "sign"):
                    return Alignment({})
                self.fail(self.next, "expected * and a name after a coefficient")
        atom = self.atom()
        if factor == 1:
            return atom
        try:
            return _writable(atom * factor)
        except UntiedError as error:
            self.fail(start, str(error))

    def rule(self) -> Rule:
        total = self.term(-1.0 if self.take("-") else 1.0)
        while self.next.kind != "end":
            sign = self.next
            if not (self.take("+") or self.take("-")):
                self.fail(sign, "expected +, - or the end")
            other = self.term(-1.0 if sign.text == "-" else 1.0)
            try:
                total = _writable(total + other)
            except UntiedError as error:
                self.fail(sign, str(error))
        return total


def _writable(result: Rule) -> Rule:
    """Refuse what Python computes with, but no text says."""
    for primitive, c in result.combination.items():
        if isinstance(c.factor if isinstance(c, Statistic) else c, Composed):
            raise UntiedError(f"{primitive} gets {c}, which is not one schedule: give {primitive} a single one")
    return result


def parse_rule(text: str) -> Rule:
    """Read a rule; `untied.rules.parse` is its public name.

    Raises:
        UntiedError: what is wrong, where, and what is possible.

    >>> parse_rule("amp + 0.5*decay")
    amp + 0.5*decay
    """
    if not text.strip():
        raise UntiedError(
            f"the rule is empty: write one of {', '.join(NAMED)}, or a combination such as 'amp + 0.5*decay + null'"
        )
    return _RuleReader(text, "rule").rule()
