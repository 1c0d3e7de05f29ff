"""One run: a network, a rule and a seed, trained and evaluated; to be interrupted and continued at any step.

Everything random in a step is drawn from a generator that is seeded with the run's seed, the step and the process, so a
run that goes on from a checkpoint is, bit for bit on a CPU, the run that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import untied
from untied.errors import UntiedError
from untied.lab import tasks
from untied.lab.data import DataConfig, Dataset, Loader, load
from untied.lab.devices.devices import agree, broadcast_buffers, gathered, prepared, single_device, summed, unsharded
from untied.lab.devices.fabric import Fabric
from untied.lab.models import build
from untied.lab.reading.edges import shown
from untied.lab.rules.signs import freeze, looks
from untied.lab.settings.config import TrainConfig
from untied.lab.tasks import Task
from untied.lab.tasks.trees import channels_last, first, groups, size, to
from untied.lab.training import checkpoint
from untied.lab.training.checkpoint import Position
from untied.lab.training.learners import learner, made
from untied.lab.training.optim import Optimizers
from untied.lab.training.phases import Plan
from untied.lab.training.step import NotFinite, Objective, training_step
from untied.rules.rule import Rule
from untied.targets.reversing import quiet

__all__ = ["NotFinite", "Run", "Scores", "Stopped", "dataset", "evaluate", "network", "plain_network",
           "read_last", "same_run", "task_of", "train"]  # fmt: skip

Report = Callable[[dict[str, Any]], None]
CHECK_EVERY = 25  # steps between two looks at a device that computes on its own
LAST = Path("checkpoints/last.safetensors")


class Stopped(Exception):
    """The run was asked to stop, and has saved where it is."""


@lru_cache(maxsize=1)  # successive runs of a process mostly differ in their rule alone
def dataset(config: DataConfig, seed: int, device: str) -> Dataset:
    """The data, read once."""
    return load(config, seed=seed, device=device)


def task_of(config: TrainConfig, data: Dataset) -> Task:
    """What a run trains for: the task that is named, or the data's own.

    Raises:
        UntiedError: there is no such task.
    """
    return tasks.make(config.task, data, config.label_smoothing)


def plain_network(config: TrainConfig, data: Dataset) -> nn.Module:
    """The network as PyTorch has it, with the weights that every rule starts from.

    Raises:
        UntiedError: the model does not fit the data.
    """
    torch.manual_seed(config.seed)
    outputs = task_of(config, data).outputs(data)
    return build(config.model, input_shape=data.input_shape, classes=outputs, vocabulary=data.vocabulary)


def network(config: TrainConfig, data: Dataset) -> nn.Module:
    """The network under its rule: for one seed, W and B start the same under every rule.

    Raises:
        UntiedError: the model does not fit the data, or cannot be untied.
    """
    plain, task = plain_network(config, data), task_of(config, data)
    apart = config.seed + 1_000_003  # B is not to be drawn from the numbers that W was drawn from

    def inputs() -> Any:
        return task.batch(next(iter(data.train.epoch(0))))[0]

    model = made(plain, config.parsed, inputs, apart, config.init)
    if any(is_lazy(p) for p in model.parameters()):  # a B that takes its size from its layer's input
        sized(model, to(first(inputs(), 1), "cpu"))
    freeze(model, config.parsed)
    if config.phases.calibrate:
        with torch.random.fork_rng(devices=[]):  # what the run draws later is the same without it
            untied.mirror_(model, batches=config.phases.calibrate)
    return model


def sized(model: nn.Module, inputs: Any) -> nn.Module:
    """The model, called once without training, so that every B has its size (`untied.rules.broadcast`)."""
    with torch.no_grad():
        model.eval()(inputs)
    return model.train()


@dataclass(frozen=True)
class Scores:
    """Of a split: the task's metrics by name, and mean loss."""

    metrics: dict[str, float]
    loss: float


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


