"""Do one harm after the other to a study that is half done, and see whether it ends as if nothing had been.

    python benchmarks/study_faults.py                    # all of them; minutes
    python benchmarks/study_faults.py --only journal     # those whose name has this in it

The study has four runs; two have ended and the third was killed in its second epoch. Then the harm is done, and the
command that has made the study is given again. It goes on, or refuses in one line with exit code 2. Then, where the
harm has a remedy, that is applied and the command is given once more. In the end every run counts once, with the result
of a study that was left in peace. What fails is printed with what was said, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from untied.lab.cli import main as command
from untied.lab.keeping import processes
from untied.lab.keeping.processes import LOCK, here
from untied.lab.showing import style
from untied.lab.study import storage
from untied.lab.training import checkpoint, loop

PATIENCE = 60.0  # seconds
NOBODY = 65534
SMALL = ["model=mlp-8", "data.name=synthetic", "data.synthetic_shape=[1,4,4]", "data.synthetic_classes=3",
         "data.synthetic_count=60", "data.batch_size=12", "data.validation=0.2", "epochs=3", "angles=weights",
         "checkpoint_minutes=0"]  # fmt: skip
SAVES = 40
"""After so many last checkpoints, one a step and one an epoch, the third of four runs is in its second epoch."""
Does = Callable[[Path], Any]


def words(folder: Path, journal: bool) -> list[str]:
    where = ["--storage", f"journal:{folder / 'study.log'}"] if journal else []
    return ["transfer", "--rules", "bp", "sa", "--models", "mlp-8", "--seeds", "2", "--set",
            *(f"run.{setting}" for setting in SMALL), "silence=3", "--workers", "0", *where, "--name", "s",
            "--out", str(folder)]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A harm.

    Attributes:
        harm: done to the study's folder. journal: in place of SQLite.
        within: called in the process of the command, as what sets limits.
        codes: what the command may end with while the harm lasts.
        remedy: done to the folder then; it may name a command, whose words it returns.
    """

    harm: Does = lambda folder: None
    journal: bool = False
    within: Does = lambda folder: None
    codes: tuple[int, ...] = (0,)
    remedy: Callable[[Path], list[str] | None] | None = None


# Harms


def sql(*statements: str) -> Does:
    def harm(folder: Path) -> None:
        with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
            for statement in statements:
                database.execute(statement)
            database.commit()

    return harm


def settled(harm: Does) -> Does:
    """What the log beside SQLite's file has is brought into the file, or the log would heal it."""

    def does(folder: Path) -> None:
        sql("PRAGMA wal_checkpoint(TRUNCATE)")(folder)
        harm(folder)

    return does


def cut(name: str, part: float) -> Does:
    def harm(folder: Path) -> None:
        os.truncate(folder / name, int(part * (folder / name).stat().st_size))

    return harm


