"""The dynamics of section 4: the scalar flow of any rule against the paper's words, a layer's against simulation."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from untied.dynamics import REGIMES, ScalarDynamics, layer, scalar, time_constant
from untied.dynamics.polynomials import common_zeros, evaluate, interpolate
from untied.errors import UntiedError
from untied.geometry import DENSE
from untied.operations import Operations, Signals
from untied.primitives.primitive import PRIMITIVES, Correlation, Primitive, amp, decay, null
from untied.rules import Alignment

INPUTS = [0.3, 1.0, -1.7]
GRID = torch.linspace(-2, 2, 9, dtype=torch.float64)
W_GRID, B_GRID = torch.meshgrid(GRID, GRID, indexing="ij")


def gradient_flow(rule: Alignment, x: float, w: float, b: float) -> list[float]:
    """The symmetrised gradient flow by the library's own ``update_forward``: minus R's gradient in w and in b."""
    at = [torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in (w, b)]
    do = Operations(update_forward=True)
    R = Alignment(rule.combination, update_forward=True).penalty(
        Signals(torch.tensor([[x]], dtype=torch.float64), *at, DENSE, do)
    )
    return [-float(g) for g in torch.autograd.grad(R, at, allow_unused=True, materialize_grads=True)]


# The scalar flow


@pytest.mark.parametrize("x", INPUTS)
@pytest.mark.parametrize(
    "text", [*PRIMITIVES, "wm(decay=0.3)", "ia(amp=2, null=0.4)", "amp + 0.5*decay + 0.25*null + 2*sparse + self"]
)
def test_exchanging_w_and_b_is_the_gradient_in_both(text: str, x: float) -> None:
    """Our symmetrisation is the paper's for every primitive of Table 1: weight decay on w, gradient in both weights."""
    rule = untied.rules.parse(text)
    assert isinstance(rule, Alignment)
    d = scalar(rule, x)
    for w, b in ((0.3, -1.2), (1.0, 0.0), (-0.4, -0.9)):
        got = [float(v) for v in d.flow(w, b)]
        assert got == pytest.approx(gradient_flow(rule, x, w, b))


