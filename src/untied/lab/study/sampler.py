"""What proposes the settings of a search, the same whether it was interrupted or not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

__all__ = ["Sampler"]


class Sampler(BaseSampler):
    """TPE (Bergstra et al. 2011) whose random numbers are a function of the study's seed and the run's number.

    A sampler that goes on counting would begin again in every process, and propose the same settings once more.

    Args:
        seed: of the study. startup: random settings before TPE begins.
    """

    def __init__(self, seed: int, startup: int) -> None:
        self.seed, self.startup = seed, startup
        self._of: tuple[int, BaseSampler] | None = None

    def of(self, trial: FrozenTrial) -> BaseSampler:
        """The one of a trial. Another attempt at the same run has the same."""
        if self._of is None or self._of[0] != trial._trial_id:
            number = int(trial.user_attrs.get("key", trial.number))
            seed = np.random.SeedSequence((self.seed, number)).generate_state(1)[0]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # of what TPE calls group
                own = TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=self.startup,
                                 seed=int(seed))  # fmt: skip
            self._of = (trial._trial_id, own)
        return self._of[1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.of(trial).sample_independent(study, trial, param_name, param_distribution)
