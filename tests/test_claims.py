"""Claims of the paper about IA and AA, and ours beside them, as docs/theory.md states them: in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from untied import rules
from untied.dynamics import layer, scalar, time_constant
from untied.geometry import DENSE
from untied.operations import Signals

F64 = torch.float64


def gradients(rule: str, x: Tensor, W: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """R's mean gradient in B and in W over the examples x."""
    parsed = rules.parse(rule)
    assert isinstance(parsed, rules.Alignment)
    c = parsed.coefficients(None)
    data = parsed.data_terms(Signals(x, W, B, DENSE, parsed.operations), c, 1 / len(x))
    weights = parsed.weight_terms(W, B, c)
    in_W = sum((d for d in (data[2], weights[2]) if d is not None), start=torch.zeros_like(W))
    return data[1] + weights[1], in_W


def test_the_null_primitive_is_ojas_normalisation_to_first_order() -> None:
    """(b + η y x) / ‖b + η y x‖ = b + η (y x − y² b) + O(η²), for one output y = b·x and ‖b‖ = 1: amp and null."""
    torch.manual_seed(0)
    x, b = torch.randn(1, 6, dtype=F64), torch.randn(1, 6, dtype=F64)
    b = b / b.norm()
    y = x @ b.T
    update = -gradients("amp + null", x, b, b)[0]  # W = b: the paper's assumption that the projections are the same
    torch.testing.assert_close(update, y * x - y**2 * b)
    rest = []
    for eta in (1e-3, 1e-4):
        moved = b + eta * y * x
        rest.append(float((moved / moved.norm() - b - eta * update).norm()))
    assert 90 < rest[0] / rest[1] < 110  # of second order


def test_ojas_normalisation_of_a_matrix_is_not_null() -> None:
    """With several outputs the projection that keeps the norm is ⟨B, y xᵀ⟩ B, and null's is y yᵀ B."""
    torch.manual_seed(0)
    x, B = torch.randn(1, 6, dtype=F64), torch.randn(3, 6, dtype=F64)
    B = B / B.norm()
    y = B @ x.T
    update = -gradients("amp + null", x, B, B)[0]
    torch.testing.assert_close(update, y @ x - y @ y.T @ B)
    assert not torch.allclose(update, y @ x - (B * (y @ x)).sum() * B)


def test_ia_with_both_weights_moving_is_the_regularised_linear_autoencoder() -> None:
    """The gradients of ½ E‖x − BᵀW x‖² + λ/2 (‖W‖² + ‖B‖²), and where its descent ends: B = W, 1 − λ/c_k."""
    torch.manual_seed(0)
    decay, powers = 0.3, torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2], dtype=F64)
    x = torch.linalg.qr(torch.randn(40, 5, dtype=F64))[0] * (40 * powers).sqrt()
    W, B = (0.5 * torch.randn(3, 5, dtype=F64) for _ in range(2))
    w, b = W.clone().requires_grad_(), B.clone().requires_grad_()
    loss = (x - x @ w.T @ b).square().sum() / 2 / len(x) + decay / 2 * (w.square().sum() + b.square().sum())
    wanted = torch.autograd.grad(loss, (b, w))
    rule = f"ia(decay={decay}, update_forward=true)"
    for found, one in zip(gradients(rule, x, W, B), wanted, strict=True):
        torch.testing.assert_close(found, one)
    # The flow's W Wᵀ − B Bᵀ decays by itself: ∂_W Wᵀ − B ∂_Bᵀ = λ (W Wᵀ − B Bᵀ).
    torch.testing.assert_close(wanted[1] @ W.T - B @ wanted[0].T, decay * (W @ W.T - B @ B.T))
    for _ in range(1500):
        in_B, in_W = gradients(rule, x, W, B)
        W, B = W - 0.1 * in_W, B - 0.1 * in_B
    torch.testing.assert_close(W, B, rtol=0, atol=1e-8)
    torch.testing.assert_close(torch.linalg.svdvals(W).square(), 1 - decay / powers[:3])
    # Section 3's fixed point is its scalar case.
    assert math.isclose(scalar(f"ia(decay={decay})", math.sqrt(3.0)).fixed_points[-1].w ** 2, 1 - decay / 3)


