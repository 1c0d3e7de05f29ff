"""`untied train`: one run in a folder of its own, on one device or many, which can be killed and continued."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from untied.errors import UntiedError
from untied.lab import card, checkpoint, tracking
from untied.lab.config import TrainConfig
from untied.lab.console import say, stopping
from untied.lab.devices import fabric_of
from untied.lab.loop import LAST, NotFinite, Run, Stopped, dataset, identity, network, read_last
from untied.lab.optim import Optimizers
from untied.lab.phases import Plan
from untied.lab.reading import from_mapping
from untied.lab.record import RunFolder
from untied.rules import parse

__all__ = ["open_run", "resume", "rewrite", "train"]

LOG_EVERY = 50  # steps between two points of the training loss; a multiple of loop.CHECK_EVERY


def train(config: TrainConfig, console: Console | None = None) -> int:
    """Start a run. Returns the exit code: 0; 1 if training failed; 130 or 143 if Ctrl-C or SIGTERM stopped it.

    Raises:
        UntiedError: anything that can be known before training starts: data, model, devices, output folder. Or the
            run cannot go on, as on a full disk; its last checkpoint is good then.
    """
    out = config.out or Path("runs") / time.strftime("train-%Y%m%d-%H%M%S")
    config = dataclasses.replace(config, out=out)
    fabric = fabric_of(config.devices, config.data.batch_size, config.accumulate)
    if is_first_process():
        check(config, fabric)
        RunFolder.create(out, config, overwrite=config.overwrite)
    return go(config, fabric, again=False, console=console or Console())


def resume(path: Path, console: Console | None = None) -> int:
    """Go on with a run that was killed or stopped. Returns the exit code, as ``train`` does.

    A run that was killed before its first checkpoint starts again.

    Raises:
        UntiedError: the run has ended, or its checkpoint is damaged, or of another run.
    """
    _, config = open_run(path)
    if (path / "results.json").is_file():
        if (path / "index.html").is_file():
            raise UntiedError(f"the run in {path} has ended: see its card.md, or untied evaluate {path}")
        return rewrite(path, console)  # it was killed after training
    fabric = fabric_of(config.devices, config.data.batch_size, config.accumulate)
    if is_first_process():
        check(config, fabric, path)
        for partial in path.rglob(".*.partial"):  # of a process that was killed while writing
            partial.unlink(missing_ok=True)
    return go(dataclasses.replace(config, out=path), fabric, again=True, console=console or Console())


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


def check(config: TrainConfig, fabric: Fabric, going_on: Path | None = None) -> None:
    """Try out all that can fail before anything is trained, and before other processes are started."""
    data = dataset(config.data, config.seed, str(fabric.device) if fabric.world_size == 1 else "cpu")
    rule = parse(config.rule)
    model = network(config, data)
    plan = Plan(config.phases, rule, config.epochs, len(data.train))
    Optimizers(model, rule, config.forward, config.backward, *plan.counts(), config.data.batch_size)
    tracking.check(config.tracker)
    if going_on is not None and (going_on / LAST).is_file():
        tensors, _, _ = read_last(going_on, identity(config, data), fabric.world_size)
        checkpoint.load(model, tensors, "model.", str(going_on / LAST))


def go(config: TrainConfig, fabric: Fabric, again: bool, console: Console) -> int:
    """Train, or go on training, in the processes that the configuration asks for."""
    with children_ended(fabric, config.out):
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
                result = {"failure": f"rule {config.rule}: {failure}", "chance": 1 / len(run.data.classes)}
        if first and result is not None:
            folder.write_json("results.json", result)
            if result.get("failure"):
                say(console, f"untied: {result['failure']}")
            finish(folder, config)
            if "accuracy" in result:
                say(console, f"{result['split']} top-1 {100 * result['accuracy']:.2f} %, "
                             f"top-5 {100 * result['top5']:.2f} %, loss {result['loss']:.4f}")  # fmt: skip
            say(console, f"folder {folder.path}")
        elif first:
            say(console, f"stopped after step {run.position.step} of {run.plan.steps}; "
                         f"untied train --resume {folder.path}  goes on")  # fmt: skip
        fabric.barrier()
        return code


def finish(folder: RunFolder, config: TrainConfig) -> None:
    """Write card, figures and page from what the folder of a run that has ended holds."""
    from untied.lab import plots, report  # here, as they are slow to import

    card.write(folder, config)
    metrics, figures = folder.metrics(), folder.path / "figures"
    tensors = checkpoint.read(folder.path / "checkpoints" / "last.safetensors")[0] if metrics else {}
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    plots.save(plots.accuracy_curves(metrics), figures, "accuracy")
    plots.save(plots.angles_over_time(metrics), figures, "angles")
    plots.save(plots.weight_scatter({config.rule: weights}), figures, "scatter")
    result = folder.read_json("results.json")
    accuracy = result.get("accuracy")
    row = result | {
        "rule": config.rule,
        "text": config.rule,
        "local": parse(config.rule).local,
        "accuracies": [accuracy],
        "accuracy_mean": accuracy,
        "seeds": 1,
        "finished": not result.get("failure"),
    }
    report.write_html(folder, rows=[row], title=f"{config.model}, trained with {config.rule}")


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
        TextColumn("{task.description}"), BarColumn(min(40, max(4, console.width - 76))),
        TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    worst = ""
    began, seen = time.perf_counter(), 0
    say(console, f"{config.model}, {config.rule}, on {run.data}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=run.plan.steps, completed=run.position.step, said="")

        def tick() -> None:
            J, _, right = run.last
            speed = run.images / run.elapsed if run.elapsed else 0.0
            epoch = (run.position.step - 1) // run.plan.length + 1 - run.plan.delay
            progress.update(
                bar, completed=run.position.step, description=f"epoch {epoch}/{config.epochs}",
                said=f"{speed:,.0f} img/s  loss {J:.3f}  acc {100 * right:.1f} %{worst}",
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
            layer = max(angles, key=lambda name: angles[name])
            worst = f"  worst {angles[layer]:.1f}°"
            name_damaged(run, console)
            say(console, f"{line_of(metrics)}, worst angle {angles[layer]:.1f}° ({layer})")

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


def line_of(metrics: dict[str, Any]) -> str:
    """An epoch in a line."""
    said = f"epoch {metrics['epoch']}: loss {metrics['train_loss']:.3f}"
    if "validation_accuracy" in metrics:
        said += f", validation {100 * metrics['validation_accuracy']:.2f} %"
    return said


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
        raise