def noise(name: str, start: int = 0, count: int = 4096) -> Does:
    def harm(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[start : start + count] = random.Random(0).randbytes(len(content[start : start + count]))
        (folder / name).write_bytes(content)

    return harm


def without(*names: str) -> Does:
    def harm(folder: Path) -> None:
        for name in names:
            for path in list(folder.glob(name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


def replaced(name: str, text: str) -> Does:
    return lambda folder: (folder / name).write_text(text)


def odd_line(folder: Path) -> None:
    lines = (folder / "study.log").read_bytes().splitlines(keepends=True)
    lines.insert(len(lines) // 2, b"\x00\xffnonsense\n")
    (folder / "study.log").write_bytes(b"".join(lines))


def stale_lock(folder: Path) -> None:
    (folder / "study.log.lock").symlink_to(folder / "study.log")


def third(folder: Path) -> Path:
    """The run that is half done."""
    return next(p for p in sorted((folder / "runs").iterdir()) if not (p / "results.json").exists())


def of_third(harm: Does) -> Does:
    return lambda folder: harm(third(folder))


def both_damaged(folder: Path) -> None:
    for name in ("last", "previous"):
        noise(f"checkpoints/{name}.safetensors", 200, 5)(folder)


def foreign_lock(folder: Path) -> None:
    (folder / LOCK).write_text(json.dumps(here() | {"host": "elsewhere", "boot": "another"}))
    os.utime(folder / LOCK, (2**33, 2**33))


def a_pipe(name: str) -> Does:
    def harm(folder: Path) -> None:
        without(f"{name}*")(folder)
        os.mkfifo(folder / name)

    return harm


def a_folder(name: str) -> Does:
    def harm(folder: Path) -> None:
        without(f"{name}*")(folder)
        (folder / name).mkdir()

    return harm


# What is so while the command runs


def locked(seconds: float) -> Does:
    """Somebody else has the database for himself, for so long."""

    def within(folder: Path) -> None:
        storage.WAITING["sqlite"]["timeout"] = 0.2
        ready = threading.Event()

        def hold() -> None:
            with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
                database.execute("BEGIN EXCLUSIVE")
                ready.set()
                time.sleep(seconds)
                database.rollback()

        threading.Thread(target=hold, daemon=True).start()
        ready.wait()

    return within


def interrupted_while_locked(folder: Path) -> None:
    """Somebody takes the database in mid-run, and does not give it back; Ctrl-C comes."""
    storage.WAITING["sqlite"]["timeout"] = 0.2
    save = checkpoint.save

    def saves(*given: Any, **named: Any) -> None:
        if not threading.active_count() > 3:
            locked(1000)(folder)
            threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        save(*given, **named)

    loop.checkpoint.save = saves


def full(folder: Path) -> None:
    """No file can grow beyond what there is."""
    largest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "study" not in p.name)
    most = max(4096, (folder / "study.log").stat().st_size if (folder / "study.log").exists() else largest)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def not_root(folder: Path) -> None:
    """File permissions say nothing to root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def read_only(*names: str) -> Does:
    def harm(folder: Path) -> None:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o777 if path.is_dir() else 0o666)
        for name in names:
            (folder / name).chmod(0o555)

    return harm


def at_the_clock(seconds: float) -> Does:
    now = time.time

    def within(folder: Path) -> None:
        time.time = lambda: now() + seconds

    return within


def killed(folder: Path) -> None:
    """The worker is killed once more, after its next checkpoint."""
    dies_after(2)


def dies_after(saves: int) -> None:
    save, count = checkpoint.save, iter(range(saves))

    def counted(path: Path, *given: Any, **named: Any) -> None:
        save(path, *given, **named)
        if path.stem == "last" and next(count, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.checkpoint.save = counted


def few_files(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))


# Remedies


def recover(folder: Path) -> list[str]:
    return ["study", "recover", str(folder)]


def lifted(folder: Path) -> None:
    """The harm was within the process: it has ended with it."""


def writable(folder: Path) -> None:
    read_only()(folder)


def gives_way(*names: str) -> Callable[[Path], list[str]]:
    def remedy(folder: Path) -> list[str]:
        without(*names)(folder)
        return recover(folder)

    return remedy


ATTRIBUTE = "UPDATE trial_user_attributes SET value_json = '{}' WHERE key = '{}'"
FAULTS: dict[str, Fault] = {
    "nothing": Fault(),
    "nothing, journal": Fault(journal=True),
    "the worker is killed again": Fault(within=killed, codes=(-signal.SIGKILL,), remedy=lifted),
    "the worker is killed again, journal": Fault(within=killed, codes=(-signal.SIGKILL,), remedy=lifted, journal=True),
    "the database is cut to a half": Fault(settled(cut("study.db", 0.5)), codes=(2,), remedy=recover),
    "the database's first page is noise": Fault(settled(noise("study.db")), codes=(2,), remedy=recover),
    "a page of the database is noise": Fault(settled(noise("study.db", 4096, 40960)), codes=(2,), remedy=recover),
    "the database is a text": Fault(settled(replaced("study.db", "gone\n" * 99)), codes=(2,), remedy=recover),
    "the database is empty": Fault(settled(cut("study.db", 0)), codes=(0, 2), remedy=recover),
    "the database is gone": Fault(without("study.db*")),
    "the database is a folder": Fault(a_folder("study.db"), codes=(2,), remedy=gives_way("study.db")),
    "the database is a pipe": Fault(a_pipe("study.db"), codes=(2,), remedy=gives_way("study.db")),
    "a table is missing": Fault(sql("DROP TABLE trial_user_attributes"), codes=(0, 2), remedy=recover),
    "a column is missing": Fault(
        sql("ALTER TABLE trials RENAME COLUMN study_id TO whose"), codes=(2,), remedy=recover
    ),
    "the tables are of another version": Fault(
        sql("UPDATE alembic_version SET version_num = 'v99.0.a'"), codes=(2,), remedy=recover
    ),
    "two trials have one number": Fault(
        sql("UPDATE trials SET number = 2 WHERE number = 3"), codes=(2,), remedy=recover
    ),
    "all trials have one number": Fault(sql("UPDATE trials SET number = 0"), codes=(2,), remedy=recover),
    "a trial has no number": Fault(
        sql("UPDATE trials SET number = NULL WHERE number = 3"), codes=(0, 2), remedy=recover
    ),
    "the study is nobody's": Fault(sql("DELETE FROM study_user_attributes"), codes=(2,), remedy=recover),
    "the study's definition is a list": Fault(
        sql("UPDATE study_user_attributes SET value_json = '{\"format\": 1, \"definition\": [1]}'"),
        codes=(2,), remedy=recover,
    ),
    "an attribute is no JSON": Fault(sql(ATTRIBUTE.format("{", "worker")), codes=(2,), remedy=recover),
    "workers have no names": Fault(sql(ATTRIBUTE.format("null", "worker")), codes=(0, 2), remedy=recover),
    "workers are numbers": Fault(sql(ATTRIBUTE.format("7", "worker")), codes=(0, 2), remedy=recover),
    "attempts are words": Fault(sql(ATTRIBUTE.format('"x"', "attempt")), codes=(0, 2), remedy=recover),
    "results are missing": Fault(sql(ATTRIBUTE.format("[]", "results")), codes=(0, 2), remedy=recover),
    "results are a number": Fault(sql(ATTRIBUTE.format("7", "results")), codes=(0, 2), remedy=recover),
    "the database is locked": Fault(within=locked(1000), codes=(2,), remedy=lifted),
    "the database is locked for a second": Fault(within=locked(1), codes=(0, 2), remedy=lifted),
    "Ctrl-C while the database is locked": Fault(within=interrupted_while_locked, codes=(130,), remedy=lifted),
    "the database is read-only": Fault(read_only("study.db"), within=not_root, codes=(2,), remedy=writable),
    "the study's folder is read-only": Fault(read_only("."), within=not_root, codes=(2,), remedy=writable),
    "the runs are read-only": Fault(read_only("runs"), within=not_root, codes=(2,), remedy=writable),
    "the disk is full": Fault(within=full, codes=(2,), remedy=lifted),
    "the disk is full, journal": Fault(within=full, codes=(2,), remedy=lifted, journal=True),
    "eight open files": Fault(within=few_files, codes=(2,), remedy=lifted),
    "the clock is a year behind": Fault(within=at_the_clock(-3e7)),
    "the clock is a year ahead": Fault(within=at_the_clock(3e7)),
    "the clock is a year behind, journal": Fault(within=at_the_clock(-3e7), journal=True),
    "the last line is torn, journal": Fault(cut("study.log", 0.999), journal=True),
    "the log is cut to a half, journal": Fault(cut("study.log", 0.5), journal=True, codes=(0, 2), remedy=recover),
    "the log is empty, journal": Fault(cut("study.log", 0), journal=True),
    "the log is gone, journal": Fault(without("study.log"), journal=True),
    "a line is nonsense, journal": Fault(odd_line, journal=True, codes=(2,), remedy=recover),
    "the log is of another program, journal": Fault(
        replaced("study.log", '{"op": "boil"}\n' * 9), journal=True, codes=(2,), remedy=recover
    ),
    "a dead process has the log's lock, journal": Fault(stale_lock, journal=True),
    "the log is a pipe, journal": Fault(
        a_pipe("study.log"), journal=True, codes=(2,), remedy=gives_way("study.log")
    ),
    "the runs are gone": Fault(without("runs")),
    "the half-done run is gone": Fault(of_third(lambda run: shutil.rmtree(run))),
    "its last checkpoint is damaged": Fault(of_third(noise("checkpoints/last.safetensors", 200, 5))),
    "its last checkpoint is cut": Fault(of_third(cut("checkpoints/last.safetensors", 0.5))),
    "both its checkpoints are damaged": Fault(of_third(both_damaged)),
    "its checkpoints are gone": Fault(of_third(without("checkpoints"))),
    "its last line is torn": Fault(of_third(cut("metrics.jsonl", 0.99))),
    "its metrics are gone": Fault(of_third(without("metrics.jsonl"))),
    "its config.yaml is gone": Fault(
        of_third(without("config.yaml")), codes=(2,), remedy=lambda folder: shutil.rmtree(third(folder))
    ),
    "its environment.json is empty": Fault(of_third(replaced("environment.json", ""))),
    "its trial.json is nonsense": Fault(of_third(replaced("trial.json", "}{"))),
    "its lock is another machine's": Fault(of_third(foreign_lock)),
    "its lock is nonsense": Fault(of_third(replaced(LOCK, "\x00"))),
    "the study's config.yaml is gone": Fault(without("config.yaml"), codes=(0, 2)),
    "its results.json is nonsense": Fault(replaced("results.json", "}{")),
    "its definition.json is nonsense": Fault(replaced("definition.json", "}{")),
}  # fmt: skip


# Trying


def forked(folder: Path, given: list[str], within: Does = lambda folder: None) -> tuple[int | None, str]:
    """The exit code of a command in a process of its own, None where it does not end; and what it said."""
    said = folder.parent / "said"
    with said.open("wb") as file:
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.setsid()
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                within(folder)
                code = command(given)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None, said.read_text(errors="replace")


def scores(folder: Path) -> Any:
    rows = json.loads((folder / "results.json").read_text())
    return [(row["run"], row["value"], row["params"], row["failure"]) for row in rows]


def one_line(said: str) -> bool:
    return "Traceback" not in said and sum(line.startswith("untied: ") for line in said.splitlines()) == 1


def wrong_with(fault: Fault, half: Path, whole: Any, folder: Path) -> tuple[str, str, str]:
    """What is wrong, in a few words, or nothing; how the command ended under the harm; and all that was said."""
    shutil.copytree(half, folder, symlinks=True)
    fault.harm(folder)
    code, all_said = forked(folder, words(folder, fault.journal), fault.within)
    how = str(code)
    if code not in fault.codes:
        return f"exit code {code}", how, all_said
    if "Traceback" in all_said or (code == 2 and not one_line(all_said)):
        return "not one line", how, all_said
    if code != 0 and fault.remedy is not None:
        if remedy := fault.remedy(folder):
            code, said = forked(folder, remedy)
            all_said += said
            how += f", then untied {' '.join(remedy[:2])}"
            if code != 0:
                return f"{' '.join(remedy[:2])} ends with {code}", how, all_said
        code, said = forked(folder, words(folder, fault.journal))
        all_said += said
        how += f", then {code}"
    if code != 0:
        return "" if fault.remedy is None and code in fault.codes else f"exit code {code} in the end", how, all_said
    return ("" if scores(folder) == whole else f"another result: {scores(folder)}"), how, all_said


def main() -> int:
    """Try every fault and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Do one harm after the other to a study that is half done.")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    given = parser.parse_args()
    torch.set_num_threads(1)
    style.save = lambda *given: None  # figures would take most of the time
    processes.WATCH = 1.0
    faults = {name: fault for name, fault in FAULTS.items() if any(part in name for part in given.only)}
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        root.chmod(0o755)
        halves, wholes = {}, {}
        for journal in (False, True):
            # the same path for all: a study says where it lies
            folder = root / "study"
            code, said = forked(folder, words(folder, journal))
            assert code == 0, said
            wholes[journal] = scores(folder)
            shutil.rmtree(folder)
            code, said = forked(folder, words(folder, journal), lambda folder: dies_after(SAVES))
            assert code == -signal.SIGKILL, said
            ended = sum((run / "results.json").exists() for run in (folder / "runs").iterdir())
            assert (ended, len(list((folder / "runs").iterdir()))) == (2, 3), "the study is not half done"
            halves[journal] = folder.rename(root / f"half-{journal}")
        print("| harm | exit codes | |\n|---|---|---|")
        for name, fault in faults.items():
            wrong, how, said = wrong_with(fault, halves[fault.journal], wholes[fault.journal], root / "study")
            print(f"| {name} | {how} | {'fails: ' + wrong if wrong else 'passes'} |", flush=True)
            if wrong:
                failed.append(name)
                print(f"  it had said: {said[-1500:]}", flush=True)
            shutil.rmtree(root / "study")
    print(f"\n{len(faults)} harms, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
