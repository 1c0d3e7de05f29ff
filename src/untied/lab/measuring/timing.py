"""One training step on the clock: the plain network's and any rule's, interleaved. The one way in which cost is
measured, for `untied bench` and for the column "step cost" of `untied compare`.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.tasks import Classification, Task
from untied.lab.training.optim import Group, Optimizers
from untied.lab.training.setup import dataset, network, plain_network, task_of
from untied.lab.training.step import Objective, Phase, training_step
from untied.layers.layer import untied_layers
from untied.rules.rule import Rule

__all__ = [
    "WARMING",
    "Clock",
    "Parts",
    "Step",
    "in_precision",
    "interleaved",
    "plain_step",
    "step_costs",
    "untied_step",
]

WARMING = 2  # rounds that are not counted
AHEAD = (
    3  # steps in a row on a GPU, after one that is not counted: there Python runs ahead of the device, as in training
)
ALONE = Phase(task=0.0)
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


class Parts(NamedTuple):
    """Seconds of one step."""

    forward: float
    """The forward pass, J and R, with the gradient of R that is made there; before them the batch's steps of alignment
    alone."""
    backward: float
    optimizer: float

    @property
    def total(self) -> float:
        return sum(self)


class Clock:
    """Times between marks: CUDA events on a GPU, else a clock of this process.

    Args:
        cpu: count this process's CPU time instead of the time that passes: for a machine that others use too. With
            several threads it is the sum over them.
    """

    def __init__(self, device: str = "cpu", cpu: bool = False) -> None:
        self.cuda = torch.device(device).type == "cuda"
        self.mps = torch.device(device).type == "mps"
        self.now: Callable[[], float] = time.process_time if cpu else time.perf_counter
        self.steps: list[list[float | torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin a step."""
        self.steps.append([])
        self.mark()

    def mark(self) -> None:
        """A part of the step ends here."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.steps[-1].append(event)
        else:
            if self.mps:
                torch.mps.synchronize()
            self.steps[-1].append(self.now())

    def parts(self, count: int) -> Parts:
        """The mean over the last ``count`` steps."""
        if self.cuda:
            torch.cuda.synchronize()
        taken, self.steps = self.steps[-count:], []
        return Parts(*(statistics.fmean(seconds) for seconds in zip(*map(self._parts, taken), strict=True)))

    def _parts(self, marks: list[Any]) -> list[float]:
        return [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in itertools.pairwise(marks)]


class Step(NamedTuple):
    """A training step that can be run again and again."""

    run: Callable[[Clock], None]
    model: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    period: int = 1
    """How many make a whole (``every``)."""

    def tensors(self) -> list[Tensor]:
        """What stays from step to step: weights, buffers, the optimizers' state."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        kept = [v for state in states for v in state.values() if isinstance(v, Tensor)]
        return [*self.model.parameters(), *self.model.buffers(), *kept]


def in_precision(module: nn.Module, device: str, precision: str) -> nn.Module:
    """The module, called under autocast: "32", "bf16" or "16"."""
    return module if precision == "32" else _Autocast(module, torch.device(device).type, DTYPES[precision])


