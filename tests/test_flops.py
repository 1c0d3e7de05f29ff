"""No rule costs more than the design counts: floating-point operations of a whole step, by PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import untied
from cases import RuleCase, by_rule
from untied.rules import parse

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch's own, from the plain layer

N = 8
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Linear(12, 20), (N, 12)),
    "dense, positions": (lambda: nn.Linear(12, 20), (N, 5, 12)),
    "convolution": (lambda: nn.Conv2d(6, 10, 3, padding=1), (N, 6, 7, 7)),
    "strided": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False), (N, 6, 7, 7)),
    "same, uneven": (lambda: nn.Conv2d(6, 10, 2, padding="same"), (N, 6, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 10, 3, stride=2, padding=1), (N, 6, 5, 5)),
}
by_model = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS.keys())


def count(model: nn.Module, x: Tensor, **record: object) -> int:
    """Operations of forward, penalty and backward."""
    with FlopCounterMode(display=False) as counter:
        if any(isinstance(m, untied.Untied) for m in model.modules()):
            with untied.record(model, progress=0.5, **record) as tape:  # type: ignore[arg-type]
                task = model(x).sum()
            task = task + tape.penalty()
        else:
            task = model(x).sum()
        task.backward()
    return counter.get_total_flops()


def built(make: Callable[[], nn.Module], shape: tuple[int, ...], needs_gradient: bool) -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape, requires_grad=needs_gradient)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return model, x, counter.get_total_flops()


def rest(model: nn.Module) -> None:
    """Let a rule that measures do so before a step is counted: it does not again while W stands still."""
    with untied.record(model, progress=0.5, step=0):
        pass


def measuring(text: str) -> Fraction:
    """What a measured decay costs at most, in layer products: one example's, of one output channel."""
    return Fraction(1, N * 10) if "power" in str(parse(text)) else Fraction(0)


