"""The first training pass refuses backpropagation's errors that nobody has allowed: by what is computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from cases import RuleCase, by_any_rule
from untied.errors import UntiedError


class Autoencoder(nn.Module):
    """Its decoder is the encoder's weight, used without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.code = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.code(torch.tanh(self.encode(x)))), self.encode.weight.t())


class NamedAsAdded(nn.Module):
    """A matrix whose name says that it is added, and which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.pos_embed = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) @ self.pos_embed)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.token = nn.Parameter(torch.randn(5, 6))  # added

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x + self.token)))


def replaced(rule: str | untied.rules.Rule) -> nn.Module:
    model = Layers()
    untied.untie_(model, rule)
    model.last = nn.Linear(4, 3)
    return model


def made(kind: type[nn.Module], rule: str | untied.rules.Rule, **given: object) -> nn.Module:
    model = kind()
    untied.untie_(model, rule, **given)
    return model


@pytest.mark.parametrize("rule", ["fa", "usf", "brsf", "transport(sign)"])
@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda rule: made(Autoencoder, rule), "encode.weight"), (lambda rule: made(NamedAsAdded, rule), "pos_embed"),
     (replaced, "last.weight")],
    ids=["used directly", "named as added", "replaced"],
)  # fmt: skip
def test_a_plain_loop_is_told(make: object, name: str, rule: str) -> None:
    model = make(rule)  # type: ignore[operator]
    message = f"^errors go through {name} by backpropagation: .*untie_.*allow="
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            one(torch.randn(5, 6))
        one.eval()(torch.randn(5, 6))
        with pytest.raises(UntiedError, match=message):
            one.train()(torch.randn(5, 6))


@by_any_rule
def test_under_any_rule_but_backpropagation(rule: RuleCase) -> None:
    model, x = made(NamedAsAdded, rule.text), torch.randn(5, 6)
    with untied.record(model, progress=0.5, step=0, targets=torch.randn(5, 3)):
        if all(layer.rule.exact for layer in untied.layers.untied_layers(model).values()):
            model(x)
        else:
            with pytest.raises(UntiedError, match="through pos_embed by backpropagation"):
                model(x)


def test_what_is_allowed_or_left_by_the_filter_stays() -> None:
    x = torch.randn(5, 6)
    for model in (
        made(NamedAsAdded, "fa", allow="pos_*"),
        made(NamedAsAdded, "fa", allow=True),
        made(Layers, "fa", filter="first"),
        made(Layers, "fa"),
    ):
        model(x).sum().backward()
        assert not model._forward_pre_hooks and not model._forward_hooks


def test_it_goes_with_the_first_training_pass_or_with_tie() -> None:
    model = made(Layers, "fa")
    keys = list(model.state_dict())
    assert len(model._forward_pre_hooks) == 1
    model(torch.randn(5, 6))
    assert not model._forward_pre_hooks and list(model.state_dict()) == keys
    model = untied.tie_(made(Layers, "fa"))
    assert not model._forward_pre_hooks


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    model = made(NamedAsAdded, "fa")
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.randn(5, 7))
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_compiled_model_is_one_graph_and_is_not_looked_at() -> None:
    model = made(Layers, "fa")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(5, 6)).sum().backward()
    model(torch.randn(5, 6))
    compiled(torch.randn(5, 6)).sum().backward()
    assert not model._forward_pre_hooks
