"""`untied compare`: several learning rules against backpropagation, on the same network and the same data."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import queue
import statistics
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from untied.errors import UntiedError
from untied.lab.console import ctrl_c_ignored, interruptible, say, shows_bars
from untied.lab.devices.devices import single_device
from untied.lab.experiments.check import verdict
from untied.lab.keeping.processes import end_with_parent
from untied.lab.keeping.record import METRICS, RunFolder, file_name, new_folder
from untied.lab.measuring.timing import step_costs
from untied.lab.reading.fields import from_mapping
from untied.lab.rules.signs import FROZEN, marks
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.entries import TUNED, label
from untied.lab.settings.phases import PhaseConfig
from untied.lab.tasks import Task, metric_of
from untied.lab.training.fitting import check_fit
from untied.lab.training.loop import NotFinite, train
from untied.lab.training.optim import Optimizers, rings, time_constant
from untied.lab.training.phases import Plan
from untied.lab.training.setup import dataset, network, task_of

__all__ = ["again", "compare", "resume"]

Message = dict[str, Any]
_messages: Any = None  # the queue to the parent, in a worker process
RUNS = "runs.jsonl"  # the result of each run, as it ends


def compare(config: CompareConfig, console: Console | None = None) -> int:
    """Run the comparison and write its folder. Returns the exit code: 0; 1 if every run failed; 130 or 143 if
    Ctrl-C or SIGTERM stopped it.

    Raises:
        UntiedError: anything that can be known before training starts: data, model, device, output folder. Or training
            cannot go on; what was finished is written then.
    """
    console = console or Console()
    for line in config.about_entries:
        say(console, line)
    config = dataclasses.replace(config, rules=config.entries)  # the folder says what was meant, in full
    task, chance, about = check(config, console)
    config = dataclasses.replace(config, out=config.out or new_folder("compare"))
    with RunFolder(Path(config.out or "")).lock(lambda line: say(console, line)) as lock:
        folder = RunFolder.create(lock.folder, config, overwrite=config.overwrite)
        return run(config, folder, task, chance, about, console)


def resume(path: Path, console: Console | None = None) -> int:
    """Go on with a comparison that was killed or stopped. What has finished is not done again. Returns the exit code.

    Raises:
        UntiedError: it has ended, or is of version 0.1, which did not keep the result of each run.
    """
    console = console or Console()
    folder = RunFolder.open(path)
    config = from_mapping(CompareConfig, folder.config(), f"config of {path}")
    results = folder.metrics(RUNS)
    total = len(config.rules) * config.seeds
    costed = not config.timing_steps or all(row.get("cost") for row in rows_of(folder))
    if len(results) >= total and costed and (path / "index.html").is_file():
        raise UntiedError(f"the comparison in {path} has ended: untied report {path}  writes its page again")
    if not results and rows_of(folder) and any(row["seeds"] for row in rows_of(folder)):
        raise UntiedError(
            f"{path} has no {RUNS}, as version 0.1 wrote none: start again with --config {path}/config.yaml"
        )
    task, chance, about = check(config, console)
    known = {(label(r["rule"]), r["seed"]) for r in results}
    with folder.lock(lambda line: say(console, line)):
        lines = [line for line in folder.metrics() if (line["rule"], line["seed"]) in known]  # of whole runs
        folder.write_text(METRICS, "".join(json.dumps(line) + "\n" for line in lines))
        say(console, f"going on: {len(results)} of {total} runs have ended before")
        return run(config, folder, task, chance, about, console, results)


def rows_of(folder: RunFolder) -> list[Message]:
    """The rows of a folder's table; none before the first run has ended."""
    return folder.read_json("results.json") if (folder.path / "results.json").is_file() else []


def run(
    config: CompareConfig, folder: RunFolder, task: Task, chance: float, about: str, console: Console,
    before: Sequence[Message] = (),
) -> int:  # fmt: skip
    """The comparison in its folder, but for the runs that have ended before; see ``compare``."""
    runs = f"{len(config.rules)} rules, {config.seeds} seeds, {config.epochs} epochs"
    say(console, f"{config.model} on {about}; {runs}")
    results = list(before)
    costs: dict[str, float] = {}
    stopped: KeyboardInterrupt | UntiedError | None = None
    with interruptible() as codes:
        try:
            run_all(config, folder, results, task, chance, console)
            costs = measured_costs(config, console)
        except (KeyboardInterrupt, UntiedError) as why:
            stopped = why
    if isinstance(stopped, KeyboardInterrupt):  # first, as somebody may press Ctrl-C once more
        say(console, f"interrupted after {len(results)} of {len(config.rules) * config.seeds} runs: these are kept; "
                     f"untied compare --resume {folder.path}  goes on")  # fmt: skip
    finish(folder, config, table_rows(config, results, costs, task, chance), console)
    if isinstance(stopped, UntiedError):
        raise stopped
    if stopped is not None:
        return codes[0]
    return 1 if all(r["failure"] for r in results) else 0


