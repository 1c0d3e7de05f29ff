"""When the task is trained and when the backward weights align."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from runs import small
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.entries import parse_entry
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.phases import PhaseConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.training import loop
from untied.lab.training.loop import Run
from untied.lab.training.phases import Plan
from untied.lab.training.step import Phase
from untied.rules import parse


def course(config: PhaseConfig, rule: str = "wm", epochs: int = 4, length: int = 3) -> str:
    """A letter a step: both, task alone, align alone."""
    plan = Plan(config, parse(rule), epochs, length)
    letters = {(True, True): "b", (True, False): "t", (False, True): "a"}
    return "".join(letters[plan.trained(step)] for step in range(plan.steps))


def test_simultaneous_and_delay() -> None:
    assert course(PhaseConfig()) == "b" * 12
    assert course(PhaseConfig(delay=1)) == "aaa" + "b" * 12


def test_alternating_is_one_alignment_step_then_n_of_the_task() -> None:
    assert course(PhaseConfig("alternating", task_steps=2)) == "att" * 4
    assert course(PhaseConfig("alternating"), epochs=1, length=5) == "atata"


def test_mirror_and_engaged_epochs() -> None:
    assert course(PhaseConfig("mirror", mirror_epochs=1, engaged_epochs=2)) == "aaattttttaaa"
    assert course(PhaseConfig("mirror", delay=1), epochs=2) == "aaa" + "aaattt"


@pytest.mark.parametrize(
    ("rule", "letter"), [("bp", "t"), ("fa", "t"), ("usf", "t"), ("kp", "t"), ("copy + self + decay", "b")]
)
def test_rules_with_nothing_to_align_alone_train_the_task_in_every_step(rule: str, letter: str) -> None:
    assert course(PhaseConfig("alternating", delay=2), rule) == letter * 12


def test_counts_are_what_each_optimizer_will_do() -> None:
    plan = Plan(PhaseConfig("alternating", task_steps=3, delay=1), parse("wm"), 2, 8)
    assert plan.counts() == (12, 8 + 4)
    assert list(plan.numbers) == [0, 1, 2]
    assert list(plan.of_epoch(1, start=6)) == [14, 15]


def test_a_batch_is_aligned_several_times_and_trains_the_task_once() -> None:
    plan = Plan(PhaseConfig(align_steps=3), parse("wm"), 2, 4)
    assert plan.turns(0) == [Phase(0, 1), Phase(0, 1), Phase(1, 1)] and plan.counts() == (8, 24)
    plan = Plan(PhaseConfig("alternating", align_steps=3, align="steps(2, 0.5)"), parse("wm"), 2, 4)
    assert [len(plan.turns(step)) for step in range(8)] == [3, 1] * 4
    assert plan.turns(0)[0] == Phase(0, 2) and plan.counts() == (4, 12)
    for rule in ("bp", "fa", "mkp", "dfa"):
        assert len(Plan(PhaseConfig(align_steps=3), parse(rule), 2, 4).turns(0)) == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_what_several_steps_of_alignment_do(steps: int) -> None:
    """Under sa with SGD, B - W falls by 1 - lr in each; statistics of batch normalisation see a batch once."""
    data = DataConfig(
        "synthetic", synthetic_shape=(1, 6, 6), synthetic_classes=3, synthetic_count=12, batch_size=12, validation=0
    )
    config = small(rule="sa", model="cnn-2", data=data, epochs=1, phases=PhaseConfig(align_steps=steps),
                   backward=OptimizerConfig(lr=0.2, momentum=0.0))  # fmt: skip
    run = Run(config)
    layer: Any = run.model.conv1
    before, W = layer.backward_weight.detach() - layer.weight.detach(), layer.weight.detach().clone()
    run.epoch(1, 0)
    torch.testing.assert_close(layer.backward_weight.detach() - W, 0.8**steps * before)
    once = Run(dataclasses.replace(config, phases=PhaseConfig()))
    once.epoch(1, 0)
    assert torch.equal(run.model.bn1.running_var, once.model.bn1.running_var)
    assert torch.equal(layer.weight, once.model.conv1.weight)
    assert run.optimizers.backward is not None and run.optimizers.backward.moves == steps


def test_each_step_of_alignment_draws_its_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, before = [], loop.seed_step

    def seed_step(*given: Any, **named: Any) -> None:
        before(*given, **named)
        drawn.append(torch.default_generator.initial_seed())

    monkeypatch.setattr(loop, "seed_step", seed_step)
    run = Run(small(rule="wm(noise=normal)", epochs=1, phases=PhaseConfig(align_steps=3)))
    run.epoch(1, run.plan.length - 1)
    assert len(drawn) == len(set(drawn)) == 6  # a pass and an update, three times


def test_compare_calibrates_what_can_be() -> None:
    config = CompareConfig(rules=("bp", "fa", "mkp", "dfa(kernel=dense)", "pfa", "tp"), calibrate=8)
    given = {rule: config.run(rule, 0).phases.calibrate for rule in config.entries}
    assert given == {"bp": 0, "fa": 8, "mkp": 8, "dfa(kernel=dense)": 0, "pfa": 0, "tp": 0, "frozen": 0}
    assert any("calibrate is 8, and bp, " in line and "mkp" not in line for line in config.about_entries)
    with pytest.raises(UntiedError, match="calibrate is -1"):
        CompareConfig(calibrate=-1)


def test_compare_says_which_rules_take_one_step() -> None:
    config = CompareConfig(rules=("bp", "sa", "kp"), align_steps=4, frozen=False)
    assert config.run("sa", 0).phases.align_steps == 4 and config.run("kp", 0).phases.align_steps == 1
    assert any("align_steps is 4, and bp, kp have nothing" in line for line in config.about_entries)


def test_weights_follow_their_schedule() -> None:
    plan = Plan(PhaseConfig(task="linear(0, 1, stop=0.5)", align="steps(2, 0.5)"), parse("sa"), 2, 4)
    seen = [plan.phase(step) for step in range(8)]
    assert [p.task for p in seen] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert [p.align for p in seen] == pytest.approx([2, 2, 2, 2, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PhaseConfig(task_steps=3), "phases.task_steps is 3 but phases.kind is simultaneous"),
        (lambda: PhaseConfig("alternating", mirror_epochs=2), "phases.mirror_epochs is 2 but phases.kind is alternat"),
        (lambda: PhaseConfig(align_steps=0), "align_steps is 0: it must be at least 1"),
        (lambda: TrainConfig(rule="kp", phases=PhaseConfig(align_steps=2)), "rule is kp but phases.align_steps is 2"),
        (lambda: PhaseConfig(delay=-1), "delay is -1: it must be at least 0"),
        (lambda: PhaseConfig(task="-1"), "phases.task is -1: a loss term's weight must not be negative"),
        (lambda: PhaseConfig(align="linaer(0, 1)"), "phases.align: "),
        (lambda: TrainConfig(phases=PhaseConfig(task="0")), "phases.task is 0: the task would never be trained"),
        (lambda: TrainConfig(rule="kp", phases=PhaseConfig("mirror")), "rule is kp but phases.kind is mirror"),
        (lambda: TrainConfig(rule="kp", phases=PhaseConfig(align="0.5")), "its decay is W's weight decay too"),
        (lambda: parse_entry("align(copy=1, decay=0.1, every=2)", OptimizerConfig()), "leave out every"),
    ],
)
def test_contradictions_are_named(make, said: str) -> None:
    with pytest.raises(UntiedError, match=said.replace("(", r"\(")):
        make()


def test_a_rule_that_moves_B_itself_measures_in_every_step() -> None:
    """It has no R to descend, and rested unseen while it was asked for R alone."""
    for rule, measures in (("mkp", True), ("fa", False)):
        plan = Plan(PhaseConfig(), parse(rule), epochs=2, length=3)
        assert all(plan.trained(step) == (True, measures) for step in range(6))
