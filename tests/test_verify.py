"""`untied.verify`: by numbers, what carries errors and what moves B."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from cases import RuleCase, SmallNet, by_any_rule, small_batch, small_net
from untied import UntiedError


def on_small(model: nn.Module) -> Tensor:
    x, labels = small_batch()
    return F.cross_entropy(model(x), labels)


@by_any_rule
def test_a_network_of_known_layers_is_verified(rule: RuleCase) -> None:
    report = untied.verify(small_net(rule.text), on_small, strict=True, targets=small_batch()[1])
    assert report.verified and "verified" in str(report) and "conv.weight" in str(report)
    kinds = {f.name: f.gradient for f in report.findings}
    assert kinds["out.weight"] == "backprop's"
    assert kinds["conv.weight"] == ("backprop's" if rule.text == "bp" else "its own")


def test_it_leaves_everything_as_it_was() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2))
    untied.untie_(model, "wm(noise=normal)")
    x = torch.randn(6, 4)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model.eval()
    assert untied.verify(model, lambda m: m(x).square().sum()).verified
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert torch.equal(torch.get_rng_state(), random) and not model.training
    assert all(p.grad is None for p in model.parameters()) and not model[0].was_called


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.middle = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.middle(torch.tanh(self.enc(x))), self.enc.weight.t())


class Direct(nn.Module):
    """An attention block that passes a known layer by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.first(x)), self.qkv.weight, self.qkv.bias)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_rec = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("mask", torch.ones(4, 4))
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x)) @ (self.W_rec * self.mask).T


