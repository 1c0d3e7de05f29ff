"""What a study costs beside its training steps, when one worker trains many small runs on digits.

    python benchmarks/study_overhead.py [SEEDS]

Wall time of the whole command, from its start to its page, in parts: bare training steps; the runs' own evaluation,
angles and files; the rest (start, imports, data, database, polling, table, figures and page).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main(seeds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "untied", "transfer", "--rules", "bp", "sa", "--models", "resnet18-w8", "--seeds",
             str(seeds), "--workers", "0", "--out", f"{folder}/study"],
            check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        wall = time.perf_counter() - began
        rows = json.loads((Path(folder) / "study/results.json").read_text())
    results = [result for row in rows for result in row["results"]]
    steps = sum(result["training_seconds"] for result in results)
    runs = sum(result["seconds"] for result in results)
    parts = {"training steps": steps, "evaluation, angles, files": runs - steps, "the rest": wall - runs, "all": wall}
    print(f"{len(results)} runs")
    for name, seconds in parts.items():
        print(f"{name:<26} {seconds:7.1f} s  {100 * seconds / steps:6.1f} % of the training steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