def identity(config: TrainConfig, data: Dataset) -> dict[str, Any]:
    """What makes a checkpoint this run's."""
    return {
        "model": config.model, "rule": config.rule, "data": config.data.name, "classes": list(data.classes),
        "images": data.train.size, "batch size": config.data.batch_size, "seed": config.seed, "epochs": config.epochs,
        "forward optimizer": config.forward.name, "backward optimizer": config.backward.name, "ema": config.ema,
        "settings": settings(config),
    }  # fmt: skip


FREE = ("out", "overwrite", "tracker", "verify", "checkpoint_minutes", "data.root", "data.workers", "data.download",
        "devices.accelerator", "devices.devices", "devices.nodes")  # fmt: skip
"""Settings that say where a run is and how it is watched: it may go on with others. The number of processes is asked
for by itself."""


def settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting by its dotted name that decides what a run becomes, as JSON has it."""

    def flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                yield from flat({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, f"{name}.")
            elif name not in FREE:
                yield name, json.loads(json.dumps(value, default=str))

    return dict(flat({f.name: getattr(config, f.name) for f in dataclasses.fields(config)}, ""))


def same_settings(file: Path, there: Any, here: dict[str, Any]) -> None:
    """Raise UntiedError, naming the fields, if the configuration was edited since the checkpoint was written."""
    if not isinstance(there, dict):  # a checkpoint of before, which did not keep them
        return
    differing = [name for name in here if name in there and there[name] != here[name]]
    if differing:
        of = ", ".join(f"{name} {shown(there[name])} → {shown(here[name])}" for name in differing)
        raise UntiedError(
            f"config.yaml was edited since {file} was written: {of}; put it back, or start another run with "
            "--config config.yaml --out FOLDER"
        )


def same_run(file: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise UntiedError if what a checkpoint was made of is not what we have here."""
    for what, mine in here.items():
        if what == "settings":
            same_settings(file, there.get(what), mine)
            continue
        if (its := there.get(what)) != mine:
            its, mine = brief(its, mine), brief(mine, its)
            raise UntiedError(f"{file} is of another run: its {what}: {its}; here: {mine}")


def brief(value: Any, other: Any) -> str:
    """A value in a few words: of a list, what another has not."""
    if not isinstance(value, list):
        return str(value)
    own = [str(item) for item in value if not isinstance(other, list) or item not in other]
    return ", ".join([str(len(value)), *own[:3]]) + (", ..." if len(own) > 3 else "")


def read_last(
    folder: Path, identity: dict[str, Any], processes: int
) -> tuple[dict[str, Tensor], Position, dict[str, Any]]:
    """The last checkpoint of a run folder, as ``checkpoint.read`` gives it.

    Raises:
        UntiedError: it is damaged, or of another model, rule, data set, optimizer, or number of processes.
    """
    path = folder / LAST
    tensors, position, rest = checkpoint.read(path)
    same_run(path, position.identity, identity)
    if "optimizers" not in rest:
        raise UntiedError(f"{path} holds weights alone, as best.safetensors does: a run goes on from its own last one")
    if rest.get("processes", 1) != processes:
        raise UntiedError(
            f"the run had {rest.get('processes', 1)} processes and now has {processes}: go on with as many, "
            "so that it stays the same run"
        )
    return tensors, position, rest


def seed_step(device: torch.device, seed: int, step: int, rank: int, turn: int = 0, update: bool = False) -> None:
    """Make a step's random numbers a function of run, step, process, and how often the batch will be seen again."""
    words = np.random.SeedSequence((seed, step, rank, 2 * turn + int(update))).generate_state(1, np.uint64)
    if device.type == "cpu":  # torch.manual_seed would note the seed for each kind of device, which takes longer
        torch.default_generator.manual_seed(int(words[0] >> np.uint64(1)))
    else:
        torch.manual_seed(int(words[0] >> np.uint64(1)))


