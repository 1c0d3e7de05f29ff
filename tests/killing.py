"""Kill a run again and again, then let it end: python killing.py RUN KILLS WORDS...

The run's processes are forks of this one, which has imported everything, so that a kill costs no import. Every other
kill is at a random moment, the others are when a file is being written, in turn any file and a checkpoint, which is
done slowly and in two halves. Prints how many kills there were, and how many of them left a checkpoint half-written.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from untied.lab.cli import main
from untied.lab.experiments import train  # noqa: F401


def slowly(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    content = safetensors.torch.save(tensors, metadata)
    with open(path, "wb") as file:
        for half in (content[: len(content) // 2], content[len(content) // 2 :]):
            file.write(half)
            file.flush()
            time.sleep(0.01)


def run_in_a_fork(words: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(words))
    return pid


def wait_for_half_a_file(run: Path, pid: int, kind: str) -> None:
    """Until a half-written file appears, or the run has ended (it stays to be waited for)."""
    before = set(half_written(run, kind))
    while set(half_written(run, kind)) <= before:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def half_written(run: Path, kind: str) -> list[tuple[str, int]]:
    """Names and inode numbers: a name may be used again."""
    found = []
    for path in run.rglob(f".{kind}-*.partial"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path.name, path.stat().st_ino))
    return found


def kill_until_it_ends(run: Path, kills: int, words: list[str]) -> tuple[int, int]:
    random.seed(0)
    killed = torn = 0
    while True:
        started = (run / "config.yaml").exists()
        pid = run_in_a_fork(["train", "--resume", str(run)] if started else ["train", *words, "--out", str(run)])
        if killed < kills:
            kind = "*.safetensors" if killed % 4 == 1 else "*"
            wait_for_half_a_file(run, pid, kind) if killed % 2 else time.sleep(random.uniform(0, 0.5))
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != -signal.SIGKILL:
            assert code == 0, code
            return killed, torn
        killed += 1
        torn += bool(half_written(run, "*.safetensors"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    safetensors.torch.save_file = slowly
    print(*kill_until_it_ends(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
