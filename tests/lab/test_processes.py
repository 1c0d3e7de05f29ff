"""Which process lives, and that one at a time writes to a folder."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from untied.errors import UntiedError
from untied.lab.keeping import processes
from untied.lab.keeping.processes import LOCK, Lock, here, is_gone

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
NAMED = "import json; from untied.lab.keeping.processes import here; print(json.dumps(here()), flush=True); input()"
HOLDS = """
import sys
from pathlib import Path
from untied.errors import UntiedError
from untied.lab.keeping.processes import Lock
print("ready", flush=True)
input()
try:
    with Lock(Path(sys.argv[1])):
        print("mine", flush=True)
        input()
except UntiedError as error:
    print(error, flush=True)
"""


@contextmanager
def python(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_who_lives() -> None:
    assert not is_gone(here())
    with python(NAMED) as other:
        assert other.stdout
        about = json.loads(other.stdout.readline())
        assert about["pid"] == other.pid and not is_gone(about)
        assert is_gone(about | {"began": "1"})  # another one had its number before
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(about)  # though nobody has waited for it, and its number is not free
        for name in ("host", "boot", "space"):
            assert not is_gone(about | {name: "another"})
    assert is_gone(about) and not is_gone({}) and not is_gone({"pid": 1})
    for pid in (None, {}, [1], "x", math.inf, -1, 10**30):  # a damaged lock names no process
        assert is_gone(here() | {"pid": pid})
    assert is_gone({name: value for name, value in here().items() if name != "pid"})


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    with python(HOLDS, str(folder)) as other:
        assert other.stdin and other.stdout
        other.stdout.readline()
        with Lock(folder), Lock(folder):  # this process may enter again
            print(file=other.stdin, flush=True)
            said = other.stdout.readline()
            assert f"process {os.getpid()} on " in said and f"is writing to {folder}: wait until" in said
        assert not (folder / LOCK).exists()


def test_a_holder_that_was_killed_is_followed_by_one(tmp_path: Path) -> None:
    with python(HOLDS, str(tmp_path)) as first:
        assert first.stdin and first.stdout
        print(file=first.stdin, flush=True)
        assert [first.stdout.readline() for _ in range(2)][1] == "mine\n"
        with pytest.raises(UntiedError, match=f"process {first.pid} "):
            Lock(tmp_path).__enter__()
    assert (tmp_path / LOCK).exists()
    with python(HOLDS, str(tmp_path)) as a, python(HOLDS, str(tmp_path)) as b, python(HOLDS, str(tmp_path)) as c:
        said = []
        for process in (a, b, c):
            assert process.stdout and process.stdout.readline() == "ready\n"
        for process in (a, b, c):
            print(file=process.stdin, flush=True)
        for process in (a, b, c):
            assert process.stdout
            said.append(process.stdout.readline())
        assert said.count("mine\n") == 1 and sum("is writing to" in line for line in said) == 2


@pytest.mark.parametrize(
    "content",
    [json.dumps(here() | {"boot": "another"}), "", '{"pi', "[1]", '{"began": "1"}'],
    ids=["another boot", "nothing", "torn", "a list", "half"],
)
def test_a_holder_that_cannot_be_asked(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another system, or a lock that a kill cut short: only a sign of life is waited for."""
    monkeypatch.setattr(processes, "WATCH", 1.0)
    lock, said = tmp_path / LOCK, list[str]()
    lock.write_text(content)
    with Lock(tmp_path, said.append):
        assert json.loads(lock.read_text()) == here()
    assert len(said) == 1 and "waiting 1 s for a sign of life" in said[0]
    lock.write_text(content)
    over = threading.Event()

    def lives() -> None:
        while not over.wait(0.05):
            os.utime(lock)

    thread = threading.Thread(target=lives)
    thread.start()
    try:
        with pytest.raises(UntiedError, match="is writing to"):
            Lock(tmp_path).__enter__()
    finally:
        over.set()
        thread.join()
    assert lock.read_text() == content


def test_a_holder_gives_signs_of_life_until_it_has_lost_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BEAT", 0.02)
    lock = tmp_path / LOCK
    with Lock(tmp_path):
        before = lock.stat().st_mtime_ns
        time.sleep(0.3)
        assert lock.stat().st_mtime_ns > before
        lock.write_text("{}")  # another process was quicker, while this one slept
        time.sleep(0.1)
        before = lock.stat().st_mtime_ns
        time.sleep(0.2)
        assert lock.stat().st_mtime_ns == before
    assert lock.read_text() == "{}"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UntiedError, match=r"cannot write .*below"):
        Lock(tmp_path / "file" / "below").__enter__()