def check(config: CompareConfig, console: Console) -> tuple[Task, float, str]:
    """Try out all that can fail before anything is trained. Returns the task, chance, and the data in words."""
    single_device(config.device, config.precision)
    data = dataset(config.data, config.first_seed, config.device)
    if config.evaluate_on == "validation" and not data.validation.size:
        raise UntiedError(
            "evaluate_on is validation and data.validation is 0: hold some images out, or use the test split"
        )
    verdicts: dict[str, list[str]] = {}
    run = config.run(config.rules[0], config.first_seed)
    check_fit(run, data)
    task = task_of(run, data)
    for entry in config.rules:
        rule, backward = config.entrants[entry]
        model = network(config.run(entry, config.first_seed), data)
        Optimizers(model, rule, config.forward, backward, steps=1)
        if warning := rings(rule, config.forward if rule.copies_gradient else backward):
            say(console, f"{label(entry)}: {warning}")
        if config.verify:
            verdicts.setdefault(verdict(model, data, task), []).append(label(entry))
    for said, rules in verdicts.items():
        say(console, f"{', '.join(rules)}: {said}")
    return task, task.chance(data), str(data)


# Runs


def run_all(
    config: CompareConfig, folder: RunFolder, results: list[Message], task: Task, chance: float, console: Console
) -> None:
    """Train every rule with every seed; write metrics and results as they come, results into ``results`` too."""
    ended = {(result["rule"], result["seed"]) for result in results}
    every = [(entry, seed) for seed in config.all_seeds for entry in config.rules]
    jobs = [job for job in every if job not in ended]
    phases = PhaseConfig(delay=config.delay)
    rules = {entry: config.entrants[entry][0] for entry in config.rules}
    total = sum(len(Plan(phases, rules[entry], config.epochs, 1).numbers) for entry, _ in jobs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not shows_bars(console)) as progress:
        bar = progress.add_task("epochs", total=total)

        def receive(message: Message) -> None:
            if message["kind"] == "epoch":
                folder.append(message["metrics"])
                progress.advance(bar)
                return
            folder.append(message, RUNS)
            results.append(message)
            folder.write_json("results.json", table_rows(config, results, {}, task, chance))
            judge = task.metrics[0]
            shown = message["failure"] or f"{judge.shown(message[judge.name])} {judge.unit}".rstrip()
            if not shows_bars(console):
                say(console, f"[{len(results)}/{len(every)}] {label(message['rule'])}, seed {message['seed']}: {shown}")

        if config.workers == 0:
            for job in jobs:
                one_run(config, *job, str(folder.path), receive)
        else:
            run_in_processes(config, jobs, str(folder.path), receive)


def one_run(config: CompareConfig, entry: str, seed: int, path: str, send: Callable[[Message], None]) -> None:
    """Train once; send each epoch's metrics and then the result."""
    result: Message = {"kind": "done", "rule": entry, "seed": seed, "failure": None}
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
    if not jobs:
        return
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
    end_with_parent()
    _messages = messages
    torch.set_num_threads(threads)


def run_in_worker(config: CompareConfig, entry: str, seed: int, path: str) -> None:
    one_run(config, entry, seed, path, _messages.put)


# Results


def weights_name(entry: str, seed: int) -> str:
    return f"{file_name(label(entry).replace(TUNED, 'tuned-'))}-seed{seed}"


def weights_kept(entry: str, seed: int, there: Collection[str]) -> str | None:
    """The name of a run's weights among those of a folder; version 0.1 had no tuned- in it."""
    names = (weights_name(entry, seed), f"{file_name(label(entry).removeprefix(TUNED))}-seed{seed}")
    return next((name for name in names if name in there), None)


