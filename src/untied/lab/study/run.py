"""`untied study`: start a study or go on with it, join it as a worker, see how far it is and who trains."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from untied.errors import UntiedError
from untied.lab.console import interruptible, say, stopping
from untied.lab.keeping.processes import is_gone, is_of_this_system, when_closed
from untied.lab.keeping.record import ENVIRONMENT, RunFolder, file_name
from untied.lab.models import is_own
from untied.lab.reading.fields import read_mapping
from untied.lab.reading.secrets import without_password
from untied.lab.study.config import CHANGEABLE, KINDS, SearchConfig, StudyConfig, kind_of
from untied.lab.study.gpus import claim_gpu
from untied.lab.study.queue import Queue
from untied.lab.study.sampler import Sampler
from untied.lab.study.storage import NoAnswer, create, load, open_storage
from untied.lab.study.worker import Worker
from untied.lab.training.fitting import check_fit
from untied.lab.training.setup import dataset

__all__ = ["again", "join", "read_study", "run", "show"]

GRACE = 60.0  # seconds in which a worker whose parent has ended puts its run back
POLL, SLOWEST = 0.5, 5.0  # seconds between two looks at the database: longer where a look takes long
DATABASES = ("study.db", "study.db-wal", "study.db-shm", "study.log", "study.log.lock")  # in a study's own folder
DEFINITION = "definition.json"  # what a study has read from elsewhere, as a space from a file
URL = "UNTIED_STORAGE"  # the environment variable with the database's URL, where none is given


def read_study(path: Path) -> StudyConfig:
    """A study's configuration from a YAML file: ``kind``, and that kind's fields.

    Raises:
        UntiedError: it cannot be read, or is not one.
    """
    values = read_mapping(path)
    if not isinstance(values, dict) or values.get("kind") not in KINDS:
        kind = values.get("kind") if isinstance(values, dict) else None
        raise UntiedError(f"{path}: kind is {kind!r}: a study's file needs kind, one of {', '.join(KINDS)}")
    return kind_of(values, f"study {path}")


def run(config: StudyConfig, console: Console | None = None) -> int:
    """Start a study, or go on with the one of this name. Returns the exit code: 0, or 130 or 143 if interrupted.

    Raises:
        UntiedError: anything that can be known before: data, space, database, folder; or the workers cannot go on.
    """
    console = console or Console()
    config = named(config)
    assert config.out is not None
    definition = config.define()
    data = dataset(config.run.data, config.run.seed, "cpu")
    if (task := config.run.task or data.task) != "classification":
        raise UntiedError(
            f"{data.name} is for {task}, but studies compare accuracies of classification: use untied compare, or train"
        )
    for model in config.networks if config.run.data.is_own else filter(is_own, config.networks):
        check_fit(dataclasses.replace(config.run, model=model), data)
    folder = open_folder(config.out, definition)
    study, new = create(open_storage(config.storage), config.name, definition, CHANGEABLE)
    with_sampler(study, config)
    queue = Queue(study, config.plan(definition), config.silence, config.retries, lambda line: say(console, line))
    queue.tend()
    progress = queue.progress()
    begun = "" if new else f"; {progress.ended} have ended before"
    say(console, f"{config.kind} study {config.name}: {progress.planned} runs on {data}{begun}")
    code = 0
    if progress.ended < progress.planned:
        if config.workers == 0:
            claim_gpu(config.run.devices.accelerator, config.workers_per_gpu)
            worker = Worker(study, config, definition, folder.path / "runs", lambda line: say(console, line))
            with stopping(worker) as codes:
                try:
                    worker.work()
                except NoAnswer as error:
                    if not codes:
                        raise
                    say(console, f"untied: {error}")
            code = codes[0] if codes else 0
        else:
            code = supervise(config, queue, console)
    queue.stopped = lambda: bool(code)
    try:
        finish(queue, folder, definition, console)
    except NoAnswer as error:
        if not code:
            raise
        say(console, f"untied: {error}")
    if code:
        say(console, f"interrupted; the same command goes on, or  untied study run {folder.path / 'config.yaml'}")
    return code


def named(config: StudyConfig) -> StudyConfig:
    """A study with its name, folder and database filled in.

    Raises:
        UntiedError: the database's password is needed.
    """
    name = config.name or (f"{config.kind}-{Path(config.space).stem}" if isinstance(config, SearchConfig)
                           else f"{config.kind}-{config.run.data.name}")  # fmt: skip
    out = config.out or Path("studies") / file_name(name)
    storage = whole(config.storage) or f"sqlite:///{out.absolute() / 'study.db'}"
    return dataclasses.replace(config, name=name, out=out, storage=storage)


def open_folder(path: Path, definition: dict[str, Any]) -> RunFolder:
    """The study's folder, made if need be; its config.yaml is what ``untied study run`` takes.

    Raises:
        UntiedError: something else is in it.
    """
    settings = {k: v for k, v in definition.items() if k != "definition"}
    names = [p.name for p in path.iterdir()] if path.exists() else []
    if (path / "config.yaml").is_file():  # looked for after the rest, as the same command may be making it elsewhere
        folder = RunFolder.open(path)
        if folder.config().get("kind") not in KINDS:
            raise UntiedError(f"the folder {path} holds a run that is not a study: choose another --out")
        folder.write_json(DEFINITION, definition.get("definition"))
        folder.write_text("config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return folder
    ours = (*DATABASES, "runs", ENVIRONMENT, DEFINITION)  # of a command that was killed, or a new one
    if any(name not in ours and not name.endswith(".partial") for name in names):
        raise UntiedError(f"the folder {path} is not empty and does not hold a study: choose another --out")
    folder = RunFolder(path)
    folder.write_json(DEFINITION, definition.get("definition"))
    folder.write_config(settings)
    return folder


def with_sampler(study: optuna.Study, config: StudyConfig) -> None:
    """Give a study its sampler and its pruner, which are not kept in the database."""
    if not isinstance(config, SearchConfig):
        study.pruner = optuna.pruners.NopPruner()
        return
    study.sampler = Sampler(config.sampler_seed, config.startup)
    if config.prune == "median":
        study.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=config.prune_after)
    elif config.prune == "hyperband":
        study.pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=config.run.epochs * config.seeds)
    else:
        study.pruner = optuna.pruners.NopPruner()


# Workers of this machine


def supervise(config: StudyConfig, queue: Queue, console: Console) -> int:
    """Start worker processes, show how far they are, replace one that dies. Returns the exit code.

    Raises:
        UntiedError: workers end with errors, or die again and again.
    """
    threads = max(1, (os.cpu_count() or 1) // config.workers)
    workers = [start(config, threads) for _ in range(config.workers)]
    replaced, seen, code = 0, {t.user_attrs["key"] for t in queue.ended()}, 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown, interruptible() as codes:
        bar = shown.add_task("runs", total=len(queue.plan), completed=len(seen), said="")
        try:
            while True:
                began = time.monotonic()
                ended = queue.ended()
                pause = min(max(POLL, 50 * (time.monotonic() - began)), SLOWEST)  # the cores are the workers'
                for trial in ended:
                    if (key := trial.user_attrs["key"]) not in seen:
                        seen.add(key)
                        say(console, f"[{len(seen)}/{len(queue.plan)}] {line_of(trial)}")
                values = [t.value for t in ended if t.value is not None]
                best = f"best {100 * max(values):.1f} %" if values and isinstance(config, SearchConfig) else ""
                shown.update(bar, completed=len(ended), said=best)
                living = [w for w in workers if w.poll() is None]
                failed = [w for w in workers if w.poll() not in (None, 0)]
                if not living and not failed:
                    return 0
                for worker in failed:
                    queue.bury()
                    workers.remove(worker)
                    close(worker)
                    if worker.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # told to stop, not by us
                        say(console, "a worker was told to stop")
                    elif worker.returncode < 0 and replaced < config.retries * config.workers:
                        replaced += 1
                        say(console, f"a worker was killed (signal {-worker.returncode}); another one takes its place")
                        workers.append(start(config, threads))
                    elif not living:
                        raise UntiedError("the last worker has ended with an error: it said what went wrong above; "
                                          "the same command goes on")  # fmt: skip
                if not workers:
                    return 128 + signal.SIGTERM
                time.sleep(pause)
        except KeyboardInterrupt:
            code = codes[0]
            say(console, "stopping the workers after their current step")
        finally:
            end(workers)
    return code


def end(workers: list[subprocess.Popen[bytes]]) -> None:
    """Stop workers after their current step; a second Ctrl-C meanwhile does not wait for it."""
    for worker in workers:
        worker.terminate()  # one that has ended is left alone
    try:
        for worker in workers:
            worker.wait()
    except KeyboardInterrupt:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
        raise
    finally:
        for worker in workers:
            close(worker)


def close(worker: subprocess.Popen[bytes]) -> None:
    """Let go of a worker's standard input."""
    if worker.stdin is not None:
        worker.stdin.close()


