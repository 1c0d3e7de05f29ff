"""Optimizers: arguments by name, learning rates, clipping, noisy updates."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import nn

import untied
from untied.errors import UntiedError
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.phases import PhaseConfig
from untied.lab.training.optim import Optimizers, argument, factor
from untied.lab.training.phases import Plan
from untied.lab.training.step import Objective, Phase, training_step
from untied.schedules import value

PLAIN = OptimizerConfig(lr=0.1, momentum=0.0)


def optimizers_of(forward: OptimizerConfig = PLAIN, backward: OptimizerConfig = PLAIN, steps: int = 10, **more):
    model = nn.Sequential(nn.Linear(200, 100))
    untied.untie_(model, "sa")
    return model, Optimizers(model, model[0].rule, forward, backward, steps, **more)


def with_gradients(model: nn.Module, value: float = 0.0) -> None:
    for p in model.parameters():
        p.grad = torch.full_like(p, value)


def test_arguments_reach_the_optimizer() -> None:
    forward = OptimizerConfig("Adam", lr=0.01, arguments={"betas": "0.8,0.95", "amsgrad": "True", "eps": 1e-6})
    backward = OptimizerConfig("SGD", arguments={"nesterov": True})
    _, optimizers = optimizers_of(forward, backward)
    assert optimizers.backward is not None
    group = optimizers.forward.optimizer.param_groups[0]
    assert (group["betas"], group["amsgrad"], group["eps"]) == ((0.8, 0.95), True, 1e-6)
    assert optimizers.backward.optimizer.param_groups[0]["nesterov"] is True


@pytest.mark.parametrize(
    ("text", "read"), [("true", True), ("False", False), ("0.5", 0.5), ("(0.9, 0.95)", (0.9, 0.95)), ("word", "word")]
)
def test_words_of_the_command_line_are_read(text: str, read: object) -> None:
    assert argument(text) == read


def test_what_an_optimizer_does_not_know_is_named() -> None:
    with pytest.raises(UntiedError, match="SGD has no argument 'beta': possible are lr, momentum"):
        optimizers_of(OptimizerConfig("SGD", arguments={"beta": 1.0}))
    with pytest.raises(UntiedError, match="arguments has momentum, which is a setting of its own"):
        OptimizerConfig("SGD", arguments={"momentum": 0.5})
    with pytest.raises(UntiedError, match="optimizer SGD refuses: Nesterov"):
        optimizers_of(OptimizerConfig("SGD", momentum=0.0, arguments={"nesterov": True}))


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Adam", "RAdam", "AdamW", "SWATS"])
def test_the_references_optimizers_move_both_weights(name: str) -> None:
    if name == "SWATS" and importlib.util.find_spec("pytorch_optimizer") is None:
        pytest.skip("pytorch-optimizer, which has SWATS, is not installed")
    model, optimizers = optimizers_of(OptimizerConfig(name, lr=0.01), OptimizerConfig(name, lr=0.01))
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(8):  # RAdam moves without its adaptive part for the first five
        with_gradients(model, 1.0)
        optimizers.step()
    assert all(bool((p < old).all()) for p, old in zip(model.parameters(), before, strict=True))


def test_the_learning_rate_is_for_its_own_batch_size() -> None:
    forward = dataclasses.replace(PLAIN, base_batch=256, warmup=0.5)
    model, optimizers = optimizers_of(forward, steps=4, batch_size=1024)
    seen = []
    for _ in range(4):
        with_gradients(model)
        optimizers.step()
        seen.append(optimizers.forward.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.0, 0.2, 0.4, 0.4])  # 0.1 × 1024 / 256, after a linear warm-up


def test_clipping_by_value_and_by_norm_is_by_group() -> None:
    by_value = dataclasses.replace(PLAIN, lr=1.0, clip=0.5, clip_by="value")
    model, optimizers = optimizers_of(by_value, dataclasses.replace(PLAIN, lr=1.0, clip=2.0))
    with_gradients(model, 3.0)
    optimizers.step()
    assert float(model[0].weight.grad.max()) == 0.5
    assert float(model[0].backward_weight.grad.norm()) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_noise_on_the_gradient_is_the_papers(kind: str, name: str) -> None:
    """∇R + N(0, σ²) (section 5): the optimizer sees it; W's own updates do not."""
    noisy = OptimizerConfig(name, lr=0.1, momentum=0.0, noise=0.3, noise_kind=kind)
    model, optimizers = optimizers_of(PLAIN, noisy)
    W, B = model[0].weight.detach().clone(), model[0].backward_weight.detach().clone()
    with_gradients(model, 2.0)
    optimizers.step()
    seen = model[0].backward_weight.grad - 2.0
    n = seen.numel()
    assert abs(float(seen.mean())) < 5 * 0.3 / math.sqrt(n)
    assert float(seen.std()) == pytest.approx(0.3, rel=5 / math.sqrt(2 * n))
    assert float(seen.abs().max()) <= (math.sqrt(3) * 0.3 + 1e-6 if kind == "uniform" else 5 * 0.3)
    torch.testing.assert_close(model[0].weight.detach(), W - 0.1 * 2.0)
    moved = model[0].backward_weight.detach() - B
    torch.testing.assert_close(moved, -0.1 * (2.0 + seen) if name == "SGD" else torch.full_like(moved, -0.1))