def measured_costs(config: CompareConfig, console: Console) -> dict[str, float]:
    if not config.timing_steps:
        return {}
    with console.status("measuring what a step of each rule costs"):
        return step_costs(config)


def table_rows(
    config: CompareConfig, results: list[Message], costs: dict[str, float], task: Task, chance: float
) -> list[Message]:
    """A row for each rule. A run whose loss was not finite counts at the chance level."""
    rows: list[Message] = []
    judge = task.metrics[0]
    for entry in config.rules:
        rule, backward = config.entrants[entry]
        own = sorted((r for r in results if r["rule"] == entry), key=lambda r: r["seed"])
        accuracies = [chance if r["failure"] else r[judge.name] for r in own]
        failures = [f"seed {r['seed']} failed: {r['failure']}" for r in own if r["failure"]]
        measured = [] if rule.name == FROZEN else own  # whose hidden layers have no B and no gradient to compare
        rows.append(
            {
                "rule": label(entry),
                "text": entry if "@" in entry else str(rule),
                "local": rule.local,
                "split": config.evaluate_on,
                "metric": dataclasses.asdict(judge),
                "accuracies": accuracies,
                "accuracy_mean": mean(accuracies),
                "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                "weight_angle": mean([r.get("weight_angle") for r in measured]),
                "gradient_angle": mean([r.get("gradient_angle") for r in measured]),
                "cost": costs.get(entry),
                "time_constant": time_constant(rule, config.forward if rule.copies_gradient else backward),
                "gradient_angle_std": mean([r.get("gradient_angle_std") for r in measured]),
                "gradient_norm": by_layer(measured, "gradient_norm"),
                "growth": by_layer(measured, "growth"),
                "signs": list(dict.fromkeys(sign for r in own for sign in r.get("signs", ()))),
                "chance": chance,
                "seeds": len(own),
                "finished": len(own) == config.seeds,
                "failure": "; ".join(failures) or None,
            }
        )
    baseline = next((row["accuracy_mean"] for row in rows if row["rule"] == FROZEN), None)
    for row in rows:
        row["signs"] = [*marks(row, chance, baseline), *row["signs"]]
    return rows


def by_layer(results: list[Message], name: str) -> dict[str, float]:
    """The mean over seeds of what each layer has."""
    layers = dict.fromkeys(layer for r in results for layer in r.get(name) or ())
    means = {layer: mean([(r.get(name) or {}).get(layer) for r in results]) for layer in layers}
    return {layer: value for layer, value in means.items() if value is not None}


def mean(values: list[float | None]) -> float | None:
    """Of the finite ones; None if there are none."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return statistics.fmean(known) if known else None


def finish(folder: RunFolder, config: CompareConfig, rows: list[Message], console: Console) -> None:
    """Write table, figures and page; print the table."""
    from untied.lab.showing import findings, plots, report, scatter, style  # here, as they are slow to import

    folder.write_json("results.json", rows)
    folder.write_text("table.md", report.markdown_table(rows))
    folder.write_text("table.csv", report.csv_table(rows))
    metrics = folder.metrics()
    figures = folder.path / "figures"
    order = [row["rule"] for row in rows]
    style.save(plots.accuracy_curves(metrics, metric_of(rows), order), figures, "accuracy")
    style.save(plots.accuracy_bars(rows), figures, "results")
    style.save(plots.angles_over_time(metrics, order), figures, "angles")
    there = set(folder.weight_names())
    first: dict[str, Any] = {}
    for entry in config.rules:
        name = next((n for seed in config.all_seeds if (n := weights_kept(entry, seed, there))), None)
        if name is not None:
            first[label(entry)] = folder.weights(name)
    style.save(scatter.weight_scatter(first), figures, "scatter")
    page = report.write_html(
        folder, finding=findings.finding(rows), captions=findings.captions(rows, metrics, first),
        sections=report.in_depth(rows),
    )  # fmt: skip
    console.print(report.rich_table(rows))
    for what, path in (("folder", folder.path), ("page", page), ("table", folder.path / "table.md")):
        say(console, f"{what:<7} {path}")


def again(path: Path, console: Console | None = None) -> int:
    """Write a run folder's tables, figures and page again, from what it holds. Returns the exit code, 0."""
    folder = RunFolder.open(path)
    config = from_mapping(CompareConfig, folder.config(), f"config of {path}")
    finish(folder, config, folder.read_json("results.json"), console or Console())
    return 0
