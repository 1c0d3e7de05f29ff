"""Coefficients that are measured in the layer, and shares that are divided by activity."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from cases import LayerCase, build_untied, by_layer, geometry_of, small_batch, small_net, step
from untied import UntiedError
from untied.dynamics import layer, scalar
from untied.geometry import DENSE, Geometry
from untied.operations import Operations, Signals, over_mean_square
from untied.primitives.primitive import LEAKS, amp, decay, null, sparse
from untied.rules import Alignment, InformationAlignment, KolenPollack, SymmetricAlignment, WeightMirror, parse
from untied.schedules import Linear
from untied.statistics import STATISTICS, Statistic, mean_power, power

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer


# What is measured


@by_layer
def test_what_each_weight_sees_is_the_correlation_with_ones(case: LayerCase) -> None:
    """The fast way, one output channel of one summed example, against the readable one."""
    untied_layer, x = build_untied(case)
    g, z = geometry_of(untied_layer, x, **case.call), x.detach().square()
    W = untied_layer.weight.detach()
    y = g.project(x.detach(), W)
    readable = Geometry.per_weight(g, z, y)
    torch.testing.assert_close(g.per_weight(z, y).expand_as(W), readable)
    torch.testing.assert_close(readable, g.correlate(z, torch.ones_like(y)))


def test_the_leak_is_the_part_of_sparse_in_which_a_weight_meets_itself() -> None:
    torch.manual_seed(0)
    x, W, B = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 4), (3, 4), (3, 4)))
    s = Signals(x, W, B, DENSE, Operations())
    alone = [Signals(x, W, B * (torch.arange(4) == j), DENSE, Operations()) for j in range(4)]
    wanted = sum(sparse.penalty(a) for a in alone)
    torch.testing.assert_close(LEAKS["power"].penalty(s), wanted)


def test_nothing_is_stored() -> None:
    model, plain = small_net("wm(decay=balanced, normalised=true)"), small_net("wm")
    step(model, *small_batch())
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert {n for n, _ in model.named_buffers()} == {n for n, _ in plain.named_buffers()}


# The coefficient


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (WeightMirror(decay="balanced"), "wm(decay=power)"),
        (WeightMirror(amp=2.0, decay="balanced"), "wm(amp=2, decay=2*power)"),
        (WeightMirror(decay=0.9 * mean_power), "wm(decay=0.9*mean_power)"),
        (WeightMirror(amp=Linear(0, 1), decay="balanced"), "wm(amp=linear(0, 1), decay=linear(0, 1)*power)"),
        (Alignment(amp + power * decay), "amp + power*decay"),
        (Alignment(amp - 0.5 * power * decay + null), "amp + -0.5*power*decay + null"),
        (InformationAlignment(decay="balanced", noise="normal"), "ia(decay=power, noise=normal)"),
        (Alignment({"amp": 2, "decay": "balanced"}, every=2), "align(amp=2, decay=2*power, every=2)"),
        (2 * WeightMirror(decay="balanced"), "2*amp + 2*power*decay"),
    ],
    ids=str,
)
def test_a_statistic_is_written_and_read_back(rule: Alignment, text: str) -> None:
    assert str(rule) == text and parse(text) == rule
    assert hash(parse(text)) == hash(rule) and pickle.loads(pickle.dumps(rule)) == rule == copy.deepcopy(rule)
    assert rule.needs_data and rule.local


def test_balanced_is_amp_times_power() -> None:
    assert parse("wm(amp=0.3, decay=balanced)") == WeightMirror(amp=0.3, decay=0.3 * power)
    assert parse("wm(decay=balanced)") != parse("wm(decay=mean_power)") != parse("wm")


def test_statistics_multiply_and_add() -> None:
    assert 2 * power == power * 2 == Statistic("power", 2.0) != 2 * mean_power
    assert -power == -1 * power and str(-power) == "-1*power" and repr(0.5 * power) == "0.5*power"
    assert Linear(0, 1) * power * 2 == Statistic("power", Linear(0, 2))
    assert 0 * power == 0.0 and power * decay + power * decay == 2 * power * decay
    assert power * decay - power * decay == 0 * decay
    assert power.formula == STATISTICS["power"] and untied.schedules.parse("1/2*power") == 0.5 * power
    assert WeightMirror(decay=Linear(0, 1) * power).coefficients(0.25)[LEAKS["power"]] == 0.25


@pytest.mark.parametrize(
    ("attempt", "parts"),
    [
        (lambda: Statistic("energy"), ["'energy'", "power, mean_power"]),
        (lambda: power * mean_power, ["power times mean_power", "leave one out"]),
        (lambda: power * decay + decay, ["power and 1 do not add"]),
        (lambda: power * decay + mean_power * decay, ["power and mean_power do not add"]),
        (lambda: WeightMirror(amp=power), ["amp=power", "decay alone"]),
        (lambda: power * SymmetricAlignment(), ["self=power", "decay alone"]),
        (lambda: parse("ia(null=0.5*power)"), ["null=0.5*power", "decay alone"]),
        (lambda: parse("power*null"), ["null=power", "decay alone"]),
        (lambda: parse("wm(decay=power*mean_power)"), ["expected , or )"]),
        (lambda: parse("wm(decay=powr)"), ["'powr'", "finite number", "balanced"]),
        (lambda: parse("wm(amp=0, decay=balanced)"), ["balances amp"]),
        (lambda: parse("sa(decay=balanced)"), ["balances amp"]),
        (lambda: parse("wm(amp=balanced)"), ["amp='balanced'"]),
        (lambda: KolenPollack(decay=power), ["kp", "give a number"]),
        (lambda: untied.schedules.value(power, 0.5), ["power", "measured in each layer"]),
        (lambda: WeightMirror(normalised=1), ["normalised=1", "true or false"]),
    ],
)
def test_mistakes_are_told_in_one_line(attempt: Callable[[], Any], parts: list[str]) -> None:
    with pytest.raises(UntiedError) as error:
        attempt()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# Where B rests


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """R's gradient in the first backward weight."""
    model.zero_grad()
    with untied.record(model) as tape:
        model(x)
    tape.penalty().backward()
    B = untied.parameter_groups(model)[1][0]
    assert B.grad is not None
    return B.grad


