"""One training step, the optimizers behind it, and a run."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.utils.flop_counter
from torch import nn

import untied
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.phases import PhaseConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.training.loop import train
from untied.lab.training.optim import Optimizers, factor, rings, time_constant
from untied.lab.training.step import NotFinite, Objective, Phase, training_step

PLAIN = OptimizerConfig(lr=0.1, momentum=0.0)


def setup(rule: str, forward: OptimizerConfig = PLAIN, backward: OptimizerConfig = PLAIN, **more: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    untied.untie_(model, rule)
    images, labels = torch.randn(8, 1, 2, 2), torch.arange(8) % 3
    optimizers = Optimizers(model, model[1].rule, forward, backward, **({"steps": 10} | more))

    objective = Objective(model)

    def step(phase: Phase | None = None, number: int = 0, **how):
        return training_step(objective, images, labels, optimizers, phase or Phase(), progress=0.0, step=number, **how)

    return model, optimizers, step, images


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("rule", ["bp", "fa", "kp", "sa", "aa", "ia", "usf"])
def test_a_step_moves_w_and_what_the_rule_says(rule: str) -> None:
    model, _, step, _ = setup(rule)
    before = snapshot(model)
    done = step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"1.weight", "4.weight", "1.bias"} <= moved or {"1.weight", "4.weight"} <= moved
    assert ("1.backward_weight" in moved) == (rule in ("kp", "sa", "aa", "ia"))
    assert done.task.shape == done.penalty.shape == () and done.logits.shape == (8, 3)


def test_without_a_task_only_the_backward_weights_move() -> None:
    forward = OptimizerConfig(lr=0.1, weight_decay=0.1)
    model, optimizers, step, _ = setup("sa", forward, align_steps=3)
    before = snapshot(model)
    for number in range(3):
        step(Phase(task=0.0), number)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("backward" not in name), name
    assert optimizers.forward.moves == 0  # the task's schedule has not begun
    assert optimizers.backward.moves == 3


def test_weight_decay_reaches_forward_kernels_alone() -> None:
    model, optimizers, _, _ = setup("sa", dataclasses.replace(PLAIN, weight_decay=0.5))
    decays = {id(p): g["weight_decay"] for o in optimizers.all for g in o.optimizer.param_groups for p in g["params"]}
    by_name = {name: decays[id(p)] for name, p in model.named_parameters()}
    assert {name for name, decay in by_name.items() if decay} == {"1.weight", "4.weight"}


def test_kolen_pollack_closes_the_gap_at_the_rate_of_its_decay() -> None:
    forward = OptimizerConfig(lr=0.1, momentum=0.0, weight_decay=0.9, clip=1e-3)  # its weight decay gives way to kp's
    model, _, step, _ = setup("kp(decay=0.5)", dataclasses.replace(forward, clip=None))
    gap = model[4].weight.detach() - model[4].backward_weight.detach()
    for number in range(3):
        step(Phase(align=0.0), number)
    after = model[4].weight.detach() - model[4].backward_weight.detach()
    torch.testing.assert_close(after, gap * (1 - 0.1 * 0.5) ** 3)


def test_frozen_backward_weights_have_no_optimizer() -> None:
    assert setup("fa")[1].backward is None
    assert setup("bp")[1].backward is None


def test_clipping_bounds_the_step() -> None:
    model, _, step, _ = setup("bp", dataclasses.replace(PLAIN, clip=1e-3))
    before = snapshot(model)
    step()
    moved = math.sqrt(sum(float((p.detach() - before[name]).square().sum()) for name, p in model.named_parameters()))
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_schedules() -> None:
    cosine = OptimizerConfig(schedule="cosine", warmup=0.1)
    assert [factor(cosine, at) for at in (0.0, 0.05, 0.1, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.0])
    stepped = OptimizerConfig(schedule="step")
    assert [factor(stepped, at) for at in (0.3, 0.5, 0.7, 0.95)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert factor(OptimizerConfig(), 0.7) == 1.0


@pytest.mark.parametrize(("lr", "momentum"), [(0.1, 0.0), (0.01, 0.9), (0.1, 0.9)])
def test_time_constant_is_the_one_that_b_shows(lr: float, momentum: float) -> None:
    backward = OptimizerConfig(lr=lr, momentum=momentum)
    model, _, step, _ = setup("sa(self=2, decay=2)", backward=backward, steps=400)
    gaps = []
    for number in range(200):
        gaps.append(float((model[1].weight - model[1].backward_weight).detach().norm()))
        step(Phase(task=0.0), number)
    tau = time_constant(model[1].rule, backward)
    assert tau is not None
    peaks = max(gaps[20:40]), max(gaps[60:80])  # an overshooting B rings: compare the envelope
    assert 40 / math.log(peaks[0] / peaks[1]) == pytest.approx(tau, rel=0.3)


def test_time_constant_only_where_it_is_simple() -> None:
    assert time_constant(untied.rules.parse("sa"), OptimizerConfig("Adam")) is None
    assert time_constant(untied.rules.parse("sa(decay=linear(1, 2))"), OptimizerConfig("SGD")) is None
    assert time_constant(untied.rules.parse("ia"), OptimizerConfig()) is None
    assert time_constant(untied.rules.parse("bp"), OptimizerConfig()) is None


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda model, images: model[4].weight.data.fill_(math.nan), "layer 4: its weight"),
        (lambda model, images: model[4].backward_weight.data.fill_(math.inf), "layer 4: its backward_weight"),
        (lambda model, images: images.fill_(math.nan), "inputs"),
    ],
)
def test_what_is_not_finite_is_named_and_nothing_moves(break_it, said: str) -> None:
    model, _, step, images = setup("sa")
    break_it(model, images)
    before = snapshot(model)
    with pytest.raises(NotFinite, match=f"step 7.*{said}"):
        step(number=7)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=0, equal_nan=True)


def config_of(rule: str, **more) -> TrainConfig:
    data = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_count=200)
    backward = OptimizerConfig(lr=0.9, momentum=0)
    return TrainConfig(**({"rule": rule, "model": "mlp-8", "epochs": 2, "data": data, "backward": backward} | more))


def test_a_diverging_run_says_where() -> None:
    config = config_of("wm", backward=OptimizerConfig(lr=1e6), epochs=4)
    with pytest.raises(NotFinite, match=r"at step \d+ \(first in layer fc\d: its (R|backward_weight)\)"):
        train(config, lambda metrics: None)


def test_the_same_seed_gives_the_same_run_whatever_was_aligned_before() -> None:
    config = config_of("sa", seed=1)
    lines: list[dict] = []
    first, result = train(config, lines.append)
    again, same = train(config, lambda metrics: None)
    assert result == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert [line["epoch"] for line in lines] == [1, 2]
    delayed: list[dict] = []
    phases = PhaseConfig(delay=2)
    train(dataclasses.replace(config, phases=phases), delayed.append)
    assert [line["epoch"] for line in delayed] == [-1, 0, 1, 2]
    assert delayed[1]["weight_angle"]["fc1"] < 1  # aligned before the task began
    untouched: list[dict] = []
    train(dataclasses.replace(config, phases=phases, rule="bp"), untouched.append)
    assert [line["epoch"] for line in untouched] == [1, 2]  # there is nothing to align


@pytest.mark.parametrize("rule", ["bp", "kp", "sa", "ia"])
def test_a_batch_in_parts_is_the_batch(rule: str) -> None:
    whole, _, step, _ = setup(rule)
    whole[2].eval(), step(parts=1)
    parts, _, step_in_parts, _ = setup(rule)
    parts[2].eval(), step_in_parts(parts=4)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_a_phase_does_not_pay_for_what_it_leaves_out() -> None:
    def flops(phase: Phase, rule: str) -> int:
        _, _, step, _ = setup(rule)
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            step(phase)
        return counter.get_total_flops()

    assert flops(Phase(align=0.0), "ia") == flops(Phase(), "fa")
    forward = 2 * 8 * (4 * 6 + 6 * 3)
    assert flops(Phase(task=0.0), "sa") == forward
    assert flops(Phase(task=0.0), "wm") == 2 * forward  # and a correlate a layer


def test_an_optimizer_that_cannot_move_these_weights_says_so() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon, which moves matrices alone")
    with pytest.raises(UntiedError, match="optimizer Muon refuses"):
        setup("bp", OptimizerConfig("Muon"))


def test_a_B_that_swings_is_said() -> None:
    default = CompareConfig().backward
    for rule in ("sa", "ia", "bp", "fa", "kp"):
        assert rings(untied.rules.parse(rule), default) == ""
    sa = untied.rules.parse("sa")
    assert "is 1 steps, below 2; give B's optimizer no momentum" in rings(sa, OptimizerConfig(lr=0.1, momentum=0.9))
    assert "a lower learning rate" in rings(sa, OptimizerConfig(lr=1.5, momentum=0))
    assert rings(sa, OptimizerConfig(lr=1, momentum=0)) == ""  # B = W in one step
