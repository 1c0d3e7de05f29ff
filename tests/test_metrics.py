"""Angles and norm ratios, and that measuring leaves no trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from cases import RuleCase, SmallNet, by_rule, small_batch, small_net, step
from untied import UntiedError
from untied.layers.layer import untied_layers
from untied.metrics import AlignmentTable, angle, measure, norm_ratios, weight_angles
from untied.rules import Transport, parse


def closure(model: nn.Module) -> Callable[[], Tensor]:
    x, labels = small_batch()
    return lambda: nn.functional.cross_entropy(model(x), labels)


@pytest.mark.parametrize(
    ("a", "b", "degrees"),
    [([1, 0], [1, 0], 0), ([1, 0], [3, 0], 0), ([1, 0], [0, 2], 90), ([1, 0], [1, 1], 45), ([1, 0], [-1, 0], 180)],
)
def test_angle(a: list[float], b: list[float], degrees: float) -> None:
    assert angle(torch.tensor(a).float(), torch.tensor(b).float()) == pytest.approx(degrees)


def test_small_angles_are_exact() -> None:
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for radians in (1e-12, 1e-9, 1e-4):
        b = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
        assert angle(a, b) == pytest.approx(math.degrees(radians), rel=1e-4)
    assert angle(torch.randn(1000).bfloat16(), torch.randn(1000).half()) > 0


def test_a_zero_vector_has_no_angle() -> None:
    assert math.isnan(angle(torch.zeros(3), torch.ones(3))) and math.isnan(angle(torch.ones(3), torch.zeros(3)))


def test_B_equal_to_W_is_aligned_in_every_sense() -> None:
    model = small_net()
    untied.untie_(model, "sa", init="copy")
    table = measure(model, closure(model))
    assert set(table.layers) == {"conv", "grouped", "hidden", "out"} and table.gradient_angle == pytest.approx(
        0, abs=1e-6
    )
    for name, row in table.layers.items():
        assert row.weight_angle == 0 and row.norm_ratio == pytest.approx(1)
        assert row.projection_angle == pytest.approx(0, abs=1e-6)
        assert row.gradient_angle == pytest.approx(0, abs=1e-6)
        # The first layer's input needs no gradient, but what B would do to the error is told all the same.
        assert row.local_gradient_angle == pytest.approx(0, abs=1e-6), name


def test_B_equal_to_minus_W() -> None:
    model = small_net()
    untied.untie_(model, "sa", init=lambda W: -2 * W)
    table = measure(model, closure(model))
    for row in table.layers.values():
        assert row.weight_angle == pytest.approx(180) and row.norm_ratio == pytest.approx(2)
        assert row.projection_angle == pytest.approx(180) and row.local_gradient_angle == pytest.approx(180)
    # out: its own gradient needs no B; hidden: one B; grouped: two; conv: three
    wanted = {"out": 0, "hidden": 180, "grouped": 0, "conv": 180}
    for name, degrees in wanted.items():
        assert table.layers[name].gradient_angle == pytest.approx(degrees, abs=1e-5), name


@by_rule
def test_the_table_is_what_its_legend_says(rule: RuleCase) -> None:
    """Each number by hand: hooks for the errors, two backward passes for the gradients."""
    if rule.text in ("brsf", "transport(noise(0.1))"):
        pytest.skip("its B is another one each time")
    model = small_net(rule.text)
    with untied.record(model, progress=0.5, step=0):
        pass  # a rule that moves B itself does so here, and not again while W stands still
    table = measure(model, closure(model))
    seen: dict[str, list[Tensor]] = {}
    for name, layer in untied_layers(model).items():
        layer.register_forward_hook(lambda m, i, y, name=name: seen.update({name: [i[0].detach(), y]}))
    x, labels = small_batch()
    forward = [p for n, p in model.named_parameters() if "backward" not in n]
    with untied.record(model, progress=0.5, step=0):
        task = nn.functional.cross_entropy(model(x), labels)
    errors = torch.autograd.grad(task, [y for _, y in seen.values()], retain_graph=True)
    pseudo = torch.autograd.grad(task, forward)
    plain = small_net()
    exact = torch.autograd.grad(nn.functional.cross_entropy(plain(x), labels), list(plain.parameters()))
    by_name = dict(zip([n for n, _ in plain.named_parameters()], zip(pseudo, exact, strict=True), strict=True))
    for (name, (x_in, _)), g in zip(seen.items(), errors, strict=True):
        layer, row = untied_layers(model)[name], table.layers[name]
        geometry, W = layer.geometry(), layer.weight.detach()
        B = layer.backward_kernel("weight", W).detach()
        assert row.weight_angle == pytest.approx(angle(W, B))
        assert row.norm_ratio == pytest.approx(float(B.norm() / W.norm()))
        assert row.projection_angle == pytest.approx(angle(geometry.project(x_in, W), geometry.project(x_in, B)))
        back = [geometry.reconstruct(g, K, like=x_in) for K in (W, B)]
        assert row.local_gradient_angle == pytest.approx(angle(*back))
        assert row.gradient_angle == pytest.approx(angle(*by_name[f"{name}.weight"]), abs=1e-5)
    together = [torch.cat([pair[i].flatten() for pair in by_name.values()]) for i in (0, 1)]
    assert table.gradient_angle == pytest.approx(angle(*together))


def test_an_activation_in_place_does_not_change_the_angles() -> None:
    x, labels = torch.randn(16, 6, dtype=torch.float64), torch.randint(3, (16,))
    tables = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 3)
        ).double()
        untied.untie_(model, "fa")
        tables.append(measure(model, lambda model=model: nn.functional.cross_entropy(model(x), labels)).as_dict())
    assert tables[0] == tables[1]


@by_rule
def test_measuring_leaves_everything_as_it_was(rule: RuleCase) -> None:
    """Buffers, gradients, random numbers, mode, rules; no warning of a pass outside record()."""

    class Normed(SmallNet):
        def __init__(self) -> None:
            super().__init__(dropout=0.5)
            self.norm = nn.BatchNorm2d(4)

    torch.manual_seed(0)
    model = Normed().double()
    untied.untie_(model, rule.text)
    step(model, *small_batch())
    before = copy.deepcopy(model.state_dict())
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    rules = {n: m.rule for n, m in untied_layers(model).items()}
    state = torch.get_rng_state()
    first = measure(model, closure(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for name, p in model.named_parameters():
        assert (p.grad is None) == (grads[name] is None) and (p.grad is None or torch.equal(p.grad, grads[name]))
    assert model.training and {n: m.rule for n, m in untied_layers(model).items()} == rules
    assert all(m.listeners == () for m in untied_layers(model).values())
    assert measure(model, closure(model)) == first
    weight_angles(model), norm_ratios(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_measuring_inside_a_recording_leaves_the_tape_alone() -> None:
    model = small_net("aa")
    with untied.record(model) as tape:
        task = closure(model)()
        before = tape.penalties()
        measure(model, closure(model))
        assert tape.penalties() == before
    (task + tape.penalty()).backward()


def test_measuring_without_gradients_enabled() -> None:
    model = small_net("sa")
    with torch.no_grad():
        assert 0 < measure(model, closure(model)).gradient_angle < 180


def test_a_failing_closure_leaves_the_model_usable() -> None:
    model = small_net("sa")
    with pytest.raises(ZeroDivisionError):
        measure(model, lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert {str(m.rule) for m in untied_layers(model).values()} == {"sa"}
    assert all(m.listeners == () for m in untied_layers(model).values())
    measure(model, closure(model))


def test_weight_angles_and_norm_ratios_need_no_data() -> None:
    model = small_net("sa")
    table = measure(model, closure(model))
    assert weight_angles(model) == {n: r.weight_angle for n, r in table.layers.items()}
    assert norm_ratios(model) == {n: r.norm_ratio for n, r in table.layers.items()}


def test_random_backward_weights_stand_at_right_angles() -> None:
    """n = 250,000 entries: the cosine's standard deviation is 1/√n = 0.002, 0.11°."""
    torch.manual_seed(0)
    layer = nn.Linear(500, 500)
    untied.untie_(layer, "fa")
    assert abs(weight_angles(layer)[""] - 90) < 0.6


