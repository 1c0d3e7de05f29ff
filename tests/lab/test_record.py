"""The run folder: what is written is what is read, and nothing is lost when a run is cut short."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from untied import UntiedError
from untied.lab.keeping import processes, record
from untied.lab.keeping.environment import environment
from untied.lab.keeping.record import RunFolder, file_name, plain, write_atomically


@dataclass(frozen=True)
class Inner:
    name: str = "digits"
    root: Path | None = None


@dataclass(frozen=True)
class Config:
    rules: tuple[str, ...] = ("bp", "sa")
    lr: float = 1e-5
    data: Inner = field(default_factory=Inner)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", Config())


def one_line(error: pytest.ExceptionInfo[UntiedError]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


# making and opening a folder


def test_create_writes_config_and_environment(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "a" / "b", Config(data=Inner(root=Path("somewhere"))))
    read = RunFolder.open(run.path)
    assert read.config() == {"rules": ["bp", "sa"], "lr": 1e-5, "data": {"name": "digits", "root": "somewhere"}}
    assert read.environment()["packages"]["torch"] == torch.__version__
    assert read.metrics() == [] and read.weight_names() == []


def test_create_takes_an_empty_folder(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, Config())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_start_that_was_killed_leaves_no_run(
    overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two files that make one: the same command begins again."""
    write = RunFolder.write_text

    def killed(self: RunFolder, name: str, text: str) -> Path:
        if name == "config.yaml":
            raise KeyboardInterrupt
        return write(self, name, text)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "write_text", killed)
        RunFolder.create(tmp_path / "run", Config())
    (tmp_path / "run" / "lock.json").write_text("{")
    (tmp_path / "run" / ".config.yaml-7.partial").write_text("half")
    monkeypatch.setattr(processes, "WATCH", 0.1)
    assert (tmp_path / "run" / "environment.json").exists()
    with pytest.raises(UntiedError, match="not a run folder"):
        RunFolder.open(tmp_path / "run")
    RunFolder.create(tmp_path / "run", Config(), overwrite=overwrite)
    assert RunFolder.open(tmp_path / "run").config()["lr"] == 1e-5


def test_an_overwriting_start_that_was_killed_leaves_a_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append({"epoch": 1})
    (run.path / "notes.txt").write_text("mine")

    def killed(self: RunFolder, config: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "write_config", killed)
        RunFolder.create(run.path, Config(), overwrite=True)
    assert RunFolder.open(run.path).metrics() == []
    RunFolder.create(run.path, Config(), overwrite=True)


def test_two_starts_in_one_second_have_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record.time, "strftime", lambda form: "train-20260102-030405")
    assert [record.new_folder("train").name for _ in range(3)] == [
        "train-20260102-030405", "train-20260102-030405-2", "train-20260102-030405-3"]  # fmt: skip


def test_create_refuses_a_folder_that_holds_a_run(run: RunFolder) -> None:
    with pytest.raises(UntiedError) as error:
        RunFolder.create(run.path, Config())
    assert str(run.path) in one_line(error)


def test_overwrite_replaces_a_run_and_keeps_what_is_not_its_own(run: RunFolder) -> None:
    run.append({"epoch": 1})
    run.write_weights("sa-seed0", {"w": torch.ones(2)})
    write_atomically(run.path / "figures" / "a.png", b"old")
    (run.path / "notes.txt").write_text("mine")
    again = RunFolder.create(run.path, Config(rules=("fa",)), overwrite=True)
    assert again.config()["rules"] == ["fa"]
    assert again.metrics() == [] and again.weight_names() == []
    assert not (run.path / "figures" / "a.png").exists()
    assert (run.path / "notes.txt").read_text() == "mine"


def test_overwrite_touches_nothing_but_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(UntiedError) as error:
        RunFolder.create(tmp_path, Config(), overwrite=True)
    assert "does not hold a run" in one_line(error)
    assert (tmp_path / "results.json").read_text() == "mine"


def test_create_where_a_file_stands(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UntiedError) as error:
            RunFolder.create(path, Config())
        assert str(path) in one_line(error)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_create_where_one_may_not_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UntiedError) as error:
        RunFolder.create(tmp_path / "run", Config())
    assert "Permission denied" in one_line(error)


def test_open_wants_a_run_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UntiedError) as error:
            RunFolder.open(path)
        assert "is not a run folder" in one_line(error)


# metrics


def test_metrics_come_back_in_order(run: RunFolder) -> None:
    rows = [{"rule": "sa", "epoch": i, "weight_angle": {"fc": 1.5}, "note": "é\n"} for i in range(3)]
    for row in rows:
        run.append(row)
        assert run.metrics()[-1] == row
    assert run.metrics() == rows


def test_tensors_arrays_and_values_that_are_not_finite(run: RunFolder) -> None:
    run.append({"loss": torch.tensor(math.nan), "many": np.array([1.0, math.inf]), "n": np.int64(3), "t": (1, None)})
    assert run.metrics() == [{"loss": None, "many": [1.0, None], "n": 3, "t": [1, None]}]


