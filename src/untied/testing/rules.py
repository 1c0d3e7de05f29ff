"""`RuleTests`: what holds of every rule. This library's rules are rows of a table; a user's is a subclass."""

from __future__ import annotations

import copy
import unittest
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..convert import tie_, untie_
from ..layers.layer import untied_layers
from ..recording import record
from ..rules import as_rule, parse
from ..rules.rule import Rule
from ..verify import verify
from .readable import PROGRESS, assert_close, assert_R_is_readable

__all__ = ["RuleTests"]

Gradients = dict[str, Tensor | None]


class RuleTests:
    """Tests that a rule of one's own inherits: ``class TestMine(RuleTests): rule = "mine"``.

    A test runs in float64 on a small network, with the global random numbers as the test sets them.

    Attributes:
        rule: the rule, as `untied.rules.as_rule` takes it. A text needs it registered.
        local: whether it is said to be local; None says nothing.
        scales: whether its gradients follow a factor of the loss, as loss scaling needs. Those of signs do not.
        adds_up: whether two half batches give what the whole does, as accumulation and several processes need. Random
            numbers, a part of the batch and batch statistics do not.
        promises_cost: whether a step costs what `Rule.cost` says.
        steps: training steps after which B has to have moved, where the rule moves it.

    >>> class TestSymmetric(RuleTests):
    ...     rule, local = "sa", False
    >>> TestSymmetric().test_errors_go_through_B()
    """

    rule: ClassVar[Any] = None
    local: ClassVar[bool | None] = None
    scales: bool = True
    adds_up: bool = True
    promises_cost: bool = True
    steps: int = 2

    # What it is tried on

    def network(self) -> nn.Module:
        """A plain network for `batch`, in float64, with the same weights each time."""
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3),
        ).double()  # fmt: skip

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and labels [n] for `network`, n even."""
        g = torch.Generator().manual_seed(1)
        return torch.randn(8, 2, 6, 6, dtype=torch.float64, generator=g), torch.randint(3, (8,), generator=g)

    def layers(self) -> Iterator[tuple[str, nn.Module, Callable[[nn.Module], Tensor]]]:
        """Single plain layers on which R is compared with its readable penalty: a name, the layer, how it is called."""
        torch.manual_seed(0)
        image, vectors = torch.randn(3, 4, 6, 5).double(), torch.randn(4, 2, 5).double()
        yield "dense", nn.Linear(5, 3).double(), lambda m: m(vectors)
        conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        yield "convolution", conv.double(), lambda m: m(image)
        yield "transposed", nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1).double(), lambda m: m(image)

    def costed(self) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """Single plain layers, in float32, whose step is counted: a name, the layer, its input [n, ...]."""
        yield "dense", nn.Linear(12, 20), torch.randn(8, 12)
        yield "convolution", nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False), torch.randn(8, 6, 7, 7)

    # Conversion

    def test_its_text_is_read_back(self) -> None:
        """``parse(str(rule))`` is the rule: run folders and cards hold texts."""
        rule = self._rule
        assert parse(str(rule)) == rule, f"{rule!s} is read as another rule"
        assert str(parse(str(rule))) == str(rule)

    def test_the_forward_pass_is_unchanged(self) -> None:
        """To the last bit, recorded or not."""
        plain, model, (x, labels) = self.network(), self._untied(), self.batch()
        with record(model, progress=PROGRESS, step=0, targets=labels):
            recorded = model(x)
        assert torch.equal(recorded, plain(x)), "a recorded pass has another output than the plain network"
        assert torch.equal(model.eval()(x), plain.eval()(x)), "an evaluating pass has another output"

    def test_the_plain_network_comes_back(self) -> None:
        """`untie_` leaves every parameter the object that it is; `tie_` gives the plain network, trained."""
        model = self.network()
        before = dict(model.named_parameters())
        untie_(model, self._rule)
        assert all(model.get_parameter(name) is p for name, p in before.items())
        self._train(model, 1)
        x, _ = self.batch()
        trained = model.eval()(x)
        plain = self.network().eval()
        assert list(tie_(model).state_dict()) == list(plain.state_dict())
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain(x), trained)

    def test_a_state_dict_round_trip(self) -> None:
        """A network with a state loaded goes on as the one whose it was."""
        model = self._untied()
        self._train(model, 1)
        other = self._untied(seed=99)
        self._pass(other)  # what takes its size from the first input has it now
        assert list(other.state_dict()) == list(model.state_dict())
        other.load_state_dict(model.state_dict())
        self._assert_same(self._gradients(model), self._gradients(other))

    def test_a_deepcopy_goes_its_own_way(self) -> None:
        """It has its own parameters, the same rules, and the same step before it."""
        model = self._untied()
        twin = copy.deepcopy(model)
        assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}
        rules = [[layer.rule for layer in untied_layers(m).values()] for m in (model, twin)]
        assert rules[0] == rules[1]
        self._assert_same(self._gradients(model), self._gradients(twin))

    # What it does

    def test_errors_go_through_B(self) -> None:
        """By number, against `untied.layers.oracle`, whose constructions share nothing with the untied operation."""
        model, (x, labels) = self._untied(), self.batch()
        verify(model, lambda m: F.cross_entropy(m(x), labels), targets=labels, strict=True)

    def test_R_is_its_readable_penalty(self) -> None:
        """Its value; its gradient by autograd of the penalty, and by differences of it."""
        self._with_R()
        if self._rule.fraction < 1:
            raise unittest.SkipTest("R sees a part of the batch, which is drawn")
        for name, layer, forward in self.layers():
            untie_(layer, self._rule)
            assert_R_is_readable(layer, forward, name)  # type: ignore[arg-type]

    def test_R_and_J_move_what_is_theirs(self) -> None:
        """J nothing of B, but what `copy` gives it; R nothing but B, and W where the rule says so."""
        rule, model, (x, labels) = self._rule, self._untied(), self.batch()
        if rule.route.broadcasts or rule.route.factored:
            raise unittest.SkipTest("what moves on its route, test_errors_go_through_B compares")
        x.requires_grad_()
        with record(model, progress=PROGRESS, step=0, targets=labels) as tape:
            task = F.cross_entropy(model(x), labels)
        R, named = tape.penalty(), {n: p for n, p in model.named_parameters() if p.requires_grad}
        everything = {"x": x, **named}
        backward = {id(B) for layer in untied_layers(model).values() for B in layer.backward_parameters()}
        is_B = {n: id(p) in backward for n, p in everything.items()}
        for n, g in _gradients_of(task, everything).items():
            assert (g is None) == (is_B[n] and not rule.copies_gradient), f"J and {n}"
        if R.requires_grad:
            W = set() if not self._moves_forward else {n for n in everything if n.endswith("weight") and not is_B[n]}
            for n, g in _gradients_of(R, everything).items():
                assert (g is not None) == (is_B[n] or n in W), f"R and {n}"

    def test_B_moves_as_the_rule_says(self) -> None:
        """After some steps of gradient descent: B where the rule has a motion for it, and W in any case."""
        model, rule = self._untied(), self._rule
        self._pass(model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        kept = {id(B) for layer in untied_layers(model).values() for B in layer.backward_parameters()}
        self._train(model, self.steps)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        theirs = {n for n, p in model.named_parameters() if id(p) in kept}
        assert moved - theirs, "no forward weight has moved"
        if rule.aligns or rule.copies_gradient or rule.moves_itself:
            assert moved & theirs, f"no backward weight has moved in {self.steps} steps"
        else:
            assert not moved & theirs, f"{sorted(moved & theirs)} moved, though {rule} has no motion for it"

    # An ordinary term of the loss

    def test_the_gradient_scales_with_the_loss(self) -> None:
        """What a loss scaler does: multiply the loss, divide the gradients."""
        if not self.scales:
            raise unittest.SkipTest("its gradients do not follow the loss")
        found = [self._gradients(self._untied(), scale=scale) for scale in (1.0, 1024.0)]
        self._assert_same(found[0], {n: None if g is None else g / 1024 for n, g in found[1].items()})

    def test_two_half_batches_add_up_to_one(self) -> None:
        """What accumulation and several processes do."""
        if not self.adds_up:
            raise unittest.SkipTest("an example's share depends on the batch, or is drawn anew")
        x, labels = self.batch()
        whole = self._gradients(self._untied())
        halves, middle = self._untied(), len(x) // 2
        self._pass(halves, x[:middle], labels[:middle], scale=0.5)
        self._pass(halves, x[middle:], labels[middle:], scale=0.5)
        self._assert_same(whole, {n: p.grad for n, p in halves.named_parameters()})

    # What is said of it

    def test_it_is_as_local_as_is_said(self) -> None:
        """By the paper's two criteria (section 3.1)."""
        if self.local is None:
            raise unittest.SkipTest("nothing is said: give the class local = True or False")
        assert self._rule.local == self.local

    def test_a_step_costs_what_it_says(self) -> None:
        """`Rule.cost`, by PyTorch's own counter of operations; for rules of a kernel in W's layout."""
        rule = self._rule
        if not self.promises_cost or not getattr(rule, "has_closed_form", True):
            raise unittest.SkipTest("no cost is promised")
        if rule.route.broadcasts or rule.route.factored:
            raise unittest.SkipTest("the cost depends on the network's shape")
        for name, layer, x in self.costed():
            x.requires_grad_()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                layer(x)
            product = counter.get_total_flops()
            untie_(layer, rule)
            with record(layer, progress=PROGRESS, step=0):
                pass  # a rule that measures does so before a step is counted
            total = sum(_operations(layer, x, step) for step in range(rule.every))
            counted = total / (3 * rule.every * product)
            measuring = 1 / (3 * len(x) * 10)  # of a measured decay: one example's, of one output channel
            said = f"{name}: a step costs {counted:.4f} of backpropagation's, and the rule says {rule.cost:.4f}"
            assert rule.cost - 1e-9 <= counted <= rule.cost + measuring + 1e-9, said

    # Within

    @property
    def _rule(self) -> Rule:
        assert self.rule is not None, f"{type(self).__name__} has no rule: give it one, as in  rule = 'sa'"
        return as_rule(self.rule)

    @property
    def _moves_forward(self) -> bool:
        return bool(getattr(getattr(self._rule, "operations", None), "update_forward", False))

    def _with_R(self) -> None:
        rule = self._rule
        if not rule.aligns or not rule.combines:
            raise unittest.SkipTest("it has no R that is made of primitives")
        if rule.route.broadcasts or not rule.route.like_weight:
            raise unittest.SkipTest("its kernel has another layout than W")

    def _untied(self, seed: int = 5) -> nn.Module:
        model = self.network()
        torch.manual_seed(seed)
        untie_(model, self._rule)
        return model

    def _pass(
        self, model: nn.Module, x: Tensor | None = None, labels: Tensor | None = None, scale: float = 1.0, step: int = 0
    ) -> None:
        """One forward and backward pass of L = J + R, times ``scale``."""
        if x is None or labels is None:
            x, labels = self.batch()
        torch.manual_seed(2)
        with record(model, progress=PROGRESS, step=step, targets=labels) as tape:
            task = F.cross_entropy(model(x), labels)
        ((task + tape.penalty()) * scale).backward()

    def _gradients(self, model: nn.Module, scale: float = 1.0) -> Gradients:
        model.zero_grad()
        self._pass(model, scale=scale)
        return {n: p.grad for n, p in model.named_parameters()}

    def _train(self, model: nn.Module, steps: int) -> None:
        self._pass(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(steps):
            optimizer.zero_grad()
            self._pass(model, step=step * self._rule.every)
            optimizer.step()

    def _assert_same(self, a: Gradients, b: Gradients) -> None:
        assert a.keys() == b.keys()
        for name in a:
            g, h = a[name], b[name]
            assert (g is None) == (h is None), f"{name} gets a gradient in one of them alone"
            if g is not None and h is not None:
                assert_close(g, h, name)


def _gradients_of(loss: Tensor, named: dict[str, Tensor]) -> Gradients:
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, found, strict=True))


def _operations(layer: nn.Module, x: Tensor, step: int) -> int:
    """Floating-point operations of one training step: forward, R and backward."""
    with FlopCounterMode(display=False) as counter:
        with record(layer, progress=PROGRESS, step=step) as tape:
            task = layer(x).sum()
        (task + tape.penalty()).backward()
    return int(counter.get_total_flops())
