"""The rules of every route side by side: errors through B, through a product of two kernels, and broadcast.

    python benchmarks/routes.py train digits                    three fresh seeds; about 8 minutes on 2 cores
    python benchmarks/routes.py train cifar10 --root FILE       10,000 images of CIFAR-10 (JPEG), a .npz file
    python benchmarks/routes.py train validation --root FILE    other settings of dfa and pfa there, one seed
    python benchmarks/routes.py train angles                    feedback alignment, B at 0, 30, 60, 90 degrees to W
    python benchmarks/routes.py page                            results/routes/README.md from runs/routes-*

Coefficients are those of `untied compare`'s `tuned:` names, chosen on the validation split of the digits with
other seeds. Forward settings were chosen for backpropagation. The table of CIFAR-10 carries them over and chooses
nothing; below it is what other settings do on validation images, with one seed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from untied.lab.keeping.record import RunFolder

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "routes"
END = "<!-- /tables -->"
RULES = ("bp", "fa", "tuned:dfa", "tuned:drtp", "tuned:dkp", "tuned:pfa", "tuned:ldfa", "tuned:kp", "tuned:sa", "mkp")
ANGLES = (0, 30, 60, 90)
VALIDATED = (
    "pfa", "pfa(decay=0.003)", "dfa(kernel=position, scale=0.03)", "dfa(kernel=position, scale=0.1)",
    "pfa(decay=0.01)", "bp",
)  # fmt: skip
CIFAR = ("--data", "cifar10", "--epochs", "5", "--data.batch-size", "64")

COMPARISONS: dict[str, tuple[int, list[str]]] = {
    "digits": (10, ["--data", "digits", "--rules", *RULES]),
    "cifar10": (0, [*CIFAR, "--rules", *RULES]),
    "validation": (3, [*CIFAR, "--evaluate-on", "validation", "--no-frozen", "--rules", *VALIDATED]),
    **{
        f"angles-{angle}": (10, ["--data", "digits", "--rules", "bp", "fa", "--init", f"angle({angle})", "--no-frozen"])
        for angle in ANGLES
    },
}
"""Name: first seed, and the settings of compare."""


def folder(name: str) -> Path:
    return Path("runs") / f"routes-{name}"


def train(prefix: str, seeds: int, root: Path | None, workers: int) -> None:
    """The comparisons whose name begins so."""
    for name, (first, settings) in COMPARISONS.items():
        if name.startswith(prefix):
            command = [sys.executable, "-m", "untied", "compare", "--out", str(folder(name)), "--overwrite"]
            command += ["--seeds", str(seeds), "--first-seed", str(first), "--timing-steps", "0"]
            command += ["--workers", str(workers), *settings, *(["--data.root", str(root)] if root else [])]
            subprocess.run(command, check=True)


def source(run: RunFolder, command: str) -> str:
    """Settings, commit and machine of a run, in a sentence."""
    made, config = run.environment(), run.config()
    commit = ((made["git"] or {}).get("commit") or "unknown")[:9]
    return (
        f"`{config['model']}`, {config['epochs']} epochs of batches of {config['data']['batch_size']}, "
        f"{config['seeds']} seeds from {config['first_seed']}; commit {commit}, "
        f"{made['machine']['cpu']}, {made['machine']['cores']} cores, "
        f"torch {made['packages']['torch']}: `python benchmarks/routes.py train {command}`"
    )


def cell(values: list[float | None], factor: float = 1.0) -> str:
    known = [factor * v for v in values if v is not None]
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{spread}" if known else "–"


def page() -> None:
    """The tables, and their rows as files; what was written by hand below them stays."""
    OUT.mkdir(parents=True, exist_ok=True)
    text = ["# Every route side by side\n", f"{(__doc__ or '').split(chr(10) * 2)[2]}\n"]
    for name, title in (("digits", "Digits"), ("cifar10", "CIFAR-10 (JPEG), 10,000 images")):
        if not folder(name).is_dir():
            continue
        run = RunFolder.open(folder(name))
        rows: list[dict[str, Any]] = run.read_json("results.json")
        text += [f"## {title}\n", f"{source(run, name)}\n"]
        text += ["| rule | test accuracy, % | minus fa, paired | weight angle, ° | gradient angle, ° | note |"]
        text += ["|:--|--:|--:|--:|--:|:--|"]
        base = next(row for row in rows if row["rule"] == "fa")["accuracies"]
        for row in rows:
            paired = cell([a - b for a, b in zip(row["accuracies"], base, strict=True)], 100)
            angles = [f"{row[k]:.1f}" if row[k] is not None else "–" for k in ("weight_angle", "gradient_angle")]
            cells = [f"`{row['rule']}`", cell(row["accuracies"], 100), paired if row["rule"] != "fa" else ""]
            text.append(f"| {' | '.join([*cells, *angles, '; '.join(row.get('signs') or [])])} |")
        text.append("")
        keep(OUT / f"{name}.csv", rows)
    if folder("validation").is_dir():
        run = RunFolder.open(folder("validation"))
        text += ["## CIFAR-10 (JPEG): other settings, on validation images\n"]
        text += [f"{source(run, 'validation')}\n", "| rule | validation accuracy, % |", "|:--|--:|"]
        rows = run.read_json("results.json")
        text += [f"| `{row['rule']}` | {cell(row['accuracies'], 100)} |" for row in rows] + [""]
        keep(OUT / "validation.csv", rows)
    found = [angle for angle in ANGLES if folder(f"angles-{angle}").is_dir()]
    if found:
        runs = {angle: RunFolder.open(folder(f"angles-{angle}")) for angle in found}
        text += ["## Feedback alignment from an angle\n", f"{source(runs[found[0]], 'angles')}\n"]
        text += [
            "| B₀ at | test accuracy, % | weight angle at the end, ° | gradient angle at the end, ° |",
            "|--:|--:|--:|--:|",
        ]
        for angle, run in runs.items():
            row = next(row for row in run.read_json("results.json") if row["rule"] == "fa")
            angles = [f"{row[k]:.1f}" for k in ("weight_angle", "gradient_angle")]
            text.append(f"| {angle}° | {' | '.join([cell(row['accuracies'], 100), *angles])} |")
        text.append("")
    readme = OUT / "README.md"
    below = readme.read_text(encoding="utf-8").partition(END)[2] if readme.is_file() else "\n"
    readme.write_text("\n".join(text) + f"{END}{below}", encoding="utf-8")
    print(readme)


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Each run's accuracy."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rule", "accuracies", "weight_angle", "gradient_angle"])
        for row in rows:
            accuracies = " ".join("" if a is None else f"{a:.4f}" for a in row["accuracies"])
            table.writerow([row["rule"], accuracies, row["weight_angle"], row["gradient_angle"]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("which", choices=["digits", "cifar10", "validation", "angles"])
    training.add_argument("--seeds", type=int, default=3)
    training.add_argument("--root", type=Path, help="of the data")
    training.add_argument("--workers", type=int, default=2)
    commands.add_parser("page")
    given = parser.parse_args()
    if given.command == "page":
        page()
    else:
        train(given.which, given.seeds, given.root, given.workers)
