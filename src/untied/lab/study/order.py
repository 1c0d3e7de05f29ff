"""Runs that were put back keep their place, so that what is proposed next does not depend on interruptions."""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import suppress

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from untied.lab.keeping.processes import here

__all__ = ["Study", "in_order"]


class Study(optuna.Study):
    """An Optuna study that takes its runs, and shows them to its sampler, in the order in which they were planned.

    Optuna's order is that of attempts. Another attempt at a run would then come after all others: TPE would propose
    the next settings without that run's result, and would find the results in another order.
    """

    def _pop_waiting_trial_id(self) -> int | None:
        waiting = [t for t in self._get_trials(deepcopy=False) if t.state == TrialState.WAITING]
        # a run that has failed by itself lets others go first, as it may not be the run
        for trial in sorted(waiting, key=lambda trial: bool(trial.user_attrs.get("failed"))):
            with suppress(UpdateFinishedTrialError):  # another process has taken and ended it
                # before it is taken: a process killed right after would leave an attempt that nobody knows is dead
                self._storage.set_trial_user_attr(trial._trial_id, "taker", here())
                if self._storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING):
                    return trial._trial_id
        return None

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = in_order(super()._get_trials(deepcopy, use_cache=use_cache))
        return trials if states is None else [trial for trial in trials if trial.state in states]


def in_order(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Attempts where the first one at their run stands."""
    trials = list(trials)
    first: dict[str, int] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):  # a server lists them as it likes
        if "key" in trial.user_attrs:
            first.setdefault(trial.user_attrs["key"], trial.number)
    return sorted(trials, key=lambda t: (first.get(t.user_attrs.get("key", ""), t.number), t.number))