def evaluate(
    model: nn.Module,
    loader: Loader,
    task: Task,
    fabric: Fabric | None = None,
    between: Callable[[], None] = lambda: None,
) -> Scores:
    """Score a split, in evaluation mode, each process its part. Images that cannot be read do not count.

    ``between`` is called before every batch.
    """
    rank, world = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
    precision = nullcontext() if fabric is None else fabric.autocast()
    model.eval()
    sums = torch.zeros(2 + task.width, dtype=torch.float64)
    with torch.no_grad(), precision:
        for images, labels in map(task.batch, loader.epoch(0, share=(rank, world))):
            between()
            outputs, n = model(images).float(), size(labels)
            loss = task.loss(outputs, labels).double().cpu()
            sums += torch.cat([task.tally(outputs, labels).double().cpu(), torch.stack([loss * n, loss.new_tensor(n)])])
    if fabric is not None:
        sums = summed(fabric, sums.to(fabric.device))
    *tally, loss, count = sums.tolist()
    if not count:
        raise UntiedError("the split that is to be evaluated has no images")
    return Scores(task.scores(tally, count), loss / count)


Look = tuple[Callable[[], Tensor], Tensor | None]
LOOKS = 4
"""Batches over which the gradient angle is looked at in the end."""


def losses(model: nn.Module, data: Dataset, fabric: Fabric, config: TrainConfig, count: int) -> list[Look]:
    """The task's loss on each of the first batches of training's size, in training mode, with the same random numbers
    each time."""
    task = task_of(config, data)
    batches = data.validation if data.validation.size else data.train
    torch.manual_seed(config.seed)
    model.train()

    def of(x: Any, y: Any) -> Look:
        def loss() -> Tensor:
            torch.manual_seed(config.seed)  # for dropout, and for rules whose B is drawn anew for each batch
            with fabric.autocast():
                return task.loss(model(x), y)

        return loss, y if isinstance(y, Tensor) else None

    n = min(config.data.batch_size, 256)
    several = (zip(*(groups(part, n) for part in task.batch(batch)), strict=True) for batch in batches)
    return [of(x, y) for x, y in islice(chain.from_iterable(several), count)]


def alignment(model: nn.Module, data: Dataset, fabric: Fabric, config: TrainConfig) -> dict[str, Any]:
    """How well B stands in for W, by layer and on one fixed batch in training mode: degrees, and ‖B‖ / ‖W‖.

    The weight angle is that of the weights that activity reaches: what sees padding alone, or pixels that are always 0,
    changes nothing.
    """
    torch.manual_seed(config.seed)  # a redrawn B and dropout are the same each time
    task = task_of(config, data)
    batch = task.batch(next(iter(data.validation if data.validation.size else data.train)))
    images, labels = (first(part, min(config.data.batch_size, 256)) for part in batch)
    model.train()
    torch.manual_seed(config.seed)  # for dropout, and for rules whose B is drawn anew for each batch

    def loss() -> Tensor:
        with fabric.autocast():
            return task.loss(model(images), labels)

    targets = labels if isinstance(labels, Tensor) else None  # for rules that send them
    about = learner(model)
    metrics: dict[str, Any] = {"norm_ratio": about.norm_ratios(model)}
    if config.angles == "weights":
        return metrics | {
            "weight_angle": about.weight_angles(model, loss),
            "gradient_angle": about.gradient_angle(model, loss, targets),
        }
    table = about.measure(model, loss, targets)
    for name in ("projection_angle", "local_gradient_angle", "gradient_norm", "growth"):
        metrics[name] = {layer: getattr(row, name) for layer, row in table.layers.items()}
    metrics["weight_angle"] = {layer: row.reached_angle for layer, row in table.layers.items()}
    metrics["layer_gradient_angle"] = {layer: row.gradient_angle for layer, row in table.layers.items()}
    return metrics | {"gradient_angle": table.gradient_angle}