@by_rule
@by_model
def test_a_first_layer_computes_no_input_gradient(
    rule: RuleCase, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    if rule.products is None or "every" in rule.text:
        pytest.skip("by autograd, or not at every step")
    model, x, product = built(make, shape, needs_gradient=False)
    assert count(model, x) == 2 * product
    untied.untie_(model, rule.text)
    rest(model)
    counted = Fraction(count(model, x, step=0), product)
    assert 2 + Fraction(rule.products) <= counted <= 2 + Fraction(rule.products) + measuring(rule.text)


@pytest.mark.parametrize("rule", ["wm", "aa", "ia", "wm(noise=normal)", "aa(noise=normal)"])
@by_model
def test_an_eighth_of_the_batch_costs_an_eighth(
    rule: str, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    extra = []
    for text in (
        rule,
        str(untied.rules.Alignment(parse(rule).combination, **{**parse(rule).options, "fraction": 1 / 8})),
    ):
        model, x, product = built(make, shape, needs_gradient=True)
        untied.untie_(model, text)
        extra.append(count(model, x) - 3 * product)
    assert extra[0] == 8 * extra[1] > 0


@pytest.mark.parametrize("rule", ["wm", "aa", "ia", "aa(noise=normal)"])
def test_a_resting_step_costs_what_backpropagation_does(rule: str) -> None:
    model, x, product = built(*MODELS["convolution"], needs_gradient=True)
    untied.untie_(model, untied.rules.Alignment(parse(rule).combination, **{**parse(rule).options, "every": 4}))
    assert [count(model, x, step=i) > 3 * product for i in range(5)] == [True, False, False, False, True]


@by_rule
@by_model
def test_a_step_of_the_task_alone_costs_what_feedback_alignment_does(
    rule: RuleCase, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, x, product = built(make, shape, needs_gradient=True)
    untied.untie_(model, rule.text)
    assert count(model, x, align=False) == 3 * product


@pytest.mark.parametrize("rule", ["fa", "sa", "kp", "usf", "frsf", "brsf", "bp"])
def test_a_frozen_layer_costs_no_weight_gradient(rule: str) -> None:
    model, x, product = built(*MODELS["convolution"], needs_gradient=True)
    untied.untie_(model, rule)
    model.weight.requires_grad_(False)  # type: ignore[union-attr]
    assert count(model, x) == (3 if rule == "kp" else 2) * product  # kp's B takes the weight gradient all the same


def test_evaluation_costs_one_product() -> None:
    model, x, product = built(*MODELS["convolution"], needs_gradient=False)
    untied.untie_(model, "ia")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    assert counter.get_total_flops() == product


def test_attention_costs_what_its_dense_layers_do() -> None:
    x = torch.randn(4, 6, 16, requires_grad=True)
    counts = {}
    for rule in (None, "bp", "wm", "aa"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True))
        if rule:
            untied.untie_(model, rule)
        counts[rule] = count(model, x)
    dense = 2 * 24 * (16 * 48 + 16 * 16 + 2 * 16 * 32)
    assert counts["bp"] == counts[None]
    assert counts["wm"] == counts[None] + dense and counts["aa"] == counts[None] + 2 * dense


# What else a rule does: passes over tensors of the weight's size, each a call of a kernel


class Passes(TorchDispatchMode):
    """The operations that make or change a tensor of a shape, products left out."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        writes = name.endswith("_") or not (func.is_view or name in ("detach", "alias"))
        if writes and isinstance(out, Tensor) and out.shape == self.shape and name != "new_empty":
            self.names.append(name)
        return out


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("bp", []),
        ("fa", []),
        ("sa", ["add"]),  # B - W: one pass that reads both
        ("kp", ["mul"]),
        ("wm", ["mul_", "add_"]),  # correlate's factor, then the decay
        ("aa", ["mul_"]),
        ("ia", ["mul_", "add_"]),
        ("usf", ["sign", "mul"]),
    ],
)
def test_a_rule_passes_over_its_weights_no_oftener_than_this(rule: str, wanted: list[str]) -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(6, 10, 3, padding=1), torch.randn(N, 6, 7, 7, requires_grad=True)
    untied.untie_(model, rule)
    with untied.record(model) as tape, Passes(model.weight.shape) as seen:
        loss = model(x).sum() + tape.penalty()
    assert seen.names == wanted
    with Passes(model.weight.shape) as seen:
        loss.backward()
    assert seen.names == (["add"] if rule == "kp" else [])  # the decay and W's pseudogradient meet in B


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("fa", []),
        ("sa", ["add"]),
        ("kp", ["mul"]),
        ("wm", ["mul_", "add"]),  # the decay, in float32, and the product, in bfloat16, in one pass
        ("aa", ["mul_", "_to_copy"]),
        ("ia", ["mul_", "add"]),
    ],
)
def test_nor_under_autocast(rule: str, wanted: list[str]) -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(32, 32, 3, padding=1), torch.randn(N, 32, 7, 7, requires_grad=True)
    untied.untie_(model, rule)
    with untied.record(model) as tape, torch.autocast("cpu", torch.bfloat16), Passes(model.weight.shape) as seen:
        model(x)
        tape.penalty()
    assert seen.names == ["_to_copy", "_to_copy", *wanted]  # W and B


@pytest.mark.parametrize("rule", ["wm", "aa", "ia"])
def test_a_rule_makes_no_tensor_of_the_activitys_size_but_its_products(rule: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(6, 10, 3, padding=1, bias=False), torch.randn(N, 6, 7, 7, requires_grad=True)
    untied.untie_(model, rule)
    y_shape = torch.Size((N, 10, 7, 7))
    with untied.record(model) as tape, Passes(x.shape) as inputs, Passes(y_shape) as outputs:
        model(x)
        tape.penalty()
    assert inputs.names == {"ia": ["convolution", "add_"]}.get(rule, [])  # T_B* y, then x from it, in its place
    assert outputs.names == ["convolution", "_unsafe_view", *{"aa": ["convolution", "add_"]}.get(rule, [])]  # no copy


def test_a_fraction_copies_no_activity_where_it_divides_the_batch() -> None:
    layer, x = nn.Linear(3, 2, bias=False), torch.randn(16, 3)
    untied.untie_(layer, "wm(fraction=1/8)")
    for seed in range(20):
        torch.manual_seed(seed)
        with untied.record(layer) as tape, Passes(torch.Size((2, 3))) as seen:
            layer(x)
            tape.penalty()
        assert not {"cat", "index_select", "index"} & set(seen.names)
