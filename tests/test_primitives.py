"""Table 1: each primitive's closed form is the gradient of its readable penalty, for every layer type."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import untied
from cases import LayerCase, by_layer, signals, with_kernels
from untied.operations import Operations, Signals
from untied.primitives.primitive import (
    PRIMITIVES,
    Combination,
    Correlation,
    Multiple,
    Primitive,
    amp,
    decay,
    null,
    self_,
    sparse,
)
from untied.schedules import value

by_primitive = pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES.keys())

# What may be done to x and y without touching what B makes of them. test_operations.py has each alone.
TOGETHER = dict(
    noise="normal", centre_input=True, normalise_input=True, batch_centre_backward_input=True, forward_bias=True,
    forward_activation="softplus", centre_forward_output=True, normalise_forward_output=True,
    batch_centre_forward_output=True,
)  # fmt: skip


def closed_form(primitive: Primitive, s: Signals) -> Tensor:
    g = primitive.gradient(s)
    if isinstance(g, Multiple):
        return g.factor * g.tensor
    return g.factor * s.geometry.correlate(g.left, g.right) if isinstance(g, Correlation) else g


@pytest.mark.parametrize("operations", [{}, TOGETHER], ids=["plain", "operations"])
@by_layer
def test_closed_form_is_the_gradient_of_the_penalty(case: LayerCase, operations: dict[str, Any]) -> None:
    # On T_B* y the forward output's operations act on what B has produced: by autograd, see test_operations.py
    for_null = {k: v for k, v in operations.items() if "forward_output" not in k}
    for primitive in PRIMITIVES.values():
        s = signals(case, **(for_null if primitive is null else operations)).with_input_operations()
        B = s.B.clone().requires_grad_()
        (by_autograd,) = torch.autograd.grad(primitive.penalty(with_kernels(s, B=B)), B)
        torch.testing.assert_close(closed_form(primitive, s), by_autograd, msg=lambda m, p=primitive: f"{p}: {m}")


@by_layer
def test_penalty_is_homogeneous_of_its_degree(case: LayerCase) -> None:
    s = signals(case)
    for primitive in PRIMITIVES.values():
        P = primitive.penalty(s)
        torch.testing.assert_close(primitive.penalty(with_kernels(s, B=3 * s.B)), 3**primitive.degree * P)
        torch.testing.assert_close((s.B * closed_form(primitive, s)).sum(), primitive.degree * P)


@by_primitive
def test_needs_data_is_true(primitive: Primitive) -> None:
    s = signals(LayerCase("", lambda: torch.nn.Linear(4, 3), (5, 4)))
    other = Signals(2 * s.x, s.W, s.B, s.geometry, s.operations)
    assert bool(primitive.penalty(s) != primitive.penalty(other)) == primitive.needs_data


def test_penalties_are_table_1s_for_a_matrix() -> None:
    """In the paper's own layout: B_l is [in, out], x_l a column, x_{l+1} = W_l x_l; ∇P_l with respect to that B_l."""
    torch.manual_seed(0)
    W, B, x = torch.randn(3, 4), torch.randn(4, 3), torch.randn(4, 1)
    y = W @ x
    ours = Signals(x.T, W, B.T, untied.geometry.DENSE, Operations())
    table = {
        decay: (B.square().sum() / 2, B),
        amp: (-(x.T @ B @ y).trace(), -x @ y.T),
        null: ((B @ y).square().sum() / 2, B @ y @ y.T),
        sparse: ((x.T @ B).square().sum() / 2, x @ x.T @ B),
        self_: (-(B @ W).trace(), -W.T),
    }
    assert list(table) == list(PRIMITIVES.values())
    for primitive, (P, gradient) in table.items():
        torch.testing.assert_close(primitive.penalty(ours), P, msg=primitive.name)
        torch.testing.assert_close(closed_form(primitive, ours).T, gradient, msg=primitive.name)


def test_penalties_are_summed_over_the_batch() -> None:
    case = LayerCase("", lambda: torch.nn.Conv1d(2, 3, 3), (4, 2, 6))
    s = signals(case)
    for primitive in (amp, null, sparse):
        alone = sum(primitive.penalty(Signals(x[None], s.W, s.B, s.geometry, s.operations)) for x in s.x)
        torch.testing.assert_close(primitive.penalty(s), alone)


