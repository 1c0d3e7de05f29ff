"""`untied compare`: several learning rules against backpropagation, on the same network and the same data."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import queue
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from untied.errors import UntiedError
from untied.lab import plots, report
from untied.lab.config import CompareConfig, PhaseConfig, label, parse_entry
from untied.lab.console import ctrl_c_ignored, interruptible, say
from untied.lab.devices import single_device
from untied.lab.loop import NotFinite, dataset, network, train
from untied.lab.optim import Optimizers, time_constant
from untied.lab.phases import Plan
from untied.lab.reading import from_mapping
from untied.lab.record import RunFolder, file_name
from untied.lab.timing import step_costs

__all__ = ["again", "compare"]

Message = dict[str, Any]
_messages: Any = None  # the queue to the parent, in a worker process


def compare(config: CompareConfig, console: Console | None = None) -> int:
    """Run the comparison and write its folder. Returns the exit code: 0, 1 if every run failed, 130 if interrupted.

    Raises:
        UntiedError: anything that can be known before training starts: data, model, device, output folder. Or training
            cannot go on; what was finished is written then.
    """
    console = console or Console()
    out = config.out or Path("runs") / time.strftime("compare-%Y%m%d-%H%M%S")
    config = dataclasses.replace(config, rules=config.entries, out=out)  # the folder says what was meant, in full
    chance, about = check(config)
    folder = RunFolder.create(out, config, overwrite=config.overwrite)
    runs = f"{len(config.rules)} rules, {config.seeds} seeds, {config.epochs} epochs"
    say(console, f"{config.model} on {about}; {runs}")
    results: list[Message] = []
    costs: dict[str, float] = {}
    stopped: KeyboardInterrupt | UntiedError | None = None
    with interruptible():
        try:
            run_all(config, folder, results, chance, console)
            costs = measured_costs(config, console)
        except (KeyboardInterrupt, UntiedError) as why:
            stopped = why
    finish(folder, config, table_rows(config, results, costs, chance), console)
    if isinstance(stopped, UntiedError):
        raise stopped
    if stopped is not None:
        say(console, f"interrupted after {len(results)} of {len(config.rules) * config.seeds} runs: these are kept")
        return 130
    return 1 if all(r["failure"] for r in results) else 0


def check(config: CompareConfig) -> tuple[float, str]:
    """Try out all that can fail before anything is trained. Returns the chance level, and the data in words."""
    single_device(config.device, config.precision)
    data = dataset(config.data, config.first_seed, config.device)
    if config.evaluate_on == "validation" and not data.validation.size:
        raise UntiedError(
            "evaluate_on is validation and data.validation is 0: hold some images out, or use the test split"
        )
    for entry in config.rules:
        rule, backward = parse_entry(entry, config.backward)
        model = network(config.run(entry, config.first_seed), data)
        Optimizers(model, rule, config.forward, backward, steps=1)
    return 1 / len(data.classes), str(data)


# Runs


def run_all(config: CompareConfig, folder: RunFolder, results: list[Message], chance: float, console: Console) -> None:
    """Train every rule with every seed; write metrics and results as they come, results into ``results`` too."""
    jobs = [(entry, seed) for seed in config.all_seeds for entry in config.rules]
    phases = PhaseConfig(delay=config.delay)
    rules = {entry: parse_entry(entry, config.backward)[0] for entry in config.rules}
    total = sum(len(Plan(phases, rules[entry], config.epochs, 1).numbers) for entry, _ in jobs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("epochs", total=total)

        def receive(message: Message) -> None:
            if message["kind"] == "epoch":
                folder.append(message["metrics"])
                progress.advance(bar)
                return
            results.append(message)
            folder.write_json("results.json", table_rows(config, results, {}, chance))
            shown = message["failure"] or f"{100 * message['accuracy']:.1f} %"
            if not console.is_terminal:
                say(console, f"[{len(results)}/{len(jobs)}] {label(message['rule'])}, seed {message['seed']}: {shown}")

        if config.workers == 0:
            for job in jobs:
                one_run(config, *job, str(folder.path), receive)
        else:
            run_in_processes(config, jobs, str(folder.path), receive)


def one_run(config: CompareConfig, entry: str, seed: int, path: str, send: Callable[[Message], None]) -> None:
    """Train once; send each epoch's metrics and then the result."""
    result: Message = {"kind": "done", "rule": entry, "seed": seed, "accuracy": None, "failure": None}
    try:
        model, final = train(
            config.run(entry, seed),
            lambda metrics: send({"kind": "epoch", "metrics": metrics | {"rule": label(entry)}}),
            single_device(config.device, config.precision),
        )
        about = {"rule": entry, "seed": str(seed)}
        RunFolder.open(path).write_weights(weights_name(entry, seed), model.state_dict(), about)
        result |= final
    except NotFinite as failure:
        result["failure"] = f"rule {label(entry)}: {failure}"
    send(result)


