"""What a training step of each rule costs, relative to backpropagation in the plain network."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import untied
from untied.algebra import Alignment
from untied.lab.config import CompareConfig, OptimizerConfig, parse_entry
from untied.lab.loop import dataset, network
from untied.lab.optim import Group, Optimizers
from untied.lab.step import Objective, training_step

__all__ = ["step_costs"]

WARMING = 2  # rounds that are not counted


def step_costs(config: CompareConfig) -> dict[str, float]:
    """By rule: the median over rounds of its step time over that of the plain, unconverted network in the same round.

    Rounds are interleaved (plain, A, B, plain, A, B, ...), so that a busy machine slows all of them alike. A rule with
    ``every=k`` takes k steps a round, of which the mean counts.
    """
    data = dataset(config.data, config.first_seed, config.device)
    images, labels = next(iter(data.train.epoch(0)))
    plain = untied.tie_(network(config.run("bp", config.first_seed), data)).to(config.device).train()
    group = Group.of([{"params": list(plain.parameters())}], _still(config.forward), steps=10**9)

    def plain_step() -> None:
        group.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(plain(images), labels).backward()
        group.move()

    def step_of(entry: str) -> tuple[Callable[[], None], int]:
        rule, backward = parse_entry(entry, config.backward)
        model = network(config.run(entry, config.first_seed), data).to(config.device).train()
        objective = Objective(model)
        optimizers = Optimizers(model, rule, _still(config.forward), _still(backward), steps=10**9)
        count = itertools.count()

        def step() -> None:
            training_step(objective, images, labels, optimizers, progress=0.0, step=next(count))

        return step, rule.every if isinstance(rule, Alignment) else 1

    steps = [(plain_step, 1), *(step_of(entry) for entry in config.rules)]
    rounds = []
    for _ in range(WARMING + config.timing_steps):
        times = []
        for step, times_each in steps:
            before = _now(config.device)
            for _ in range(times_each):
                step()
            times.append((_now(config.device) - before) / times_each)
        rounds.append([t / times[0] for t in times[1:]])
    return {
        entry: statistics.median(ratios)
        for entry, ratios in zip(config.rules, zip(*rounds[WARMING:], strict=True), strict=True)
    }


def _still(config: OptimizerConfig) -> OptimizerConfig:
    """The same work without learning, so that no rule diverges while it is timed."""
    return dataclasses.replace(config, lr=1e-12)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