def test_activation_alignments_noise_is_multiplicative_and_vanishes() -> None:
    """Its gradient is (B − W) Ĉ in every batch. Weight mirror's is not zero at B = W, so that it never rests."""
    torch.manual_seed(0)
    n, i, lr = 8, 20, 0.1
    W, start = torch.randn(5, i, dtype=F64), torch.randn(5, i, dtype=F64)
    x = torch.randn(n, i, dtype=F64)  # fewer examples than inputs: no batch's Ĉ is near the identity
    torch.testing.assert_close(gradients("aa", x, W, start)[0], (start - W) @ x.T @ x / n)
    assert gradients("aa", x, W, W)[0].abs().max() < 1e-12
    assert gradients("wm(decay=balanced)", x, W, W)[0].norm() > 0.5 * W.norm()
    left = {}
    for rule in ("aa(noise=normal)", "wm(decay=balanced, noise=normal)"):
        B = start
        for _ in range(600):
            B = B - lr * gradients(rule, torch.zeros(n, i, dtype=F64), W, B)[0]
        left[rule[:2]] = float((B - W).norm() / W.norm())
    assert left["aa"] < 1e-12 and left["wm"] > 0.1


def test_activation_alignments_error_shrinks_by_the_factor_of_the_fourth_moment() -> None:
    """E‖E (1 − η Ĉ)‖² = (1 − 2 η s² + η² s⁴ (1 + (i + 1)/n)) ‖E‖² for normal noise. Over 4,000 steps: 1 % of it."""
    torch.manual_seed(0)
    n, i, s, lr = 8, 20, 0.7, 0.4
    W, B = torch.zeros(5, i, dtype=F64), torch.randn(5, i, dtype=F64)
    shares = []
    for _ in range(4000):
        step = gradients(f"aa(noise=normal, noise_std={s})", torch.zeros(n, i, dtype=F64), W, B)[0]
        shares.append(float((B - lr * step).square().sum() / B.square().sum()))
    wanted = 1 - 2 * lr * s**2 + lr**2 * s**4 * (1 + (i + 1) / n)
    assert math.isclose(sum(shares) / len(shares), wanted, rel_tol=0.01)


def test_one_learning_rate_does_not_fit_layers_of_unlike_power_but_fits_noise() -> None:
    """AA under SGD: what the strongest layer bears leaves the weakest behind. Adam's step does not know the power."""
    W = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    powers = (100.0, 0.01)
    rates = [layer("aa", W, power * torch.eye(4, dtype=F64)).rates.max() for power in powers]
    assert time_constant(rates[0], lr=0.021) == math.inf and time_constant(rates[1], lr=0.019) > 5000
    left = {}
    for name, rule, optimizer, lr in (
        ("sgd", "aa", torch.optim.SGD, 0.01),
        ("adam", "aa", torch.optim.Adam, 0.02),
        ("noise", "aa(noise=normal)", torch.optim.SGD, 0.1),
    ):
        torch.manual_seed(1)
        weights = [torch.nn.Parameter(torch.randn(3, 4, dtype=F64)) for _ in powers]
        moving = optimizer(weights, lr=lr)
        for _ in range(400):
            for power, B in zip(powers, weights, strict=True):
                B.grad = gradients(rule, math.sqrt(power) * torch.randn(16, 4, dtype=F64), W, B.detach())[0]
            moving.step()
        left[name] = max(float((B.detach() - W).norm() / W.norm()) for B in weights)
    assert left["sgd"] > 0.5 and left["adam"] < 0.2 and left["noise"] < 1e-6