class Mixed(nn.Module):
    """A mixture of experts with 3-D parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.first = nn.Parameter(torch.randn(2, 4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,eio->no", torch.tanh(self.first(x)), self.experts)


@pytest.mark.parametrize("rule", ["fa", "usf", "sa"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (TiedAutoencoder, "enc.weight"),
        (Direct, "qkv.weight"),
        (Recurrent, "W_rec"),
        (Mixed, "experts"),
    ],
)
def test_what_carries_backprops_errors_is_named(make: Callable[[], nn.Module], name: str, rule: str) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(5, 4)
    untied.untie_(model, rule, allow=True)
    with pytest.raises(UntiedError, match=rf"not verified: .*{name} carries backprop's errors") as error:
        untied.verify(model, lambda m: m(x).square().sum(), strict=True)
    assert "\n" not in str(error.value)
    if make is Direct and rule != "usf":
        assert "qkv.backward_weight is never used" in str(error.value)


def test_a_hook_that_calls_the_old_forward_is_caught() -> None:
    model = small_net()
    old = model.hidden.forward
    model.hidden.forward = lambda x: old(x)  # type: ignore[method-assign]
    with pytest.raises(UntiedError, match=r"hidden has a forward of its own.*take it off"):
        untied.untie_(model, "fa")
    del model.hidden.forward
    untied.untie_(model, "fa")
    model.hidden.forward = lambda x: old(x)  # type: ignore[method-assign]
    assert "hidden.backward_weight is never used" in untied.verify(model, on_small).verdict


def test_a_B_that_cannot_move_is_named() -> None:
    model = small_net("sa")
    early = torch.optim.SGD(untied.parameter_groups(model)[0], 0.1)
    report = untied.verify(model, on_small, early)
    assert "conv.backward_weight in no optimizer" in report.problems and len(report.problems) == 4
    assert untied.verify(model, on_small, torch.optim.SGD(model.parameters(), 0.1)).verified
    model.requires_grad_(False)
    model.out.requires_grad_(True)
    frozen = untied.verify(model, on_small).problems
    assert "conv.backward_weight is frozen, though its rule moves it" in frozen and len(frozen) == 3


def test_a_wrong_geometry_differs_from_the_oracle() -> None:
    class Wrong(untied.layers.UntiedLinear):
        def connect(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().connect(*args, **kwargs) * 2

    model = small_net("fa")
    model.hidden.__class__ = Wrong
    assert any("differs from the straight-through" in p for p in untied.verify(model, on_small).problems)


def test_what_it_refuses() -> None:
    with pytest.raises(UntiedError, match="nothing in this model is converted"):
        untied.verify(SmallNet(), on_small)
    model = small_net("fa")
    with pytest.raises(UntiedError, match="depends on no parameter"):
        untied.verify(model, lambda m: torch.zeros(()))
    with pytest.raises(UntiedError, match="depends on another model"):
        untied.verify(model, lambda m: on_small(model))


@pytest.mark.parametrize("rule", ["dfa", "sdfa", "drtp", "dkp", "pfa", "ldfa(rank=1)"])
def test_rules_on_other_routes_are_looked_at(rule: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    untied.untie_(model, rule)
    x, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    report = untied.verify(model, lambda m: F.cross_entropy(m(x), labels), targets=labels, strict=True)
    assert {f.name: f.gradient for f in report.findings}["0.weight"] == "its own"


def test_a_dense_B_is_drawn_first() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 2))
    untied.untie_(model, "dfa(kernel=dense)")
    assert untied.verify(model, lambda m: m(torch.randn(3, 1, 5)).square().sum()).verified


class Experts(nn.Module):
    """Two experts, of which a batch may leave one without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts, self.used = nn.Linear(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2)), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.used](torch.tanh(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["fa", "sa", "kp"])
def test_a_layer_that_the_batch_skips_is_no_fault(rule: str) -> None:
    model, x = Experts(), torch.randn(5, 4)
    untied.untie_(model, rule)
    report = untied.verify(model, lambda m: m(x).square().sum(), strict=True)
    assert {f.name: f.gradient for f in report.findings}["experts.1.backward_weight"] == "B, unused"


def test_a_B_to_which_no_error_comes_is_named() -> None:
    """As under backpropagation: then it is no fault of the rule's. Under another B above it is one."""

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.third(x) + 0 * self.second(x)  # type: ignore[no-any-return]

    model, x = Dead(), torch.randn(5, 4)
    untied.untie_(model, "sa")
    report = untied.verify(model, lambda m: m(x).square().sum(), strict=True)
    assert {f.name: f.gradient for f in report.findings}["second.backward_weight"] == "B, idle"
    deep = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    untied.untie_(deep, "sa", init=torch.zeros_like)
    assert "2.backward_weight moves nothing" in untied.verify(deep, lambda m: m(x).square().sum()).verdict


def test_an_operation_that_uses_another_B_differs() -> None:
    """Equal at this B, which is W, and caught all the same."""

    class ThroughW(untied.layers.UntiedLinear):
        def backward_kernel(self, weight: str, W: Tensor) -> Tensor:
            return W.detach() if "connect" not in vars(self) else super().backward_kernel(weight, W)

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    untied.untie_(model, "fa", init="copy")
    model[2].__class__ = ThroughW
    x = torch.randn(6, 4)
    assert "0.weight differs from the straight-through" in untied.verify(model, lambda m: m(x).square().sum()).verdict


def test_line_search_does_not_suit_R() -> None:
    for rule, problems in (("sa", 1), ("fa", 0)):
        model = small_net(rule)
        report = untied.verify(model, on_small, torch.optim.LBFGS(model.parameters()))
        assert len(report.problems) == problems and ("LBFGS" in report.verdict) == bool(problems)


class Stateful(nn.Module):
    """A state in a buffer, which the first pass makes as large as its input, as spiking units do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 2)
        self.register_buffer("state", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        self.state = torch.tanh(self.first(x)) + (self.state if len(self.state) else 0)
        return self.second(self.state)  # type: ignore[no-any-return]


def test_a_state_that_a_pass_puts_in_a_buffer_starts_anew() -> None:
    model, x = Stateful(), torch.randn(6, 4)
    untied.untie_(model, "sa")
    untied.verify(model, lambda m: m(x).square().mean(), strict=True)
    assert len(model.state) == 0
    with untied.record(model):
        model(x)  # leaves a state that is a part of its graph
    assert not model.state.is_leaf
    untied.verify(model, lambda m: m(x).square().mean(), strict=True)
    assert not model.state.is_leaf