def test_sign_symmetry_keeps_within_its_angle() -> None:
    """Uniform W: cos = E|w| / √E w² = √3/2, 30°; n = 250,000."""
    torch.manual_seed(0)
    layer = nn.Linear(500, 500)
    untied.untie_(layer, "usf")
    assert weight_angles(layer)[""] == pytest.approx(30, abs=0.2)
    assert norm_ratios(layer)[""] == pytest.approx(1, abs=0.01)


def test_attention_is_measured_as_one_layer_and_its_output() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    untied.untie_(model, "sa", init="copy")
    x = torch.randn(4, 3, 8)
    table = measure(model, lambda: model(x).square().sum())
    assert set(table.layers) == {"self_attn", "self_attn.out_proj", "linear1", "linear2"}
    assert table.layers["self_attn"].projection_angle == pytest.approx(0, abs=1e-3)


def test_a_layer_that_is_not_reached_has_no_angle() -> None:
    model = small_net("sa")
    x = small_batch()[0]
    table = measure(model, lambda: model.features(x).sum())
    assert math.isnan(table.layers["out"].projection_angle) and math.isnan(table.layers["out"].gradient_angle)
    assert not math.isnan(table.layers["out"].weight_angle)


def test_frozen_weights_are_left_out() -> None:
    model = small_net("sa")
    model.hidden.requires_grad_(False)
    table = measure(model, closure(model))
    assert math.isnan(table.layers["hidden"].gradient_angle) and not math.isnan(table.gradient_angle)


