"""Studies where workers die, stop, lose their database: no run is lost, none counts twice."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from rich.console import Console

from runs import command, silent
from servers import Server, Wire, mysql, postgresql
from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.keeping.record import RunFolder
from untied.lab.settings.run import TrainConfig
from untied.lab.study.config import CHANGEABLE, TransferConfig
from untied.lab.study.queue import Queue
from untied.lab.study.recover import recover
from untied.lab.study.run import finish, named, open_folder, run
from untied.lab.study.storage import create, load, open_storage
from untied.lab.training.loop import Run, Stopped

EPOCHS = 150


def study_of(out: Path, **changes: Any) -> TransferConfig:
    """Six runs of some seconds each: longer than a worker may be silent."""
    run = TrainConfig(model="mlp-16", data=DataConfig("digits", validation=0.2), epochs=EPOCHS, angles="weights")
    settings: dict[str, Any] = {"rules": ("bp", "sa"), "models": ("mlp-16",), "seeds": 3, "silence": 3.0}
    return TransferConfig(**{"name": "faults", "run": run, "out": out} | settings | changes)


@pytest.fixture(scope="module", params=[postgresql, mysql])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with request.param(tmp_path_factory.mktemp("server")) as running:
        yield running


def until(so: Callable[[], Any], what: str, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := so()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def numbered(study: optuna.Study, number: int) -> FrozenTrial:
    """An attempt by its number: a study lists attempts by the place of their runs."""
    [trial] = [trial for trial in study.get_trials() if trial.number == number]
    return trial


@pytest.mark.slow
def test_a_killed_worker_and_one_without_its_database(
    server: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Four workers on a server. One is killed in mid-run; one loses the database for longer than ``silence``."""
    wires = [Wire(server) for _ in range(2)]
    straight, shaky = wires
    for wire in wires:
        request.addfinalizer(wire.close)
    config = named(study_of(tmp_path / "study", storage=straight.url()))
    definition = config.define()
    folder = open_folder(config.out or tmp_path, definition)
    storage = open_storage(config.storage)
    request.addfinalizer(storage.engine.dispose)  # type: ignore[attr-defined]
    request.addfinalizer(storage.remove_session)
    study, new = create(storage, config.name, definition, CHANGEABLE)
    queue = Queue(study, config.plan(definition), config.silence, config.retries)
    queue.fill()
    assert new and queue.progress().waiting == 6

    def start(wire: Wire) -> Any:
        return command("study", "worker", "--storage", wire.url(), "--study", "faults", "--out", str(config.out),
                       "--threads", "1")  # fmt: skip

    workers = [start(straight) for _ in range(3)] + [start(shaky)]
    try:

        def run_of(worker: Any) -> FrozenTrial | None:
            """The run that a worker trains, once it has a checkpoint."""
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                mine = (trial.user_attrs.get("worker") or {}).get("pid") == worker.pid
                if mine and (folder.path / "runs" / trial.user_attrs["key"] / "checkpoints/last.safetensors").exists():
                    return trial
            return None

        victim = until(lambda: run_of(workers[0]), "the first worker trains")
        os.kill(workers[0].pid, signal.SIGKILL)

        def interrupted() -> FrozenTrial | None:
            """The fourth worker's run, cut off while it lasts: one that had ended before the cut proves nothing."""
            if (trial := run_of(workers[3])) is None:
                return None
            shaky.cut()
            if numbered(study, trial.number).state == TrialState.RUNNING:
                return trial
            shaky.mend()
            return None

        cut = until(interrupted, "the fourth worker trains")
        until(lambda: numbered(study, cut.number).state == TrialState.FAIL, "the silent worker's run is taken from it")
        shaky.mend()
        for worker in workers[1:]:
            said, wrong = worker.communicate(timeout=300)
            assert worker.returncode == 0, (said, wrong)
        assert "database does not answer" in said  # the last one's
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()

    progress = queue.progress()
    assert (progress.complete, progress.ended, progress.planned) == (6, 6, 6)
    trials = study.get_trials()
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    assert Counter(t.user_attrs["key"] for t in done) == Counter(list(queue.plan))
    for lost in (victim, cut):
        attempts = [
            t for t in trials if t.user_attrs["key"] == lost.user_attrs["key"] and not t.user_attrs.get("surplus")
        ]
        assert [t.state for t in attempts] == [TrialState.FAIL] * (len(attempts) - 1) + [TrialState.COMPLETE]
        assert len(attempts) >= 2
        [result] = attempts[-1].user_attrs["results"]
        images = EPOCHS * 1077 // 64 * 64  # an attempt that went on from a checkpoint has trained fewer itself
        assert 0 < result["trained_images"] < images, result
        text = (folder.path / "runs" / result["folder"] / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    finish(queue, folder, definition, silent())
    rows = folder.read_json("results.json")
    assert Counter(row["run"] for row in rows) == Counter(list(queue.plan))
    assert all(row["failure"] is None and row["value"] > 0.5 for row in rows)


def begun(out: Path) -> Queue:
    """The queue of a study of four runs that nobody has taken."""
    config = named(study_of(out, seeds=2))
    definition = config.define()
    open_folder(out, definition)
    study, _ = create(open_storage(config.storage), config.name, definition, CHANGEABLE)
    return Queue(study, config.plan(definition), config.silence, retries=9)


def test_a_kill_between_two_parameters_changes_no_run(tmp_path: Path) -> None:
    """The next attempt has all that is planned, and not the few that had been written before, the others drawn."""
    queue = begun(tmp_path)
    queue.fill()
    claim = queue.take()
    assert claim is not None
    claim.trial.suggest_categorical("rule", ["bp", "sa"])  # here its worker is killed
    queue._fail(claim.trial._trial_id)
    queue.fill()
    again = max(queue.study.get_trials(), key=lambda trial: trial.number)
    assert again.user_attrs["key"] == claim.key
    assert again.system_attrs["fixed_params"] == queue.plan[claim.key]


def test_a_kill_before_a_worker_has_its_name_is_seen_at_once(tmp_path: Path) -> None:
    """Else a search would propose the next settings without this run's result, as long as the silence lasts."""
    queue = begun(tmp_path)
    queue.fill()
    url = f"sqlite:///{tmp_path / 'study.db'}"
    code = (
        f"from untied.lab.study.storage import load, open_storage\nload(open_storage({url!r}), 'faults')[0].ask()\n"
        "import os; os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    queue.silence = 1e9
    running = [trial for trial in queue.study.get_trials() if trial.state == TrialState.RUNNING]
    assert len(running) == 1 and "worker" not in running[0].user_attrs
    assert queue.bury() == 1 and queue.fill() == 1
    again = queue.take()
    assert again is not None and again.key == running[0].user_attrs["key"]


def test_a_kill_before_an_attempt_has_its_folder_loses_no_training(tmp_path: Path) -> None:
    queue = begun(tmp_path)
    queue.fill()
    first = queue.take()
    assert first is not None
    for name, value in queue.plan[first.key].items():
        first.trial.suggest_categorical(name, [value])
    first.trial.set_user_attr("folder", first.key)
    queue.release(first)
    for _ in range(2):  # the next worker, and the one after it, is killed at once
        queue.fill()
        trial = max(queue.study.get_trials(), key=lambda trial: trial.number)
        assert trial.user_attrs["before"] == [first.key, True]
        assert trial.system_attrs["fixed_params"] == queue.plan[first.key]
        queue.study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
        queue._fail(trial._trial_id)


def test_two_workers_never_take_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite does not lock what is read, so both could find it waiting."""
    begun(tmp_path).fill()
    check = RDBStorage.check_trial_is_updatable

    def slowly(*given: Any) -> None:
        check(*given)
        time.sleep(0.5)  # between reading and writing

    monkeypatch.setattr(RDBStorage, "check_trial_is_updatable", slowly)

    def ask(number: int) -> Any:
        study, _ = load(open_storage(f"sqlite:///{tmp_path / 'study.db'}"), "faults")
        return study.ask().user_attrs.get("key")

    with ThreadPoolExecutor(3) as pool:
        taken = list(pool.map(ask, range(3)))
    assert None not in taken and len(set(taken)) == 3


def test_many_processes_make_the_tables_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: open_storage(url), range(6)))
    assert all(storage.get_all_studies() == [] for storage in made)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("UPDATE trials SET number = 0", "two of its trials have one number"),
        ("UPDATE trials SET number = NULL WHERE number = 1", "or one has none"),
        ('UPDATE study_user_attributes SET value_json = \'{"format": 1, "definition": [1]}\'', r"definition is \[1\]"),
        ("UPDATE trial_user_attributes SET value_json = '7' WHERE key = 'worker'", "worker is 7"),
        ("UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE key = 'attempt'", "attempt is 'x'"),
        ("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'worker'", "damaged"),
    ],
)
def test_a_damaged_database_is_named_and_made_again(harm: str, words: str, tmp_path: Path) -> None:
    queue = begun(tmp_path)
    queue.fill()
    assert queue.take() is not None
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute(harm)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(UntiedError, match=f"{words}.*: untied study recover FOLDER"):
        load(open_storage(url), "faults")
    assert recover(tmp_path, console=silent()) == 0
    assert load(open_storage(url), "faults")[1]["name"] == "faults"


@pytest.mark.parametrize("damaged", [("last",), ("last", "previous"), ("metrics",)])
def test_a_damaged_run_goes_back_in_a_study(damaged: tuple[str, ...], tmp_path: Path) -> None:
    """To the checkpoint before, or to the beginning; the result is the one of an undisturbed study."""
    short = TrainConfig(model="mlp-8", data=DataConfig("digits", validation=0.2, limit=200), epochs=3, angles="weights")
    for name in ("whole", "harmed"):
        config = study_of(tmp_path / name, seeds=1, rules=("sa",), models=("mlp-8",), workers=0, run=short)
        if name == "harmed":
            half = begin(tmp_path / name / "runs" / "sa-mlp-8-seed0", config)
            for file in damaged:
                path = half / ("metrics.jsonl" if file == "metrics" else f"checkpoints/{file}.safetensors")
                path.write_bytes(path.read_bytes()[:100])
        said = io.StringIO()
        assert run(config, Console(file=said, width=300)) == 0
    assert "goes on from the checkpoint before, as " in said.getvalue()
    assert ("the beginning" in said.getvalue()) == (damaged != ("last",))
    values = [
        [r["value"] for r in json.loads((tmp_path / n / "results.json").read_text())] for n in ("whole", "harmed")
    ]
    assert values[0] == values[1]


def begin(path: Path, config: TransferConfig) -> Path:
    """The study's one run, stopped in its third epoch."""
    definition = config.define()
    fixed = next(iter(config.plan(definition).values()))
    [settings] = config.configs(definition, FixedTrial(fixed))
    folder = RunFolder.create(path, settings)
    half = Run(settings, folder=path)
    half.tick = lambda: setattr(half, "stop", half.position.step > 2.5 * half.plan.length)
    with pytest.raises(Stopped):
        half.train(folder.append)
    return path
