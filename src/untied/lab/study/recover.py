"""`untied study recover`: a study's database, made again from the folders of its runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.trial import FixedTrial, Trial, TrialState, create_trial
from rich.console import Console

from untied.errors import UntiedError
from untied.lab.console import say
from untied.lab.keeping.processes import is_free
from untied.lab.keeping.record import CONFIG, TRIAL, RunFolder
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.run import TrainConfig
from untied.lab.study.config import CHANGEABLE, StudyConfig, kind_of
from untied.lab.study.run import DEFINITION, named, open_folder
from untied.lab.study.storage import NoStudy, create, load, open_storage, patiently
from untied.lab.training.identity import LAST, settings

__all__ = ["recover"]

Values = Mapping[str, Any]


def recover(path: Path, url: str | None = None, console: Console | None = None) -> int:
    """Make the database of a study again. Returns the exit code, 0.

    Runs that have ended count as they did, the others go on from their checkpoints. A damaged file is kept beside the
    new one. A run folder that is not of this study any more is renamed.

    Args:
        path: the study's folder. url: the database, if not the one of before.

    Raises:
        UntiedError: it is no study's folder, its database can be read, or a new one cannot be made.
    """
    console = console or Console()
    folder = RunFolder.open(path)
    config = kind_of(folder.config(), f"study {path}")
    config = named(dataclasses.replace(config, out=path, storage=url or config.storage))
    if (path / DEFINITION).is_file():  # what it had read from elsewhere when it was made
        definition = {**StudyConfig.define(config), "definition": folder.read_json(DEFINITION)}
    else:
        definition = config.define()
    ended = {row["run"]: row for row in folder.read_json("results.json")} if (path / "results.json").is_file() else {}
    if aside := make_room(config):
        say(console, f"the damaged database is kept as {aside}")
    open_folder(path, definition)
    study, _ = create(open_storage(config.storage), config.name, definition, CHANGEABLE)
    done = Counter(
        _run(study, config, definition, key, ended.get(key, {}).get("params") or fixed)
        for key, fixed in config.plan(definition).items()
    )
    counts = ", ".join(f"{number} {word}" for word, number in done.items())
    say(console, f"study {config.name} is made again: {counts}; untied study run {path / CONFIG}  goes on")
    return 0


def make_room(config: StudyConfig) -> Path | None:
    """Move a damaged file away. Returns where it is now, None if there was none.

    Raises:
        UntiedError: the study is well, or its database is no file and does not answer.
    """
    scheme = next((s for s in ("sqlite:///", "journal:") if config.storage.startswith(s)), None)
    try:
        study, _ = load(open_storage(config.storage), config.name)
        patiently(study.get_trials, seconds=0)
    except NoStudy:
        return None
    except Exception:  # whatever a library makes of a damaged file
        if scheme is None:
            raise
        file = Path(config.storage.removeprefix(scheme))
        aside = next(p for i in itertools.count(1) if not (p := file.with_name(f"{file.name}.damaged{i}")).exists())
        for ending in ("", "-wal", "-shm"):
            if (part := file.with_name(file.name + ending)).exists():
                part.rename(aside.with_name(aside.name + ending))
        return aside
    raise UntiedError(
        f"the study {config.name} can be read, so there is nothing to recover: untied study run {config.out}/{CONFIG}"
    )


def _run(study: optuna.Study, config: StudyConfig, definition: dict[str, Any], key: str, params: Values) -> str:
    """Add what is known of a planned run. Returns in a word what that is."""
    name, first = _latest(Path(config.out or "") / "runs", key, f"-seed{config.run.seed}" if config.seeds > 1 else "")
    if first is None:
        return "not begun"
    try:
        about: dict[str, Any] = {"params": params}
        if (first.path / TRIAL).is_file():
            about = first.read_json(TRIAL)
        trial = FixedTrial(dict(about["params"]))
        mine = config.configs(definition, cast(Trial, trial))[0]
        if settings(from_mapping(TrainConfig, first.config(), str(first.path))) != settings(mine):
            raise UntiedError("other settings")
        attempt = int(name.removeprefix(key).removeprefix(".") or 0)
        attributes = {"key": key, "attempt": attempt, "folder": name}
        if "results" in about:
            pruned = bool(about["pruned"])
            study.add_trial(create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=None if pruned else float(about["value"]), params=dict(about["params"]),
                distributions=trial.distributions, user_attrs=attributes | {"results": about["results"]},
                intermediate_values={int(step): float(value) for step, value in about["reports"]},
            ))  # fmt: skip
            return "pruned" if pruned else "complete"
    except (KeyError, TypeError, ValueError, AttributeError):  # an earlier version's, or somebody else's
        first.path.rename(first.path.with_name(f"{first.path.name}.unknown"))
        return "unknown, renamed"
    before = [name, is_free(first.path)]
    study.enqueue_trial(dict(about["params"]), user_attrs={"key": key, "attempt": attempt + 1, "before": before})
    return "to go on"


def _latest(runs: Path, key: str, ending: str) -> tuple[str, RunFolder | None]:
    """The attempt at a run that has come furthest: its name, and the folder of its first seed."""
    found = []
    for path in runs.iterdir() if runs.is_dir() else ():
        name = path.name.removesuffix(ending)
        number = name.removeprefix(key).removeprefix(".")
        if path.name == f"{key}{ending}" or (path.name == f"{key}.{number}{ending}" and number.isdigit()):
            if not (path / CONFIG).is_file():
                continue
            folder = RunFolder(path)
            ended = (path / TRIAL).is_file() and "results" in folder.read_json(TRIAL)
            found.append(((ended, (path / LAST).is_file(), int(number or 0)), name, folder))
    best = max(found, key=lambda one: one[0], default=None)
    return ("", None) if best is None else best[1:]