def start(config: StudyConfig, threads: int) -> subprocess.Popen[bytes]:
    """A worker process, which leaves Ctrl-C to this one, and ends with it."""
    command = [sys.executable, "-m", "untied", "study", "worker", "--study", config.name, "--out", str(config.out),
               "--threads", str(threads), "--quiet", "--leash"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), URL: config.storage}  # it may have a password
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)


def join(
    url: str | None, name: str, out: Path | None = None, root: Path | None = None, threads: int | None = None,
    wait: bool = True, quiet: bool = False, leash: bool = False,
    console: Console | None = None,
) -> int:  # fmt: skip
    """Work for a study, from any machine that reaches its database. Returns the exit code.

    Args:
        url, name: the database, and the study in it.
        out: the study's folder here, for run folders; root: where the data lies here, if not where the study says.
        threads: for PyTorch.
        wait: stay while others train the last runs, in case one of them is lost. quiet: say only what goes wrong.
        leash: stop once nobody holds the other end of standard input.

    Raises:
        UntiedError: no such study, no GPU free, or the worker cannot go on.
    """
    console = console or Console()
    study, definition = load(open_storage(known(url)), name)
    config = kind_of(definition, f"study {name}")
    out = out or config.out or Path("studies") / file_name(name)
    if root is not None:
        run = dataclasses.replace(config.run, data=dataclasses.replace(config.run.data, root=root))
        config = dataclasses.replace(config, run=run)
    gpu = claim_gpu(config.run.devices.accelerator, config.workers_per_gpu)
    if threads is not None:
        torch.set_num_threads(threads)
    with_sampler(study, config)
    tell = (lambda line: None) if quiet else (lambda line: say(console, line))
    tell(f"worker of {config.kind} study {name}" + (f" on {gpu}" if gpu else ""))
    worker = Worker(study, config, definition, out / "runs", tell)
    if leash:
        when_closed(sys.stdin.fileno(), partial(let_go, worker))
    with stopping(worker) as codes:
        try:
            ended = worker.work(wait)
        except NoAnswer as error:
            if not codes:
                raise
            tell(f"untied: {error}")
            return codes[0]
    tell(f"{ended} runs ended here")
    return codes[0] if codes else 0


