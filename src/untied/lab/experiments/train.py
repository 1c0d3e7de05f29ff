"""`untied train`: one run in a folder of its own, on one device or many, which can be killed and continued."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from untied.errors import UntiedError
from untied.lab.console import say, shows_bars, stopping
from untied.lab.devices.devices import fabric_of
from untied.lab.devices.fabric import Fabric
from untied.lab.experiments.check import verdict
from untied.lab.keeping.environment import same_threads
from untied.lab.keeping.record import ENVIRONMENT, RunFolder, new_folder
from untied.lab.reading.fields import from_mapping
from untied.lab.rules.signs import marks
from untied.lab.settings.run import TrainConfig
from untied.lab.showing import card
from untied.lab.tasks import Metric, metrics_of
from untied.lab.training import checkpoint, tracking
from untied.lab.training.fitting import check_fit
from untied.lab.training.identity import LAST, identity, read_last
from untied.lab.training.loop import NotFinite, Run, Stopped
from untied.lab.training.optim import Optimizers, rings
from untied.lab.training.phases import Plan
from untied.lab.training.setup import dataset, network, task_of

__all__ = ["open_run", "resume", "rewrite", "train"]

PATIENCE = 20.0  # seconds
LOG_EVERY = 50  # steps between two points of the training loss; a multiple of loop.CHECK_EVERY


def train(config: TrainConfig, console: Console | None = None) -> int:
    """Start a run. Returns the exit code: 0; 1 if training failed; 130 or 143 if Ctrl-C or SIGTERM stopped it.

    Raises:
        UntiedError: anything that can be known before training starts: data, model, devices, output folder. Or the
            run cannot go on, as on a full disk; its last checkpoint is good then.
    """
    console = console or Console()
    fabric = fabric_of(config.devices, config.data.batch_size, config.accumulate)
    if not is_first_process():  # which hears the folder from the first
        return go(config, fabric, again=False, console=console)
    check(config, fabric, console=console)
    out = config.out or new_folder("train")
    config = dataclasses.replace(config, out=out)
    with RunFolder(out).lock(lambda line: say(console, line)):
        RunFolder.create(out, config, overwrite=config.overwrite)
        if config.verify:
            data = dataset(config.data, config.seed, str(fabric.device) if fabric.world_size == 1 else "cpu")
            say(console, verdict(network(config, data), data, task_of(config, data)))
        return go(config, fabric, again=False, console=console)


def resume(path: Path, console: Console | None = None) -> int:
    """Go on with a run that was killed or stopped. Returns the exit code, as ``train`` does.

    A run that was killed before its first checkpoint starts again.

    Raises:
        UntiedError: the run has ended, another process trains it, or its checkpoint is damaged, or of another run.
    """
    console = console or Console()
    folder, config = open_run(path)
    if (path / "results.json").is_file():
        if (path / "index.html").is_file():
            raise UntiedError(f"the run in {path} has ended: see its card.md, or untied evaluate {path}")
        with folder.lock(lambda line: say(console, line)):
            return rewrite(path, console)  # it was killed after training
    config = dataclasses.replace(config, out=path)
    fabric = fabric_of(config.devices, config.data.batch_size, config.accumulate)
    if not is_first_process():
        return go(config, fabric, again=True, console=console)
    with folder.lock(lambda line: say(console, line)):
        check(config, fabric, path)
        # several processes share the cores out among themselves
        alone = fabric.world_size == 1
        with same_threads(path / ENVIRONMENT, lambda line: say(console, line)) if alone else nullcontext():
            return go(config, fabric, again=True, console=console)


def open_run(path: Path) -> tuple[RunFolder, TrainConfig]:
    """The folder of a run of ours, and its configuration.

    Raises:
        UntiedError: it is none.
    """
    folder = RunFolder.open(path)
    settings = folder.config()
    if "rule" not in settings:
        raise UntiedError(f"{path} is not a run of untied train: its config.yaml has no rule")
    return folder, from_mapping(TrainConfig, settings, f"config of {path}")


def is_first_process() -> bool:
    """Whether this is the one process that writes, known before processes have found each other."""
    ranks = ["RANK"] if "RANK" in os.environ else ["SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"]
    return all(int(os.environ.get(name, "0")) == 0 for name in ranks)


def check(config: TrainConfig, fabric: Fabric, going_on: Path | None = None, console: Console | None = None) -> None:
    """Try out all that can fail before anything is trained, and before other processes are started."""
    data = dataset(config.data, config.seed, str(fabric.device) if fabric.world_size == 1 else "cpu")
    rule = config.parsed
    check_fit(config, data)
    model = network(config, data)
    check_part(model, data.input_shape, config.data.batch_size // (fabric.world_size * config.accumulate))
    plan = Plan(config.phases, rule, config.epochs, len(data.train))
    Optimizers(model, rule, config.forward, config.backward, *plan.counts(), config.data.batch_size)
    tracking.check(config.tracker)
    if going_on is None and (warning := rings(rule, config.forward if rule.copies_gradient else config.backward)):
        say(console or Console(), warning)
    if going_on is not None and (going_on / LAST).is_file():
        tensors, _, _ = read_last(going_on, identity(config, data), fabric.world_size)
        checkpoint.load(model, tensors, "model.", str(going_on / LAST))


def check_part(model: nn.Module, shape: tuple[int, ...], images: int) -> None:
    """Raise UntiedError if a part of a batch has too few images for batch norm, which needs two values a channel."""
    if images > 1 or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    try:
        with torch.no_grad():
            model.train()(torch.zeros(images, *shape))
    except ValueError as error:
        raise UntiedError(
            "each process computes 1 image at a time, of which batch norm cannot take statistics: use a larger "
            "data.batch_size, less accumulate, or fewer processes"
        ) from error


def go(config: TrainConfig, fabric: Fabric, again: bool, console: Console) -> int:
    """Train, or go on training, in the processes that the configuration asks for."""
    with children_ended(fabric, config.out):
        with said_later(console, f"waiting for the other processes of {fabric.world_size}", fabric.world_size > 1):
            fabric.launch()
        first = fabric.is_global_zero
        path = Path(fabric.broadcast(str(config.out)))
        run = Run(config, fabric, path)
        folder = RunFolder.open(path)
        if again:
            run.resume()
            if first:
                folder.keep_lines(run.position.lines)
        code = 0
        with stopping(run) as stopped:
            try:
                quiet = lambda metrics: name_damaged(run, console)  # noqa: E731
                result = shown(run, folder, console) if first else run.train(quiet)
            except Stopped:
                code = (stopped or [128 + signal.SIGTERM])[0] if first else 0  # perhaps another process was told
                result = None
            except NotFinite as failure:
                code = 1
                result = {"failure": f"rule {config.rule}: {failure}", "chance": run.task.chance(run.data)}
        if first and result is not None:
            folder.write_json("results.json", result)
            if result.get("failure"):
                say(console, f"untied: {result['failure']}")
            finish(folder, config)
            if "loss" in result:
                scores = ", ".join(f"{m.title} {m.shown(result[m.name])} {m.unit}".strip() for m in run.task.metrics)
                say(console, f"{result['split']} {scores}, loss {result['loss']:.4f}")
                judge = run.task.metrics[0]
                row = {"accuracy_mean": result.get(judge.name), "metric": dataclasses.asdict(judge)}
                for sign in [*marks(row, result["chance"], None), *result["signs"]]:
                    say(console, sign)
            say(console, f"folder {folder.path}")
        elif first:
            say(console, f"stopped after step {run.position.step} of {run.plan.steps}; "
                         f"untied train --resume {folder.path}  goes on")  # fmt: skip
        fabric.barrier()
        return code


def finish(folder: RunFolder, config: TrainConfig) -> None:
    """Write card, figures and page from what the folder of a run that has ended holds."""
    from untied.lab.showing import findings, plots, report, scatter, style  # here, as they are slow to import

    card.write(folder, config)
    metrics, figures = folder.metrics(), folder.path / "figures"
    tensors = checkpoint.read(folder.path / "checkpoints" / "last.safetensors")[0] if metrics else {}
    state = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    weights = {config.rule: state}
    result = folder.read_json("results.json")
    metric = metrics_of(result)[0]
    style.save(plots.accuracy_curves(metrics, metric), figures, "accuracy")
    style.save(plots.angles_over_time(metrics), figures, "angles")
    style.save(scatter.weight_scatter(weights), figures, "scatter")
    score = result.get(metric.name)
    row = result | {
        "rule": config.rule,
        "text": config.rule,
        "local": config.parsed.local,
        "metric": dataclasses.asdict(metric),
        "accuracies": [score],
        "accuracy_mean": score,
        "seeds": 1,
        "finished": not result.get("failure"),
    }
    row["signs"] = [*marks(row, row["chance"], None), *row.get("signs", ())] if "chance" in row else []
    report.write_html(
        folder, rows=[row], title=f"Trained with {config.rule}", finding=findings.finding([row]),
        captions=findings.captions([row], metrics, weights), sections=report.in_depth([row]),
    )  # fmt: skip


def rewrite(path: Path, console: Console | None = None) -> int:
    """Write a run's card, figures and page again, from what its folder holds. Returns the exit code, 0.

    Raises:
        UntiedError: the run has not ended.
    """
    folder, config = open_run(path)
    if not (path / "results.json").is_file():
        raise UntiedError(f"the run in {path} has not ended: untied train --resume {path}  goes on")
    finish(folder, config)
    say(console or Console(), f"page    {path / 'index.html'}")
    return 0


def shown(run: Run, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Train with a line an epoch, on a terminal a progress bar below, and metrics in every place they go to."""
    config = run.config
    ended = run.position.step == run.position.lines * run.plan.length  # all epochs begun have been reported
    followers = tracking.trackers(config.tracker, folder, run.position.step + int(ended or not run.at_end))
    columns = (
        TextColumn("{task.description}"), BarColumn(min(40, max(3, console.width - 77))),
        TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    worst, judge = "", run.task.metrics[0]
    began, seen = time.perf_counter(), 0
    say(console, f"{config.model}, {config.rule}, on {run.data}")
    with Progress(*columns, console=console, disable=not shows_bars(console)) as progress:
        bar = progress.add_task("training", total=run.plan.steps, completed=run.position.step, said="")

        def tick() -> None:
            J, _, right = run.last
            speed = run.images / run.elapsed if run.elapsed else 0.0
            epoch = (run.position.step - 1) // run.plan.length + 1 - run.plan.delay
            progress.update(
                bar, completed=run.position.step, description=f"epoch {epoch}/{config.epochs}",
                said=f"{speed:,.0f}/s  loss {J:.3f}  {judge.title} {judge.shown(right)} {judge.unit}{worst}",
            )  # fmt: skip
            if run.position.step % LOG_EVERY == 0 and not run.at_end:  # the epoch's own metrics have that step
                for follower in followers:
                    follower.log({"step/train_loss": J, "step/images_per_second": speed}, run.position.step)

        def report(metrics: dict[str, Any]) -> None:
            nonlocal worst, began, seen
            folder.append(metrics)
            elapsed, images = time.perf_counter() - began, run.images - seen
            damaged = run.damaged
            speed = {"epoch": metrics["epoch"], "seconds": elapsed, "images_per_second": images / elapsed}
            folder.append(speed | {f"damaged_{split}": len(files) for split, files in damaged.items()}, "timing.jsonl")
            began, seen = time.perf_counter(), run.images
            for follower in followers:
                follower.log(tracking.numbers(metrics), metrics["step"])
            angles = metrics["weight_angle"]
            layer = max((name for name in angles if math.isfinite(angles[name])), key=lambda n: angles[n], default=None)
            name_damaged(run, console)
            if layer is None:  # a rule whose B has no angle to W, such as direct feedback
                say(console, line_of(metrics, judge))
            else:
                worst = f"  worst {angles[layer]:.1f}°"
                say(console, f"{line_of(metrics, judge)}, worst angle {angles[layer]:.1f}° ({layer})")

        run.tick = tick
        try:
            return run.train(report)
        finally:
            for follower in followers:
                follower.close()


def name_damaged(run: Run, console: Console) -> None:
    """Say how many images this process could not read so far, and name the first."""
    of = f"process {run.fabric.global_rank}: " if run.fabric.world_size > 1 else ""
    for split, files in run.damaged.items():
        for name, why in list(files.items())[:1]:
            say(console, f"{of}{len(files)} {split} images could not be read and are passed over; first {name} ({why})")


def line_of(metrics: dict[str, Any], judge: Metric) -> str:
    """An epoch in a line."""
    said = f"epoch {metrics['epoch']}: loss {metrics['train_loss']:.3f}"
    score = metrics.get(f"validation_{judge.name}")
    return said if score is None else f"{said}, validation {judge.title} {judge.shown(score)} {judge.unit}".rstrip()


@contextmanager
def said_later(console: Console, line: str, wanted: bool) -> Iterator[None]:
    """Say a line if something takes long, such as waiting for a process that never comes."""
    timer = threading.Timer(PATIENCE, say, (console, line))
    timer.daemon = True
    if wanted:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def children_ended(fabric: Fabric, out: Path | None) -> Iterator[None]:
    """Where this process fails, the ones it has started would wait for it for ever."""
    try:
        yield
    except BaseException as error:
        for child in getattr(fabric.strategy.launcher, "procs", []):
            child.kill()
        if isinstance(error, RuntimeError) and re.search("gloo|NCCL", str(error)):  # what they say of a lost process
            raise UntiedError(
                f"another process of this run has ended, or cannot be reached; untied train --resume {out}  goes on"
            ) from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise UntiedError(
                "a process that reads images has ended, perhaps for want of memory: use fewer data.workers; "
                f"untied train --resume {out}  goes on"
            ) from error
        raise
