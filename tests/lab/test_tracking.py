"""Where metrics go besides the run folder: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import resource
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from runs import WORDS, command, silent, small
from untied.errors import UntiedError
from untied.lab.experiments import train
from untied.lab.keeping.record import RunFolder
from untied.lab.training import tracking
from untied.lab.training.loop import Run
from untied.lab.training.tracking import flat, numbers, trackers


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "finish", lambda folder, config: None)
    monkeypatch.setattr(train, "LOG_EVERY", 2)


def test_tensorboard_has_every_metric(tmp_path: Path, without_pages: None) -> None:
    train.train(small(tmp_path / "run"), silent())
    found = scalars(tmp_path / "run")
    for row in RunFolder(tmp_path / "run").metrics():
        for name, number in numbers(row).items():
            assert (row["step"], pytest.approx(number, rel=1e-6)) in found[name], name
    assert [step for step, _ in found["step/train_loss"]] == [2, 6]  # the epoch's own metrics have 4 and 8
    assert set(found) == set(numbers(row)) | {"step/train_loss", "step/images_per_second"}


def test_a_full_disk_is_a_line(tmp_path: Path) -> None:
    board = tracking.TensorBoard(tmp_path / "tensorboard", 0)
    board.log({"loss": 1.0}, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (board.path.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(UntiedError, match=r"cannot write .*tfevents.*: File too large"):
            board.log({"loss": 2.0}, 2)
        board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    again = tracking.TensorBoard(tmp_path / "tensorboard", 2)
    again.log({"loss": 3.0}, 2)
    again.close()
    assert scalars(tmp_path) == {"loss": [(1, 1.0), (2, 3.0)]}


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UntiedError, match=r"cannot write .*tfevents"):
        tracking.TensorBoard(tmp_path / "tensorboard", 0)


KILLS = [*(("a step", step) for step in range(1, 9)), ("a report", 4), ("a report", 8)]


@pytest.mark.parametrize(("killed_in", "last"), KILLS)
@pytest.mark.parametrize("minutes", [0, 10], ids=["a checkpoint each step", "each epoch"])
def test_after_a_kill_each_step_is_there_once(
    killed_in: str, last: int, minutes: float, tmp_path: Path, without_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, look, log = tmp_path / "run", Run.look, tracking.TensorBoard.log

    def looks(self: Run) -> None:
        look(self)
        if killed_in == "a step" and self.position.step == last:
            raise OSError("killed")

    def logs(self: Any, metrics: dict, step: int) -> None:
        log(self, metrics, step)
        if killed_in == "a report" and "train_loss" in metrics and step == last:
            raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "look", looks)
        patched.setattr(tracking.TensorBoard, "log", logs)
        with pytest.raises(OSError, match="killed"):
            train.train(small(run, checkpoint_minutes=minutes), silent())
    (events,) = (run / "tensorboard").iterdir()
    events.rename(events.with_name("events.out.tfevents.1.earlier"))  # names have seconds, and give the order
    train.resume(run, silent())
    found = scalars(run)
    for name in ("step/train_loss", "step/images_per_second"):
        assert [step for step, _ in found.pop(name)] == [2, 6]
    assert all([step for step, _ in points] == [4, 8] for points in found.values())


class StandIn(types.SimpleNamespace):
    """A module that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__(calls=[], found=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            return self.found if name == "search_runs" else self

        return call

    def of(self, name: str) -> list[tuple[tuple, dict]]:
        return [(a, o) for n, a, o in self.calls if n == name]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "with space's").mkdir()
    return RunFolder.create(tmp_path / "with space's" / "run", small(tmp_path / "run"))


def test_weights_and_biases_is_asked_for_one_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for start in (1, 9):
        board, follower = trackers("wandb", run, start)
        follower.log({"loss": 1.0}, 4)
        follower.close()
        board.close()
    (_, first), (_, second) = wandb.of("init")
    assert first == second and first["resume"] == "allow" and first["name"] == "run"
    assert first["config"]["rule"] == "sa" and first["dir"] == str(run.path)
    assert wandb.of("log") == [(({"loss": 1.0},), {"step": 4})] * 2 and len(wandb.of("finish")) == 2
    other = RunFolder.create(run.path.parent / "b" / "run", small())
    trackers("wandb", other, 1)[0].close()
    assert wandb.of("init")[-1][1]["id"] != first["id"]  # another run, though its folder has the same name


def test_mlflow_is_asked_for_one_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = StandIn()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for _ in range(2):
        board, follower = trackers("mlflow", run, 1)
        follower.log({"loss": 1.0}, 4)
        follower.close()
        board.close()
        mlflow.found = [types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))]
    assert mlflow.of("set_experiment") == [(("untied",), {})] * 2
    (_, first), (_, second) = mlflow.of("start_run")
    assert first["run_name"] == "run" and mlflow.of("search_runs")[0][1]["filter_string"] == (
        f"tags.untied = '{first['tags']['untied']}'"
    )
    assert second == {"run_id": "abc"}
    (((parameters,), _),) = mlflow.of("log_params")
    assert parameters["data/name"] == "synthetic" and parameters["rule"] == "sa"
    assert mlflow.of("log_metrics") == [(({"loss": 1.0},), {"step": 4})] * 2 and len(mlflow.of("end_run")) == 2


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_is_begun(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UntiedError, match=f"tracker {name} is not installed: run  pip install {package}"):
        train.train(small(tmp_path / "run", tracker=name), silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_real_tracker_without_a_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    settings = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": str(tmp_path / "mlruns"),
                "MLFLOW_ALLOW_FILE_STORE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    run = tmp_path / "run"
    process = command("train", *WORDS, "--epochs", "2", "--tracker", name, "--out", str(run))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    if name == "wandb":
        assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    else:
        (losses,) = (tmp_path / "mlruns").rglob("metrics/train_loss")
        assert [line.split()[2] for line in losses.read_text().splitlines()] == ["4", "8"]


def test_numbers_are_finite_and_flat() -> None:
    given = {"a": 1, "b": {"c": 2.5, "d": float("nan"), "e": {"f": float("inf")}}, "g": "word", "h": True, "i": None}
    assert numbers(given) == {"a": 1.0, "b/c": 2.5}
    assert flat({"a": {"b": 1}}, "x/") == {"x/a/b": 1}
