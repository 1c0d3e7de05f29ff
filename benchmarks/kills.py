"""Kill commands at random moments, again and again, and see whether what they end with is what it would have been.

    python benchmarks/kills.py --kills 80      # of each kind; minutes

The processes are forks of this one, which has imported everything, so that a kill costs no import. A run that has ended
before all its kills is followed by another one. A start that ends with an error, a process that stays behind, and a
result that differs are printed, and the exit code is 1.
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
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import untied.lab.compare
from untied.lab import plots
from untied.lab.cli import main as command

DATA = ["--data.name", "synthetic", "--data.synthetic-shape", "1", "4", "4", "--data.synthetic-classes", "3",
        "--data.synthetic-count", "120", "--data.batch-size", "12"]  # fmt: skip
PATIENCE = 300.0  # seconds a start may take


def in_run(words: list[str]) -> list[str]:
    """The same options of a study's runs."""
    return [word.replace("--", "--run.", 1) if word.startswith("--") else word for word in words]


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
    """A command to kill: its words for a folder, the words that go on, and what has to be the same at the end."""

    start: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, Any]]


def train(run: Path) -> list[str]:
    return ["train", "--model", "mlp-8", "--rule", "aa", "--epochs", "12", "--ema", "0.9", "--checkpoint-minutes", "0",
            "--backward.name", "Adam", "--devices.accelerator", "cpu", *DATA, "--out", str(run)]  # fmt: skip


def compare(run: Path) -> list[str]:
    return ["compare", "--model", "mlp-8", "--rules", "bp", "fa", "sa", "--epochs", "3", "--seeds", "2", "--workers",
            "0", "--timing-steps", "0", *DATA, "--overwrite", "--out", str(run)]  # fmt: skip


def compare_again(run: Path) -> list[str]:
    resumes = hasattr(untied.lab.compare, "resume") and (run / "config.yaml").is_file()
    return ["compare", "--resume", str(run)] if resumes else compare(run)


def study(kind: str, storage: str) -> Callable[[Path], list[str]]:
    def words(run: Path) -> list[str]:
        what = {"transfer": ["--rules", "bp", "sa", "--models", "mlp-8", "--seeds", "2"],
                "search": ["--trials", "5", "--startup", "3", "--prune", "none"]}[kind]  # fmt: skip
        run_words = in_run([*DATA, "--data.validation", "0.2", "--epochs", "3", "--angles", "weights"])
        url = ["--storage", f"journal:{run / 'study.log'}"] if storage == "journal" else []
        return [kind, *what, "--run.model", "mlp-8", *run_words, "--workers", "0", "--retries", "100000", *url,
                "--out", str(run)]  # fmt: skip

    return words


def resumed(run: Path) -> list[str]:
    if (run / "index.html").is_file():  # it was killed after all was done
        return ["report", str(run)]
    return ["train", "--resume", str(run)] if (run / "config.yaml").is_file() else train(run)


KINDS = {"train": Kind(train, resumed, of_train), "compare": Kind(compare, compare_again, of_table)} | {
    f"{kind}, {storage}": Kind(study(kind, storage), study(kind, storage), of_study)
    for kind in ("transfer", "search") for storage in ("SQLite", "journal")
}  # fmt: skip


def fork(words: list[str], log: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os._exit(command(words))
    return pid


def ended(pid: int, seconds: float) -> int | None:
    """The exit code of a process that ends in time, None of one that does not."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def battery(kind: Kind, kills: int, seconds: float, folder: Path, draw: random.Random) -> dict[str, Any]:
    """Kill so often, or for so long. Returns the counts for the table."""
    counts: dict[str, Any] = {"kills": 0, "runs": 0, "half-written files": 0, "differing": 0, "errors": 0}
    log = folder / "log"
    with log.open("w") as said, redirect_stdout(said), redirect_stderr(said):
        code = command(kind.start(folder / "whole"))  # in this process, so that it has imported all for its forks
    assert code == 0, log.read_text()
    whole = kind.result(folder / "whole")
    began = time.monotonic()
    assert ended(fork(kind.start(folder / "again"), log), PATIENCE) == 0, log.read_text()
    took = time.monotonic() - began
    assert kind.result(folder / "again") == whole, "two runs without a kill differ"
    until = time.monotonic() + seconds
    while counts["kills"] < kills and time.monotonic() < until:
        run = folder / f"run{counts['runs']}"
        counts["runs"] += 1
        pid = fork(kind.start(run), log)
        while True:
            left = counts["kills"] < kills and time.monotonic() < until
            code = ended(pid, draw.uniform(0, 0.8 * took) if left else PATIENCE)
            if code is not None:
                break
            kill(pid)
            if not left:
                break
            counts["kills"] += 1
            counts["half-written files"] += any(run.rglob("*.partial"))
            pid = fork(kind.again(run), log)
        if code != 0:
            counts["errors"] += 1
            print(f"{run}: exit code {code}: {log.read_text()[-500:]}")
        elif kind.result(run) != whole:
            counts["differing"] += 1
            found = kind.result(run)
            for name in (name for name in whole if found[name] != whole[name]):
                print(f"{run}: {name} is {str(found[name])[:1500]}, without kills {str(whole[name])[:1500]}")
    return counts


def main() -> int:
    """Run the battery and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Kill commands at random moments.")
    parser.add_argument("--kills", type=int, default=80, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=60.0, help="of each kind, at most; the last run is let end")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plots.save = lambda *given: None  # figures would take most of the time, and nothing goes on from them
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        lines = []
        for name in given.kinds:
            folder = Path(temporary) / name.replace(", ", "-")
            folder.mkdir()
            counts = battery(KINDS[name], given.kills, 60 * given.minutes, folder, random.Random(given.seed))
            bad += counts["differing"] + counts["errors"]
            lines.append(f"| {name} | " + " | ".join(str(number) for number in counts.values()) + " |")
            print(lines[-1], flush=True)
    print("\n| killed | " + " | ".join(counts) + " |\n|---|" + "--:|" * len(counts))
    print("\n".join(lines))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
