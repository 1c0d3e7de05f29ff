"""The untied operation against a straight-through oracle written in three lines of autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import untied
from cases import LayerCase, build_untied, by_kind_of_layer, by_layer
from untied.geometry import DENSE, Geometry
from untied.routes.autograd import LossTerm, cast_for_autocast, untied_operation

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer


def oracle(x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """Value and gradient in W from the first term; no value, and the gradient in x through B, from the second."""
    back = g.project(x, B.detach())
    y = g.project(x.detach(), W) + (back - back.detach())
    return y if bias is None else g.add_bias(y, bias)


@by_layer
def test_the_task_gives_B_nothing_but_kolen_pollacks_copy(case: LayerCase) -> None:
    layer, x = build_untied(case, "sa")
    error = torch.randn_like(layer.eval()(x, **case.call))
    layer(x, **case.call).backward(error)
    assert layer.backward_weight.grad is None
    layer, x = build_untied(case, "kp")
    layer.eval()(x, **case.call).backward(error)
    assert torch.equal(layer.backward_weight.grad, layer.weight.grad)


def test_kolen_pollack_copies_the_gradient_even_where_W_is_frozen() -> None:
    torch.manual_seed(0)
    x, W, B, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3, 4, requires_grad=True), None
    error = torch.randn(5, 3)
    untied_operation(x, W, B, bias, DENSE, copies=True).backward(error)
    torch.testing.assert_close(B.grad, error.T @ x)


def test_second_derivatives_are_the_oracles() -> None:
    """A gradient penalty: the derivative of the pseudogradient's norm, with B a constant of the pass."""
    torch.manual_seed(0)
    x, W, B = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((5, 4), (3, 4), (3, 4)))
    results = []
    for operation in (untied_operation, oracle):
        y = torch.tanh(operation(x, W, B.detach(), None, DENSE)).sum()
        (dx,) = torch.autograd.grad(y, x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), (x, W)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def gradient_penalty(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Gradients of WGAN-GP's term in every parameter, and in x."""
    (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    named = {"x": x} | {n: p for n, p in model.named_parameters() if p.requires_grad}
    penalty = (dx.flatten(1).norm(dim=1) - 1).square().mean()
    return dict(zip(named, torch.autograd.grad(penalty, list(named.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("needs", [True, False], ids=["input", "no input"])
def test_gradients_of_gradients_under_bp_are_pytorchs(needs: bool) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 4), nn.Softplus(), nn.Linear(4, 1)
        ).double()

    plain, model = make(), make()
    untied.untie_(model, "bp")
    x = torch.randn(6, 2, 5, dtype=torch.float64, requires_grad=needs)
    if needs:
        got, wanted = gradient_penalty(model, x), gradient_penalty(plain, x)
    else:  # of the gradients in the parameters, as MAML and influence functions take them
        got, wanted = ({n: g for n, g in hessian_product(m, x).items()} for m in (model, plain))
    assert got.keys() == wanted.keys() and all((got[n] is None) == (g is None) for n, g in wanted.items())
    for name, g in wanted.items():
        torch.testing.assert_close(got[name], g, msg=name)


def hessian_product(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    first = torch.autograd.grad(model(x).square().mean(), list(named.values()), create_graph=True)
    size = sum(g.square().sum() for g in first)
    return dict(zip(named, torch.autograd.grad(size, list(named.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("rule", ["fa", "kp", "sa", "usf", "mkp", "pfa"])
def test_gradients_of_gradients_are_the_oracles_and_never_Bs(rule: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    untied.untie_(model, rule)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    model.eval()
    got = gradient_penalty(model, x)
    for name, g in got.items():
        if "backward" in name and rule == "kp":  # what moves W moves B
            torch.testing.assert_close(g, got[name.replace("backward_", "")])
        assert "backward" not in name or rule in ("kp", "pfa") or g is None
    for layer in model[::2]:
        B = layer.backward_kernel("weight", layer.weight).detach()
        layer.forward = lambda x, layer=layer, B=B: oracle(x, layer.weight, B, layer.bias, DENSE)
    for name, g in gradient_penalty(model, x).items():
        if "backward" not in name and not (g is None and got[name] is None):
            torch.testing.assert_close(got[name], g, msg=name)


def test_R_has_a_first_derivative_alone() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    untied.untie_(layer, "sa")
    with untied.record(layer) as tape:
        y = layer(x).sum()
    (dB,) = torch.autograd.grad(y + tape.penalty(), [layer.backward_weight], create_graph=True)
    with pytest.raises(untied.UntiedError, match="first derivative alone"):
        torch.autograd.grad(dB.square().sum(), [layer.backward_weight])


# torch.func


def plain_loss(model: nn.Module, parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(functional_call(model, parameters, (x,)), target)


@pytest.mark.parametrize("copies", [False, True], ids=["fa", "kp"])
def test_functional_gradients_are_the_same(copies: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double().eval()
    untied.untie_(model, "kp" if copies else "fa")
    x, target = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    got = grad(lambda p: plain_loss(model, p, x, target))(parameters)
    plain_loss(model, dict(model.named_parameters()), x, target).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], torch.zeros_like(p) if p.grad is None else p.grad)


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(4, 3), lambda: nn.Conv1d(1, 2, 3, padding=1)], ids=["linear", "conv"]
)
def test_gradients_per_example_by_vmap(make: object) -> None:
    torch.manual_seed(0)
    layer: nn.Module = make().double().eval()  # type: ignore[operator]
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(0), nn.LazyLinear(2, dtype=torch.float64))
    x = torch.randn(6, *((4,) if isinstance(layer, nn.Linear) else (1, 5)), dtype=torch.float64)
    target = torch.randn(6, 2, dtype=torch.float64)
    model(x[0])
    model[3].__class__ = nn.Linear
    untied.untie_(model, "fa")
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    frozen = {k: p.detach() for k, p in model.named_parameters() if not p.requires_grad}

    def loss(p: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return plain_loss(model, p | frozen, x, t)

    together = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, target)
    for i in range(len(x)):
        alone = grad(loss)(parameters, x[i], target[i])
        for name, g in alone.items():
            torch.testing.assert_close(together[name][i], g)


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@by_kind_of_layer
def test_autocast_casts_inside_and_gradients_keep_their_dtype(case: LayerCase, dtype: torch.dtype) -> None:
    layer, x = build_untied(case, "kp")
    layer, x = layer.float().eval(), x.detach().float().requires_grad_()
    exact = layer(x, **case.call)
    exact.sum().backward()
    wanted = {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
    layer.zero_grad()
    x.grad = None
    with torch.autocast("cpu", dtype):
        y = layer(x, **case.call)
    assert y.dtype == dtype
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    for name, g in {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}.items():
        assert g.dtype == torch.float32, name
        assert float((g - wanted[name]).norm() / wanted[name].norm()) < 0.02, name


def test_autocast_leaves_double_precision_and_integers_alone() -> None:
    one, two, none, whole = torch.ones(1), torch.ones(1, dtype=torch.float64), None, torch.ones(1, dtype=torch.int64)
    assert cast_for_autocast(one, two, none, whole) == (one, two, none, whole)
    with torch.autocast("cpu", torch.bfloat16):
        cast = cast_for_autocast(one, two, none, whole)
    assert [t if t is None else t.dtype for t in cast] == [torch.bfloat16, torch.float64, None, torch.int64]


# The penalty as a term of the loss


def test_a_loss_term_has_its_value_and_its_gradient() -> None:
    torch.manual_seed(0)
    B, W, value = torch.randn(3, 4, requires_grad=True), torch.randn(2, requires_grad=True), torch.tensor(1.5)
    dB, dW = torch.randn(3, 4), torch.randn(2)
    term = LossTerm.apply(value, 2, B, W, dB.clone(), dW.clone())  # which it takes over
    assert term.item() == 1.5 and term.shape == ()
    (4.0 * term).backward()
    torch.testing.assert_close(B.grad, 4.0 * dB)
    torch.testing.assert_close(W.grad, 4.0 * dW)


def test_a_loss_term_copies_no_gradient_unless_its_graph_is_kept() -> None:
    B, dB = torch.zeros(3, 4, requires_grad=True), torch.randn(3, 4)
    wanted, place = dB.clone(), dB.data_ptr()
    term = LossTerm.apply(torch.tensor(1.0), 1, B, dB)
    (2 * term).backward(retain_graph=True)
    torch.testing.assert_close(B.grad, 2 * wanted)
    B.grad = None
    (3 * term).backward(retain_graph=True)
    torch.testing.assert_close(B.grad, 3 * wanted)
    B.grad = None
    del dB
    term.backward()
    torch.testing.assert_close(B.grad, wanted)
    assert B.grad.data_ptr() == place
    with pytest.raises(RuntimeError, match="second time"):
        term.backward()


def test_a_loss_terms_gradient_comes_in_each_tensors_dtype() -> None:
    B = torch.zeros(2, dtype=torch.float16, requires_grad=True)
    term = LossTerm.apply(torch.tensor(1.0), 1, B, torch.ones(2, dtype=torch.float16))
    term.backward()
    assert B.grad.dtype == torch.float16
