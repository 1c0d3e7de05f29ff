"""Who trains what: runs are taken from the study's database, and none is lost or counted twice.

Every planned run has a key. A trial of the Optuna study is an attempt at one: it is WAITING until a worker takes it,
RUNNING while the worker's heartbeat changes, COMPLETE or PRUNED once the run has ended. An attempt whose worker stopped
or went silent is FAIL, and the run is put back: whoever looks next adds a new attempt, which goes on from the last
checkpoint. Two attempts at one run that are there at a time, because two workers added one, are settled by their
order: the first counts, the other is surplus.

Silence is measured by the observer's own clock, as the time in which a heartbeat did not change, so that machines need
not agree on the time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from untied.lab.keeping.processes import here, is_gone
from untied.lab.study.storage import LOST, patiently

__all__ = ["Claim", "Progress", "Queue"]

T = TypeVar("T")
Attempts = dict[str, list[FrozenTrial]]  # by the key of their run

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True)
class Progress:
    """How many of the planned runs are where."""

    planned: int
    complete: int
    pruned: int
    refused: int
    running: int

    @property
    def ended(self) -> int:
        """Runs that need nothing more."""
        return self.complete + self.pruned + self.refused

    @property
    def waiting(self) -> int:
        """Runs that nobody has taken."""
        return self.planned - self.ended - self.running


@dataclass
class Claim:
    """A run that this worker has taken.

    Attributes:
        key: of the planned run. attempt: how many there were before.
        lost: set when the run is no longer this worker's.
        before: the last attempt's folder name, and whether its worker is known to be gone.
        path: the folder in which it is trained, once that is known.
        reports: steps and values that the database was told of.
    """

    trial: optuna.Trial
    key: str
    attempt: int
    before: tuple[str, bool] | None
    lost: threading.Event = field(default_factory=threading.Event)
    path: Path | None = None
    reports: list[tuple[int, float]] = field(default_factory=list)

    def about(self) -> dict[str, Any]:
        """What the run's folder keeps, from which the study can be made again."""
        return {"key": self.key, "attempt": self.attempt, "params": dict(self.trial.params)}


