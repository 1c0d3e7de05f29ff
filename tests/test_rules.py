"""The algebra of rules, and the named rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import untied
from cases import (
    ESTIMATED,
    ROUTED,
    RULES,
    LayerCase,
    RuleCase,
    aligning,
    by_aligning_rule,
    by_any_rule,
    signals,
)
from untied import UntiedError, rules
from untied.operations import Operations
from untied.primitives.primitive import KNOWN, Combination, amp, copy, decay, null, self_, sparse
from untied.rules import (
    BUILT_IN,
    NAMED,
    ActivationAlignment,
    Alignment,
    Backpropagation,
    FeedbackAlignment,
    InformationAlignment,
    KolenPollack,
    Rule,
    SignSymmetry,
    SymmetricAlignment,
    Transport,
    WeightMirror,
    as_rule,
    counted_cost,
    parse,
    taxonomy,
)
from untied.schedules import Linear

# Every rule of the table


@by_aligning_rule
def test_the_readable_penalty_is_the_sum_over_primitives(rule: RuleCase) -> None:
    r = parse(rule.text)
    s = signals(LayerCase("", lambda: torch.nn.Conv1d(2, 3, 3), (4, 2, 6)))
    s.operations = r.operations
    torch.manual_seed(0)
    together = r.penalty(s, 0.5)
    alone = []
    for p, c in r.coefficients(0.5).items():
        torch.manual_seed(0)
        alone.append(c * p.penalty(s.with_input_operations()))
    torch.testing.assert_close(together, sum(alone))


@by_any_rule
def test_counted_cost_is_the_tables(rule: RuleCase) -> None:
    if rule.products is not None:
        assert counted_cost(parse(rule.text)) == pytest.approx(1 + rule.products / 3)


def test_the_table_has_every_named_rule() -> None:
    assert set(BUILT_IN) <= {r.text.partition("(")[0] for r in [*RULES, *ROUTED, *ESTIMATED]}
    for name, kind in NAMED.items():
        assert type(parse(name)) is kind and parse(name).name == name and issubclass(kind, Rule)


# The named rules


@pytest.mark.parametrize(
    ("rule", "combination"),
    [
        (FeedbackAlignment(), Combination({})),
        (WeightMirror(), amp + decay),
        (InformationAlignment(), amp + decay + null),
        (SymmetricAlignment(), self_ + decay),
        (ActivationAlignment(), amp + sparse),
        (KolenPollack(), copy + 1e-3 * decay),
        (WeightMirror(amp=2, decay=0.5), 2 * amp + 0.5 * decay),
        (InformationAlignment(amp=2.0, decay=1e-3, null=2.0), 2 * amp + 1e-3 * decay + 2 * null),
        (InformationAlignment(sparse=1, decay=0), amp + null + sparse),
        (SymmetricAlignment(self_=3, decay=2), 3 * self_ + 2 * decay),
        (ActivationAlignment(amp=0.1, sparse=0.2), 0.1 * amp + 0.2 * sparse),
        (KolenPollack(decay=0.1), copy + 0.1 * decay),
    ],
    ids=str,
)
def test_named_rules_are_their_primitives(rule: Alignment, combination: Combination) -> None:
    assert rule.combination == combination
    assert rule.aligns == (len(combination) > 0)
    assert rule.copies_gradient == isinstance(rule, KolenPollack) == (copy in combination)


def test_feedback_alignment_has_no_R() -> None:
    assert not FeedbackAlignment().aligns and not WeightMirror(amp=0, decay=0).aligns
    assert rules.FeedbackAlignment().combination == Combination({})


def test_transport_rules_are_functions_of_W() -> None:
    torch.manual_seed(0)
    W = torch.randn(30, 40)
    assert Backpropagation().backward_weight(W, Backpropagation().magnitude(W)) is W
    std = W.std(correction=0)
    usf, frsf, brsf = (SignSymmetry(kind) for kind in SignSymmetry.MAGNITUDES)
    torch.testing.assert_close(usf.backward_weight(W, usf.magnitude(W)), W.sign() * std)
    fixed = frsf.magnitude(W)
    assert torch.equal(frsf.backward_weight(W, fixed), frsf.backward_weight(W, fixed))
    assert not torch.equal(brsf.backward_weight(W, brsf.magnitude(W)), brsf.backward_weight(W, brsf.magnitude(W)))
    for rule in (frsf, brsf):  # |N(0, s²)|: second moment s², n = 1200, standard error √(2/1200) = 4 %
        B = rule.backward_weight(W, rule.magnitude(W))
        assert torch.equal(B.sign(), W.sign())
        assert abs(B.square().mean() / std**2 - 1) < 0.2
    # After W has moved the magnitudes stay and the signs follow
    assert torch.equal(frsf.backward_weight(-3 * W, fixed), -frsf.backward_weight(W, fixed))
    with pytest.raises(NotImplementedError):
        Transport().backward_weight(W, None)


def test_a_transport_rule_of_ones_own() -> None:
    class Scaled(Transport):
        name = "scaled"

        def backward_weight(self, W: torch.Tensor, magnitude: torch.Tensor | None) -> torch.Tensor:
            return 2 * W

        def __str__(self) -> str:
            return self.name

    layer = torch.nn.Linear(4, 3)
    untied.untie_(layer, Scaled())
    x = torch.ones(2, 4, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * torch.ones(2, 3) @ layer.weight.detach())


# The algebra


def test_rules_multiply_and_add() -> None:
    assert (SymmetricAlignment() * 2).combination == 2 * self_ + 2 * decay
    assert (0.5 * ActivationAlignment()).combination == 0.5 * amp + 0.5 * sparse
    assert (SymmetricAlignment() + ActivationAlignment()).combination == self_ + decay + amp + sparse
    assert (SymmetricAlignment() + null).combination == self_ + decay + null
    assert (null + SymmetricAlignment()).combination == self_ + decay + null
    assert (amp + decay + WeightMirror()).combination == 2 * amp + 2 * decay
    assert (FeedbackAlignment() + amp).combination == Combination({amp: 1.0})
    assert type(SymmetricAlignment() * 1) is Alignment


def test_rules_subtract_as_their_text_does() -> None:
    wanted = parse("sa - amp").combination
    assert wanted == self_ + decay - amp
    assert (SymmetricAlignment() - amp).combination == wanted
    assert (amp - SymmetricAlignment()).combination == amp - self_ - decay
    assert (-SymmetricAlignment()).combination == -self_ - decay


def test_options_go_with_the_sum() -> None:
    noisy = WeightMirror(noise="normal", noise_std=0.5, fraction=0.5)
    for rule in (noisy * 2, noisy + null, null + noisy, noisy + ActivationAlignment(), SymmetricAlignment() + noisy):
        assert (rule.operations, rule.fraction) == (noisy.operations, 0.5)
    assert (noisy + WeightMirror(noise="normal", noise_std=0.5, fraction=0.5)).fraction == 0.5


def test_different_options_do_not_add() -> None:
    with pytest.raises(UntiedError, match="options differ"):
        WeightMirror(noise="normal") + ActivationAlignment(fraction=0.5)
    with pytest.raises(UntiedError, match="options differ"):
        WeightMirror(every=2) + ActivationAlignment(every=3)


def test_kolen_pollack_adds_and_multiplies() -> None:
    assert (2 * KolenPollack()).combination == 2 * copy + 2e-3 * decay
    assert (KolenPollack() + amp).combination == copy + 1e-3 * decay + amp == (amp + KolenPollack()).combination
    assert (SymmetricAlignment() + KolenPollack()).combination == self_ + 1.001 * decay + copy
    assert (KolenPollack() + amp).copies == 1 and (2 * KolenPollack()).copies == 2 and SymmetricAlignment().copies == 0


@pytest.mark.parametrize("rule", ["sa(noise=normal)", "copy + align(decay=1, fraction=0.5)", "wm(noise_std=2)",
                                  "align(copy=1, every=2)", "sa(positions=mean)"])  # fmt: skip
def test_an_option_that_would_change_nothing_is_an_error(rule: str) -> None:
    with pytest.raises(UntiedError, match=r"would change nothing in .*; leave it out"):
        untied.untie_(torch.nn.Linear(2, 2), rule)


def test_schedules_are_read_at_the_progress_given() -> None:
    rule = WeightMirror(amp=lambda t: 2 * t, decay=0.5)
    assert {p: float(c) for p, c in rule.coefficients(0.25).items()} == {amp: 0.5, decay: 0.5}
    assert {p: float(c) for p, c in rule.coefficients(0.0).items()} == {decay: 0.5}
    with pytest.raises(UntiedError, match="progress="):
        rule.coefficients(None)
    doubled = rule * 2 + null * (lambda t: t)
    assert {p: float(c) for p, c in doubled.coefficients(0.5).items()} == {amp: 2.0, decay: 1.0, null: 0.5}
    assert {p: float(c) for p, c in (rule * (lambda t: t)).coefficients(0.5).items()} == {amp: 0.5, decay: 0.25}


def test_equal_rules_are_equal() -> None:
    assert WeightMirror() == WeightMirror() and hash(WeightMirror()) == hash(WeightMirror())
    assert WeightMirror() != WeightMirror(amp=2) and WeightMirror() != Alignment({"amp": 1, "decay": 1})
    assert WeightMirror(fraction=0.5) != WeightMirror() and WeightMirror(reverse=True) != WeightMirror()
    assert SignSymmetry("uniform") == parse("usf") != SignSymmetry("fixed") and SignSymmetry() != Backpropagation()
    assert Alignment({amp: 1.0}) == Alignment({"amp": 1}) == as_rule(amp) == as_rule(1 * amp)


# What cannot be


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: Alignment({"amq": 1}), ["'amq'", "decay, amp, null, sparse, self"]),
        (lambda: Alignment({"amp": "1"}), ["amp='1'", "finite number"]),
        (lambda: Alignment({"amp": None}), ["amp=None", "finite number"]),
        (lambda: Alignment({"amp": True}), ["amp=True", "finite number"]),
        (lambda: Alignment({"amp": float("nan")}), ["nan", "finite number"]),
        (lambda: Alignment({"amp": float("inf")}), ["inf", "finite number"]),
        (lambda: WeightMirror(amp=[1]), ["[1]", "finite number"]),
        (lambda: WeightMirror(fraction=0), ["fraction=0", "at most 1"]),
        (lambda: WeightMirror(fraction=1.5), ["fraction=1.5", "at most 1"]),
        (lambda: WeightMirror(fraction="1/8"), ["fraction='1/8'", "at most 1"]),
        (lambda: WeightMirror(every=0), ["every=0", "whole number"]),
        (lambda: WeightMirror(every=1.5), ["every=1.5", "whole number"]),
        (lambda: WeightMirror(positions="max"), ["positions='max'", "sum or mean"]),
        (lambda: WeightMirror(centre=True), ["'centre'", "centre_input"]),
        (lambda: WeightMirror(null=1), ["'null'", "amp"]),
        (lambda: WeightMirror(noise="pink"), ["'pink'", "normal, uniform, codes"]),
        (lambda: SignSymmetry("big"), ["'big'", "uniform, fixed, redrawn"]),
        (lambda: as_rule("nonsense"), ["nonsense", "bp, fa"]),
        (lambda: as_rule(3), ["3 is not a rule", "'sa'"]),
        (lambda: as_rule(None), ["None is not a rule"]),
        (lambda: as_rule(SymmetricAlignment), ["SymmetricAlignment()"]),
        (lambda: as_rule({"amp": 1}), ["is not a rule"]),
        (lambda: rules.named("wm", null=1), ["wm has no option 'null'", "amp, decay"]),
        (lambda: rules.named("bp", amp=1), ["bp has no option 'amp'", "none"]),
        (lambda: rules.named("fa", amp=1), ["fa has no option 'amp'", "none"]),
        (lambda: rules.named("usf", amp=1), ["usf has no option 'amp'"]),
    ],
)
def test_mistakes_are_told_in_one_line(make: Callable[[], Rule], parts: list[str]) -> None:
    with pytest.raises(UntiedError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("given", [amp, amp + decay, "amp + decay", WeightMirror(), "wm", "bp"], ids=str)
def test_as_rule_takes_every_form(given: Any) -> None:
    assert isinstance(as_rule(given), Rule)


# Table 2


def test_taxonomy_has_a_row_for_each_named_rule() -> None:
    rows = {row["name"]: row for row in taxonomy()}
    assert list(rows) == list(NAMED)
    for name, row in rows.items():
        rule = parse(name)
        assert row["local"] == rule.local and row["rule"] == type(rule).__name__ and row["about"]
        assert row["kind"] == rule.motion
        assert row["cost"] == counted_cost(rule)
        assert set(row["primitives"]) <= set(KNOWN)
        assert all(KNOWN[p].formula in row["formula"] for p in row["primitives"])


@pytest.mark.parametrize(
    ("rule", "cost"),
    [("bp", 1), ("fa", 1), ("sa", 1), ("kp", 1), ("usf", 1), ("wm", 4 / 3), ("aa", 5 / 3), ("ia", 5 / 3),
     ("wm(noise=normal)", 5 / 3), ("aa(fraction=0.125)", 1 + 2 / 24), ("aa(every=4)", 1 + 2 / 12),
     ("sa(noise=normal)", 1)],
)  # fmt: skip
def test_counted_costs_are_the_designs(rule: str, cost: float) -> None:
    assert counted_cost(parse(rule)) == pytest.approx(cost)


# The reference code's letters


@pytest.mark.parametrize(
    ("name", "flags", "text"),
    [
        ("feedback", {}, "fa"),
        ("none", {}, "bp"),
        # its defaults, in this library's units
        ("symmetric", {}, "sa(self=2e-3, decay=2e-3)"),
        ("activation", {}, "aa(amp=2e-3, sparse=2e-3)"),
        ("mirror", {}, "wm(amp=1e-3, decay=2e-3)"),
        ("information", {}, "ia(amp=2e-3, null=2e-3, decay=2e-3)"),
        ("kolen_pollack", {}, "kp(decay=2e-3)"),
        # its letters, whose squares have no half
        ("mirror", {"alpha": 0.5, "beta": 0.25}, "wm(decay=1, amp=0.25)"),
        ("symmetric", {"alpha": 0.5, "beta": 0.25}, "sa(decay=1, self=0.25)"),
        ("activation", {"alpha": 0.5, "beta": 0.25}, "aa(sparse=1, amp=0.25)"),
        ("information", {"alpha": 0.5, "beta": 0.25, "gamma": 0.125}, "ia(amp=0.5, null=0.5, decay=0.25)"),
        ("kolen_pollack", {"alpha": 0.5}, "kp(decay=1)"),
        ("wm", {"alpha": 0.5, "beta": 0.25}, "wm(decay=1, amp=0.25)"),
        ("mirror", {"alpha": Linear(0, 0.5), "beta": Linear(1, 0)}, "wm(decay=linear(0, 1), amp=linear(1, 0))"),
        # its flags
        ("mirror", {"input_distribution": "normal", "input_stddev": 0.5},
         "wm(amp=1e-3, decay=2e-3, noise=normal, noise_std=0.5)"),
        ("mirror", {"input_distribution": "uniform"}, "wm(amp=1e-3, decay=2e-3, noise=uniform)"),
        ("mirror", {"input_distribution": None}, "wm(amp=1e-3, decay=2e-3)"),
        *[("mirror", {flag: True}, f"wm(amp=1e-3, decay=2e-3, {ours}=true)") for flag, ours in {
            "use_bias_forward": "forward_bias", "use_bias_backward": "backward_bias",
            "batch_center_backward_input": "batch_centre_backward_input", "center_input": "centre_input",
            "normalize_input": "normalise_input", "batch_center_forward_output": "batch_centre_forward_output",
            "center_forward_output": "centre_forward_output", "normalize_forward_output": "normalise_forward_output",
            "center_backward_output": "centre_backward_output",
            "normalize_backward_output": "normalise_backward_output", "reconstruction_reversal": "reverse",
            "reconstruction_amp": "amp_on_reconstruction", "update_forward": "update_forward"}.items()],
        ("mirror", {"activation_forward": True, "activation_fn_override": "relu"},
         "wm(amp=1e-3, decay=2e-3, forward_activation=relu)"),
        ("mirror", {"activation_backward": True, "activation_fn_override": "tanh"},
         "wm(amp=1e-3, decay=2e-3, backward_activation=tanh)"),
        ("mirror", {"activation_backward": False}, "wm(amp=1e-3, decay=2e-3)"),
        ("information", {"use_sparse": True}, "ia(amp=2e-3, null=2e-3, decay=0, sparse=2e-3)"),
        ("information", {"use_sparse": True, "gamma": 0.5}, "ia(amp=2e-3, null=2e-3, decay=0, sparse=1)"),
        ("information", {"use_sparse": False}, "ia(amp=2e-3, null=2e-3, decay=2e-3)"),
    ],
)  # fmt: skip
def test_from_reference(name: str, flags: dict[str, Any], text: str) -> None:
    assert rules.from_reference(name, **flags) == parse(text)


def test_reference_penalties_are_the_references_formulas() -> None:
    """As its code has them: sums of squares without the half, letters as in ``facts``: the same number."""
    s = signals(LayerCase("", lambda: torch.nn.Linear(4, 3), (5, 4)))
    a, b, c = 0.3, 0.5, 0.7
    p, y, back = s.x @ s.B.T, s.x @ s.W.T, s.x @ s.W.T @ s.B
    wanted = {
        "symmetric": a * s.B.square().sum() - b * (s.B * s.W).sum(),
        "mirror": a * s.B.square().sum() - b * (p * y).sum(),
        "activation": a * p.square().sum() - b * (p * y).sum(),
        "information": -a * (p * y).sum() + b * back.square().sum() + c * s.B.square().sum(),
        "kolen_pollack": a * s.B.square().sum(),
    }
    for name, R in wanted.items():
        letters = {"alpha": a, "beta": b, "gamma": c}
        has = {"kolen_pollack": 1, "information": 3}.get(name, 2)
        rule = rules.from_reference(name, **dict(list(letters.items())[:has]))
        assert isinstance(rule, Alignment)
        torch.testing.assert_close(rule.penalty(s), R, msg=name)


def test_every_flag_of_the_reference_is_an_operation_here() -> None:
    from untied.rules.reference import _REFERENCE_FLAGS

    assert set(_REFERENCE_FLAGS.values()) == set(Operations.__dataclass_fields__) - {"normalised"}  # which is ours


@pytest.mark.parametrize(
    ("name", "flags", "parts"),
    [
        ("mirrors", {}, ["'mirrors'", "feedback, mirror, information"]),
        ("mirror", {"gamma": 1}, ["'gamma'", "alpha, beta"]),
        ("mirror", {"centre_input": True}, ["'centre_input'", "center_input"]),
        ("feedback", {"alpha": 1}, ["'alpha'"]),
        ("none", {"center_input": True}, ["'center_input'"]),
        ("mirror", {"use_sparse": True}, ["use_sparse", "information"]),
        ("mirror", {"activation_forward": True}, ["activation_forward", "activation_fn_override"]),
        ("mirror", {"alpha": "x"}, ["alpha", "number"]),
        ("mirror", {"alpha": lambda t: t}, ["alpha", "a number or a schedule"]),
    ],
)
def test_mistakes_with_the_reference(name: str, flags: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UntiedError) as error:
        rules.from_reference(name, **flags)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_aligning_rows_are_those_with_an_R() -> None:
    assert {"fa", "bp", "usf"}.isdisjoint(r.text for r in aligning())
    assert {"kp", "sa", "wm", "aa", "ia"} <= {r.text for r in aligning()}
