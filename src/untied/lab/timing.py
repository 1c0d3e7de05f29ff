"""What a training step of each rule costs, relative to the plain network's."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from untied.lab.config import CompareConfig, parse_entry
from untied.lab.data import load
from untied.lab.loop import network
from untied.lab.models import build
from untied.lab.optim import Group, Optimizers
from untied.lab.step import training_step

__all__ = ["step_costs"]


def step_costs(config: CompareConfig) -> dict[str, float]:
    """By rule: the median over rounds of its step time over that of the plain, unconverted network in the same round.

    Rounds are interleaved (plain, A, B, plain, A, B, ...), so that a busy machine slows all of them alike.
    """
    data = load(config.data, seed=config.first_seed, device=config.device)
    images, labels = next(iter(data.train.epoch(0)))
    torch.manual_seed(config.first_seed)
    plain = build(config.model, input_shape=data.input_shape, classes=len(data.classes)).to(config.device)
    group = Group.of(list(plain.parameters()), dataclasses.replace(config.forward, lr=1e-12), 10**9)

    def plain_step() -> None:
        group.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(plain(images), labels).backward()
        group.move()

    def step_of(entry: str) -> Callable[[], None]:
        rule, backward = parse_entry(entry, config.backward)
        model = network(config, data, entry, config.first_seed).train()
        small = [
            dataclasses.replace(c, lr=1e-12) for c in (config.forward, backward)
        ]  # it shall not learn, nor diverge
        optimizers = Optimizers(model, rule, *small, 10**9)

        def step() -> None:
            training_step(model, images, labels, optimizers, progress=0.0, step=0)

        return step

    steps = {"": plain_step, **{entry: step_of(entry) for entry in config.rules}}
    times: dict[str, list[float]] = {entry: [] for entry in steps}
    for _ in range(config.timing_steps + 2):  # the first two are for warming up
        for entry, step in steps.items():
            before = _now(config.device)
            step()
            times[entry].append(_now(config.device) - before)
    return {
        entry: statistics.median(t / p for t, p in zip(times[entry][2:], times[""][2:], strict=True))
        for entry in config.rules
    }


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