def run_in_processes(
    config: CompareConfig, jobs: list[tuple[str, int]], path: str, receive: Callable[[Message], None]
) -> None:
    """The same, several at a time. Workers leave Ctrl-C to this process."""
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    workers = min(config.workers, len(jobs))
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, context, start_worker, (messages, threads))
    try:
        with ctrl_c_ignored():  # workers are born deaf to it, even while they import
            futures = [pool.submit(run_in_worker, config, *job, path) for job in jobs]
        waiting = len(jobs)
        while waiting:
            try:
                message = messages.get(timeout=0.2)
            except queue.Empty:
                raise_failure(futures)
                continue
            waiting -= message["kind"] == "done"
            receive(message)
        pool.shutdown()
    except BaseException:
        for child in multiprocessing.active_children():
            child.kill()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def raise_failure(futures: list[Future[None]]) -> None:
    """Raise what a worker raised."""
    for future in futures:
        error = future.exception() if future.done() and not future.cancelled() else None
        if isinstance(error, BrokenProcessPool):
            raise UntiedError(
                "a training process did not start, or was killed, perhaps for want of memory: use fewer --workers; "
                "in a script, call compare() under  if __name__ == '__main__':  or with workers=0"
            ) from error
        if error is not None:
            raise error


def start_worker(messages: Any, threads: int) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(threads)


def run_in_worker(config: CompareConfig, entry: str, seed: int, path: str) -> None:
    one_run(config, entry, seed, path, _messages.put)


# Results


def weights_name(entry: str, seed: int) -> str:
    return f"{file_name(label(entry))}-seed{seed}"


def measured_costs(config: CompareConfig, console: Console) -> dict[str, float]:
    if not config.timing_steps:
        return {}
    with console.status("measuring what a step of each rule costs"):
        return step_costs(config)


def table_rows(config: CompareConfig, results: list[Message], costs: dict[str, float], chance: float) -> list[Message]:
    """A row for each rule. A run whose loss was not finite counts at the chance level."""
    rows = []
    for entry in config.rules:
        rule, backward = parse_entry(entry, config.backward)
        own = sorted((r for r in results if r["rule"] == entry), key=lambda r: r["seed"])
        accuracies = [chance if r["failure"] else r["accuracy"] for r in own]
        failures = [f"seed {r['seed']} failed: {r['failure']}" for r in own if r["failure"]]
        rows.append(
            {
                "rule": label(entry),
                "text": entry if "@" in entry else str(rule),
                "local": rule.local,
                "split": config.evaluate_on,
                "accuracies": accuracies,
                "accuracy_mean": mean(accuracies),
                "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                "weight_angle": mean([r.get("weight_angle") for r in own]),
                "gradient_angle": mean([r.get("gradient_angle") for r in own]),
                "cost": costs.get(entry),
                "time_constant": time_constant(rule, config.forward if rule.copies_gradient else backward),
                "seeds": len(own),
                "finished": len(own) == config.seeds,
                "failure": "; ".join(failures) or None,
            }
        )
    return rows


def mean(values: list[float | None]) -> float | None:
    """Of the finite ones; None if there are none."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return statistics.fmean(known) if known else None


def finish(folder: RunFolder, config: CompareConfig, rows: list[Message], console: Console) -> None:
    """Write table, figures and page; print the table."""
    folder.write_json("results.json", rows)
    folder.write_text("table.md", report.markdown_table(rows))
    folder.write_text("table.csv", report.csv_table(rows))
    metrics = folder.metrics()
    figures = folder.path / "figures"
    plots.save(plots.accuracy_curves(metrics), figures, "accuracy")
    plots.save(plots.accuracy_bars(rows), figures, "results")
    plots.save(plots.angles_over_time(metrics), figures, "angles")
    there = set(folder.weight_names())
    first: dict[str, Any] = {}
    for entry in config.rules:
        name = next((n for seed in config.all_seeds if (n := weights_name(entry, seed)) in there), None)
        if name is not None:
            first[label(entry)] = folder.weights(name)
    plots.save(plots.weight_scatter(first), figures, "scatter")
    page = report.write_html(folder)
    console.print(report.rich_table(rows))
    for what, path in (("folder", folder.path), ("page", page), ("table", folder.path / "table.md")):
        say(console, f"{what:<7} {path}")


def again(path: Path, console: Console | None = None) -> int:
    """Write a run folder's tables, figures and page again, from what it holds. Returns the exit code, 0."""
    folder = RunFolder.open(path)
    config = from_mapping(CompareConfig, folder.config(), f"config of {path}")
    finish(folder, config, folder.read_json("results.json"), console or Console())
    return 0
