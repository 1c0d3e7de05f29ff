"""`untied.verify` on rules that broadcast: their gradients against another construction, and what is tampered with.

`test_broadcast.py` has an oracle too, which the tests own; this one is what users get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from test_broadcast import Block, ConvNet, mlp
from untied.routes.autograd import UntiedOperation
from untied.routes.factored import Factored
from untied.rules.broadcast import Port

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (mlp, (4, 6), ""),
    "conv net, dense": (ConvNet, (4, 2, 6, 6), "kernel=dense"),
    "conv net, position": (ConvNet, (4, 2, 6, 6), "kernel=position"),
    "transformer block": (Block, (4, 3, 5), ""),
    "transformer block, per token": (lambda: Block(pooled=False), (4, 3, 5), ""),
}
RULES = ("dfa", "sdfa(scale=0.1)", "drtp(scale=0.1)", "dkp")


def built(case: str, rule: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor], Tensor]:
    """A network under a rule, its task, and the targets."""
    make, shape, kernel = CASES[case]
    torch.manual_seed(0)
    model = make()
    name, _, options = rule.rstrip(")").partition("(")
    untied.untie_(model, f"{name}({', '.join(filter(None, (options, kernel)))})")
    x = torch.randn(shape)
    labels = torch.randint(3, (shape[0], 3) if "per token" in case else (shape[0],))
    return model, lambda m: F.cross_entropy(m(x).flatten(0, -2), labels.flatten()), labels


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_a_rule_that_broadcasts_is_verified(case: str, rule: str) -> None:
    model, task, labels = built(case, rule)
    report = untied.verify(model, task, targets=labels, strict=True)
    kinds = {f.name: f.gradient for f in report.findings}
    assert kinds["fc.weight" if "mlp" not in case else "4.weight"] == "backprop's"
    below = "0.weight" if "mlp" in case else "conv.weight" if "conv" in case else "embed.weight"
    assert kinds[below] == "its own"


def scaled(port: Port, e: Tensor, B: Tensor) -> Tensor:
    return 1.001 * plain_error(port, e, B)


def elsewhere(port: Port, e: Tensor, B: Tensor) -> Tensor:
    return plain_error(port, e.roll(1, 0), B)


def with_signs(port: Port, e: Tensor, B: Tensor) -> Tensor:
    return plain_error(port, e.sign(), B)


plain_error = Port.error


@pytest.mark.parametrize("tampered", [scaled, elsewhere, with_signs])
@pytest.mark.parametrize("case", CASES)
def test_a_tampered_route_is_caught(case: str, tampered: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that are larger, another example's, or signs alone: each layer that gets them is named, and no other.

    A bias sees the sum over the batch, which is the same from another example.
    """
    model, task, _ = built(case, "dfa")
    monkeypatch.setattr(Port, "error", tampered)
    report = untied.verify(model, task)
    differing = {f.name for f in report.findings if "differs from the broadcast gradient" in f.notes}
    last = "4." if case == "mlp" else "fc."
    kernels = {f.name for f in report.findings if not f.gradient.startswith("B") and not f.name.endswith("bias")}
    assert {n for n in differing if not n.endswith("bias")} == {n for n in kernels if not n.startswith(last)}
    with pytest.raises(untied.UntiedError, match="differs from the broadcast gradient"):
        untied.verify(model, task, strict=True)


def test_a_B_that_copies_something_else_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Port.gradient
    monkeypatch.setattr(Port, "gradient", lambda port, e, x, B: plain(port, e, x.abs(), B))
    model, task, _ = built("conv net, position", "dkp")
    report = untied.verify(model, task)
    named = {f.name for f in report.findings if "gets another gradient than its rule copies" in f.notes}
    assert named and all(name.endswith("backward_weight") for name in named) and "conv.weight" not in named


@pytest.mark.parametrize("rule", ["kp", "pfa"])
def test_so_is_one_along_the_layers(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = mlp()
    untied.untie_(model, rule)
    x = torch.randn(4, 6)
    assert untied.verify(model, lambda m: m(x).square().sum()).verified
    operation: Any = Factored if rule == "pfa" else UntiedOperation
    plain: Any = operation.backward

    def wrong(ctx: Any, g: Tensor) -> Any:
        dx, dW, dB, *rest = plain(ctx, g)
        return dx, dW, None if dB is None else 2 * dB, *rest

    monkeypatch.setattr(operation, "backward", staticmethod(wrong))
    report = untied.verify(model, lambda m: m(x).square().sum())
    assert "2.backward_weight gets another gradient than its rule copies" in report.problems
    assert not any(p.startswith(("0.weight", "2.weight")) for p in report.problems)


def test_rules_may_be_mixed() -> None:
    """Some layers of a network broadcast, and others do not."""
    torch.manual_seed(0)
    model = ConvNet()
    untied.untie_(model, "sa", filter="grouped")
    untied.untie_(model, "dfa(kernel=position, source=fc)", filter=lambda name, _: name != "grouped")
    x = torch.randn(4, 2, 6, 6)
    assert untied.verify(model, lambda m: m(x).square().mean(), strict=True)


class Patches(nn.Module):
    """Convolutions below, an output for each token above: as many tokens as outputs, so that shapes tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.patch, self.head = nn.Conv1d(2, 2, 1), nn.Conv1d(2, 4, 2, stride=2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.patch(torch.tanh(self.low(x)))).transpose(1, 2))  # type: ignore[no-any-return]


class Maps(nn.Module):
    """Dense layers below, an output for each place of a space above: as many columns as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.dense, self.map = nn.Linear(4, 4), nn.Linear(4, 18), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(torch.tanh(self.dense(torch.tanh(self.low(x)))).view(-1, 2, 3, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["dfa", "dkp", "sdfa"])
@pytest.mark.parametrize("kernel", ["dense", "position"])
@pytest.mark.parametrize(("make", "shape"), [(Patches, (5, 2, 8)), (Maps, (5, 4))])
def test_features_are_where_the_source_has_them(
    make: Callable[[], nn.Module], shape: tuple[int, ...], kernel: str, rule: str
) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    untied.untie_(model, f"{rule}(kernel={kernel})")
    untied.verify(model, lambda m: m(x).square().mean(), strict=True)


@pytest.mark.parametrize("rule", ["bp", "fa", "pfa"])
def test_the_source_may_have_another_rule(rule: str) -> None:
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(4, 6)
    untied.untie_(model, "dfa(source=4)", filter="[02]")
    untied.untie_(model, rule, filter="4")
    untied.verify(model, lambda m: m(x).square().mean(), strict=True)
    untied.tie_(model)
    assert "is_source" not in vars(model[4])  # type: ignore[operator]