def test_noise_on_the_variable_is_the_reference_codes() -> None:
    """Lr · N(0, σ²) after the update: of the same law under SGD, and beside Adam's normalisation rather than in it."""
    noisy = OptimizerConfig("Adam", lr=0.1, noise=0.3, noise_on="variable")
    model, optimizers = optimizers_of(PLAIN, noisy)
    B = model[0].backward_weight.detach().clone()
    with_gradients(model, 2.0)
    optimizers.step()
    added = model[0].backward_weight.detach() - B + 0.1  # Adam's first step is lr
    assert float(added.std()) == pytest.approx(0.1 * 0.3, rel=5 / math.sqrt(2 * added.numel()))
    assert bool((model[0].backward_weight.grad == 2.0).all())


def test_only_chosen_groups_move() -> None:
    model, optimizers = optimizers_of()
    before = [p.detach().clone() for p in model.parameters()]
    with_gradients(model, 1.0)
    optimizers.choose(task=False, align=True)
    optimizers.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == ["backward" in name for name, _ in model.named_parameters()]


@pytest.mark.parametrize(
    "forward",
    [
        OptimizerConfig("SGD", lr=0.1, momentum=0.0),
        OptimizerConfig("SGD", lr=0.1, momentum=0.0, clip=0.05),
        OptimizerConfig("SGD", lr=0.1, momentum=0.0, clip=0.001, clip_by="value"),
        OptimizerConfig("SGD", lr=0.1, momentum=0.0, warmup=0.3, schedule="cosine"),
        OptimizerConfig("AdamW", lr=0.1),
        OptimizerConfig("AdamW", lr=0.1, clip=0.05),
    ],
    ids=lambda o: f"{o.name} clip={o.clip} {o.clip_by} {o.schedule}",
)
def test_kolen_pollacks_difference_decays_as_weights_do(forward: OptimizerConfig) -> None:
    """B − W falls by 1 − lr · decay in each step, whatever the task does, under clipping and decoupled decay too."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    untied.untie_(model, "kp(decay=0.1)")
    optimizers = Optimizers(model, model[0].rule, forward, PLAIN, 20)
    objective, phase = Objective(model), Plan(PhaseConfig(), model[0].rule, 20, 1).phase(0)
    difference = (model[0].backward_weight - model[0].weight).detach().clone()
    for step in range(20):
        x, labels = torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,))
        training_step(objective, x, labels, optimizers, phase, progress=step / 20, step=step)
        difference *= 1 - 0.1 * forward.lr * factor(forward, step / 20)
        torch.testing.assert_close(model[0].backward_weight - model[0].weight, difference)


def test_kolen_pollacks_decay_may_have_a_course() -> None:
    """B − W falls by 1 − lr · decay(progress), also from a course that begins at 0; scales and biases never decay."""
    forward = OptimizerConfig("SGD", lr=0.1, momentum=0.0, schedule="cosine")
    for text in ("kp(decay=linear(0, 2))", "kp(decay=exponential(2, 0.02))"):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        untied.untie_(model, text)
        rule = model[0].rule
        optimizers = Optimizers(model, rule, forward, PLAIN, 20)
        objective, phase = Objective(model), Plan(PhaseConfig(), rule, 20, 1).phase(0)
        difference = (model[0].backward_weight - model[0].weight).detach().clone()
        for step in range(20):
            x, labels = torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,))
            training_step(objective, x, labels, optimizers, phase, progress=step / 20, step=step)
            difference *= 1 - 0.1 * factor(forward, step / 20) * value(rule.forward_decay, step / 20)
            torch.testing.assert_close(model[0].backward_weight - model[0].weight, difference)
        decays = {id(p): g["weight_decay"] for g in optimizers.forward.optimizer.param_groups for p in g["params"]}
        assert decays[id(model[0].bias)] == 0 and decays[id(model[0].backward_weight)] > 0


def test_what_copies_does_not_count_in_the_norm_that_clips() -> None:
    moved = []
    for rule in ("fa", "kp(decay=0)"):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        untied.untie_(model, rule)
        optimizers = Optimizers(model, model[0].rule, OptimizerConfig(lr=0.1, momentum=0.0, clip=0.1), PLAIN, 1)
        x, labels = torch.ones(5, 6, dtype=torch.float64), torch.arange(5) % 3
        training_step(Objective(model), x, labels, optimizers, Phase(1.0, 0.0), progress=0.0, step=0)
        moved.append(model[0].weight.detach().clone())
    assert torch.equal(*moved)


def test_a_decay_that_the_optimizer_has_not_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8))
    untied.untie_(model, "kp")
    with pytest.raises(UntiedError, match="needs W's weight decay, and optimizer Rprop has none"):
        Optimizers(model, model[0].rule, OptimizerConfig("Rprop"), PLAIN, 1)  # type: ignore[arg-type]


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_what_decays_with_W_is_B_and_not_what_stands_beside_it() -> None:
    """B decays under a parametrization too; the factor of a product that Oja's rule turns does not."""
    layer: Any = nn.Linear(6, 8)
    untied.untie_(layer, "kp(decay=0.1)")
    nn.utils.parametrize.register_parametrization(layer, "backward_weight", Halved())
    product: Any = nn.Linear(6, 8)
    untied.untie_(product, "ldfa(rank=2, decay=0.1)")
    for model in (layer, product):
        groups = Optimizers(model, model.rule, PLAIN, PLAIN, 1).forward.optimizer.param_groups
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        for name, p in model.named_parameters():
            decaying = "weight" in name and "factor" not in name
            assert decays[id(p)] == (0.1 if decaying else 0.0), name
