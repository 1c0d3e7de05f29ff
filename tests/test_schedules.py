"""Coefficients on a schedule: their courses, their texts, and what they are as values."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import untied
from untied import UntiedError
from untied.primitives.primitive import amp, decay
from untied.rules import Alignment, InformationAlignment, WeightMirror
from untied.schedules import Coefficient, Composed, Exponential, Linear, Schedule, Steps, Triangular, parse

ONE_OF_EACH = [
    Linear(0, 1),
    Linear(2, -1, start=0.25, stop=0.75),
    Linear(1, 3, start=0.5, stop=0.5),
    Exponential(1, 1e-3),
    Exponential(-1e-3, -1, start=0.1, stop=0.9),
    Triangular(0, 1),
    Triangular(1, -1, cycles=5),
    Steps(1, 0.1),
    Steps(1, 0.1, 0.01, at=(1 / 3, 0.9)),
    Steps(0, 1, at=0.1),
]
by_schedule = pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=str)


@pytest.mark.parametrize(
    ("schedule", "course"),
    [
        (Linear(0, 1), {0: 0, 0.25: 0.25, 1: 1}),
        (Linear(2, 1, start=0.5), {0: 2, 0.5: 2, 0.75: 1.5, 1: 1}),
        (Linear(0, 4, stop=0.5), {0: 0, 0.25: 2, 0.5: 4, 1: 4}),
        (Linear(1, 3, 0.5, 0.5), {0: 1, 0.4999: 1, 0.5: 3, 1: 3}),
        (Linear(1, 3, 0, 0), {0: 3, 1: 3}),
        (Linear(1, 3, 1, 1), {0: 1, 0.999: 1, 1: 3}),
        (Exponential(1, 100), {0: 1, 0.5: 10, 1: 100}),
        (Exponential(-4, -1, start=0.5), {0: -4, 0.5: -4, 0.75: -2, 1: -1}),
        (Triangular(0, 1), {0: 0, 0.25: 0.5, 0.5: 1, 0.75: 0.5, 1: 0}),
        (Triangular(1, 3, cycles=2), {0: 1, 0.125: 2, 0.25: 3, 0.5: 1, 0.75: 3, 1: 1}),
        (Steps(1, 0.1, at=0.5), {0: 1, 0.499: 1, 0.5: 0.1, 1: 0.1}),
        (Steps(1, 2, 3), {0: 1, 0.3: 1, 0.34: 2, 0.6: 2, 0.67: 3, 1: 3}),
        (Steps(1, 2, 3, at=(0.5, 0.5)), {0.49: 1, 0.5: 3}),
    ],
    ids=str,
)
def test_courses(schedule: Schedule, course: dict[float, float]) -> None:
    assert {t: schedule(t) for t in course} == pytest.approx(course)


@by_schedule
def test_a_schedule_is_a_value(schedule: Schedule) -> None:
    """Read back from its text; equal, of one hash and of one course after any copy."""
    for twin in (parse(str(schedule)), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert twin == schedule and hash(twin) == hash(schedule) and repr(twin) == str(schedule)
    assert all(schedule != other for other in ONE_OF_EACH if other is not schedule)


@by_schedule
@pytest.mark.parametrize("factor", [2, -0.5, 0, 1])
def test_a_multiple_is_a_schedule_or_zero(schedule: Schedule, factor: float) -> None:
    scaled = factor * schedule
    assert isinstance(scaled, type(schedule)) or (factor == 0 and scaled == 0)
    assert scaled == schedule * factor
    for t in (0.0, 0.3, 0.5, 1.0):
        assert untied.schedules.value(scaled, t) == pytest.approx(factor * schedule(t), abs=1e-12)
    assert (-schedule)(0.3) == -schedule(0.3)  # type: ignore[operator]


@by_schedule
def test_multiples_and_sums_of_rules(schedule: Schedule) -> None:
    rule = 2 * (schedule * (amp + decay)) + 3 * amp
    c = Alignment(rule).coefficients(0.3)
    assert float(c[amp]) == pytest.approx(2 * schedule(0.3) + 3)
    assert float(c.get(decay, 0.0)) == pytest.approx(2 * schedule(0.3), abs=1e-12)
    assert schedule * amp == Alignment({"amp": schedule}).combination


def ramp(t: float) -> float:
    """A function of the user's."""
    return t


RULES = [
    WeightMirror(amp=Linear(0, 1, stop=0.1)),
    2 * InformationAlignment(null=Steps(0, 1), fraction=0.5),
    Alignment(Exponential(1, 2) * amp + amp),  # no text, but a value
    Alignment(Linear(0, 1) * (Triangular(0, 1) * amp)),
    Alignment(2 * (ramp * amp) + amp),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rules_are_values(rule: Alignment) -> None:
    for twin in (copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))):
        assert twin == rule and hash(twin) == hash(rule)
        assert twin.coefficients(0.4) == rule.coefficients(0.4)


