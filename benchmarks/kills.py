"""Kill commands at random moments, again and again, and see whether what they end with is what it would have been.

    python benchmarks/kills.py --kills 50      # of each kind; an hour or two

Studies on a server are among the kinds where UNTIED_STORAGE has the URL of an empty database. The processes are forks
of this one, which has imported everything, so that a kill costs no import. A run that has ended before all its kills is
followed by another one. A start that ends with an error, a process that stays behind, and a result that differs are
printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from untied.lab.cli import main as command
from untied.lab.showing import style
from untied.lab.study.run import URL

SMALL = {"data.name": "synthetic", "data.synthetic_shape": "[1,4,4]", "data.synthetic_classes": "3",
         "data.synthetic_count": "120", "data.batch_size": "12"}  # fmt: skip
PATIENCE = 300.0  # seconds a start may take


def settings(prefix: str = "", **more: str) -> list[str]:
    """Of a run as words, at a place in the command's settings."""
    return ["--set", *(f"{prefix}{name}={value}" for name, value in (SMALL | more).items())]


def of_train(run: Path) -> dict[str, Any]:
    names = ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.jsonl", "results.json")
    return {name: (run / name).read_bytes() for name in names}


def of_table(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = json.loads((run / "results.json").read_text())
    epochs = sorted((line["rule"], line["seed"], line["epoch"]) for line in lines)
    return {"epochs": epochs, "rows": [(row["rule"], row["accuracies"], row["failure"]) for row in rows]}


def of_study(run: Path) -> dict[str, Any]:
    rows = json.loads((run / "results.json").read_text())
    return {"rows": [(row["run"], row["value"], row["params"], row["failure"]) for row in rows]}


@dataclass(frozen=True)
class Kind:
    """A command to kill: its words for a folder, the words that go on, and what has to be the same at the end.

    Attributes:
        abreast: processes that do the same at a time; each is killed by itself.
    """

    start: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]
    abreast: int = 1


def train(run: Path) -> list[str]:
    more = {"ema": "0.9", "checkpoint_minutes": "0", "backward.name": "Adam", "devices.accelerator": "cpu"}
    return ["train", "--model", "mlp-8", "--rule", "aa", "--epochs", "12", *settings(**more), "--out", str(run)]


def resumed(run: Path) -> list[str]:
    if (run / "index.html").is_file():  # it was killed after all was done
        return ["report", str(run)]
    return ["train", "--resume", str(run)] if (run / "config.yaml").is_file() else train(run)


def compare(run: Path) -> list[str]:
    return ["compare", "--model", "mlp-8", "--rules", "bp", "fa", "sa", "--epochs", "3", "--seeds", "2", "--workers",
            "0", *settings(timing_steps="0"), "--overwrite", "--out", str(run)]  # fmt: skip


def compared_again(run: Path) -> list[str]:
    if (run / "index.html").is_file():
        return ["report", str(run)]
    return ["compare", "--resume", str(run)] if (run / "config.yaml").is_file() else compare(run)


WHAT = {"transfer": ["--rules", "bp", "sa", "--models", "mlp-8", "--seeds", "2"],
        "search": ["--trials", "5", "--startup", "3", "--prune", "none"]}  # fmt: skip
STORAGES: dict[str, Callable[[Path], list[str]]] = {
    "SQLite": lambda run: [],
    "journal": lambda run: ["--storage", f"journal:{run / 'study.log'}"],
    "server": lambda run: ["--storage", os.environ[URL], "--name", str(run)],
}


def study(kind: str, storage: str) -> Callable[[Path], list[str]]:
    run_words = settings("run.", **{"data.validation": "0.2", "epochs": "3", "angles": "weights", "model": "mlp-8"})

    def words(run: Path) -> list[str]:
        where = [*STORAGES[storage](run), "--out", str(run)]
        return [kind, *WHAT[kind], *run_words, "--workers", "0", "--retries", "100000", *where]

    return words


KINDS = {"train": Kind(train, resumed, of_train), "compare": Kind(compare, compared_again, of_table)} | {
    f"{kind}, {storage}{', two abreast' if abreast > 1 else ''}":
        Kind(study(kind, storage), study(kind, storage), of_study, abreast)
    for kind in WHAT for storage in STORAGES for abreast in (1, 2)
    if kind == "transfer" or abreast == 1  # what TPE proposes depends on the order of what has ended
}  # fmt: skip


