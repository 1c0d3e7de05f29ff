"""Parametrized layers: weight norm, spectral norm, masks and signs, before and after `untie_`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import untied
from untied.geometry import DENSE
from untied.layers.groups import parameter_groups
from untied.layers.layer import LAYERS


class Mask(nn.Module):
    """Only some connections exist."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(12).view(3, 4) % 3 != 0)

    def forward(self, W: Tensor) -> Tensor:
        return W * self.kept


class Dale(nn.Module):
    """Each input neuron excites or inhibits, whatever it sends to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("signs", torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64))

    def forward(self, W: Tensor) -> Tensor:
        return W.abs() * self.signs


KINDS: dict[str, Any] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "mask": lambda m: parametrize.register_parametrization(m, "weight", Mask()),
    "dale": lambda m: parametrize.register_parametrization(m, "weight", Dale()),
}


def layer(kind: str | None = None) -> Any:
    torch.manual_seed(0)
    made: Any = nn.Linear(4, 3).double()
    return made if kind is None else KINDS[kind](made).eval()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "sa", "frsf", "aa", "mkp"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_what_the_layer_uses(kind: str, rule: str, before: bool) -> None:
    plain, model = layer(kind), layer(kind if before else None)
    twin = copy.deepcopy(model)
    untied.untie_(model, rule)
    assert type(twin) is not type(model) and "rule" not in repr(twin)  # a copy made earlier stays plain
    if not before:
        torch.manual_seed(0)
        _ = nn.Linear(4, 3)
        KINDS[kind](model).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(5, 4, dtype=torch.float64)
    with untied.record(model) as tape:
        y = model(x)
        y = model(x)
    torch.testing.assert_close(y, plain(x))
    (y.square().sum() + tape.penalty()).backward()
    plain(x).square().sum().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, p.grad)
    if hasattr(model, "backward_weight"):
        assert model.backward_weight.shape == model.weight.shape
    if rule == "sa":
        torch.testing.assert_close(model.backward_weight.grad, (model.backward_weight - model.weight).detach())
    untied.tie_(model)
    torch.testing.assert_close(model(x), plain(x))
    assert list(model.state_dict()) == list(plain.state_dict()) and "rule" not in repr(model)


@pytest.mark.parametrize("grad", [True, False])
def test_a_masked_B_gets_its_gradient_once_and_tie_takes_it_away(grad: bool) -> None:
    model = layer("mask")
    untied.untie_(model, "sa")
    parametrize.register_parametrization(model, "backward_weight", Mask())
    x = torch.randn(5, 4, dtype=torch.float64)
    with untied.record(model) as tape, torch.set_grad_enabled(grad):
        model(x), model(x)
    tape.penalty().backward()
    original = model.parametrizations.backward_weight.original
    torch.testing.assert_close(original.grad, (model.backward_weight - model.weight).detach())
    assert not model.backward_weight[~model.parametrizations.weight[0].kept].any()
    assert [id(p) for p in parameter_groups(model)[1]] == [id(original)]
    untied.tie_(model)
    assert list(model.state_dict()) == list(layer("mask").state_dict())
    torch.testing.assert_close(model(x), layer("mask")(x))


class Scaled(nn.Linear):
    """A linear layer whose kernel is a property, made of another parameter."""

    def __init__(self) -> None:
        super().__init__(4, 3, dtype=torch.float64)
        self.raw = nn.Parameter(self._parameters.pop("weight").detach())

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return 2 * self.raw


def test_a_registered_class_whose_kernel_is_a_property(monkeypatch: pytest.MonkeyPatch) -> None:
    class UntiedScaled(untied.Untied, Scaled):
        def geometry(self) -> untied.Geometry:
            return DENSE

    monkeypatch.setitem(LAYERS, Scaled, UntiedScaled)
    model: Any = nn.Sequential(Scaled(), nn.Tanh(), nn.Linear(3, 2, dtype=torch.float64))
    untied.untie_(model, "sa")
    assert model[0].backward_weight.shape == (3, 4)
    with untied.record(model) as tape:
        y = model(torch.randn(5, 4, dtype=torch.float64))
    (y.sum() + tape.penalty()).backward()
    torch.testing.assert_close(model[0].backward_weight.grad, (model[0].backward_weight - model[0].weight).detach())
    assert type(untied.tie_(model)[0]) is Scaled