def let_go(worker: Worker) -> None:
    """Whoever has started this worker is gone: it puts its run back, and does not wait for a database to do so."""
    worker.stop = True
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def known(url: str | None) -> str:
    """A database's URL: the given one, or the environment's.

    Raises:
        UntiedError: there is none.
    """
    if url or os.environ.get(URL):
        return url or os.environ[URL]
    raise UntiedError(f"no database is given: name it with --storage URL, or in the environment variable {URL}")


def whole(url: str) -> str:
    """A database's URL with its password, which a study's folder does not keep: the environment's, if it is the same.

    Raises:
        UntiedError: the password is needed, and the environment has none for this database.
    """
    if "***" not in url:
        return url
    given = os.environ.get(URL, "")
    if without_password(given) != url:
        raise UntiedError(f"a study's folder does not keep the password of {url}: give --storage URL, or set {URL}")
    return given


# What came out


def line_of(trial: FrozenTrial) -> str:
    """A run that has ended, in a line."""
    name = trial.user_attrs["key"]
    if refused := trial.user_attrs.get("refused"):
        return f"{name}: refused: {refused}"
    if trial.state == TrialState.PRUNED:
        last = max(trial.intermediate_values.items(), default=(0, float("nan")))
        return f"{name}: pruned after epoch {last[0]}, at {100 * last[1]:.1f} %"
    if trial.value is None:
        return f"{name}: given up: {failure_of(trial)}"
    failure = failure_of(trial)
    return f"{name}: {100 * trial.value:.1f} %" + (f" ({failure})" if failure else "")