class _Autocast(nn.Module):
    def __init__(self, module: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, device, dtype
        if isinstance(module, Objective):
            self.model = module.model  # where training_step looks for the culprit of a loss that is not finite

    def forward(self, *given: object) -> object:
        with torch.autocast(self.device, self.dtype):
            return self.module(*given)


class _Task(nn.Module):
    """What `Objective` is without R."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, images: Any, labels: Any) -> Tensor:
        return self.task.objective(self.model(images), labels)


def plain_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    forward: OptimizerConfig,
    precision: str = "32",
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    task: Task | None = None,
    **compile: object,
) -> Step:
    """Backpropagation in a network of PyTorch's own layers.

    Args:
        wrap: such as DistributedDataParallel, around what computes the loss. task: by default classification.
        **compile: arguments of torch.compile, if it is to be compiled.
    """
    inner = _Task(model, task or Classification())
    if compile:
        inner.compile(**compile)
    objective = wrap(in_precision(inner, str(device_of(model)), precision))
    W = list(model.parameters())
    parts: list[dict[str, Any]] = [
        {"params": [w for w in W if w.dim() > 1]},
        {"params": [w for w in W if w.dim() <= 1], "weight_decay": 0.0},
    ]
    group = Group.of(parts, _still(forward), steps=10**9)

    def run(clock: Clock) -> None:
        clock.start()
        group.optimizer.zero_grad(set_to_none=True)
        loss = objective(images, labels)
        if not clock.cuda:
            bool(torch.isfinite(loss.detach()))  # as training_step looks; on a GPU a run looks now and then
        clock.mark()
        loss.backward()
        clock.mark()
        group.move()
        clock.mark()

    return Step(run, model, (group.optimizer,))


def untied_step(
    model: nn.Module,
    rule: Rule,
    images: Tensor,
    labels: Tensor,
    forward: OptimizerConfig,
    backward: OptimizerConfig,
    precision: str = "32",
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    task: Task | None = None,
    align_steps: int = 1,
    **compile: object,
) -> Step:
    """`training_step` in a converted network: with R, and both optimizers. What measures W for a while is at rest.

    Args:
        align_steps: of each batch, where the rule can align without the task. Others as in `plain_step`.
    """
    for layer in untied_layers(model).values():
        for weight in layer.own_weights():
            rule.rest(layer.beside(weight))
    inner = Objective(model, task)
    if compile:
        inner.compile(**compile)
    objective = wrap(in_precision(inner, str(device_of(model)), precision))
    optimizers = Optimizers(model, rule, _still(forward), _still(backward), steps=10**9)
    count, again = itertools.count(), align_steps - 1 if rule.aligns_alone else 0

    def run(clock: Clock) -> None:
        def back(loss: Tensor) -> None:
            clock.mark()
            loss.backward()
            clock.mark()

        clock.start()
        look, step = None if clock.cuda else bool, next(count)
        for _ in range(again):
            training_step(objective, images, labels, optimizers, ALONE, progress=0.0, step=step, anywhere=look)
        training_step(objective, images, labels, optimizers, progress=0.0, step=step, anywhere=look, backward=back)
        clock.mark()

    own = tuple(group.optimizer for group in optimizers.all)
    return Step(run, model, own, rule.every)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def _still(config: OptimizerConfig) -> OptimizerConfig:
    """The same work without learning, so that no rule diverges while it is timed."""
    return dataclasses.replace(config, lr=1e-12)


def interleaved(
    steps: Mapping[str, Step], clock: Clock, rounds: int, warming: int = WARMING
) -> Iterator[dict[str, Parts]]:
    """Rounds of one step each (A, B, C, A, B, C, ...), so that a busy machine slows all of them alike.

    A step with a period takes so many in a round, of which the mean counts; on a GPU, `AHEAD` times as many after one
    that is not counted. The first ``warming`` rounds are not given.
    """
    for number in range(warming + rounds):
        found = {}
        for name, step in steps.items():
            count = step.period * (AHEAD if clock.cuda else 1)
            for _ in range(count + clock.cuda):
                step.run(clock)
            found[name] = clock.parts(count)
        if number >= warming:
            yield found


def step_costs(config: CompareConfig) -> dict[str, float]:
    """By rule: the median over rounds of its step time over the plain, unconverted network's in the same round."""
    data = dataset(config.data, config.first_seed, config.device)
    task = task_of(config.run("bp", config.first_seed), data)
    images, labels = task.batch(next(iter(data.train.epoch(0))))
    plain = plain_network(config.run("bp", config.first_seed), data).to(config.device).train()
    steps = {"": plain_step(plain, images, labels, config.forward, task=task)}
    for entry in config.rules:
        rule, backward = config.entrants[entry]
        model = network(config.run(entry, config.first_seed), data).to(config.device).train()
        steps[entry] = untied_step(
            model, rule, images, labels, config.forward, backward, task=task, align_steps=config.align_steps
        )
    found = list(interleaved(steps, Clock(config.device), config.timing_steps))
    return {entry: statistics.median(r[entry].total / r[""].total for r in found) for entry in config.rules}