def test_the_order_of_a_sum_does_not_change_the_hash() -> None:
    a, b = Alignment(Linear(0, 1) * amp + decay), Alignment(decay + Linear(0, 1) * amp)
    assert a == b and hash(a) == hash(b)


def test_rules_travel_between_processes() -> None:
    rule = WeightMirror(amp=Linear(0, 1, stop=0.1))
    program = (
        "import pickle, sys; sys.path[:] = eval(sys.argv[2])\n"
        "rule = pickle.loads(bytes.fromhex(sys.argv[1])); print(rule, rule.coefficients(0.05))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, pickle.dumps(rule).hex(), repr(sys.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{rule} {rule.coefficients(0.05)}"


def test_what_no_schedule_equals_is_composed() -> None:
    summed = (Exponential(1, 4) * amp + amp)[amp]
    assert isinstance(summed, Composed) and summed(0.5) == 3 and str(summed) == "1 + exponential(1, 4)"
    product = (Linear(0, 1) * (Linear(0, 1) * amp))[amp]
    assert isinstance(product, Composed) and product(0.5) == 0.25


finite = st.floats(allow_nan=False, allow_infinity=False)
places = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(finite, finite, places, st.floats(0, 1))
def test_every_value_lies_between(a: float, b: float, where: list[float], t: float) -> None:
    """Finite at the ends of the number range too."""
    schedules: list[Schedule] = [Linear(a, b, *where), Triangular(a, b, cycles=3), Steps(a, b, at=where[0])]
    if a * b != 0:
        schedules.append(Exponential(abs(a), abs(b), *where))
    for s in schedules:
        low, high = sorted((abs(a), abs(b)) if isinstance(s, Exponential) else (a, b))
        slack = 1e-12 * max(abs(a), abs(b))
        assert math.isfinite(s(t)) and low - slack <= s(t) <= high + slack


@pytest.mark.parametrize("progress", [-0.1, 1.1, 3, math.nan])
@by_schedule
def test_progress_is_a_share(schedule: Schedule, progress: float) -> None:
    with pytest.raises(UntiedError, match="share of training done"):
        schedule(progress)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Linear(math.nan, 1), "first=nan is not possible: give a finite number"),
        (lambda: Linear(0, "1"), "last='1' is not possible"),  # type: ignore[arg-type]
        (lambda: Linear(True, 1), "first=True is not possible"),
        (lambda: Linear(0, 1, start=0.5, stop=0.2), "start=0.5, stop=0.2 of linear"),
        (lambda: Exponential(0, 1), "exponential from 0 to 1 is not possible"),
        (lambda: Exponential(-1, 1), "of one sign"),
        (lambda: Exponential(1, 2, stop=1.5), "stop=1.5 of exponential"),
        (lambda: Triangular(0, 1, cycles=0), "cycles=0 is not possible"),
        (lambda: Triangular(0, 1, cycles=1.5), "cycles=1.5 is not possible"),  # type: ignore[arg-type]
        (lambda: Steps(1), "two values or more"),
        (lambda: Steps(1, math.inf), "value=inf"),
        (lambda: Steps(1, 2, at=(0.6, 0.3)), "at=.0.6, 0.3. is not possible for 2 values: give 1"),
        (lambda: Steps(1, 2, 3, at=(0.6, 0.3)), "in order, from 0 to 1"),
        (lambda: Steps(1, 2, at="half"), "at='h' is not possible"),
    ],
)
def test_errors_are_one_line(make: object, says: str) -> None:
    with pytest.raises(UntiedError, match=says) as error:
        make()  # type: ignore[operator]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("0.5", 0.5), ("1/8", 0.125), ("-2e-3", -2e-3), (" linear(0, 1) ", Linear(0, 1)),
        ("-2*linear(0,1)", Linear(0, -2)), ("steps(1, 0.1, 0.01, at=(1/3, 2/3))", Steps(1, 0.1, 0.01)),
    ],
)  # fmt: skip
def test_a_coefficient_alone_is_read(text: str, meaning: Coefficient) -> None:
    assert parse(text) == meaning


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot read coefficient at the end, column 1, in '>>><<<': expected a number or a schedule"),
        (
            "linaer(0, 1)",
            "'>>>linaer<<<(0, 1)': possible are numbers, power, mean_power and linear(first, last, start=0",
        ),
        ("linear(0, 1)*amp", "'linear(0, 1)>>>*<<<amp': expected the end"),
        ("0.5 0.5", "expected the end"),
        ("2*", "expected the end"),
        ("$", "a coefficient is made of"),
    ],
)
def test_a_wrong_coefficient_is_marked(text: str, says: str) -> None:
    with pytest.raises(UntiedError) as error:
        parse(text)
    assert says in str(error.value) and "\n" not in str(error.value)
