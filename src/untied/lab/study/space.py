"""What a search may vary: named parameters, and where their values go in a training configuration.

A space is a small YAML file. ``parameters`` has ranges and choices, perhaps only ``when`` another parameter has a
certain value; ``run`` is a part of a `TrainConfig` in which ``{name}`` stands for a parameter. An entry whose parameter
is not there in a trial is left out. A rule may be written as a mapping, so that its options can be left out too.

    parameters:
      amp: {low: 1.0e-3, high: 10.0, log: true}
      optimizer: [SGD, Adam]
      momentum: {low: 0.0, high: 0.95, when: {optimizer: SGD}}
    run:
      rule: {of: wm, amp: "{amp}", noise: normal}
      backward: {name: "{optimizer}", momentum: "{momentum}"}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untied.errors import UntiedError
from untied.lab.reading.fields import read_mapping
from untied.lab.settings import recipes

if TYPE_CHECKING:  # it takes a second, and --help needs it not
    from optuna.trial import BaseTrial

__all__ = ["Parameter", "Space", "shipped", "space"]

Values = Mapping[str, Any]
_ABSENT = object()
_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Parameter:
    """A range or a list of choices.

    Attributes:
        low, high: of a range, both included; whole numbers if both are.
        log: whether the range is searched on a logarithmic scale.
        choices: instead of a range.
        when: the values of other parameters, listed before, with which this one is there.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def active(self, values: Values) -> bool:
        """Whether it is there beside these values."""
        return all(other in values and values[other] in possible for other, possible in self.when)

    def suggest(self, trial: BaseTrial) -> Any:
        """Its value in a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.name, self.low, self.high, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value is possible."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """Parameters, and the part of a configuration that they fill.

    Attributes:
        parameters: in the order in which they are chosen.
        run: a part of a `TrainConfig`, as plain values with places in it.
        start: settings that are tried first.
    """

    parameters: tuple[Parameter, ...]
    run: Mapping[str, Any]
    start: tuple[Values, ...] = ()

    @staticmethod
    def of(values: Any, what: str) -> Space:
        """From plain values.

        Raises:
            UntiedError: they are not a space.
        """
        return Space(*_Reader(what).read(values))

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """The values of the parameters that are there in a trial."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.suggest(trial)
        return values

    def fill(self, values: Values) -> dict[str, Any]:
        """The part of a configuration that these values make."""
        filled: dict[str, Any] = _fill(self.run, values)
        if isinstance(filled.get("rule"), Mapping):
            filled["rule"] = _rule_text(filled["rule"])
        return filled


def shipped() -> dict[str, Path]:
    """The spaces that come with the package, by name."""
    return {path.stem: path for path in sorted((recipes.folder() / "spaces").glob("*.yaml"))}


def space(name: str) -> Any:
    """A shipped space by name, or one in a file, as plain values.

    Raises:
        UntiedError: there is none.
    """
    known = shipped()
    path = known.get(name, Path(name))
    if not path.is_file():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UntiedError(f"unknown space {name!r}: {hint}possible are {', '.join(known)}, or a YAML file")
    return read_mapping(path)