def fork(words: list[str], log: Path) -> int:
    pid = os.fork()
    with suppress(OSError):  # here and there, as either may be first
        os.setpgid(pid, pid)
    if pid == 0:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os._exit(command(words))
    return pid


def first_ended(pids: list[int], seconds: float) -> tuple[int, int] | None:
    """A process that ends in time, and its exit code; None where none does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for pid in pids:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return pid, os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def stays_behind(pid: int) -> bool:
    """Whether a process that has ended has left another one of its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def battery(kind: Kind, kills: int, seconds: float, folder: Path, draw: random.Random) -> dict[str, int]:
    """Kill so often, or for so long. Returns the counts for the table."""
    counts = {"kills": 0, "runs": 0, "half-written files": 0, "differing": 0, "errors": 0}
    log = folder / "log"
    with log.open("w") as said, redirect_stdout(said), redirect_stderr(said):
        code = command(kind.start(folder / "whole"))  # in this process, so that it has imported all for its forks
    assert code == 0, log.read_text()
    whole = kind.result(folder / "whole")
    began = time.monotonic()
    ended = first_ended([fork(kind.start(folder / "again"), log)], PATIENCE)
    assert ended is not None and ended[1] == 0, log.read_text()
    took = time.monotonic() - began
    assert kind.result(folder / "again") == whole, "two runs without a kill differ"
    until = time.monotonic() + seconds
    while counts["kills"] < kills and time.monotonic() < until:
        run, wrong = folder / f"run{counts['runs']}", ""
        counts["runs"] += 1
        log = folder / f"log{counts['runs']}"
        alive = [fork(kind.start(run), log) for _ in range(kind.abreast)]
        while alive:
            left = counts["kills"] < kills and time.monotonic() < until
            ended = first_ended(alive, draw.uniform(0, 0.8 * took) if left else PATIENCE)
            if ended is not None:
                pid, code = ended
                alive.remove(pid)
                if code != 0 or stays_behind(pid):
                    wrong = f"exit code {code}" if code else "a process stays behind"
                continue
            victim = draw.choice(alive)
            alive.remove(victim)
            kill(victim)
            if not left:
                wrong = f"does not end within {PATIENCE:.0f} s"
                continue
            counts["kills"] += 1
            counts["half-written files"] += any(run.rglob("*.partial"))
            alive.append(fork(kind.again(run), log))
        if wrong:
            counts["errors"] += 1
            print(f"{run}: {wrong}: {log.read_text()[-1500:]}", flush=True)
        elif (found := kind.result(run)) != whole:
            counts["differing"] += 1
            for name, value in whole.items():
                if found[name] != value:
                    print(f"{run}: {name} is {str(found[name])[:1500]}, without kills {str(value)[:1500]}", flush=True)
    return counts


def main() -> int:
    """Run the battery and print a table. Returns the exit code."""
    possible = [kind for kind in KINDS if "server" not in kind or os.environ.get(URL)]
    parser = argparse.ArgumentParser(description="Kill commands at random moments.")
    parser.add_argument("--kills", type=int, default=50, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=possible, default=possible)
    parser.add_argument("--minutes", type=float, default=60.0, help="of each kind, at most; the last run is let end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, to look at what differs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    style.save = lambda *given: None  # figures would take most of the time, and nothing goes on from them
    bad = total = 0
    with tempfile.TemporaryDirectory() as temporary:
        lines = []
        for name in given.kinds:
            folder = (given.keep or Path(temporary)) / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir(parents=True)
            counts = battery(KINDS[name], given.kills, 60 * given.minutes, folder, random.Random(given.seed))
            total += counts["kills"]
            bad += counts["differing"] + counts["errors"]
            lines.append(f"| {name} | " + " | ".join(str(number) for number in counts.values()) + " |")
            print(lines[-1], flush=True)
    print("\n| killed | " + " | ".join(counts) + " |\n|---|" + "--:|" * len(counts))
    print("\n".join(lines))
    print(f"\n{total} kills, {bad} with a result that differs or an error")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
