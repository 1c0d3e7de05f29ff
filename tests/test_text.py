"""The text form of rules: what is written is read back, and a mistake is shown where it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untied import UntiedError
from untied.primitives.primitive import PRIMITIVES, Combination, amp, copy, decay, null, self_, sparse
from untied.rules import NAMED, Alignment, InformationAlignment, WeightMirror, parse
from untied.rules.algebra import OPTIONS
from untied.rules.naming import BUILT_IN
from untied.schedules import SCHEDULES, Exponential, Linear, Steps, Triangular


@pytest.mark.parametrize(
    ("text", "combination"),
    [
        ("amp", Combination({amp: 1})),
        ("amp + decay", amp + decay),
        ("amp+decay+null", amp + decay + null),
        ("amp + 0.5*decay + null", amp + 0.5 * decay + null),
        ("  amp\t+  .5 * decay\n", amp + 0.5 * decay),
        ("2*amp - decay", 2 * amp - decay),
        ("-amp", -amp),
        ("-2*amp + -3*decay", -2 * amp - 3 * decay),
        ("amp - -2*decay", amp + 2 * decay),
        ("amp + amp", 2 * amp),
        ("amp - amp", Combination({})),
        ("0", Combination({})),
        ("1/8*amp + 1e-3*self", 0.125 * amp + 1e-3 * self_),
        ("1E2*sparse", 100 * sparse),
        ("align(amp=1, decay=0.5)", amp + 0.5 * decay),
        ("align(self=1/4)", 0.25 * self_),
        ("align()", Combination({})),
        ("sa", self_ + decay),
        ("sa()", self_ + decay),
        ("ia(amp=1,null=2)", amp + decay + 2 * null),
        ("ia(decay=0, sparse=1)", amp + null + sparse),
        ("wm + null", amp + decay + null),
        ("null + wm", amp + decay + null),
        ("2*sa + 0.5*aa", 2 * self_ + 2 * decay + 0.5 * amp + 0.5 * sparse),
        ("aa - 0.5*amp", 0.5 * amp + sparse),
        ("kp(decay=2e-3)", copy + 2e-3 * decay),
        ("2*kp - amp", 2 * copy + 2e-3 * decay - amp),
        ("sa(self=2)", 2 * self_ + decay),
        ("sa(decay=-1)", self_ - decay),
        ("linear(0, 1)*amp + decay", Linear(0, 1) * amp + decay),
        ("decay - linear(0,1)*amp", decay + Linear(0, -1) * amp),
        ("-2*linear(first=0, last=1, stop=1/8)*amp", Linear(0, -2, stop=0.125) * amp),
        ("wm(amp=linear(0, 1, stop=0.1), decay=1e-3)", Linear(0, 1, stop=0.1) * amp + 1e-3 * decay),
        ("wm(amp=-2*linear(0, 1))", Linear(0, -2) * amp + decay),
        ("0.5*wm(amp=exponential(1, 0.1))", Exponential(0.5, 0.05) * amp + 0.5 * decay),
        ("linear(0, 2)*sa", Linear(0, 2) * (self_ + decay)),
        ("triangular(0, 1, cycles=5)*amp + amp", Triangular(1, 2, 5) * amp),
        ("steps(1, 0.1, 0.01)*amp", Steps(1, 0.1, 0.01) * amp),
        ("steps(0, -1, 2, at=(0.1, 0.5))*amp", Steps(0, -1, 2, at=(0.1, 0.5)) * amp),
        ("align(amp=steps(0, 1, at=0.1), every=4)", Steps(0, 1, at=(0.1,)) * amp),
        ("0*linear(0, 1)*amp", Combination({})),
    ],
)
def test_what_texts_mean(text: str, combination: Combination) -> None:
    rule = parse(text)
    assert isinstance(rule, Alignment) and rule.combination == combination
    assert parse(str(rule)) == rule


def test_options_are_numbers_words_and_truth_values() -> None:
    assert parse("wm(fraction=1/8, every=3, noise=normal, noise_std=0.5, centre_input=true)") == WeightMirror(
        fraction=0.125, every=3, noise="normal", noise_std=0.5, centre_input=True
    )
    assert parse("wm(noise=none, reverse=False, forward_activation=None)") == WeightMirror()
    assert parse("ia(positions=mean, backward_activation=tanh)") == InformationAlignment(
        positions="mean", backward_activation="tanh"
    )


def test_options_of_one_term_go_with_the_sum() -> None:
    rule = parse("amp + align(decay=2, fraction=1/8) - 0.5*null")
    assert rule == Alignment(amp + 2 * decay - 0.5 * null, fraction=0.125)


def test_the_text_of_a_named_rule_says_what_differs() -> None:
    assert str(parse("ia(amp=1, decay=1, null=1)")) == "ia"
    assert str(parse("ia(null=2)")) == "ia(null=2)"
    assert str(parse("ia(null=0)")) == "ia(null=0)"
    assert str(parse("kp(decay=1e-3)")) == "kp"
    assert str(parse("wm(fraction=1/8, noise=normal)")) == "wm(fraction=0.125, noise=normal)"
    assert str(parse("align(amp=1, reverse=true)")) == "align(amp=1, reverse=true)"
    assert repr(parse("sa")) == "sa"


def test_a_function_is_named_in_the_text() -> None:
    def warm_up(t: float) -> float:
        return t

    assert str(WeightMirror(amp=warm_up)) == "wm(amp=<warm_up>)"
    assert "<warm_up>*amp" in str(Alignment({"amp": warm_up}))
    assert str(2 * Alignment({"amp": warm_up}) + amp) == "<1 + (2 * warm_up)>*amp"


def test_the_text_of_a_schedule_says_what_differs() -> None:
    assert str(parse("wm(amp=linear(0, 1, 0, 0.5))")) == "wm(amp=linear(0, 1, stop=0.5))"
    assert str(parse("2*steps(1, .1, at=(.25))*amp - decay")) == "steps(2, 0.2, at=0.25)*amp + -1*decay"


numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: v + 0.0)
sizes = st.floats(1e-9, 1e9)
places = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted)
coefficients = st.one_of(
    numbers,
    st.builds(lambda a, b, p: Linear(a, b, *p), numbers, numbers, places),
    st.builds(lambda a, b, p: Exponential(a, b, *p), sizes, sizes, places),
    st.builds(Triangular, numbers, numbers, st.integers(1, 10**7)),
    st.builds(Steps, numbers, numbers),
    st.builds(lambda a, b, c, p: Steps(a, b, c, at=p), numbers, numbers, numbers, places),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(list(PRIMITIVES)), coefficients),
    st.fixed_dictionaries({}, optional={
        "fraction": st.floats(1e-6, 1.0), "every": st.integers(1, 10**6), "positions": st.sampled_from(["sum", "mean"]),
        "noise": st.sampled_from([None, "normal", "uniform"]), "noise_std": st.floats(1e-9, 1e9),
        "reverse": st.booleans(), "forward_activation": st.sampled_from([None, "relu", "tanh"]),
    }),
)  # fmt: skip
def test_any_combination_is_read_back_exactly(c: dict[str, Any], options: dict[str, object]) -> None:
    rule = Alignment(c, **options)
    assert parse(str(rule)) == rule


CHARACTERS = "amp sa ia kp bp decay*+-/()=,.0123e9_é\n"
WORDS = ("amp", "wm(", "fraction=", "every=", "amp=", "linear(0, 1)", "*amp", "steps(", "at=(")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*CHARACTERS, *WORDS])).map("".join))
def test_any_text_is_a_rule_or_an_error_of_one_line(text: str) -> None:
    try:
        rule = parse(text)
    except UntiedError as error:
        assert "\n" not in str(error)
    else:
        assert parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "marked", "possible"),
    [
        ("amq", ">>>amq<<<", "decay, amp, null, sparse, self"),
        ("amq", ">>>amq<<<", ", ".join(BUILT_IN)),
        ("amp + amq", "amp + >>>amq<<<", "decay, amp"),
        ("SA", ">>>SA<<<", "sa"),
        ("amp decay", "amp >>>decay<<<", "+, - or the end"),
        ("amp +", "amp +>>><<<", "possible are"),
        ("amp + + decay", "amp + >>>+<<< decay", "possible are"),
        ("* amp", ">>>*<<< amp", "possible are"),
        ("2", "2>>><<<", "* and a name"),
        ("2 amp", "2 >>>amp<<<", "* and a name"),
        ("0.5 + amp", "0.5 >>>+<<< amp", "* and a name"),
        ("2*", "2*>>><<<", "possible are"),
        ("1/0*amp", "1/>>>0<<<*amp", "other than 0"),
        ("1/x*amp", "1/>>>x<<<*amp", "a number"),
        ("amp % decay", "amp >>>%<<< decay", "names, numbers"),
        ("amp + decay;", "amp + decay>>>;<<<", "names, numbers"),
        ("amp(fraction=1)", "amp(>>>fraction<<<=1)", "no options"),
        ("ia(nul=2)", "ia(>>>nul<<<=2)", "null"),
        ("ia(nul=2)", "ia(>>>nul<<<=2)", "fraction, every, positions, route, noise"),
        ("ia(null)", "ia(null>>>)<<<", "expected ="),
        ("ia(null=)", "ia(null=>>>)<<<", "a number"),
        ("ia(null=2", "ia(null=2>>><<<", ", or )"),
        ("ia(", "ia(>>><<<", "an option"),
        ("ia(null=2 amp=1)", "ia(null=2 >>>amp<<<=1)", ", or )"),
        ("ia(null=2,)", "ia(null=2,>>>)<<<", "an option"),
        ("ia(null=1, null=2)", "ia(null=1, >>>null<<<=2)", "given twice"),
        ("ia(1)", "ia(>>>1<<<)", "an option"),
        ("sa)", "sa>>>)<<<", "+, - or the end"),
        ("wm(null=1)", "wm(>>>null<<<=1)", "wm takes amp, decay, fraction"),
        ("fa(amp=1)", "fa(>>>amp<<<=1)", "fa takes no options"),
        ("bp(amp=1)", "bp(>>>amp<<<=1)", "bp takes no options"),
        ("usf(noise=normal)", "usf(>>>noise<<<=normal)", "usf takes no options"),
        ("wm(fraction=2)", ">>>wm<<<(fraction=2)", "at most 1"),
        ("wm(every=1.5)", ">>>wm<<<(every=1.5)", "whole number"),
        ("wm(noise=pink)", ">>>wm<<<(noise=pink)", "normal, uniform"),
        ("wm(noise_std=abc)", ">>>wm<<<(noise_std=abc)", "above 0"),
        ("wm(centre_input=maybe)", ">>>wm<<<(centre_input=maybe)", "true"),
        ("wm(amp=fast)", ">>>wm<<<(amp=fast)", "finite number"),
        ("wm(amp=1e999)", "1e999", ""),
        ("1e999*amp", "1e999", ""),
        ("wm(forward_activation=swish)", ">>>wm<<<(forward_activation=swish)", "relu"),
        ("align(amp=true)", ">>>align<<<(amp=true)", "finite number"),
        ("2*bp", ">>>2<<<*bp", "cannot be multiplied"),
        ("-usf", "usf", "cannot be multiplied"),
        ("amp + bp", "amp >>>+<<< bp", "cannot add amp and bp: bp makes its B of W at each pass"),
        ("bp + usf", "bp >>>+<<< usf", "no R could move it: write one of the two"),
        ("sa + transport(sign)", "sa >>>+<<< transport", "no R could move it: write one of the two"),
        ("sa + rdd", "sa >>>+<<< rdd", "cannot add sa and rdd: rdd has an estimate in W's place"),
        ("rdd + amp", "rdd >>>+<<< amp", "other terms of R have W: use sa for both"),
        ("sa + mkp", "sa >>>+<<< mkp", "cannot add sa and mkp: mkp moves B by measurements"),
        ("mkp + sa", "mkp >>>+<<< sa", "write one of the two, or kp in its place"),
        ("0.5*usf", ">>>0.5<<<", "usf has no coefficients, so it cannot be multiplied: leave the factor out"),
        ("linear(0, 1)*copy", "linear", "copy=linear(0, 1) is not possible"),
        ("2*mkp", ">>>2<<<*mkp", "cannot be multiplied"),
        ("mkp(noise=white)", ">>>mkp<<<", "normal, uniform, codes, lattice"),
        ("wm(every=2) + aa(every=3)", "wm(every=2) >>>+<<< aa(every=3)", "options differ"),
        ("", "empty", "sa"),
        ("   ", "empty", "sa"),
        ("linear*amp", "linear>>>*<<<amp", "linear(first, last, start=0, stop=1)"),
        ("linear(0)*amp", ">>>linear<<<(0)*amp", "linear(first, last, start=0, stop=1)"),
        ("linear(0, 1, 0, 1, 2)*amp", ">>>linear<<<", "linear(first, last, start=0, stop=1)"),
        ("linear(0, 1, end=1)*amp", ">>>linear<<<", "linear(first, last, start=0, stop=1)"),
        ("linear(0, 1, stop=)*amp", "linear(0, 1, stop=>>>)<<<*amp", "a number"),
        ("linear(0, stop=1, 2)*amp", "linear(0, stop=1, >>>2<<<)*amp", "a name"),
        ("linear(0 1)*amp", "linear(0 >>>1<<<)*amp", ", or )"),
        ("linear(0, 1, stop=1, stop=1)*amp", ", >>>stop<<<=1)*amp", "given twice"),
        ("linear(0, 1, stop=(0, 1))*amp", ">>>linear<<<", "finite number"),
        ("linear(0, 1, stop=2)*amp", ">>>linear<<<", "start <= stop"),
        ("exponential(0, 1)*amp", ">>>exponential<<<", "of one sign"),
        ("triangular(0, 1, cycles=0.5)*amp", ">>>triangular<<<", "whole number"),
        ("steps(1)*amp", ">>>steps<<<(1)*amp", "two values"),
        ("steps(1, 2, at=(0.1, 0.2))*amp", ">>>steps<<<", "give 1 in order"),
        ("steps(1, 2, at=())*amp", "at=(>>>)<<<)", "a number"),
        ("steps(1, 2, at=(0.1)*amp", "at=(0.1)>>>*<<<amp", ", or )"),
        ("linear(0, 1)", "linear(0, 1)>>><<<", "* and a name"),
        ("2*linear(0, 1)", "2*linear(0, 1)>>><<<", "* and a name"),
        ("linear(0, 1)*bp", ">>>linear<<<(0, 1)*bp", "cannot be multiplied"),
        ("1e300*linear(1e300, 1)*amp", ">>>1e300<<<*linear", "finite number"),
        ("wm(amp=linear)", "wm(amp=linear>>>)<<<", "linear(first, last"),
        ("wm(fraction=linear(0, 1))", "wm(fraction=>>>linear<<<(0, 1))", "only those take a schedule"),
        ("wm(amp=linear(0, 1)", "wm(amp=linear(0, 1)>>><<<", ", or )"),
        ("linear(0, 1)*amp + linear(1, 0)*amp", "*amp >>>+<<< linear", "amp gets linear(0, 1) + linear(1, 0)"),
        ("linear(0, 1)*wm(amp=linear(1, 0))", ">>>linear<<<(0, 1)*wm", "amp gets linear(0, 1) * linear(1, 0)"),
        ("exponential(1, 2)*amp + amp", ">>>+<<< amp", "a single one"),
        ("__import__('os')", "__import__(>>>'<<<os')", "names, numbers"),
        ("__import__(os)", ">>>__import__<<<(os)", "possible are"),
    ],
)
def test_an_error_points_at_the_place_and_says_what_is_possible(text: str, marked: str, possible: str) -> None:
    with pytest.raises(UntiedError) as error:
        parse(text)
    message = str(error.value)
    assert marked in message and possible in message, message
    assert "\n" not in message


def test_an_error_tells_the_column() -> None:
    with pytest.raises(UntiedError, match="column 7, in"):
        parse("amp + amq")


def test_a_newline_in_a_wrong_text_does_not_break_the_message() -> None:
    with pytest.raises(UntiedError) as error:
        parse("amp +\namq")
    assert "\n" not in str(error.value)


def test_names_do_not_clash() -> None:
    assert len({*NAMED, *PRIMITIVES, *SCHEDULES, "align"}) == len(NAMED) + len(PRIMITIVES) + len(SCHEDULES) + 1
    assert not set(PRIMITIVES) & set(OPTIONS)


@pytest.mark.parametrize(
    "text", [500 * "amp + " + "?", "?" + 500 * " + amp", 9000 * "a", 500 * "amp + " + 900 * "no_such"]
)
def test_a_message_shows_a_part_of_a_long_text(text: str) -> None:
    with pytest.raises(UntiedError) as error:
        parse(text)
    assert len(str(error.value)) < 3000