class _Reader:
    """Checks a space's plain values, and says in a line what is wrong with them."""

    def __init__(self, what: str) -> None:
        self.what = what

    def fail(self, why: str) -> UntiedError:
        return UntiedError(f"{self.what}: {why}")

    def read(self, values: Any) -> tuple[tuple[Parameter, ...], Mapping[str, Any], tuple[Values, ...]]:
        if not isinstance(values, Mapping) or not isinstance(values.get("parameters"), Mapping):
            raise self.fail("a space needs parameters, a mapping from names to ranges or choices")
        if unknown := [key for key in values if key not in ("parameters", "run", "start")]:
            raise self.fail(f"unknown key {unknown[0]!r}: possible are parameters, run, start")
        if not values["parameters"]:
            raise self.fail("there are no parameters, so there is nothing to search")
        parameters: list[Parameter] = []
        for name, given in values["parameters"].items():
            parameters.append(self.parameter(str(name), given, parameters))
        run, names = values.get("run"), [p.name for p in parameters]
        if not isinstance(run, Mapping):
            raise self.fail("a space needs run, the part of a training configuration in which {name} is filled in")
        used = set(_places(run))
        for name in used:
            if name not in names:
                raise self.fail(f"run has {{{name}}}, but the parameters are {', '.join(names)}")
        asked = {other for p in parameters for other, _ in p.when}
        if idle := [name for name in names if name not in used | asked]:
            raise self.fail(f"parameter {idle[0]} is used nowhere: write {{{idle[0]}}} somewhere in run")
        start = values.get("start", [])
        if not isinstance(start, list) or not all(isinstance(one, Mapping) for one in start):
            raise self.fail("start is a list of mappings from parameters to values")
        for one in start:
            for name, value in one.items():
                known = next((p for p in parameters if p.name == name), None)
                if known is None or not known.holds(value):
                    raise self.fail(f"start has {name} = {value!r}, which is not in the space")
        return tuple(parameters), run, tuple(start)

    def parameter(self, name: str, given: Any, before: list[Parameter]) -> Parameter:
        if isinstance(given, list):
            given = {"choices": given}
        possible = ("low", "high", "log", "choices", "when")
        if not isinstance(given, Mapping) or any(key not in possible for key in given):
            raise self.fail(f"parameter {name} is {given!r}: give a list of choices, or low and high, log, when")
        conditions = []
        for other, values in (given.get("when") or {}).items():
            values = tuple(values) if isinstance(values, list) else (values,)
            known = next((p for p in before if p.name == other), None)
            if known is None:
                raise self.fail(f"parameter {name} depends on {other!r}, which is not a parameter before it")
            if wrong := [value for value in values if not known.holds(value)]:
                raise self.fail(f"parameter {name} depends on {other} = {wrong[0]!r}, which {other} never is")
            conditions.append((str(other), values))
        if "choices" in given:
            choices = given["choices"]
            plain = isinstance(choices, list) and all(isinstance(c, str | int | float | None) for c in choices)
            if not plain or not choices or "low" in given or "high" in given or "log" in given:
                raise self.fail(f"parameter {name}: choices is a list of words and numbers, without low, high, log")
            return Parameter(name, choices=tuple(choices), when=tuple(conditions))
        low, high = (self.number(name, given.get(end)) for end in ("low", "high"))
        log = given.get("log", False)
        if not low < high or (log and low <= 0) or not isinstance(log, bool):
            raise self.fail(f"parameter {name}: low must be below high, and above 0 where log is true")
        return Parameter(name, low, high, log, when=tuple(conditions))

    def number(self, name: str, given: Any) -> float:
        try:
            if isinstance(given, str):  # YAML 1.1 reads 1e-3 as a word
                given = float(given)
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise ValueError
        except ValueError:
            raise self.fail(f"parameter {name}: low and high are numbers, not {given!r}") from None
        return given


def _places(template: Any) -> Iterator[str]:
    """The names of the parameters in a template."""
    if isinstance(template, Mapping):
        for value in template.values():
            yield from _places(value)
    elif isinstance(template, str):
        yield from _PLACE.findall(template)


def _fill(template: Any, values: Values) -> Any:
    """A template with its places filled, without what has a place of no value."""
    if isinstance(template, Mapping):
        filled = {key: _fill(value, values) for key, value in template.items()}
        return {key: value for key, value in filled.items() if value is not _ABSENT}
    if not isinstance(template, str):
        return template
    if any(name not in values for name in _places(template)):
        return _ABSENT
    whole = _PLACE.fullmatch(template)
    return values[whole[1]] if whole else _PLACE.sub(lambda place: _word(values[place[1]]), template)


def _rule_text(rule: Mapping[str, Any]) -> str:
    """A rule from its name, ``of``, and its options."""
    options = ", ".join(f"{key}={_word(value)}" for key, value in rule.items() if key != "of")
    return f"{rule.get('of', 'align')}({options})"


def _word(value: Any) -> str:
    """A value as a rule's text has it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return format(value, ".6g") if isinstance(value, float) else str(value)
