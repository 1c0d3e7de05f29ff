"""Journals that a full disk or a kill has cut short, and studies made again from the folders of their runs."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage

from runs import DATA, silent, small, state
from untied.errors import UntiedError
from untied.lab.cli import main
from untied.lab.data import DataConfig
from untied.lab.reading.secrets import redacted
from untied.lab.study import worker as workers
from untied.lab.study.config import SearchConfig, TransferConfig
from untied.lab.study.journal import Journal
from untied.lab.study.recover import recover
from untied.lab.study.run import run
from untied.lab.study.storage import load, open_storage

quick = settings(max_examples=60, deadline=None)
COMMON = {"data": DataConfig(**{**DATA.__dict__, "validation": 0.2}), "angles": "weights"}


def search(out: Path, **changes: Any) -> SearchConfig:
    return SearchConfig(**({"run": small(**COMMON), "trials": 3, "workers": 0, "out": out} | changes))


def transfer(out: Path, **changes: Any) -> TransferConfig:
    settings = {"run": small(**COMMON), "rules": ("bp", "sa"), "models": ("mlp-8",), "seeds": 1, "workers": 0}
    return TransferConfig(**(settings | {"out": out} | changes))


def rows(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "results.json").read_text())


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "j.log"
    study = optuna.create_study(storage=JournalStorage(Journal(path)), study_name="s")
    before = path.read_bytes()
    with no_room_beyond(len(before) + 20), pytest.raises(OSError):
        study.set_user_attr("long", "x" * 100)
    assert path.read_bytes() == before
    study.set_user_attr("short", 1)
    again = optuna.load_study(storage=JournalStorage(Journal(path)), study_name="s")
    assert again.user_attrs == {"short": 1}


@pytest.mark.parametrize("opened", ["again", "before"])
def test_a_torn_line_is_dropped(opened: str, tmp_path: Path) -> None:
    path = tmp_path / "j.log"
    study = optuna.create_study(storage=JournalStorage(Journal(path)), study_name="s")
    study.set_user_attr("first", 1)
    other = optuna.load_study(storage=JournalStorage(Journal(path)), study_name="s")
    with path.open("ab") as file:  # a process that was killed while it wrote
        file.write(b'{"op_code":2,"work')
    if opened == "again":
        other = optuna.load_study(storage=JournalStorage(Journal(path)), study_name="s")
    other.set_user_attr("second", 2)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    found = optuna.load_study(storage=JournalStorage(Journal(path)), study_name="s")
    assert found.user_attrs == {"first": 1, "second": 2}


@pytest.mark.parametrize("line", ["{}", "[1]", '{"op_code": 4, "worker_id": "a"}', '{"op_code": "x"}', "5"])
def test_lines_of_another_program_are_one_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "j.log"
    path.write_text(line + "\n" + line + "\n")
    with pytest.raises(UntiedError, match=r"the journal .*: untied study recover FOLDER"):
        open_storage(f"journal:{path}")


@quick
@given(st.binary(max_size=60), st.integers(0, 400), st.booleans())
def test_a_journal_with_bytes_in_it(given_bytes: bytes, at: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.log"
        optuna.create_study(storage=open_storage(f"journal:{path}"), study_name="s").ask()
        content = path.read_bytes()
        path.write_bytes(content[:at] + given_bytes + (b"" if cut else content[at:]))
        with contextlib.suppress(UntiedError):
            load(open_storage(f"journal:{path}"), "s")


@quick
@given(st.text("postgresqlmy:/@?&;= é", max_size=20), st.text(":/@?&;= ", max_size=3))
def test_no_address_shows_its_password(before: str, after: str) -> None:
    assert "SECRET" not in redacted(f"{before}me:SECRET@host{after}")


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_study_is_made_again_from_its_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    file = out / ("study.log" if kind == "journal" else "study.db")
    storage = f"journal:{file}" if kind == "journal" else ""
    with monkeypatch.context() as patched:
        patched.setattr(optuna.Trial, "should_prune", lambda self: self.number == 1)
        assert run(search(out, storage=storage), silent()) == 0
    before = rows(out)
    assert [row["state"] for row in before] == ["complete", "pruned", "complete"]
    with pytest.raises(UntiedError, match="can be read, so there is nothing to recover"):
        recover(out, None, silent())
    whole = file.read_bytes()
    file.write_bytes(whole[:200] + b"\n" + whole[200:] if kind == "journal" else whole[:50] + b"x" * 5000)
    for ending in ("-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    if kind == "journal":
        assert main(["study", "show", str(out)]) == 2
        said = capsys.readouterr().err
        assert "is damaged in line" in said and "untied study recover FOLDER" in said and said.count("\n") == 1
    (out / "results.json").unlink()
    monkeypatch.setattr(workers.Run, "train", None)  # nothing is trained again
    assert main(["study", "recover", str(out)]) == 0
    assert "2 complete, 1 pruned" in " ".join(capsys.readouterr().out.split())
    assert len(list(out.glob("study.*.damaged1"))) == 1
    assert run(search(out, storage=storage), silent()) == 0
    for old, new in zip(before, rows(out), strict=True):
        assert {k: old[k] for k in old if k != "number"} == {k: new[k] for k in new if k != "number"}


def test_runs_that_had_not_ended_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(transfer(tmp_path / "a"), silent()) == 0
    real, looks = workers.Run.look, []

    def look(self: Any) -> None:
        looks.append(1)
        if len(looks) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self)

    out = tmp_path / "b"
    with monkeypatch.context() as patched:
        patched.setattr(workers.Run, "look", look)
        assert run(transfer(out), silent()) == 143
    for file in out.glob("study.db*"):
        file.unlink()
    assert recover(out, None, silent()) == 0
    assert run(transfer(out), silent()) == 0
    for old, new in zip(rows(tmp_path / "a"), rows(out), strict=True):
        assert (old["run"], old["value"], old["failure"]) == (new["run"], new["value"], new["failure"])
        name = old["results"][0]["folder"]
        assert new["results"][0]["folder"] == name
        assert state(tmp_path / "a/runs" / name) == state(out / "runs" / name)


def test_a_folder_of_another_study_is_renamed(tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert run(transfer(out, rules=("bp",)), silent()) == 0
    (out / "study.db").unlink()
    [folder] = (out / "runs").iterdir()
    (folder / "trial.json").write_text('{"params": {"rule": 3}, "results": 5}')
    assert recover(out, None, silent()) == 0
    assert [p.name for p in (out / "runs").iterdir()] == ["bp-mlp-8-seed0.unknown"]
    assert run(transfer(out, rules=("bp",)), silent()) == 0