@by_primitive
def test_penalty_is_at_least_single_precision(primitive: Primitive) -> None:
    s = signals(LayerCase("", lambda: torch.nn.Linear(4, 3), (5, 4)))
    half = Signals(*(t.to(torch.float16) for t in (s.x, s.W, s.B)), s.geometry, s.operations)
    assert primitive.penalty(half).dtype == torch.float32
    assert primitive.penalty(s).dtype == torch.float64


# The algebra


def test_primitives_add_and_multiply_into_combinations() -> None:
    assert dict(amp + decay) == {amp: 1.0, decay: 1.0}
    assert dict(2 * amp - 0.5 * decay) == {amp: 2.0, decay: -0.5}
    assert dict(amp * 2 + (decay + null) * 3) == {amp: 2.0, decay: 3.0, null: 3.0}
    assert dict(-amp) == {amp: -1.0} and dict(-(amp + null)) == {amp: -1.0, null: -1.0}
    assert dict(amp - amp) == {} and dict(0 * amp) == {}
    assert dict(amp - (amp + decay)) == {decay: -1.0}
    assert amp + decay == decay + amp and hash(amp + decay) == hash(decay + amp)
    assert amp + decay != amp + null and (amp + decay) != "amp + decay"
    assert dict(amp + amp + 0.5 * amp) == {amp: 2.5}


def test_coefficients_may_be_functions_of_progress() -> None:
    ramp = 2.0 * (amp * (lambda t: t) + 3.0 * amp) + decay
    assert value(ramp[amp], 0.0) == 6.0 and value(ramp[amp], 0.5) == 7.0 and ramp[decay] == 1.0
    assert value((amp * (lambda t: t) * (lambda t: 1 - t))[amp], 0.25) == 0.25 * 0.75


def test_a_function_without_progress_is_an_error() -> None:
    with pytest.raises(untied.UntiedError, match=r"function of training progress.*record\(model, progress="):
        value(lambda t: t, None)


@pytest.mark.parametrize("wrong", ["2", None, amp, decay + amp])
def test_what_is_no_coefficient_does_not_multiply(wrong: object) -> None:
    with pytest.raises(TypeError):
        amp * wrong  # type: ignore[operator]
    with pytest.raises(TypeError):
        (amp + decay) * wrong  # type: ignore[operator]


def test_what_is_no_primitive_does_not_add() -> None:
    with pytest.raises(TypeError):
        amp + 1  # type: ignore[operator]
    with pytest.raises(TypeError):
        amp + "decay"  # type: ignore[operator]


def test_how_they_read() -> None:
    assert repr(amp) == "amp" and repr(self_) == "self"
    assert repr(amp + 0.5 * decay - 2 * null) == "amp + 0.5*decay + -2*null"
    assert repr(Combination({})) == "0"

    def warm_up(t: float) -> float:
        return t

    assert repr(warm_up * amp + decay) == "<warm_up>*amp + decay"
    assert warm_up * amp == amp * warm_up


@by_primitive
def test_every_primitive_says_what_it_is(primitive: Primitive) -> None:
    assert PRIMITIVES[primitive.name] is primitive
    assert primitive.formula and primitive.gradient_formula and type(primitive).__doc__
    assert primitive.local == (primitive.local_computation and primitive.local_plasticity)
    assert primitive == type(primitive)() and hash(primitive) == hash(type(primitive)())


def test_a_primitive_of_ones_own() -> None:
    """Half of B's fourth power: everything that rules do with the built-in ones works with it."""

    class Quartic(Primitive):
        name, formula, gradient_formula, degree, needs_data = "quartic", "¼‖B‖⁴", "B³", 4, False

        def penalty(self, s: Signals) -> Tensor:
            return s.B.pow(4).sum() / 4

        def gradient(self, s: Signals) -> Tensor:
            return s.B.pow(3)

    layer = torch.nn.Linear(4, 3)
    untied.untie_(layer, amp + 2 * Quartic())
    with untied.record(layer) as tape:
        y = layer(torch.ones(2, 4))
    tape.penalty().backward()
    B = layer.backward_weight.detach()
    expected = 2 * B.pow(3) - torch.nn.functional.linear(torch.ones(2, 4), layer.weight).T @ torch.ones(2, 4) / 2
    torch.testing.assert_close(layer.backward_weight.grad, expected.detach())
    assert y.shape == (2, 3)


def test_a_primitive_without_its_methods_says_so() -> None:
    s = signals(LayerCase("", lambda: torch.nn.Linear(4, 3), (5, 4)))
    for method in ("penalty", "gradient"):
        with pytest.raises(NotImplementedError):
            getattr(Primitive(), method)(s)
