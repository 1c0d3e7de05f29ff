"""A worker: takes runs from a study, one after the other, and trains each in a folder of its own."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from safetensors import SafetensorError

from untied.errors import UntiedError
from untied.lab.data import load
from untied.lab.devices.devices import fabric_of
from untied.lab.devices.fabric import Fabric
from untied.lab.keeping.environment import same_threads
from untied.lab.keeping.processes import LOCK
from untied.lab.keeping.record import CONFIG, ENVIRONMENT, TRACEBACK, TRIAL, Damaged, RunFolder, begun, plain
from untied.lab.settings.run import TrainConfig
from untied.lab.study.config import StudyConfig
from untied.lab.study.queue import Claim, Queue
from untied.lab.study.storage import NoAnswer
from untied.lab.training.checkpoint import PREVIOUS
from untied.lab.training.identity import LAST
from untied.lab.training.loop import NotFinite, Run, Stopped
from untied.lab.training.setup import dataset

__all__ = ["Worker"]

Say = Callable[[str], None]
POLL = 1.0  # seconds between two looks for work, where others still train
FAILURES = 3  # different runs that may fail one after the other: then it is not the runs
SHOW = 10.0  # seconds between two epochs that the database is told of where nothing is pruned, for people who look


class Worker:
    """Trains the runs of a study until all have ended.

    Args:
        study: Optuna's. config, definition: of the study.
        runs: the folder of the run folders.
        say: for a line.

    Attributes:
        stop: set it to stop after the current step, and put the run back.
    """

    def __init__(
        self, study: optuna.Study, config: StudyConfig, definition: dict[str, Any], runs: Path, say: Say
    ) -> None:
        self.config = config
        self.definition = definition
        self.runs = runs
        self.say = say
        self.queue = Queue(study, config.plan(definition), config.silence, config.retries, say)
        self._stop = False
        self.queue.stopped = lambda: self._stop
        self.failed: set[str] = set()  # runs, since the last one that ended well
        self._run: Run | None = None

    @property
    def stop(self) -> bool:
        return self._stop

    @stop.setter
    def stop(self, value: bool) -> None:
        self._stop = value
        if self._run is not None:  # which looks between two steps, and between two batches of an evaluation
            self._run.stop = value

    def work(self, wait: bool = True) -> int:
        """Take runs and train them. Returns how many this worker has ended.

        Args:
            wait: while others train the last ones, stay, in case one of them is lost.

        Raises:
            UntiedError: three runs in a row failed, the database was away for too long, this machine has not what the
                study's runs need, or this worker's own files cannot be written or read, as on a full disk.
        """
        ended = 0
        while not self.stop:
            trials = self.queue.tend()
            claim = self.queue.take(trials)
            if claim is not None:
                ended += self.one(claim)
                continue
            progress = self.queue.progress(trials)
            if progress.ended == progress.planned or not wait:
                break
            time.sleep(POLL)
        return ended

    def one(self, claim: Claim) -> bool:
        """Train a run that was taken. Returns whether it has ended, and counts.

        Raises:
            UntiedError: as ``work`` does.
        """
        end = self.queue.beat(claim, every=self.config.silence / 6)
        try:
            results, pruned = self.train(claim)
        except (Stopped, UpdateFinishedTrialError) as why:
            end()
            if isinstance(why, Stopped) and not claim.lost.is_set():
                self.queue.release(claim)
            else:
                self.say(f"{claim.key}: was given to another worker, as this one was not heard of")
            return False
        except NoAnswer:
            raise
        except Exception as error:
            end()
            self.fail(claim, error)
            return False
        end()
        self.failed.clear()
        values = [result["value"] for result in results]
        value = sum(values) / len(values)
        ended = {"value": value, "pruned": pruned, "results": results, "reports": claim.reports}
        RunFolder(self.runs / results[0]["folder"]).write_json(TRIAL, claim.about() | ended)
        counts = self.queue.tell(claim, value, pruned, results)
        if counts:
            said = results[-1]["failure"] or f"{100 * values[-1]:.1f} %"
            self.say(f"{claim.key}: {'pruned at ' if pruned else ''}{said}")
        return counts

    def fail(self, claim: Claim, error: Exception) -> None:
        """A run could not be trained: give it up if it cannot be by anybody, put it back if it may.

        Raises:
            UntiedError: this worker cannot go on.
        """
        ours = isinstance(error, UntiedError)
        why = " ".join((str(error) if ours else f"{type(error).__name__}: {error}").split())[:300]
        if lacking := self.lacking():
            self.queue.release(claim)
            raise UntiedError(
                f"the study's runs cannot be trained here, {claim.key} was put back: {lacking}"
            ) from error
        if ours and isinstance(error.__cause__, OSError | SafetensorError):  # the disk's, not the configuration's
            self.queue.abandon(claim, why)
            raise error
        if ours:
            self.queue.refuse(claim, why)
        else:
            self.queue.abandon(claim, why)
            if claim.path is not None and claim.path.is_dir():
                RunFolder(claim.path).write_text(TRACEBACK, "".join(traceback.format_exception(error)))
                why += f" (see {claim.path / TRACEBACK})"
            traceback.clear_frames(error.__traceback__)
            gc.collect()  # the memory that the run has held, which the next one may need
        self.say(f"{claim.key}: {why}")
        self.failed.add(claim.key)
        if len(self.failed) >= FAILURES:
            raise UntiedError(f"{FAILURES} runs in a row could not be trained; the last, {claim.key}: {why}") from error

    def lacking(self) -> str | None:
        """What no run of the study can be trained without and this machine does not have: its data, or its device."""
        run = self.config.run
        try:
            load(run.data, seed=run.seed, device=str(fabric_for(run).device))
        except UntiedError as error:
            return str(error)
        return None

    def train(self, claim: Claim) -> tuple[list[dict[str, Any]], bool]:
        """Every seed of a run: its results, and whether it was pruned.

        Raises:
            Stopped: this worker was stopped, or has lost the run.
        """
        configs = self.queue.patiently(lambda: self.config.configs(self.definition, claim.trial))
        results: list[dict[str, Any]] = []
        many = len(configs) > 1
        for index, config in enumerate(configs):
            ending = f"-seed{config.seed}" if many else ""
            path = claim.path = self.place(claim, ending)
            judge = _Judge(claim, index, config.epochs + config.phases.delay, results, self.queue)
            with RunFolder(path).lock(self.say), same_threads(path / ENVIRONMENT):
                result = self.single(config, path, claim, judge)
            about = {} if results else {"config": plain(config)}  # the others differ in their seed alone
            results.append(result | {"folder": path.name} | about)
            if judge.pruned:
                return results, True
        return results, False

    def place(self, claim: Claim, ending: str) -> Path:
        """The folder of a run; a new attempt goes on from a copy if the last one's worker might still write."""
        name = claim.key if claim.attempt == 0 else f"{claim.key}.{claim.attempt}"
        if claim.before is not None:
            last, gone = claim.before
            old = self.runs / f"{last}{ending}"
            if gone and old.is_dir():
                name = last
            elif old.is_dir() and not (self.runs / f"{name}{ending}").exists():
                partial = self.runs / f".{name}{ending}.partial"
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(old, partial, ignore=shutil.ignore_patterns("*.partial", LOCK))
                partial.rename(self.runs / f"{name}{ending}")
        self.queue.patiently(lambda: claim.trial.set_user_attr("folder", name))
        return self.runs / f"{name}{ending}"

    def single(self, config: TrainConfig, path: Path, claim: Claim, judge: _Judge) -> dict[str, Any]:
        """Train one configuration in a folder, or go on with what is there. Returns the result.

        Raises:
            Stopped: as ``train``.
            UntiedError: the run cannot be trained, or its folder holds something else.
        """
        began = time.perf_counter()
        if not (path / CONFIG).is_file():
            if not begun(path):
                ours = (ENVIRONMENT, LOCK)
                foreign = next(p.name for p in path.iterdir() if p.name not in ours and p.suffix != ".partial")
                raise UntiedError(
                    f"the folder {path} has {foreign} in it and does not hold a run: move it away, or choose "
                    "another --out"
                ) from FileExistsError(path)
            RunFolder.create(path, config)
        folder = RunFolder.open(path)
        folder.write_json(TRIAL, claim.about())
        if (path / "results.json").is_file():  # trained, but its worker was killed before it could say so
            result = folder.read_json("results.json")
            classes = dataset(config.data, config.seed, str(fabric_for(config).device)).classes
            return self.valued(result, 1 / len(classes), 0.0)
        run, seen = self.going_on(config, folder)
        chance = 1 / len(run.data.classes)
        for metrics in seen:
            judge.see(metrics)
        run.tick = lambda: setattr(run, "stop", run.stop or self.stop or claim.lost.is_set())
        self._run = run

        def report(metrics: dict[str, Any]) -> None:
            folder.append(metrics)
            judge.see(metrics)
            run.stop = run.stop or judge.pruned

        try:
            result = run.train(report)
        except NotFinite as failure:
            result = {"failure": f"rule {config.rule}: {failure}", "chance": chance, "step": run.position.step}
        except Stopped:
            if not judge.pruned or self.stop or claim.lost.is_set():
                raise
            result = {"accuracy": judge.value, "split": "validation", "pruned": True}
            return self.valued(result, chance, time.perf_counter() - began, run)
        finally:
            self._run = None
        if claim.lost.is_set():
            raise Stopped
        folder.write_json("results.json", result)
        return self.valued(result, chance, time.perf_counter() - began, run)

    def going_on(self, config: TrainConfig, folder: RunFolder) -> tuple[Run, list[dict[str, Any]]]:
        """A run where its folder says that it is, and the metrics up to there.

        What is damaged is given up: the run goes back to the checkpoint before, or begins again.
        """
        while True:
            run = Run(config, fabric_for(config), folder.path)
            try:
                run.resume()
                folder.keep_lines(run.position.lines)
                return run, folder.metrics()
            except Damaged as damage:
                last = folder.path / LAST
                if not last.is_file():
                    raise
                before = last.with_stem(PREVIOUS)
                said = "the checkpoint before" if before.is_file() else "the beginning"
                self.say(f"{folder.path.name} goes on from {said}, as {damage}")
                before.replace(last) if before.is_file() else last.unlink()

    def valued(self, result: dict[str, Any], chance: float, seconds: float, run: Run | None = None) -> dict[str, Any]:
        """A result with what it counts: a run whose loss was not finite counts at chance."""
        failure = result.get("failure")
        known = {name: result.get(name) for name in ("accuracy", "split", "weight_angle", "gradient_angle", "step")}
        return known | {
            "value": chance if failure else result["accuracy"],
            "failure": failure,
            "chance": chance,
            "best_validation_accuracy": result.get("best_validation_accuracy"),
            "seconds": seconds,
            "training_seconds": None if run is None else run.elapsed,
            "trained_images": 0 if run is None else run.images,  # here, after the last checkpoint
        }