@pytest.mark.parametrize("length", [1, 10, 5000])
def test_a_torn_line_is_dropped_by_reader_and_by_the_next_append(run: RunFolder, length: int) -> None:
    run.append({"epoch": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(('{"epoch": 2, "text": "' + "x" * 6000)[:length])
    assert run.metrics() == [{"epoch": 1}]
    run.append({"epoch": 2})
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]


def test_a_file_that_is_one_torn_line(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").write_text('{"epo')
    assert run.metrics() == []
    run.append({"epoch": 1})
    assert run.metrics() == [{"epoch": 1}]


def test_a_damaged_line_is_named(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(UntiedError) as error:
        run.metrics()
    assert "metrics.jsonl, line 2" in one_line(error)


# whole files


def test_json_has_no_nan(run: RunFolder) -> None:
    run.write_json("results.json", [{"accuracy": math.nan, "path": Path("x")}])
    text = (run.path / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == [{"accuracy": None, "path": "x"}]
    assert run.read_json("results.json") == [{"accuracy": None, "path": "x"}]


def test_files_that_cannot_be_read_are_one_line(run: RunFolder) -> None:
    (run.path / "results.json").write_text("[1,")
    (run.path / "config.yaml").write_text("a: [1,\nb: }")
    (run.path / "weights").mkdir()
    (run.path / "weights" / "sa.safetensors").write_bytes(b"nonsense")
    for read in (
        lambda: run.read_json("results.json"),
        lambda: run.read_json("absent.json"),
        run.config,
        lambda: run.weights("sa"),
        lambda: run.weights_metadata("sa"),
    ):
        with pytest.raises(UntiedError) as error:
            read()
        assert str(run.path) in one_line(error)
    (run.path / "config.yaml").write_text("just words")
    with pytest.raises(UntiedError, match="does not hold a configuration"):
        run.config()


def test_a_write_that_fails_keeps_the_old_file(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_text("table.md", "old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(record.os, "fsync", fail)
            with pytest.raises((UntiedError, KeyboardInterrupt)):
                run.write_text("table.md", "new")
        assert (run.path / "table.md").read_text() == "old"
        assert not list(run.path.glob("*.partial"))


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing past ``size`` bytes fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_really_refuses(run: RunFolder) -> None:
    run.write_weights("w", {"x": torch.ones(3)})
    run.append({"epoch": 1})
    for write in (
        lambda: run.write_weights("w", {"x": torch.ones(100_000)}),
        lambda: run.write_text("table.md", "x" * 200_000),
        lambda: run.append({"text": "x" * 200_000}),
    ):
        with pytest.raises(UntiedError) as error, files_limited_to(100_000):
            write()
        assert "cannot write" in one_line(error)
    assert run.weights("w")["x"].tolist() == [1, 1, 1]
    assert run.metrics() == [{"epoch": 1}]
    run.append({"epoch": 2})
    assert run.metrics() == [{"epoch": 1}, {"epoch": 2}]


# weights


def test_weights_of_any_layout_come_back_equal(run: RunFolder) -> None:
    shared = torch.randn(4, 6)
    state = {
        "a.weight": shared,
        "a.backward_weight": shared,
        "view": shared[1:3, ::2],
        "transposed": shared.T,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "expanded": torch.ones(1).expand(5),
        "half": torch.randn(2).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }
    run.write_weights("sa-seed0", state, {"rule": "sa"})
    assert run.weight_names() == ["sa-seed0"]
    read = run.weights("sa-seed0")
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor.detach()), key
    assert run.weights_metadata("sa-seed0") == {"rule": "sa"}


def test_weights_by_a_rules_text(run: RunFolder) -> None:
    names = ["ia(amp=1, fraction=1/8)-seed0", "ia(amp=1, fraction=1_8)-seed0", "../up", "sa-seed0", "é"]
    for i, name in enumerate(names):
        run.write_weights(name, {"i": torch.tensor(i)})
    assert len(run.weight_names()) == len(names)
    for i, name in enumerate(names):
        assert run.weights(name)["i"] == i
    for name in run.weight_names():
        run.weights(name)


def test_unknown_weights_list_what_there_is(run: RunFolder) -> None:
    run.write_weights("sa-seed0", {"w": torch.ones(1)})
    with pytest.raises(UntiedError) as error:
        run.weights("fa-seed0")
    assert "'fa-seed0'" in one_line(error) and "sa-seed0" in one_line(error)


@pytest.mark.parametrize("text", ["sa", "amp + 0.5*decay", "a/b", ".hidden", "..", "", "x" * 300])
def test_file_names_are_safe_and_stay(text: str) -> None:
    name = file_name(text)
    assert name and "/" not in name and not name.startswith(".") and len(name) < 100
    assert file_name(name) == name


# environment


def test_environment_is_plain_and_names_nobody() -> None:
    found = environment()
    assert yaml.safe_load(yaml.safe_dump(found)) == json.loads(json.dumps(found)) == plain(found)
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    assert os.uname().nodename not in json.dumps(found)


def test_environment_has_no_commit_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import untied

    monkeypatch.setattr(untied, "__file__", str(tmp_path / "untied" / "__init__.py"))
    assert environment()["git"] is None


def test_half_of_a_file_goes_with_the_next_writer(tmp_path: Path) -> None:
    """A start that is killed again and again leaves nothing behind; what others have named so stays."""
    for folder, name in (
        (".", ".environment.json-7.partial"),
        ("figures", ".accuracy.svg-8.partial"),
        (".", "film.partial"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    with RunFolder(tmp_path).lock():
        assert sorted(p.name for p in tmp_path.rglob("*.partial")) == ["film.partial"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode there")
def test_a_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    """Its run can be read again; safetensors opens no such path by itself."""
    run = RunFolder.create(tmp_path / "r\udcff", {"epochs": 1})
    run.write_weights("sa", {"w": torch.ones(2)}, {"rule": "sa"})
    run.write_text("card.md", f"untied evaluate {run.path}\n")
    assert run.weights("sa")["w"].tolist() == [1, 1] and run.weights_metadata("sa") == {"rule": "sa"}
    assert (run.path / "card.md").read_text(encoding="utf-8").endswith("r\\udcff\n")
    (run.path / "weights/sa.safetensors").write_bytes(b"gone")
    with pytest.raises(UntiedError, match="cannot read"):
        run.weights("sa")
