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
from cases import RuleCase, SmallNet, by_rule, small_batch, small_net
from untied import UntiedError


def on_small(model: nn.Module) -> Tensor:
    x, labels = small_batch()
    return F.cross_entropy(model(x), labels)


@by_rule
def test_a_network_of_known_layers_is_verified(rule: RuleCase) -> None:
    report = untied.verify(small_net(rule.text), on_small, strict=True)
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
    untied.untie_(model, "fa")
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