@pytest.mark.parametrize("rule", ["wm(amp=0.7, decay=balanced)", "wm(decay=mean_power)"])
@pytest.mark.parametrize("s", [0.1, 1.0, 20.0])
def test_balanced_weight_mirror_rests_at_W_for_white_input_of_any_size(rule: str, s: float) -> None:
    torch.manual_seed(0)
    white = s * math.sqrt(6) * torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    model = nn.Linear(6, 4).double()
    untied.untie_(model, rule, init="copy")
    assert gradient(model, white).abs().max() < 1e-12 * s**2
    with torch.no_grad():
        model.backward_weight.add_(1.0)  # type: ignore[operator]
    torch.testing.assert_close(
        gradient(model, white), torch.full((4, 6), (0.7 if "0.7" in rule else 1) * s**2).double()
    )


def test_with_power_inputs_may_differ_in_size() -> None:
    x = math.sqrt(4) * torch.diag(torch.tensor([2.0, 1.0, 0.3, 0.0], dtype=torch.float64))
    for rule, rests in (("wm(decay=power)", True), ("wm(decay=mean_power)", False)):
        model = nn.Linear(4, 3).double()
        untied.untie_(model, rule, init="copy")
        assert (gradient(model, x).abs().max() < 1e-12) == rests


@pytest.mark.parametrize("positions", ["sum", "mean"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(2, 3, 3, padding=1),  # on 2 x 2, every tap but the middle one looks beyond the image
        lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2),
        lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1),
    ],
)
def test_with_noise_input_every_tap_rests_at_W(make: Callable[[], nn.Module], positions: str) -> None:
    """The mean gradient at B = W is zero, padding or not, with a standard error of 1 / √(n)."""
    torch.manual_seed(0)
    model = make().double()
    rule = WeightMirror(decay="balanced", noise="normal", noise_std=0.5, positions=positions)
    untied.untie_(model, rule, init="copy")
    images = torch.zeros(20_000, model.in_channels, 2, 2, dtype=torch.float64)  # type: ignore[arg-type]
    g = gradient(model, images)
    error = 0.25 * model.weight.norm() / math.sqrt(len(images))  # type: ignore[operator]
    assert g.abs().max() < 5 * error * (9 if positions == "sum" else 1)
    plain = WeightMirror(decay=0.25, noise="normal", noise_std=0.5, positions="mean")
    model = untied.tie_(model)
    untied.untie_(model, plain, init="copy")
    assert gradient(model, images).abs().max() > 10 * error  # a number forgets the padding


@pytest.mark.parametrize(("decay", "own"), [("power", -1), (0.49, 1)])
@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("lr", [0.2, 0.05])
def test_variance_of_the_estimate(decay: str | float, own: int, n: int, lr: float) -> None:
    """E‖B − W‖² / ‖W‖² = (i ∓ 1) / n · ρ / (2 − ρ) with ρ = lr · amp · s², one position: docs/theory.md."""
    torch.manual_seed(0)
    i, o, s = 30, 40, 0.7
    rule = parse(f"wm(decay={decay}, noise=normal, noise_std={s}, positions=mean)")
    assert isinstance(rule, Alignment)
    W = torch.randn(o, i, dtype=torch.float64)
    B, x, c = W.clone(), torch.zeros(n, i, dtype=torch.float64), rule.coefficients(None)
    squares = []
    for t in range(1200):
        g = rule.data_terms(Signals(x, W, B, DENSE, rule.operations), c, 1 / n)[1] + rule.weight_terms(W, B, c)[1]
        B = B - lr * g
        if t >= 200:
            squares.append(float((B - W).square().sum() / W.square().sum()))
    rho = lr * s**2
    assert sum(squares) / len(squares) == pytest.approx((i + own) / n * rho / (2 - rho), rel=0.08)


# Dynamics


