"""One run: a network, a rule and a seed, trained and evaluated; to be interrupted and continued at any step.

Everything random in a step is drawn from a generator that is seeded with the run's seed, the step and the process, so a
run that goes on from a checkpoint is, bit for bit on a CPU, the run that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from untied.errors import UntiedError
from untied.lab.devices.devices import agree, broadcast_buffers, gathered, prepared, single_device, summed, unsharded
from untied.lab.devices.fabric import Fabric
from untied.lab.rules.signs import looks
from untied.lab.settings.run import TrainConfig
from untied.lab.tasks.trees import channels_last, size
from untied.lab.training import checkpoint
from untied.lab.training.checkpoint import Position
from untied.lab.training.identity import LAST, identity, read_last
from untied.lab.training.learners import learner
from untied.lab.training.optim import Optimizers
from untied.lab.training.phases import Plan
from untied.lab.training.scoring import LOOKS, alignment, evaluate, losses
from untied.lab.training.setup import dataset, network, task_of
from untied.lab.training.step import NotFinite, Objective, training_step
from untied.rules.rule import Rule
from untied.targets.reversing import quiet

__all__ = ["NotFinite", "Run", "Stopped", "train"]

Report = Callable[[dict[str, Any]], None]
CHECK_EVERY = 25  # steps between two looks at a device that computes on its own


class Stopped(Exception):
    """The run was asked to stop, and has saved where it is."""


class Run:
    """A run in memory: network, optimizers, and where it is.

    Args:
        config: of the run.
        fabric: launched; by default the CPU.
        folder: where checkpoints go; without one, none are written.

    Attributes:
        images: trained on so far in this process, and elapsed: the seconds it took, for a display.
        last: J, R and the task's first metric of the epoch so far in this process, for a display.
        tick: called when they are new.
        stop: set it to end the run after its current step.
    """

    def __init__(self, config: TrainConfig, fabric: Fabric | None = None, folder: Path | None = None) -> None:
        self.config = config
        self.fabric = fabric = fabric or single_device()
        self.folder = folder
        self.data = dataset(config.data, config.seed, str(fabric.device))
        self.rule: Rule = config.parsed
        self.plan = Plan(config.phases, self.rule, config.epochs, len(self.data.train))
        self.model = prepared(network(config, self.data), config.devices, fabric)
        self.task = task_of(config, self.data)
        objective = Objective(self.model, self.task)
        if config.devices.compile:
            objective.compile()
        self.objective = fabric.setup_module(objective)
        task, align = self.plan.counts()
        size = config.data.batch_size
        self.optimizers = Optimizers(self.model, self.rule, config.forward, config.backward, task, align, size)
        self.mover: Any = fabric.setup_optimizers(self.optimizers)
        self.average = (
            None if config.ema is None else AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        )
        self.position = Position(identity=identity(config, self.data))
        wide = torch.float32 if fabric.device.type == "mps" else torch.float64
        self.sums = torch.zeros(3 + self.task.width, dtype=wide, device=fabric.device)  # J, R, the tally, examples
        self.tick: Callable[[], None] = lambda: None
        self.stop = False
        self.images, self.elapsed, self.last = 0, 0.0, (math.nan, math.nan, math.nan)
        self._saved = time.monotonic()

    # Training

    def train(self, report: Report) -> dict[str, Any]:
        """Train to the end, and evaluate once.

        Args:
            report: called after every epoch with that epoch's metrics.

        Returns:
            The result: the task's metrics on ``config.evaluate_on``, and final angles.

        Raises:
            NotFinite: the loss stopped being a number; names layer and step.
            Stopped: ``stop`` was set; where the run is has been saved.
        """
        metrics: dict[str, Any] = {}
        for number in self.plan.numbers:
            index = number - 1 + self.plan.delay
            if index < self.position.lines:
                continue
            self.epoch(number, self.position.step - index * self.plan.length)
            metrics = self.measure(number)
            best = self.note_best(number, metrics.get(f"validation_{self.task.metrics[0].name}"))
            self.position.lines += 1
            report(metrics)
            self.sums.zero_()
            if best:
                self.save("best")
            self.save("last")
            if self.anywhere(self.stop):
                raise Stopped
        return self.result(metrics)

    def epoch(self, number: int, start: int) -> None:
        """The steps of an epoch, from its step ``start`` on."""
        config, fabric, plan = self.config, self.fabric, self.plan
        share = (fabric.global_rank, fabric.world_size)
        self.objective.train()
        batches = self.data.train.epoch(plan.order(number), start=start, share=share)
        for step, (images, labels) in zip(plan.of_epoch(number, start), map(self.task.batch, batches), strict=True):
            before = time.perf_counter()
            look = fabric.device.type == "cpu" or (step + 1) % CHECK_EVERY == 0
            if config.devices.channels_last:
                images = channels_last(images)
            turns = plan.turns(step)
            try:
                for turn, phase in zip(reversed(range(len(turns))), turns, strict=True):  # the last is number 0
                    seed_step(fabric.device, config.seed, step, fabric.global_rank, turn)
                    with quiet(self.model) if turn else nullcontext():
                        done = training_step(
                            self.objective, images, labels, self.optimizers, phase,
                            progress=step / plan.steps, step=step, parts=config.accumulate,
                            anywhere=self.anywhere if look else None,
                            backward=fabric.backward, move=partial(self.move, turn),
                            apart=lambda: fabric.no_backward_sync(self.objective),
                        )  # fmt: skip
            except NotFinite as failure:
                raise NotFinite(f"{failure}; try a lower learning rate") from None
            if self.average is not None:
                self.average.update_parameters(self.model)
            self.count(done.task, done.penalty, done.logits, labels)
            self.position.step = step + 1
            self.images += size(images) * fabric.world_size
            self.elapsed += time.perf_counter() - before
            if look:
                self.look()

    def anywhere(self, so: bool) -> bool:
        """Whether something is so in any process."""
        return agree(self.fabric, so)[0]

    def move(self, turn: int = 0) -> None:
        """A step of the optimizers. Noise on updates has to be the same in every process that holds a weight whole."""
        own = self.fabric.global_rank if self.config.devices.strategy == "fsdp" else 0
        seed_step(self.fabric.device, self.config.seed, self.position.step, own, turn, update=True)
        self.mover.step()

    def count(self, J: Tensor, R: Tensor, logits: Tensor, labels: Any) -> None:
        """Add a step to the sums of its epoch."""
        n = size(labels)
        tally = self.task.tally(logits, labels).to(self.sums)
        self.sums += torch.cat([torch.stack([J * n, R * n]).to(self.sums), tally, self.sums.new_tensor([n])])

    def look(self) -> None:
        """Between two steps: save if it is time, stop if asked to; all processes together."""
        J, R, *tally, count = self.sums.tolist()
        self.last = (J / count, R / count, next(iter(self.task.scores(tally, count).values())))
        self.tick()
        late = time.monotonic() - self._saved > 60 * self.config.checkpoint_minutes
        stop, late = agree(self.fabric, self.stop, late and self.folder is not None)
        if stop or late:
            broadcast_buffers(self.fabric, self.model)
            self.save("last")
        if stop:
            raise Stopped

    @property
    def at_end(self) -> bool:
        """Whether the last step was the last one of its epoch."""
        return self.position.step % self.plan.length == 0

    # Measuring

    def pause(self) -> None:
        """Between two batches of an evaluation: stop if asked to; going on evaluates again.

        Several processes finish it, as they need not have the same number of batches.
        """
        if self.stop and self.fabric.world_size == 1:
            self.save("last")
            raise Stopped

    @property
    def damaged(self) -> dict[str, dict[str, str]]:
        """The images that this process could not read so far, by split: file and reason."""
        return {"train": self.data.train.damaged, "validation": self.data.validation.damaged}

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def measure(self, number: int) -> dict[str, Any]:
        """The metrics of an epoch that has ended."""
        fabric, config = self.fabric, self.config
        broadcast_buffers(fabric, self.model)
        J, R, *tally, count = summed(fabric, self.sums).tolist()
        metrics: dict[str, Any] = {
            "rule": config.rule,
            "seed": config.seed,
            "epoch": number,
            "step": self.position.step,
        }
        metrics |= {"train_loss": J / count, "penalty": R / count}
        metrics |= {f"train_{name}": score for name, score in self.task.scores(tally, count).items()}
        with unsharded(self.objective):
            if self.data.validation.size:
                scores = evaluate(self.evaluated, self.data.validation, self.task, fabric, self.pause)
                metrics |= {"validation_loss": scores.loss}
                metrics |= {f"validation_{name}": score for name, score in scores.metrics.items()}
            metrics |= alignment(self.model, self.data, fabric, config)
        return metrics

    def note_best(self, number: int, score: float | None) -> bool:
        """Whether this is the best epoch so far on validation."""
        best = self.position.best
        if score is None or not math.isfinite(score):
            return False
        if best is not None and not self.task.metrics[0].better(score, best[0]):
            return False
        self.position.best = (score, number)
        return True

    def result(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What the run ends with."""
        split = self.data.test if self.config.evaluate_on == "test" else self.data.validation
        with unsharded(self.objective):
            scores = evaluate(self.evaluated, split, self.task, self.fabric, self.pause)
            if not metrics:  # every epoch was done before; only this is left
                metrics = alignment(self.model, self.data, self.fabric, self.config)
            batches = losses(self.model, self.data, self.fabric, self.config, LOOKS)
            found = looks(self.model, batches, learner(self.model))
        angles = [a for a in metrics["weight_angle"].values() if math.isfinite(a)]
        best = self.position.best
        return {
            "split": self.config.evaluate_on,
            **scores.metrics,
            "loss": scores.loss,
            "metrics": [dataclasses.asdict(metric) for metric in self.task.metrics],
            f"best_validation_{self.task.metrics[0].name}": None if best is None else best[0],
            "best_epoch": None if best is None else best[1],
            "weight_angle": sum(angles) / len(angles) if angles else None,
            "gradient_angle": metrics["gradient_angle"],
            **found,
            "chance": self.task.chance(self.data),
            "damaged": len(split.damaged) or None,
        }

    # Going on

    def save(self, name: str) -> None:
        """Write a checkpoint: "last", from which the run can go on, or "best", its weights alone."""
        if self.folder is None:
            return
        tensors = checkpoint.model_tensors(self.model)
        if self.average is not None:
            tensors |= checkpoint.model_tensors(self.average.module, "ema.")
        rest: dict[str, Any] = {}
        if name == "last":
            own, states = checkpoint.tensors_of(self.optimizers)
            tensors |= own | {"sums": gathered(self.fabric, self.sums)}
            rest = {"optimizers": states, "loss_scale": self.scaler_state(), "processes": self.fabric.world_size}
            if self.average is not None:
                rest["averaged"] = int(self.average.n_averaged)
        if self.fabric.is_global_zero:
            checkpoint.save(self.folder / LAST.with_stem(name), self.position, tensors, **rest)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Go on from the folder's last checkpoint, or from the beginning where there is none yet.

        Raises:
            UntiedError: as ``read_last`` does, or its weights are another model's.
        """
        assert self.folder is not None
        path = self.folder / LAST
        if not path.is_file():
            return
        tensors, position, rest = read_last(self.folder, self.position.identity, self.fabric.world_size)
        checkpoint.load(self.model, tensors, "model.", str(path))
        if self.average is not None:
            checkpoint.load(self.average.module, tensors, "ema.", str(path))
            self.average.n_averaged.fill_(rest.get("averaged", 0))
        sums = tensors.get("sums", self.sums[:0])
        if sums.shape != (self.fabric.world_size, *self.sums.shape):
            raise UntiedError(f"{path}: sums is {tuple(sums.shape)}, not what {self.fabric.world_size} processes keep")
        checkpoint.restore(self.optimizers, tensors, rest)
        self.load_scaler_state(rest.get("loss_scale"))
        self.sums.copy_(tensors["sums"][self.fabric.global_rank])
        self.position = position

    def scaler_state(self) -> dict[str, Any] | None:
        """Of float16's loss scaling."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return None if scaler is None else scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any] | None) -> None:
        if state is not None:
            self.fabric.strategy.precision.scaler.load_state_dict(state)  # type: ignore[attr-defined]


def train(config: TrainConfig, report: Report, fabric: Fabric | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Train one network, keeping nothing on disk. Returns it, and its result; see ``Run.train``."""
    run = Run(config, fabric)
    return run.model, run.train(report)


def seed_step(device: torch.device, seed: int, step: int, rank: int, turn: int = 0, update: bool = False) -> None:
    """Make a step's random numbers a function of run, step, process, and how often the batch will be seen again."""
    words = np.random.SeedSequence((seed, step, rank, 2 * turn + int(update))).generate_state(1, np.uint64)
    if device.type == "cpu":  # torch.manual_seed would note the seed for each kind of device, which takes longer
        torch.default_generator.manual_seed(int(words[0] >> np.uint64(1)))
    else:
        torch.manual_seed(int(words[0] >> np.uint64(1)))