def failure_of(trial: FrozenTrial) -> str | None:
    """Why a run that has ended counts at chance, or not at all."""
    about = trial.user_attrs
    if trial.state == TrialState.FAIL:
        return about.get("refused") or about.get("error") or f"its worker died {about.get('attempt', 0) + 1} times"
    return next((r["failure"] for r in about.get("results", ()) if r["failure"]), None)


def rows_of(queue: Queue) -> list[dict[str, Any]]:
    """What is known of the runs that have ended, as plain values."""
    rows = []
    for trial in queue.ended():
        results = trial.user_attrs.get("results", [])
        value = trial.value
        if trial.state == TrialState.PRUNED and trial.intermediate_values:
            value = trial.intermediate_values[max(trial.intermediate_values)]
        rows.append({
            "run": trial.user_attrs["key"], "number": trial.number, "state": trial.state.name.lower(), "value": value,
            "params": dict(trial.params), "attempts": trial.user_attrs.get("attempt", 0) + 1,
            "failure": failure_of(trial),
            "seconds": sum(r["seconds"] for r in results), "config": results[0]["config"] if results else None,
            "results": [{k: v for k, v in r.items() if k != "config"} for r in results],
        })  # fmt: skip
    return rows


def finish(queue: Queue, folder: RunFolder, definition: dict[str, Any], console: Console) -> None:
    """Write what came out so far: results.json, table, figures, page."""
    from untied.lab.study import report  # here, as it is slow to import and workers need none

    rows = rows_of(queue)
    folder.write_json("results.json", rows)
    report.write(folder, definition["kind"], rows, len(queue.plan), console)


def again(path: Path, console: Console | None = None) -> int:
    """Write a study's table, figures and page again from its folder alone. Returns the exit code, 0."""
    from untied.lab.study import report  # here, as it is slow to import

    folder = RunFolder.open(path)
    definition = folder.config()
    if not (folder.path / "results.json").is_file():
        raise UntiedError(f"nothing of the study in {path} has ended: untied study run {path / 'config.yaml'}")
    rows = folder.read_json("results.json")
    report.write(folder, definition["kind"], rows, None, console or Console())
    return 0


def show(folder: Path | None, url: str | None, name: str | None, console: Console | None = None) -> int:
    """Print how far a study is, who trains what, and the table so far. Returns the exit code, 0.

    A study is named by its folder, or by database and name.

    Raises:
        UntiedError: there is none.
    """
    from untied.lab.study import report  # here, as it is slow to import

    console = console or Console()
    if folder is not None:
        here = kind_of({k: v for k, v in RunFolder.open(folder).config().items() if k != "definition"}, str(folder))
        url, name = url or whole(here.storage), name or here.name
    if name is None:
        raise UntiedError("name a study: its folder, or --storage URL and --study NAME")
    study, definition = load(open_storage(known(url)), name)
    config = kind_of(definition, f"study {name}")
    queue = Queue(study, config.plan(definition), config.silence, config.retries)
    progress = queue.progress()
    say(console, f"{config.kind} study {name}: {progress.planned} runs: {progress.complete} complete, "
                 f"{progress.pruned} pruned, {progress.refused} given up, {progress.running} running, "
                 f"{progress.waiting} waiting")  # fmt: skip
    for key, attempts in queue.trials().items():
        for trial in attempts:
            if trial.state == TrialState.RUNNING:
                worker = trial.user_attrs.get("worker") or {}
                lives = ("gone" if is_gone(worker) else "lives") if is_of_this_system(worker) else "not of this system"
                epochs = max(trial.intermediate_values, default=0)
                say(console, f"  {key}: epoch {epochs}, on {worker.get('host', 'an unknown machine')}, "
                             f"process {worker.get('pid', '?')} ({lives}), attempt {len(attempts)}")  # fmt: skip
    rows = rows_of(queue)
    scored = [row for row in rows if row["value"] is not None]
    if scored and isinstance(config, SearchConfig):
        best = max(scored, key=lambda row: row["value"])
        say(console, f"best: {100 * best['value']:.1f} % ({best['run']}): {best['config']['rule']}")
    if scored:
        report.tell(console, config.kind, report.tabled(config.kind, rows))
    return 0