@pytest.mark.parametrize("x", [0.1, 1.0, -30.0])
@pytest.mark.parametrize("statistic", ["power", "mean_power"])
def test_balanced_weight_mirror_is_the_stable_line_at_every_input(x: float, statistic: str) -> None:
    """Section 4: the symmetric eigenvalue is decay − amp x², here zero by construction."""
    for factor, regime in ((0.9, "diverging"), (1.0, "stable line"), (1.1, "collapsing")):
        d = scalar(f"wm(amp=2, decay={2 * factor:g}*{statistic})", x)
        assert d.regime == regime and d.eigenvalues is not None
        assert d.eigenvalues == pytest.approx((2 * (factor - 1) * x**2, 2 * (factor + 1) * x**2))
        assert d.following_rate() == pytest.approx(2 * factor * x**2)
    assert scalar("wm(decay=balanced, noise=normal, noise_std=3)").regime == "stable line"


def test_balanced_weight_mirror_of_a_layer() -> None:
    torch.manual_seed(0)
    W, mix = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    C = mix @ mix.T
    found = layer("wm(amp=2, decay=balanced)", W, C)
    torch.testing.assert_close(found.rates, 2 * C.diag().expand(3, 5))
    torch.testing.assert_close(found.fixed_point, W @ C / C.diag())
    even = layer("wm(amp=2, decay=2*mean_power)", W, C)
    torch.testing.assert_close(even.fixed_point, W @ C / C.diag().mean())
    torch.testing.assert_close(layer("wm(decay=balanced)", W, C.diag().diag()).fixed_point, W)
    noisy = layer("wm(decay=balanced, noise=normal, noise_std=0.3)", torch.randn(4, 3, 3, 3), positions=64)
    torch.testing.assert_close(noisy.fixed_point, noisy.W)
    assert noisy.rates.max() == pytest.approx(64 * 0.09)


def test_where_the_dynamics_stop() -> None:
    for ask in (
        lambda: scalar("ia(normalised=true)"),
        lambda: layer("aa(normalised=true)", torch.eye(2), torch.eye(2)),
    ):
        with pytest.raises(UntiedError, match="normalised divides each example"):
            ask()
    mix = torch.tensor([[1.0, 0.5], [0.5, 2.0]])
    with pytest.raises(UntiedError, match="does not separate"):
        layer("amp + power*decay + sparse", torch.eye(2), mix)


# Normalised


@pytest.mark.parametrize("rule", ["wm", "aa", "ia", "null", "wm(decay=balanced)", "ia(decay=0, reverse=true)"])
def test_normalised_gradients_do_not_know_the_size_of_activity(rule: str) -> None:
    """Each example may be as large as it likes; with the sum over positions replaced by their mean, so may images."""
    r = parse(rule)
    assert isinstance(r, Alignment)
    r = Alignment(r.combination - r.combination.get(decay, 0.0) * decay if rule in ("wm", "ia") else r.combination,
                  normalised=True, positions="mean", **r.options)  # fmt: skip
    torch.manual_seed(0)
    model = nn.Conv2d(2, 3, 3, bias=False).double()
    untied.untie_(model, r)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    sizes = torch.tensor([1e-3, 0.1, 1.0, 30.0, 1e4], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(gradient(model, sizes * x), gradient(model, x).clone())
    if rule != "ia(decay=0, reverse=true)":
        alone = torch.stack([gradient(model, x[i : i + 1]).clone() for i in range(5)]).mean(0)
        torch.testing.assert_close(gradient(model, x), alone)


def test_normalised_activation_alignment_is_normalised_lms() -> None:
    """ΔB = (y − B x) xᵀ / (‖x‖² / i), of one example."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    untied.untie_(model, "aa(normalised=true)")
    x = torch.randn(1, 4, dtype=torch.float64)
    W, B = model.weight.detach(), model.backward_weight.detach()  # type: ignore[operator]
    torch.testing.assert_close(-gradient(model, x), ((W - B) @ x.T) @ x / x.square().mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_examples_of_zeros_stay_zeros(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype)
    torch.testing.assert_close(over_mean_square(x, x), torch.tensor([[0.0, 0.0], [0.24, 0.32]], dtype=dtype))
    model = nn.Linear(2, 3).to(dtype)
    untied.untie_(model, "ia(decay=balanced, normalised=true)")
    assert gradient(model, torch.zeros(4, 2, dtype=dtype)).abs().max() == 0


@pytest.mark.parametrize("rule", ["wm(decay=balanced)", "ia(normalised=true)", "wm(decay=balanced, noise=normal)"])
def test_under_autocast(rule: str) -> None:
    wanted, got = small_net(rule, torch.float32), small_net(rule, torch.float32)
    x, labels = small_batch(dtype=torch.float32)
    step(wanted, x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(got, x, labels)
    for (name, a), (_, b) in zip(wanted.named_parameters(), got.named_parameters(), strict=True):
        if "backward" in name and "noise" not in rule:
            assert b.grad is not None and b.grad.dtype == torch.float32
            assert untied.metrics.angle(a.grad, b.grad) < 5, name  # type: ignore[arg-type]