class _Judge:
    """Tells Optuna the validation accuracy after every epoch, and asks it whether the run is hopeless.

    With several seeds, an epoch of the second seed counts as the mean over both, at a later step.
    """

    def __init__(self, claim: Claim, index: int, epochs: int, before: list[dict[str, Any]], queue: Queue) -> None:
        self.trial, self.reports, self.queue = claim.trial, claim.reports, queue
        self.first = index * epochs
        self.before = [result["value"] for result in before]
        self.epochs = 0
        self.value: float | None = None
        self.pruned = False
        self.prunes = not isinstance(claim.trial.study.pruner, optuna.pruners.NopPruner)
        self._told = time.monotonic()

    def see(self, metrics: dict[str, Any]) -> None:
        """An epoch has ended."""
        self.epochs += 1
        value = metrics.get("validation_accuracy")
        if value is None:
            return
        self.value = value
        if not self.prunes and time.monotonic() - self._told < SHOW:
            return
        self._told = time.monotonic()
        seen = [*self.before, value]
        step = self.first + self.epochs
        mean = sum(seen) / len(seen)
        self.queue.patiently(lambda: self.trial.report(mean, step))
        self.reports.append((step, mean))
        self.pruned = self.prunes and self.queue.patiently(self.trial.should_prune)


_fabrics: dict[Any, Fabric] = {}


def fabric_for(config: TrainConfig) -> Fabric:
    """Fabric for a run, on this process's one device; runs of a worker mostly share it."""
    if config.devices not in _fabrics:
        fabric = fabric_of(config.devices, config.data.batch_size, config.accumulate)
        fabric.launch()
        _fabrics.clear()
        _fabrics[config.devices] = fabric
    return _fabrics[config.devices]
