"""What a study costs beside its training steps, when one worker trains many small runs: results/study-overhead.

    python benchmarks/study_overhead.py [--seeds 30] [--out FOLDER]

One command, `untied transfer --workers 0` with the default runs on digits and two rules, from the start of its process
to its end, on one thread. Every second of it belongs to one part: a function that is watched counts for its part,
without the watched functions that it calls. The steps, evaluation and angles are what a run is; the rest is overhead.

Two clocks: the wall's, which says most on a machine that nobody else uses, and the process's time on a core, which
others disturb little, but which does not see waiting for a disk.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RULES = ("bp", "tuned:sa")
STEPS, MEASURES, START, REST = "training steps", "evaluation and angles", "start and imports", "the rest"
DATA, BUILD, DATABASE, FILES, PAGE = "data", "building networks", "database", "files", "table, figures and page"
ABOUT = """\
A run is the default one of `untied transfer` on digits: `resnet18-w8`, 7 epochs of 33 steps. Each second of the
command, from the start of its process to its end, is in one part. *On a core* is the process's own time. Where it is
far below the wall's, others used the machine too, and it is the one to go by.
See [docs/studies.md](../../docs/studies.md).
"""
PARTS = (STEPS, MEASURES, START, DATA, BUILD, DATABASE, FILES, PAGE, REST)


class Watch:
    """Divides the time of this process among parts: seconds on the wall and on a core, by part.

    Args:
        began: when the process was started, in seconds since the epoch.
    """

    def __init__(self, began: float) -> None:
        self.seconds = {part: [0.0, 0.0] for part in PARTS}
        self.part, self.since = START, (began, 0.0)

    def enter(self, part: str) -> str:
        """Begin a part. Returns the one before."""
        now, before = (time.time(), time.process_time()), self.part
        for i in range(2):
            self.seconds[before][i] += now[i] - self.since[i]
        self.part, self.since = part, now
        return before

    def watch(self, part: str, owner: Any, *names: str) -> None:
        """Let functions of a module or class count for a part."""
        for name in names:
            inner = owner.__dict__[name]
            of_class = isinstance(inner, classmethod)
            wrapped = self._counted(part, inner.__func__ if of_class else inner)
            setattr(owner, name, classmethod(wrapped) if of_class else wrapped)

    def _counted(self, part: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def counted(*given: Any, **named: Any) -> Any:
            before = self.enter(part)
            try:
                return inner(*given, **named)
            finally:
                self.enter(before)

        return counted


def inside(began: float, said: Path, words: list[str]) -> int:
    """The command, watched, in the process that was started for it. Returns its exit code."""
    watch = Watch(began)
    from untied.lab import cli
    from untied.lab.keeping import record
    from untied.lab.study import config, queue, run, worker
    from untied.lab.training import loop

    watch.watch(STEPS, loop.Run, "epoch")
    watch.watch(MEASURES, loop.Run, "measure", "result")
    watch.watch(BUILD, loop.Run, "__init__")
    watch.watch(DATA, loop, "load")
    watch.watch(FILES, loop.Run, "save", "resume")
    watch.watch(
        FILES, record.RunFolder, "create", "open", "append", "write_json", "write_text", "keep_lines", "metrics"
    )
    watch.watch(DATABASE, queue.Queue, "tend", "take", "tell", "beat", "progress", "ended")
    watch.watch(DATABASE, config.GridConfig, "configs")  # it notes the parameters
    watch.watch(DATABASE, worker._Judge, "see")
    watch.watch(DATABASE, worker.Worker, "place")
    watch.watch(DATABASE, run, "open_storage", "create")
    watch.watch(PAGE, run, "finish")
    watch.enter(REST)
    code = cli.main(words)
    watch.enter(REST)
    said.write_text(json.dumps(watch.seconds))
    return code


def measure(seeds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds on the wall and on a core by part, and the number of runs."""
    with tempfile.TemporaryDirectory() as folder:
        study, said = Path(folder) / "study", Path(folder) / "said.json"
        words = ["transfer", "--rules", *RULES, "--models", "resnet18-w8", "--seeds", str(seeds), "--workers", "0",
                 "--out", str(study)]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        began = time.time()
        subprocess.run([sys.executable, __file__, "inside", str(began), str(said), *words], env=environment, check=True)
        wall = time.time() - began
        seconds: dict[str, list[float]] = json.loads(said.read_text())
        seconds[REST][0] += wall - sum(both[0] for both in seconds.values())  # the process's end
        return seconds, len(json.loads((study / "results.json").read_text()))


def main(seeds: int, out: Path) -> None:
    """Measure, and write the table."""
    seconds, runs = measure(seeds)
    from untied.lab.keeping.environment import environment

    rows = dict(seconds)
    rows["overhead: all but the first two"] = [sum(seconds[part][i] for part in PARTS[2:]) for i in range(2)]
    head = ("part", "wall (s)", "% of the steps", "on a core (s)", "% of the steps", "ms a run")
    table = []
    for part, (wall, core) in rows.items():
        shares = [100 * clock / steps for clock, steps in zip((wall, core), seconds[STEPS], strict=True)]
        table.append((part, f"{wall:.1f}", f"{shares[0]:.1f}", f"{core:.1f}", f"{shares[1]:.1f}",
                      f"{1000 * core / runs:.0f}"))  # fmt: skip
    about = environment()
    git, machine = about["git"] or {"commit": "unknown", "dirty": False}, about["machine"]
    made = (f"{runs} runs by one worker, commit {git['commit'][:9]}{' with changes' if git['dirty'] else ''}, "
            f"{machine['cpu']}, {machine['cores']} cores, torch {about['packages']['torch']}, one thread. Made by "
            f"`python benchmarks/study_overhead.py --seeds {seeds}`.")  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in (head, (":--", *["--:"] * 5), *table)]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *table])
    page = "\n".join(["# What a study of small runs costs beside its training", "", made, "", *lines, "", ABOUT])
    (out / "README.md").write_text(page)
    print(page)


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        sys.exit(inside(float(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "study-overhead")
    given = parser.parse_args()
    main(given.seeds, given.out)