def test_flow_takes_points_of_any_shape_and_jacobian_is_its_derivative() -> None:
    d = scalar("ia(decay=0.3)", 1.3)
    dw, db = d.flow(W_GRID, B_GRID)
    assert dw.shape == db.shape == W_GRID.shape and dw.dtype == torch.float64
    assert [float(v) for v in d.flow(2, torch.tensor(0.5))] == [float(v) for v in d.flow(2.0, 0.5)]
    assert d.flow(torch.ones(3, 1), torch.zeros(2))[0].shape == (3, 2)
    e = 1e-6
    columns = [
        [(p - m) / (2 * e) for p, m in zip(d.flow(0.4 + i, -0.7 + j), d.flow(0.4 - i, -0.7 - j), strict=True)]
        for i, j in ((e, 0), (0, e))
    ]
    wanted = torch.tensor(columns, dtype=torch.float64).T
    torch.testing.assert_close(d.jacobian(0.4, -0.7), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("x", INPUTS)
@pytest.mark.parametrize("factor", [0.1, 0.999, 1.0, 1.001, 7.0])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_equation_1_weight_mirror(x: float, factor: float, alpha: float) -> None:
    """The skew eigenvalue is strictly positive; the symmetric one's sign is that of decay − amp·x²."""
    lam = factor * alpha * x**2
    d = scalar(untied.rules.WeightMirror(amp=alpha, decay=lam), x)
    assert d.A is not None and d.eigenvalues is not None and d.is_linear
    wanted = torch.tensor([[lam, -alpha * x**2], [-alpha * x**2, lam]], dtype=torch.float64)
    torch.testing.assert_close(d.A, wanted)
    symmetric, skew = d.eigenvalues
    assert skew > 0
    assert symmetric == pytest.approx(lam - alpha * x**2) and skew == pytest.approx(lam + alpha * x**2)
    assert (symmetric > 0, symmetric < 0) == (factor > 1, factor < 1)
    assert d.regime == ("collapsing" if factor > 1 else "diverging" if factor < 1 else "stable line")
    for value, vector in zip(d.eigenvalues, ([1.0, 1.0], [1.0, -1.0]), strict=True):
        v = torch.tensor(vector, dtype=torch.float64)
        torch.testing.assert_close(d.A @ v, value * v)


@pytest.mark.parametrize("x", INPUTS)
@pytest.mark.parametrize("alpha", [0.5, 3.0])
@pytest.mark.parametrize("rule", ["sa", "aa"])
def test_section_5_symmetric_and_activation_alignment(rule: str, alpha: float, x: float) -> None:
    """With α = β, A is positive semi-definite and the symmetric eigenvalue is zero: a stable line."""
    d = scalar(alpha * untied.rules.parse(rule), x)  # type: ignore[operator]
    assert d.A is not None and d.eigenvalues is not None
    assert torch.linalg.eigvalsh(d.A).min() > -1e-12
    assert d.eigenvalues[0] == 0 and d.eigenvalues[1] > 0
    assert d.regime == "stable line" and d.has_line and d.fixed_points == ()


def test_section_5_needs_equal_coefficients() -> None:
    assert scalar("sa(self=2)").regime == "diverging"
    assert scalar("aa(amp=0.5)").regime == "collapsing"


def test_the_noise_of_section_4_acts_by_its_variance() -> None:
    """x ~ N(0, σ²) with σ² = λ makes equation (1) stable; R depends on x by x²."""
    d = scalar("wm(decay=0.25, noise=normal, noise_std=0.5)")
    assert d.x == 0.5 and d.regime == "stable line"
    torch.manual_seed(0)
    x = 0.5 * torch.randn(4000, dtype=torch.float64)
    w, b = 0.7, -0.3
    rule = untied.rules.parse("ia(decay=0.25)")
    assert isinstance(rule, Alignment)
    mean = torch.tensor([gradient_flow(rule, float(v), w, b) for v in x]).mean(0)
    wanted = scalar(rule, float(x.square().mean().sqrt())).flow(w, b)
    assert mean.tolist() == pytest.approx([float(v) for v in wanted])


# Fixed points


@pytest.mark.parametrize(("amp", "decay", "null", "x"), [(1, 0.5, 1, 1), (2, 0.1, 1e-5, 0.7), (1e-3, 1e-3, 2e-3, 30),
                                                         (1, 0.4, 1e4, 2), (1, 0.99, 1, 1)])  # fmt: skip
def test_information_alignment_has_bounded_symmetric_fixed_points(amp: float, decay: float, null: float, x: float):  # type: ignore[no-untyped-def]
    """b = w = ± √((amp x² − decay) / (null x²)), stable with rates 2 (amp x² − decay) along u and 2 decay along v."""
    d = scalar(untied.rules.InformationAlignment(amp=amp, decay=decay, null=null), x)
    assert d.A is None and d.eigenvalues is None and not d.is_linear
    excess = amp * x**2 - decay
    at = math.sqrt(excess / (null * x**2))
    assert [p.w for p in d.fixed_points] == pytest.approx([-at, 0, at], rel=1e-6)
    assert [p.b for p in d.fixed_points] == pytest.approx([-at, 0, at], rel=1e-6)
    assert [p.kind for p in d.fixed_points] == ["stable", "saddle", "stable"]
    assert d.fixed_points[0].eigenvalues == pytest.approx((2 * excess, 2 * decay), rel=1e-5)
    assert d.fixed_points[1].eigenvalues == pytest.approx((-excess, amp * x**2 + decay), rel=1e-5)
    assert d.regime == "stable point"


@pytest.mark.parametrize("lam", [1.0, 1.5, 10.0])
def test_information_alignment_collapses_where_decay_outweighs_the_input(lam: float) -> None:
    """At decay = amp x² the linear part says nothing, and the null primitive still pulls to zero."""
    d = scalar(untied.rules.InformationAlignment(decay=lam))
    assert [(p.w, p.b, p.kind) for p in d.fixed_points] == [(pytest.approx(0, abs=1e-9),) * 2 + ("stable",)]
    assert d.regime == "collapsing"


def test_information_alignment_without_decay_rests_on_a_hyperbola_and_need_not_be_symmetric() -> None:
    """Σ w b = amp / null: fixed points anywhere on it, so decay is what makes IA's symmetric."""
    d = scalar("ia(decay=0, amp=2)")
    assert d.has_line and d.fixed_points == () and d.regime == "stable line"
    w = torch.tensor([0.1, 1.0, 40.0], dtype=torch.float64)
    assert all(f.abs().max() < 1e-12 for f in d.flow(w, 2 / w))


def test_fixed_points_and_regime_over_many_orders_of_magnitude() -> None:
    """60 draws of amp, decay and null of either sign over 10⁶ and of x over 10³, some exactly balanced, against
    docs/theory.md, section 3: w² = (β − α) / γ on b = w, −(α + β) / γ on b = −w, and zero."""
    draw = random.Random(0)

    def magnitude(low: float, high: float) -> float:
        return float(10 ** draw.uniform(low, high))

    for _ in range(60):
        a, g = (draw.choice([1, 1, -1]) * magnitude(-4, 2) for _ in range(2))
        c, x = draw.choice([1, 1, -1]) * magnitude(-4, 2), magnitude(-1.5, 1.5)
        a = draw.choice([a, a, a, c * x**2, -c * x**2])  # decay
        d = scalar(Alignment({"amp": c, "decay": a, "null": g}), x)
        beta, gamma = c * x**2, g * x**2
        squares = [(beta - a) / gamma, -(a + beta) / gamma]
        wanted = [(0.0, 0.0)]
        for square, sign in zip(squares, (1, -1), strict=True):
            if square > 1e-12 * max(abs(a), abs(beta)) / abs(gamma):
                wanted += [(r, sign * r) for r in (math.sqrt(square), -math.sqrt(square))]
        size = max(abs(w) for w, _ in wanted) or 1.0
        assert len(d.fixed_points) == len(wanted), d.rule
        for p in d.fixed_points:
            assert min(math.dist((p.w, p.b), at) for at in wanted) < 1e-6 * size, d.rule
        leaves_zero = abs(beta) > a * (1 + 1e-9)
        assert d.regime == ("diverging" if min(a, g) < 0 else "stable point" if leaves_zero else "collapsing"), d.rule


def by_search(P: Tensor, Q: Tensor, reach: float) -> set[tuple[float, float]]:
    """Common zeros by Newton's method from a dense grid of starts: what elimination must not miss."""
    starts = torch.cartesian_prod(*[torch.linspace(-reach, reach, 41, dtype=torch.float64)] * 2)

    def both(at: Tensor) -> Tensor:
        return torch.stack([evaluate(c, at[0], at[1]) for c in (P, Q)])

    jacobian = torch.func.vmap(torch.func.jacrev(both))
    for _ in range(60):
        values = torch.func.vmap(both)(starts)
        starts = starts - (torch.linalg.pinv(jacobian(starts)) @ values.unsqueeze(-1)).squeeze(-1)
    good = torch.func.vmap(both)(starts).abs().amax(1) < 1e-9
    inside = starts[good & (starts.abs().amax(1) < reach)]
    return {(round(w, 4) + 0.0, round(b, 4) + 0.0) for w, b in inside.tolist()}


@pytest.mark.parametrize("seed", range(8))
def test_elimination_finds_what_search_finds(seed: int) -> None:
    """Two random cubics in both unknowns; compared within a box, where a dense search is exhaustive."""
    g = torch.Generator().manual_seed(seed)
    degrees = torch.arange(6).unsqueeze(-1) + torch.arange(6)
    P, Q = (torch.randn(6, 6, dtype=torch.float64, generator=g) * (degrees <= 3) for _ in range(2))
    found = common_zeros(P, Q)
    assert found is not None
    for w, b in found:
        at = torch.tensor(w, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        size = float(evaluate(P.abs(), at[0].abs(), at[1].abs()) + evaluate(Q.abs(), at[0].abs(), at[1].abs()))
        assert max(abs(float(evaluate(c, *at))) for c in (P, Q)) < 1e-8 * size
    got = {(round(w, 4) + 0.0, round(b, 4) + 0.0) for w, b in found if max(abs(w), abs(b)) < 3}
    assert got == by_search(P, Q, 3.0)


@pytest.mark.parametrize(("amp", "decay", "null"), [(1, 0.5, 1), (-1, 0.5, 2), (0.3, -1, -1), (1, 2, -0.5)])
def test_the_fixed_points_account_for_the_flows_winding(amp: float, decay: float, null: float) -> None:
    """Poincaré-Hopf: around a circle that holds them all the flow turns as often as nodes minus saddles."""
    d = scalar(untied.rules.InformationAlignment(amp=amp, decay=decay, null=null))
    reach = 3 * max(math.hypot(p.w, p.b) for p in d.fixed_points) or 3.0
    turn = torch.linspace(0, 2 * math.pi, 40_001, dtype=torch.float64)
    dw, db = d.flow(reach * turn.cos(), reach * turn.sin())
    heading = torch.atan2(db, dw)
    steps = torch.remainder(heading.diff() + math.pi, 2 * math.pi) - math.pi
    index = {"stable": 1, "unstable": 1, "saddle": -1}
    assert sum(index[p.kind] for p in d.fixed_points) == round(float(steps.sum()) / (2 * math.pi))


def ends(d: ScalarDynamics, starts: list[tuple[float, float]], t: float = 30.0, dt: float = 0.1) -> list[float]:
    """The distances from zero after flow time t, by the classical Runge-Kutta method; stops once one is beyond 5."""

    def flow(at: Tensor) -> Tensor:
        return torch.stack(d.flow(at[0], at[1]))

    at = torch.tensor(starts, dtype=torch.float64).T
    for _ in range(round(t / dt)):
        k1 = flow(at)
        k2 = flow(at + dt / 2 * k1)
        k3 = flow(at + dt / 2 * k2)
        at = at + dt / 6 * (k1 + 2 * k2 + 2 * k3 + flow(at + dt * k3))
        if at.norm(dim=0).max() > 5:
            break
    return at.norm(dim=0).tolist()


@pytest.mark.parametrize(
    ("text", "regime"),
    [
        ("wm(decay=0.5)", "diverging"), ("wm", "stable line"), ("wm(decay=2)", "collapsing"), ("amp", "diverging"),
        ("fa", "still"), ("ia(decay=0.5)", "stable point"), ("ia(decay=2)", "collapsing"), ("null", "stable line"),
        ("ia(null=-1, decay=2)", "diverging"), ("amp + null - 0.3*decay", "diverging"),
        ("decay - self", "stable line"), ("amp + null", "stable line"), ("sa + null", "collapsing"),
        ("2*sa - self + null", "collapsing"),
    ],
)  # fmt: skip
def test_the_regime_is_what_trajectories_do(text: str, regime: str) -> None:
    d = scalar(text)
    assert d.regime == regime and regime in REGIMES
    starts = [(1.0, 0.2), (-0.6, 2.0), (1.0, -0.9), (1.7, 1.8)]
    furthest = max(ends(d, starts))
    if regime == "diverging":
        assert furthest > 5
    elif regime == "collapsing":  # sa + null and the like decay as 1 / √t only
        assert furthest < 0.3
    else:
        assert 0.5 < furthest < 2.6


class Quartic(Primitive):
    """A primitive of one's own that knows nothing of W."""

    name, degree, needs_data = "quartic", 4, False

    def penalty(self, s: Signals) -> Tensor:
        return s.B.square().square().sum() / 4


class Absolute(Quartic):
    name, degree = "absolute", 1

    def penalty(self, s: Signals) -> Tensor:
        return s.B.abs().sum()


class Kurtosis(Primitive):
    """Sees the fourth power of the input."""

    name, degree, needs_data = "kurtosis", 1, True

    def penalty(self, s: Signals) -> Tensor:
        return (s.p * s.y.pow(3)).sum()

    def gradient(self, s: Signals) -> Correlation:
        return Correlation(1.0, s.x, s.y.pow(3))


def test_a_primitive_of_ones_own_is_analysed_too() -> None:
    """db/dt = w − b³: fixed points (±1, ±1) and 0, and the skew ones of w = b³, b = w³ are the same three."""
    d = scalar(Quartic() + untied.primitives.self_)
    assert [(round(p.w, 9), round(p.b, 9)) for p in d.fixed_points] == [(-1, -1), (0, 0), (1, 1)]
    assert [p.kind for p in d.fixed_points] == ["stable", "saddle", "stable"]
    assert d.regime == "stable point"


def test_a_flow_that_is_no_polynomial_says_so_and_keeps_its_flow() -> None:
    d = scalar(Absolute() + decay)
    assert [float(v) for v in d.flow(0.5, -0.25)] == [-1.5, 1.25]
    for ask in ("regime", "A", "fixed_points"):
        with pytest.raises(UntiedError, match="no polynomial"):
            getattr(d, ask)


def test_interpolation_recovers_coefficients() -> None:
    c = torch.zeros(6, 6, dtype=torch.float64)
    c[0, 1], c[2, 3], c[5, 0] = 1.0, -1e-6, 3.0
    got = interpolate(lambda w, b: evaluate(c, w, b))
    assert got is not None
    torch.testing.assert_close(got, c, rtol=1e-7, atol=1e-12)
    assert interpolate(lambda w, b: w**6) is None


# What is covered


def test_feedback_alignment_does_not_move() -> None:
    d = scalar("fa")
    assert all(f.abs().max() == 0 for f in d.flow(W_GRID, B_GRID))
    assert d.regime == "still" and d.eigenvalues == (0, 0) and d.following_rate() == 0


def test_of_kolen_pollack_the_decay_is_covered_and_says_so() -> None:
    d = scalar("kp(decay=0.1)")
    assert d.eigenvalues == pytest.approx((0.1, 0.1)) and "pseudogradient" in d.note
    with pytest.raises(UntiedError, match="pseudogradient"):
        layer("kp", torch.eye(2), torch.eye(2))


@pytest.mark.parametrize("x", [0.0, 1e-200])
def test_an_input_of_zero(x: float) -> None:
    assert scalar("aa", x).regime == "still"
    assert scalar("wm", x).regime == "collapsing" and scalar("ia", x).regime == "collapsing"
    assert math.isinf(float(time_constant(scalar("aa", 0.0).following_rate())))


def test_options_that_change_nothing_in_the_mean() -> None:
    plain = scalar("ia(decay=0.3)", 0.8)
    for text in ("fraction=1/2", "every=3", "positions=mean", "reverse=true", "amp_on_reconstruction=true"):
        other = scalar(f"ia(decay=0.3, {text})", 0.8)
        for a, b in zip(plain.flow(W_GRID, B_GRID), other.flow(W_GRID, B_GRID), strict=True):
            torch.testing.assert_close(a, b)


def test_coefficients_over_training() -> None:
    rule = untied.rules.WeightMirror(decay=lambda progress: 2 * progress)
    assert scalar(rule, progress=0.25).regime == "diverging" and scalar(rule, progress=1.0).regime == "collapsing"
    with pytest.raises(UntiedError, match="progress"):
        scalar(rule)


I2 = torch.eye(2)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda: scalar("bp"), "bp computes B from W"),
        (lambda: layer("frsf", I2, I2), "frsf computes B from W"),
        (lambda: scalar("wm(normalise_input=true)"), "normalise_input divides by the activity"),
        (lambda: scalar("wm(centre_input=true)"), "centre_input mixes the features"),
        (lambda: scalar("wm(batch_centre_forward_output=true)"), "the rest of its batch"),
        (lambda: scalar("aa(backward_activation=relu)"), "is not linear"),
        (lambda: scalar("aa(forward_bias=true)"), "adds the layer's bias"),
        (lambda: layer("sa(update_forward=true)", I2, I2), "lets R move W"),
        (lambda: scalar("wm", math.nan), "x=nan"),
        (lambda: scalar("wm(noise=normal)", 1.0), "leave x out"),
        (lambda: scalar(3), "3 is not a rule"),
        (lambda: layer("wm", I2), "give its second moment C"),
        (lambda: layer("wm(noise=normal)", I2, I2), "leave C out"),
        (lambda: layer("wm", I2, torch.eye(3)), r"C of shape \[3, 3\]"),
        (lambda: layer("wm", I2, torch.tensor([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: layer("wm", I2, -I2), "no negative eigenvalue"),
        (lambda: layer("wm", I2, I2 * math.inf), "C of shape"),
        (lambda: layer("wm", torch.ones(2), I2), r"W of shape \[2\]"),
        (lambda: layer("ia(noise=normal)", torch.ones(2, 2, 3, 3)), "overlap between positions"),
        (lambda: layer("ia(reverse=true)", I2, I2), "leave reverse out"),
        (lambda: layer(Quartic() + decay, I2, I2), "does not separate"),
        (lambda: layer(Kurtosis() + decay, I2, I2), "more of the input than its second moment"),
        (lambda: scalar(Alignment({Kurtosis(): 1.0}, noise="normal")), "by its variance"),
        (lambda: layer("sa", I2 * math.nan), "not finite"),
        (lambda: layer("sa", I2, positions=0), "positions=0"),
        (lambda: time_constant(1.0, lr=0.0), "lr=0.0"),
        (lambda: time_constant(1.0, lr=0.1, momentum=1.0), "momentum=1.0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(ask: Any, expected: str) -> None:
    with pytest.raises(UntiedError, match=expected) as error:
        ask()
    assert "\n" not in str(error.value)


# Time constants


@pytest.mark.parametrize(("lr", "momentum"), [(0.05, 0.0), (0.05, 0.9), (1e-3, 0.5), (1.5, 0.0), (1.0, 0.9)])
@pytest.mark.parametrize(("text", "x", "rate"), [("sa(decay=0.4)", 1.0, 0.4), ("aa(sparse=2)", 0.5, 0.5)])
def test_time_constants_of_symmetric_and_activation_alignment(
    text: str, x: float, rate: float, lr: float, momentum: float
) -> None:
    """b follows a fixed w at the rate decay (SA) or sparse · x² (AA): SGD itself measures the steps to 1/e."""
    d = scalar(text, x)
    assert d.following_rate(w=0.7) == pytest.approx(rate)
    assert float(time_constant(d.following_rate())) == pytest.approx(1 / rate)
    b = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    rest = -float(d.flow(0.7, 0.0)[1]) / float(d.jacobian(0.7, 0.0)[1, 1])
    optimizer = torch.optim.SGD([b], lr, momentum)
    sizes = []
    for _ in range(2000):
        b.grad = rate * (b.detach() - rest)
        optimizer.step()
        sizes.append(max(abs(float(b.detach()) - rest), 1e-300))
    assert float(d.flow(0.7, 1.0)[1]) == pytest.approx(-rate * (1 - rest))
    steps = float(time_constant(rate, lr, momentum))
    stop = max(2, min(1900, round(12 * steps)))
    first = max(1, stop // 4)
    peaks = [max(sizes[i : i + 30]) for i in (first, stop)]  # momentum oscillates
    if steps > 3:
        assert math.log(peaks[0] / peaks[1]) == pytest.approx((stop - first) / steps, rel=0.12)


def test_time_constants_that_are_none() -> None:
    rates = torch.tensor([0.0, -1.0, 2.0, 100.0])
    assert time_constant(rates).tolist() == [math.inf, math.inf, 0.5, pytest.approx(0.01)]
    steps = time_constant(rates, lr=0.1).tolist()
    assert steps[0] == steps[1] == steps[3] == math.inf  # 100 · 0.1 is beyond SGD's limit of 2
    assert steps[2] == pytest.approx(-1 / math.log(0.8))
    assert float(time_constant(1e-6, 0.1, 0.9)) == pytest.approx((1 - 0.9) / (0.1 * 1e-6), rel=1e-4)


# A layer


def a_layer(o: int = 3, i: int = 5, seed: int = 0, spread: float = 30.0) -> tuple[Tensor, Tensor, Tensor]:
    """W [o, i], inputs x [40, i] of unequal variances and a mean, and a start B; float64."""
    g = torch.Generator().manual_seed(seed)
    W, B, mix = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((o, i), (o, i), (i, i)))
    sizes = torch.logspace(0, -math.log10(spread), i, dtype=torch.float64)
    x = (torch.randn(40, i, dtype=torch.float64, generator=g) + 0.3) @ (sizes.unsqueeze(-1) * torch.linalg.qr(mix)[0])
    return W, x, B


def pull(rule: Alignment, x: Tensor, W: Tensor, B: Tensor) -> Tensor:
    """R's gradient in B by the library's closed forms, as a training step has it."""
    c = rule.coefficients(None)
    s = Signals(x, W, B, DENSE, rule.operations)
    gradient: Tensor = rule.data_terms(s, c, 1 / len(x))[1] + rule.weight_terms(W, B, c)[1]
    return gradient


RULES = [
    "wm(amp=0.7, decay=0.4)", "aa(amp=0.7, sparse=1.3)", "ia(amp=0.9, decay=0.3, null=0.6)", "sa(self=0.8, decay=0.5)",
    "amp + 0.5*decay + 0.25*null + 2*sparse + self",
]  # fmt: skip


@pytest.mark.parametrize("text", RULES)
def test_rates_and_drive_are_the_closed_form(text: str) -> None:
    """rates = decay + sparse c_k + null s_j; drive = Uᵀ (amp W C + self W) V."""
    W, x, _ = a_layer()
    C = x.T @ x / len(x)
    rule = untied.rules.parse(text)
    assert isinstance(rule, Alignment)
    c = {p.name: float(v) for p, v in rule.coefficients(None).items()}  # type: ignore[arg-type]
    found = layer(rule, W, C)
    k, s = (torch.linalg.eigvalsh(M) for M in (C, W @ C @ W.T))
    wanted = c.get("decay", 0) + c.get("sparse", 0) * k + c.get("null", 0) * s.unsqueeze(-1)
    torch.testing.assert_close(found.rates, wanted.expand_as(W))
    drive = found.U.T @ (c.get("amp", 0) * W @ C + c.get("self", 0) * W) @ found.V
    torch.testing.assert_close(found.drive, drive)


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 4), (4, 1)])
def test_a_layer_goes_where_the_librarys_gradients_take_it(text: str, shape: tuple[int, int]) -> None:
    """Gradient flow by small steps of the library's own gradients, in float64; and the fixed point is one."""
    W, x, B = a_layer(*shape)
    rule = untied.rules.parse(text)
    assert isinstance(rule, Alignment)
    found = layer(rule, W, x.T @ x / len(x))
    assert found.fixed_point is not None
    torch.testing.assert_close(pull(rule, x, W, found.fixed_point), torch.zeros_like(W), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.after(0.0, B), B)
    torch.testing.assert_close(found.after(1e6, B), found.fixed_point, atol=1e-8, rtol=1e-8)
    t, steps, moving = 1.5, 300, B
    for _ in range(steps):  # Heun's method
        first = pull(rule, x, W, moving)
        moving = moving - t / steps / 2 * (first + pull(rule, x, W, moving - t / steps * first))
    torch.testing.assert_close(found.after(t, B), moving, atol=1e-4, rtol=1e-4)


def test_fixed_points_of_the_named_rules() -> None:
    """WM (amp/decay) W C, AA (amp/sparse) W, SA (self/decay) W, IA amp (decay + null W C Wᵀ)⁻¹ W C."""
    W, x, _ = a_layer()
    C = x.T @ x / len(x)
    S = W @ C @ W.T
    for text, wanted in {
        "wm(amp=0.7, decay=0.4)": 0.7 / 0.4 * W @ C,
        "aa(amp=0.7, sparse=1.3)": 0.7 / 1.3 * W,
        "sa(self=0.8, decay=0.5)": 0.8 / 0.5 * W,
        "ia(amp=0.9, decay=0.3, null=0.6)": 0.9 * torch.linalg.solve(0.3 * torch.eye(3) + 0.6 * S, W @ C),
    }.items():
        got = layer(text, W, C).fixed_point
        assert got is not None
        torch.testing.assert_close(got, wanted)


def test_what_whitening_buys() -> None:
    """AA always ends at W, as slowly as C is ill-conditioned. WM is as fast in every direction, and ends as far from W
    as C is from white."""
    torch.manual_seed(0)
    W = torch.randn(20, 30)
    angles = []
    for condition in (1.0, 10.0, 1000.0):
        C = torch.diag(torch.logspace(0, -math.log10(condition), 30))
        aa, wm = layer("aa", W, C), layer("wm", W, C)
        assert aa.condition == pytest.approx(condition, rel=1e-4) and aa.angle < 1e-5
        assert wm.condition == pytest.approx(1)
        angles.append(wm.angle)
    assert angles[0] < 1e-5 and 20 < angles[1] < angles[2]
    white = layer("ia(noise=normal)", W)  # white input does not make IA exact: it depends on W's own spectrum
    assert white.angle > 5 and white.condition > 5


@pytest.mark.parametrize("rule", ["aa", "wm", "ia", "sa"])
def test_directions_without_input(rule: str) -> None:
    """A singular C, and C = 0: nothing is divided by zero, and what AA cannot see stays as it was."""
    W, x, B = a_layer()
    x[:, 1] = 0
    for C in (x.T @ x / len(x), torch.zeros(5, 5), torch.ones(5, 5)):
        found = layer(rule, W, C)
        rest = found.fixed_point
        assert rest is not None and rest.isfinite().all() and found.after(1e9, B).isfinite().all()
        assert math.isinf(found.condition) == (rule == "aa")
        if rule == "aa":
            blind = torch.linalg.eigh(C.double())[1][:, torch.linalg.eigvalsh(C.double()) < 1e-9]
            torch.testing.assert_close(found.after(1e9, B) @ blind, B @ blind)
            torch.testing.assert_close(rest @ blind, torch.zeros_like(rest @ blind))


def test_a_rule_that_does_not_rest_has_no_fixed_point() -> None:
    W, x, B = a_layer()
    C = x.T @ x / len(x)
    for combination in (amp, amp - decay, amp + null):
        found = layer(combination, W, C)
        assert found.fixed_point is None or combination is not amp
        if found.fixed_point is None:
            assert math.isnan(found.angle)
    assert layer(amp, W, C).fixed_point is None and layer(amp - decay, W, C).fixed_point is None
    torch.testing.assert_close(layer(amp, W, C).after(2.0, B), B + 2 * W @ C)


def test_a_rule_of_weights_alone_needs_no_input() -> None:
    W, _, _ = a_layer()
    rest = layer("sa(self=3)", W).fixed_point
    assert rest is not None
    torch.testing.assert_close(rest, 3 * W)


def test_float32_is_analysed_in_float64() -> None:
    W, x, _ = a_layer()
    found = layer("ia", W.float(), (x.T @ x / len(x)).float())
    assert found.rates.dtype == found.W.dtype == torch.float64
    x, W = torch.randn(20, 60), torch.randn(30, 60)  # C of rank 20, with float32's rounding for the rest
    for rule in ("aa", "ia", "wm"):
        found = layer(rule, W, x.T @ x / 20)
        assert found.fixed_point is not None and found.fixed_point.norm() < 1e3


@pytest.mark.parametrize("positions", ["sum", "mean"])
def test_noise_input_puts_weight_mirrors_fixed_point_on_the_weight(positions: str) -> None:
    """B* = (P s² amp / decay) W summed over positions, (s² amp / decay) W averaged: on a convolution, by averaging.

    B* is where R's mean gradient vanishes; that is −amp · mean(correlate) + decay · B, linear in B, so the mean over
    4,000 noise images gives it directly. Standard error of an entry of the mean correlate: about P s² |W| √(1/(n P)).
    """
    s, P, n = 0.5, 6 * 6, 4000
    torch.manual_seed(0)
    conv: Any = nn.Conv2d(2, 3, 3, bias=False).double()
    text = f"wm(amp=0.8, decay=0.1, noise=normal, noise_std={s}, positions={positions})"
    untied.untie_(conv, text)
    with untied.record(conv) as tape:
        conv(torch.zeros(n, 2, 8, 8, dtype=torch.float64))
    tape.penalty().backward()
    B, W = conv.backward_weight.detach(), conv.weight.detach()
    simulated = B - conv.backward_weight.grad / 0.1  # the zero of (decay B − amp W C)
    predicted = layer(text, W, positions=P).fixed_point
    assert predicted is not None and predicted.shape == W.shape
    scale = s**2 * 0.8 / 0.1 * (P if positions == "sum" else 1)
    torch.testing.assert_close(predicted, scale * W)
    torch.testing.assert_close(simulated, predicted, atol=0.04 * scale * float(W.abs().max()), rtol=0)
    assert untied.metrics.angle(simulated, W) < 2
