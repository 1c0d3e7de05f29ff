"""Studies where workers die, stop, lose their database: no run is lost, none counts twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from runs import command, silent
from servers import Server, Wire, mysql, postgresql
from untied.lab.config import TrainConfig
from untied.lab.data import DataConfig
from untied.lab.study.config import CHANGEABLE, TransferConfig
from untied.lab.study.queue import Queue
from untied.lab.study.run import finish, named, open_folder
from untied.lab.study.storage import create, open_storage

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


@pytest.mark.slow
def test_a_killed_worker_and_one_without_its_database(server: Server, tmp_path: Path) -> None:
    """Four workers on a server. One is killed in mid-run; one loses the database for longer than ``silence``."""
    wires = [Wire(server) for _ in range(2)]
    straight, shaky = wires
    config = named(study_of(tmp_path / "study", storage=straight.url()))
    definition = config.define()
    folder = open_folder(config.out or tmp_path, definition)
    storage = open_storage(config.storage)
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
        cut = until(lambda: run_of(workers[3]), "the fourth worker trains")
        shaky.cut()
        until(
            lambda: study.get_trials()[cut.number].state == TrialState.FAIL, "the silent worker's run is taken from it"
        )
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
    storage.remove_session()
    storage.engine.dispose()  # type: ignore[attr-defined]
    for wire in wires:
        wire.close()
