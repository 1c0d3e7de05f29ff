"""Rules whose backward weight is a product: the definition in two steps against what the library does in one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import untied
from cases import LAYERS, LayerCase, assert_same, build, gradients
from untied.geometry import Geometry
from untied.routes import factored


@pytest.mark.parametrize("case", LAYERS, ids=[c.name for c in LAYERS])
def test_rows_are_outputs(case: LayerCase) -> None:
    """rows and from_rows are inverse, and a row is what makes one output."""
    layer, x = build(case)
    untied.untie_(layer, "fa")
    geometry: Geometry = layer.geometry()  # type: ignore[operator]
    W: Tensor = layer.weight  # type: ignore[assignment]
    rows = geometry.rows(W)
    assert torch.equal(geometry.from_rows(rows, W.shape), W)
    _, o = geometry.sizes(W)
    assert rows.shape[0] * rows.shape[1] == o and rows.numel() == W.numel()
    at = 0 if not case.batched else geometry.features
    y = geometry.project(x, W).movedim(at, -1)
    assert y.shape[-1] == o
    changed = rows.clone()
    changed[0, 0] += 1  # its first output alone changes
    other = geometry.project(x, geometry.from_rows(changed, W.shape)).movedim(at, -1)
    assert torch.allclose(other[..., 1:], y[..., 1:])


def conv(groups: int = 1) -> Any:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, padding=1, groups=groups).double()


def test_pfa_is_two_kernels_one_after_the_other() -> None:
    """g goes through the fixed 1×1 kernel, then through R, which takes correlate(x, what passes there)."""
    layer = conv()
    untied.untie_(layer, "pfa(expand=2, decay=0)")
    P, R = layer.backward_factor[0], layer.backward_weight
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    middle = F.conv2d(g, P.T[:, :, None, None].detach())
    torch.testing.assert_close(x.grad, F.conv_transpose2d(middle, R.detach(), padding=1))
    wanted = torch.nn.grad.conv2d_weight(x.detach(), R.shape, middle, padding=1)
    torch.testing.assert_close(R.grad, wanted)
    assert not P.requires_grad and tuple(R.shape) == (12, 4, 3, 3)


@pytest.mark.parametrize("groups", [1, 2])
def test_ldfa_moves_its_factor_by_oja(groups: int) -> None:
    layer = conv(groups)
    untied.untie_(layer, "ldfa(rank=2, oja=0.5)")
    P, Q = layer.backward_factor, layer.backward_weight
    torch.testing.assert_close(P.detach().mT @ P.detach(), torch.eye(2).double().expand(groups, 2, 2))
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    with untied.record(layer) as tape:
        y = layer(x)
    g = torch.randn_like(y)
    (y * g).sum().backward()
    tape.penalty().backward()
    p = P.detach()
    rows = g.movedim(1, -1).reshape(-1, groups, 6 // groups)
    C = torch.einsum("rgo,rgp->gop", rows, rows)
    eye = torch.eye(6 // groups).double()
    torch.testing.assert_close(P.grad, -0.5 * (eye - p @ p.mT) @ C @ p)
    dW = layer.weight.grad.unflatten(0, (groups, -1)).flatten(2)
    torch.testing.assert_close(Q.grad, (p.mT @ dW).reshape(Q.shape) + 1e-3 * Q.detach())
    groups_of = untied.parameter_groups(layer)
    assert {id(P), id(Q)} <= {id(b) for b in groups_of[1]}


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double()


def residual() -> nn.Module:
    from test_broadcast import ConvNet

    torch.manual_seed(0)
    return ConvNet().double()


@pytest.mark.parametrize(
    "rule", ["pfa(expand=2, decay=0)", "ldfa(rank=2, oja=0, decay=0)", "pfa(density=0.5, decay=0)"]
)
@pytest.mark.parametrize(("make", "shape"), [(block, (3, 4, 8)), (residual, (3, 2, 6, 6))])
def test_gradients_are_those_of_feedback_through_the_product(make: Any, shape: tuple[int, ...], rule: str) -> None:
    """Against feedback alignment whose B is the product: every W's gradient; and R's is Pᵀ of it."""
    model = make()
    untied.untie_(model, rule)
    other = copy.deepcopy(model)
    products = {}
    for name, layer in untied.layers.untied_layers(other).items():
        for weight in layer.own_weights():
            products[name, weight] = layer.backward_kernel(weight, getattr(layer, weight)).detach()
    untied.tie_(other)
    untied.untie_(other, "fa")
    for (name, weight), K in products.items():
        layer = untied.layers.untied_layers(other)[name]
        layer.beside(weight)["backward_weight"].data.copy_(K)
    x = torch.randn(shape, dtype=torch.float64)
    for m in (model, other):
        with untied.record(m) as tape:
            loss = m(x).square().mean()
        (loss + tape.penalty()).backward()
    theirs = dict(other.named_parameters())
    for name, p in model.named_parameters():
        if "backward" not in name:
            torch.testing.assert_close(p.grad, theirs[name].grad)
    for layer in untied.layers.untied_layers(model).values():
        for weight in layer.own_weights():
            beside, geometry = layer.beside(weight), layer.geometry_of(weight)
            dW = geometry.rows(getattr(layer, weight).grad)
            wanted = beside["backward_factor"].mT @ dW
            torch.testing.assert_close(geometry.rows(beside["backward_weight"].grad), wanted)


def test_the_path_angle_falls_while_neither_factor_aligns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    untied.untie_(model, "pfa(expand=4, decay=0.05)")
    x, y = torch.randn(64, 10), torch.randn(64, 5)
    first = untied.metrics.weight_angles(model)["2"]
    optimizer = torch.optim.SGD(untied.parameter_groups(model)[1], lr=0.1)
    forward = torch.optim.SGD(untied.parameter_groups(model)[0], lr=0.1, weight_decay=0.05)
    for _ in range(300):
        with untied.record(model) as tape:
            loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        forward.zero_grad()
        (loss + tape.penalty()).backward()
        optimizer.step()
        forward.step()
    assert untied.metrics.weight_angles(model)["2"] < first - 30


@pytest.mark.parametrize("expand", [1, 4, 10])
@pytest.mark.parametrize("layer", [nn.Linear(30, 20), nn.Conv2d(5, 20, 3, groups=1)])
def test_the_path_angle_has_a_floor_that_the_expansion_sets(layer: nn.Module, expand: int) -> None:
    """R = Pᵀ W is where copy and decay lead. E[(P Pᵀ)²] = (1 + (o + 1)/m) I for m middle channels: the floor."""
    torch.manual_seed(0)
    layer = copy.deepcopy(layer).double()
    untied.untie_(layer, f"pfa(expand={expand})")
    module: Any = layer
    geometry, W, outputs, draws = module.geometry_of("weight"), module.weight.detach(), 20, 200
    along, size = 0.0, 0.0
    for _ in range(draws):
        P = module.rule.route.factor(1, outputs, expand * outputs, geometry.rows(W))
        module.backward_factor.data.copy_(P)
        module.backward_weight.data.copy_(geometry.from_rows(P.mT @ geometry.rows(W), W.shape))
        K = module.backward_kernel("weight", module.weight).detach()
        along, size = along + float((K * W).sum()) / draws, size + float(K.square().sum()) / draws
    square = float(W.square().sum())
    assert along == pytest.approx(square, rel=0.05)
    assert size / square == pytest.approx(1 + (outputs + 1) / (expand * outputs), rel=0.05)


def test_oja_and_float16_or_split_attention_are_refused() -> None:
    layer = nn.Linear(4, 3)
    untied.untie_(layer, "ldfa(rank=2)")
    with (
        torch.autocast("cpu", torch.float16),
        untied.record(layer),
        pytest.raises(untied.UntiedError, match="bfloat16"),
    ):
        layer(torch.randn(2, 4))
    attention = nn.MultiheadAttention(8, 2)
    untied.untie_(attention, "ldfa(rank=2)")
    q, k = torch.randn(3, 2, 8), torch.randn(5, 2, 8)
    with untied.record(attention), pytest.raises(untied.UntiedError, match="oja=0"):
        attention(q, k, k)


def test_transport_of_any_function() -> None:
    W = torch.randn(5, 4)
    parse = untied.rules.parse

    def B(text: str) -> Tensor:
        layer = nn.Linear(4, 5, bias=False)
        layer.weight.data.copy_(W)
        untied.untie_(layer, parse(text))
        return layer.backward_kernel("weight", layer.weight)

    torch.testing.assert_close(B("transport(sign)"), W.sign() * W.abs().mean())
    q = B("transport(quantise(bits=3))")
    assert len(q.unique()) <= 7 and float((q - W).abs().max()) <= float(W.abs().max()) / 6 + 1e-6
    assert torch.linalg.matrix_rank(B("transport(lowrank(rank=2))")) == 2
    m = B("transport(mask(share=0.25))")
    assert int((m != 0).sum()) == 5 and torch.equal(m[m != 0], W[m != 0])
    noisy = B("transport(noise(0.1))")
    assert 0.02 < float((noisy - W).norm() / W.norm()) < 0.2
    layer = nn.Linear(4, 5)
    untied.untie_(layer, untied.rules.Transport.of(lambda W: W.clamp(-0.1, 0.1)))
    x = torch.randn(3, 4, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 5) @ layer.weight.detach().clamp(-0.1, 0.1))
    assert str(copy.deepcopy(layer).rule) == "transport(<lambda>)"
    for text in (
        "transport(quantise(bits=1))",
        "transport(round)",
        "transport(sign(2))",
        "transport",
        "transport(noise)",
    ):
        with pytest.raises(untied.UntiedError):
            parse(text)
    bad = nn.Linear(4, 5)
    untied.untie_(bad, untied.rules.Transport.of(lambda W: W.T))
    with pytest.raises(untied.UntiedError, match=r"\(4, 5\)"):
        bad(x)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90, 150])
def test_init_at_an_angle(degrees: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    untied.untie_(model, "fa", init=f"angle({degrees})")
    assert all(a == pytest.approx(degrees, abs=1e-3) for a in untied.metrics.weight_angles(model).values())
    assert all(r == pytest.approx(1, abs=1e-5) for r in untied.metrics.norm_ratios(model).values())
    with pytest.raises(untied.UntiedError, match=r"angle\(30\)"):
        untied.untie_(nn.Linear(3, 2), "fa", init="angle(200)")


def test_a_registered_rule_is_known_and_can_be_taken_back() -> None:
    @untied.register_rule
    class Halved(untied.rules.Transport):
        name = "halved"

        def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
            return W / 2

    try:
        assert isinstance(untied.rules.parse("halved"), Halved)
        assert any(row["name"] == "halved" for row in untied.rules.taxonomy())
        with pytest.raises(untied.UntiedError, match="known already"):
            untied.register_rule(type("Other", (untied.rules.Transport,), {"name": "halved"}))
    finally:
        untied.unregister_rule("halved")
    with pytest.raises(untied.UntiedError, match="registered"):
        untied.unregister_rule("bp")
    with pytest.raises(untied.UntiedError, match="possible"):
        untied.rules.parse("halved")


@pytest.mark.parametrize("case", LAYERS, ids=[c.name for c in LAYERS])
@pytest.mark.parametrize("rule", ["pfa(expand=2, decay=0)", "ldfa(rank=1, decay=0)"])
def test_in_steps_and_by_the_product_are_the_same_numbers(
    case: LayerCase, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cheaper in (True, False):
        monkeypatch.setattr(factored, "steps_are_cheaper", lambda *_, cheaper=cheaper: cheaper)
        layer, x = build(case)
        untied.untie_(layer, rule)
        with untied.record(layer):
            layer(x, **case.call).square().sum().backward()
        found.append(gradients(layer) | {"x": x.grad})
    assert_same(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n", "steps"), [(8, True), (4096, False)])
@pytest.mark.parametrize("rule", ["pfa(expand=4)", "ldfa(rank=4)"])
def test_the_cheaper_way_is_taken_and_costs_what_is_said(rule: str, n: int, steps: bool) -> None:
    """Counted by PyTorch: two multiplications and additions for each product of numbers."""
    layer = nn.Linear(64, 48, bias=False)
    untied.untie_(layer, rule)
    o, i, m = 48, 64, layer.backward_weight.shape[0]  # type: ignore[union-attr]
    x = torch.randn(n, i, requires_grad=True)
    with untied.record(layer), FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    in_steps, product = n * (o * m + 2 * m * i), 2 * o * m * i + n * o * i
    assert (in_steps < product) == (steps or rule.startswith("ldfa"))
    oja = n * o * m * 2 + 2 * o * m * m if rule.startswith("ldfa") else 0
    assert counter.get_total_flops() == 2 * (2 * n * o * i + min(in_steps, product) + oja)


def test_nothing_of_a_product_rule_is_lost_by_its_algebra() -> None:
    rule = 2 * untied.rules.parse("ldfa(rank=2, oja=0.5)")
    assert untied.rules.parse(str(rule)) == rule and rule.route == untied.rules.Product(rank=2, oja=0.5)
    layer = nn.Linear(4, 3)
    untied.untie_(layer, rule)
    with untied.record(layer):
        layer(torch.randn(5, 4)).square().sum().backward()
    assert layer.backward_factor.grad is not None and float(layer.backward_factor.grad.norm()) > 0  # type: ignore[union-attr]