def test_mistakes() -> None:
    with pytest.raises(UntiedError, match="untie_"):
        weight_angles(small_net())
    with pytest.raises(UntiedError, match="untie_"):
        measure(small_net(), closure(small_net()))
    model = small_net("sa")
    with pytest.raises(UntiedError, match="needs no gradient of any parameter"):
        measure(model, lambda: torch.zeros(()))


def test_the_table_prints() -> None:
    model = small_net("sa")
    table = measure(model, closure(model))
    text = str(table)
    assert isinstance(table, AlignmentTable) and text.count("\n") == 5
    assert all(name in text for name in ("layer", "weight °", "gradient °", "conv", "out", "whole network"))
    assert len({len(line) for line in text.splitlines()[:-1]}) == 1
    assert set(table.as_dict()["conv"]) == {
        "weight_angle", "projection_angle", "local_gradient_angle", "gradient_angle", "norm_ratio", "reached_angle",
        "gradient_norm", "growth",
    }  # fmt: skip


def test_taps_that_see_padding_alone_are_left_out() -> None:
    """A 3 × 3 kernel on a 1 × 1 map: its middle alone is used, and is all that the reached angle looks at."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3, 2)).double()
    untied.untie_(model, "sa")
    conv: Any = model[0]
    conv.backward_weight.data[..., 1, 1] = 2 * conv.weight.data[..., 1, 1]
    x = torch.randn(4, 2, 1, 1, dtype=torch.float64)
    row = measure(model, lambda: model(x).square().mean()).layers["0"]
    assert row.reached_angle == pytest.approx(0, abs=1e-6) and row.weight_angle > 45
    assert row.projection_angle == pytest.approx(0, abs=1e-6)
    state = torch.get_rng_state()
    assert untied.metrics.reached_angles(model, lambda: model(x))["0"] == row.reached_angle
    assert torch.equal(state, torch.get_rng_state()) and conv.listeners == ()


def test_an_angle_to_a_vanishing_gradient_is_none() -> None:
    model, (x, labels) = small_net("fa"), small_batch()
    table = measure(model, lambda: 1e-12 * nn.functional.cross_entropy(model(x), labels))
    assert all(math.isnan(row.gradient_angle) for row in table.layers.values()) and math.isnan(table.gradient_angle)
    assert all(0 < row.gradient_norm < 1e-9 for row in table.layers.values())
    assert "–" in str(table) and "nan" not in str(table)
    plain = small_net()
    closure(plain)().backward()
    row = measure(model, closure(model)).layers["out"]
    assert row.gradient_norm == pytest.approx(float(plain.out.weight.grad.norm()))


def test_growth_is_the_ratio_of_inputs() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2)).double()
    untied.untie_(model, "sa")
    x = torch.randn(7, 4, dtype=torch.float64)
    rows = measure(model, lambda: model(x).square().mean()).layers
    model.eval()
    inputs = [x, model[0](x), model[1](model[0](x))]
    assert math.isnan(rows["0"].growth)
    for i in (1, 2):
        assert rows[str(i)].growth == pytest.approx((inputs[i].norm() / inputs[i - 1].norm()).item(), rel=1e-5)


@by_rule
def test_training_on_R_alone_brings_B_to_W(rule: RuleCase) -> None:
    """What the rules are for: SA and AA align B with a fixed W; transport rules are where they are at once."""
    r = parse(rule.text)
    if rule.text not in ("sa", "aa", "bp", "kp", "wm(noise=normal, noise_std=0.5)"):
        pytest.skip("not promised by the paper at these coefficients")
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    untied.untie_(layer, r)
    if isinstance(r, Transport):
        assert weight_angles(layer)[""] == 0
        return
    start = weight_angles(layer)[""]
    optimizer = torch.optim.SGD([layer.backward_weight], 0.1)
    for _ in range(200):
        with untied.record(layer) as tape:
            y = layer(torch.randn(64, 6))
        optimizer.zero_grad()
        (tape.penalty() + (0.0 if not r.copies_gradient else y.sum() * 0)).backward()
        optimizer.step()
    end = weight_angles(layer)[""]
    if rule.text == "kp":
        assert end == pytest.approx(start, abs=1)  # without a task there is nothing to copy
    else:
        assert end < (1 if rule.text in ("sa", "aa") else 15) < start