class Queue:
    """The runs of a study.

    Args:
        study: Optuna's. plan: the parameters that are fixed for each run, by key.
        silence: seconds without a new heartbeat after which a worker is taken for dead.
        retries: how often a run that its worker did not survive is tried again.
        say: for a line about the database.

    Attributes:
        stopped: whether to wait no longer for a database that does not answer.
    """

    def __init__(
        self, study: optuna.Study, plan: Mapping[str, Mapping[str, Any]], silence: float, retries: int,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.study = study
        self.plan = plan
        self.silence = silence
        self.retries = retries
        self.say = say
        self.stopped: Callable[[], bool] = lambda: False
        self._seen: dict[int, tuple[Any, float]] = {}  # by trial: its heartbeat, and since when it is the same
        self._looked = time.monotonic()

    def patiently(self, call: Callable[[], T]) -> T:
        """What a call to the database gives; see the function of this name."""
        return patiently(call, say=self.say, stopped=self.stopped)

    # What there is

    def trials(self) -> Attempts:
        """The attempts at each planned run, in their order, without surplus ones. Each call asks the database."""
        by_key: Attempts = {key: [] for key in self.plan}
        for trial in self.patiently(lambda: self.study.get_trials(deepcopy=False)):
            key = trial.user_attrs.get("key")
            if key in by_key and not trial.user_attrs.get("surplus"):
                by_key[key].append(trial)
        return by_key

    def state(self, attempts: Iterable[FrozenTrial]) -> str:
        """Of a planned run: complete, pruned, refused, running, waiting, or missing (no attempt is open)."""
        attempts = list(attempts)
        for state, word in (
            (TrialState.COMPLETE, "complete"), (TrialState.PRUNED, "pruned"),
            (TrialState.RUNNING, "running"), (TrialState.WAITING, "waiting"),
        ):  # fmt: skip
            if any(t.state == state for t in attempts):
                return word
        crashes = sum(not t.user_attrs.get("released") for t in attempts)
        refused = any(t.user_attrs.get("refused") for t in attempts)
        return "refused" if refused or crashes > self.retries else "missing"

    def progress(self, trials: Attempts | None = None) -> Progress:
        """How far the study is, or was when the trials were read."""
        states = [self.state(attempts) for attempts in (trials or self.trials()).values()]
        count = states.count
        return Progress(len(states), count("complete"), count("pruned"), count("refused"), count("running"))

    def ended(self) -> list[FrozenTrial]:
        """The attempt that counts of every run that has ended, in the order of the plan."""
        found = []
        for attempts in self.trials().values():
            done = [t for t in attempts if t.state in ENDED]
            if not done and self.state(attempts) == "refused":
                done = attempts[-1:]
            found += done[:1]
        return found

    # Taking

    def tend(self) -> Attempts:
        """Bury and fill. Returns all attempts as they are then."""
        trials = self.trials()
        if self.bury(trials):
            trials = self.trials()
        return self.trials() if self.fill(trials) else trials

    def fill(self, trials: Attempts | None = None) -> int:
        """Add an attempt at every planned run that has none open: at first, and after a worker was lost.

        Returns how many.
        """
        missing = {
            k: attempts for k, attempts in (trials or self.trials()).items() if self.state(attempts) == "missing"
        }
        for key, attempts in missing.items():
            fixed, before = self._known(attempts)
            about: dict[str, Any] = {"key": key, "attempt": len(attempts)}
            if any("error" in t.user_attrs for t in attempts):
                about["failed"] = True
            if before is not None:
                about["before"] = before
            self.patiently(partial(self.study.enqueue_trial, fixed or dict(self.plan[key]), user_attrs=about))
        return len(missing)

    def _known(self, attempts: Iterable[FrozenTrial]) -> tuple[dict[str, Any], list[Any] | None]:
        """A run's parameters and where it has been trained, from the last attempt that knew all of them.

        One that was killed before it had a folder may have some of its parameters alone.
        """
        for trial in reversed(list(attempts)):
            about = trial.user_attrs
            if "folder" in about:
                return dict(trial.params), [about["folder"], bool(about.get("gone"))]
            if "before" in about:
                return dict(trial.system_attrs.get("fixed_params", {})), about["before"]
        return {}, None

    def take(self, trials: Attempts | None = None) -> Claim | None:
        """The next waiting run, or None if none is waiting now.

        Args:
            trials: as they were just now, if that is known.
        """
        trials = trials or self.trials()
        while any(t.state == TrialState.WAITING for attempts in trials.values() for t in attempts):
            trial = patiently(self.study.ask)
            about = self.patiently(partial(getattr, trial, "user_attrs"))
            key = about.get("key")
            if key not in self.plan:  # another worker took the last one in this moment, or the plan was longer once
                self._close(trial, surplus=True)
                trials = self.trials()
                continue
            try:
                self.patiently(partial(trial.set_user_attr, "worker", here()))
            except UpdateFinishedTrialError:  # it was taken for a dead process's, in this moment
                trials = self.trials()
                continue
            if self._may_be_surplus(trial, trials[key]) and self._may_be_surplus(trial, self.trials()[key]):
                self._close(trial, surplus=True)
                trials = self.trials()
                continue
            before = about.get("before")
            return Claim(trial, key, about["attempt"], None if before is None else (before[0], before[1]))
        return None

    def _may_be_surplus(self, trial: optuna.Trial, attempts: list[FrozenTrial]) -> bool:
        """Whether another attempt at the run is open or has ended, and was there first.

        Also if this one is not among them: trials have their identities in the order in which they come, so those that
        came before it are known where it is.
        """
        others = [t for t in attempts if t._trial_id != trial._trial_id]
        if len(others) == len(attempts):
            return True
        return any(t.state in ENDED or (t.state in OPEN and t._trial_id < trial._trial_id) for t in others)

    # Giving back

    def _close(self, trial: optuna.Trial, **about: Any) -> None:
        for name, value in about.items():
            self._mark(trial._trial_id, name, value)
        self._fail(trial._trial_id)

    def release(self, claim: Claim) -> None:
        """Put a run back that this worker stopped, with its checkpoint written."""
        self._close(claim.trial, released=True, gone=True)

    def abandon(self, claim: Claim, why: str) -> None:
        """Put a run back that this worker cannot go on with, though another may: it counts as one that died."""
        self._close(claim.trial, gone=True, error=why)

    def refuse(self, claim: Claim, why: str) -> None:
        """Give a run up for good: its configuration cannot be trained."""
        self._close(claim.trial, refused=why)

    def tell(self, claim: Claim, value: float | None, pruned: bool, results: list[dict[str, Any]]) -> bool:
        """Say that a run has ended. Returns whether it counts: it does not if it was given to another worker."""
        self._mark(claim.trial._trial_id, "results", results)
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        try:
            self.patiently(lambda: self.study.tell(claim.trial, None if pruned else value, state=state))
        except (ValueError, RuntimeError):  # it has ended: perhaps by our own words, before their answer was lost
            mine = next(t for ts in self.trials().values() for t in ts if t._trial_id == claim.trial._trial_id)
            return mine.state == state
        return True

    def _mark(self, trial_id: int, name: str, value: Any) -> None:
        """Note something with a trial, if it has not ended."""
        storage = self.study._storage  # an Optuna trial that another process has begun has no public setter
        with suppress(RuntimeError):
            self.patiently(lambda: storage.set_trial_user_attr(trial_id, name, value))

    def _fail(self, trial_id: int) -> None:
        with suppress(RuntimeError):  # somebody was faster
            self.patiently(lambda: self.study._storage.set_trial_state_values(trial_id, TrialState.FAIL))

    # Watching

    def beat(self, claim: Claim, every: float) -> Callable[[], None]:
        """Report from a thread that this worker is alive, also after the database was away. Returns what ends it.

        Sets ``claim.lost`` once the run has been given to another worker.
        """
        over = threading.Event()

        def report() -> None:
            count = 0
            while not over.wait(every):  # the worker's name was the first sign of life
                count += 1
                try:
                    claim.trial.set_user_attr("alive", count)
                except LOST:
                    pass  # it may come back
                except RuntimeError:  # Optuna's, of a trial that has ended
                    if not over.is_set():
                        claim.lost.set()
                    return

        thread = threading.Thread(target=report, daemon=True)
        thread.start()

        def end() -> None:
            over.set()
            thread.join(timeout=1 if self.stopped() else every + 60)

        return end

    def bury(self, trials: Attempts | None = None) -> int:
        """Fail the attempts of workers that are gone or silent. Returns how many."""
        now = time.monotonic()
        if now - self._looked > self.silence / 2:  # this process has slept: it may have missed heartbeats
            self._seen.clear()
        self._looked = now
        trials = trials or self.trials()
        running = [t for attempts in trials.values() for t in attempts if t.state == TrialState.RUNNING]
        buried = 0
        for trial in running:
            heartbeat = (trial.user_attrs.get("worker"), trial.user_attrs.get("alive"))
            seen, since = self._seen.get(trial._trial_id, (None, now))
            if seen != heartbeat:
                self._seen[trial._trial_id] = (heartbeat, now)
                since = now
            gone = is_gone(trial.user_attrs.get("worker") or trial.user_attrs.get("taker") or {})
            if gone or now - since > self.silence:
                self._mark(trial._trial_id, "gone", gone)
                self._fail(trial._trial_id)
                buried += 1
        return buried
