"""Product feedback alignment: its expansion and the course of its decay, chosen on the digits, shown on CIFAR-10.

    python benchmarks/product_feedback.py train grid                   digits' validation split, runs/routes-grid
    python benchmarks/product_feedback.py train cifar10 --root FILE    10,000 images of CIFAR-10 (JPEG), test images
    python benchmarks/product_feedback.py train control --root FILE    backpropagation with pfa's decays there
    python benchmarks/product_feedback.py page                         results/routes/products.md from runs/routes-*

What R was born with falls by 1 − lr · decay / (1 − momentum) in a step, so that a short run needs a strong decay to
align; but it is W's weight decay too. The path angle has a floor of arctan √(1/expand), a little more in narrow layers.
Backpropagation with the same weight decay shows what of a gap is the decay's and not the rule's. The grid's seeds are
in no test. On CIFAR-10 nothing is chosen.
`--first-seed` and `--seeds` cut the runs into parts, whose folders the page puts together.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from small_runs import END, paired

from untied.lab.keeping.record import RunFolder
from untied.lab.settings.entries import label

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "routes"
DECAYS = ("0.003", "0.01", "0.03", "exponential(0.1, 0.001)", "exponential(0.03, 0.0003)")
GRID = tuple(
    f"pfa(expand={expand}, decay={decay})" for part in (DECAYS[:3], DECAYS[3:]) for expand in (4, 10, 20)
    for decay in part
)  # fmt: skip
CIFAR = ("--data", "cifar10", "--epochs", "5", "--data.batch-size", "64")
WHAT: dict[str, tuple[int, int, list[list[str]]]] = {
    "grid": (3, 2, [["--data", "digits", "--evaluate-on", "validation", "--rules", *GRID]]),
    "cifar10": (0, 3, [[*CIFAR, "--rules", "bp", "tuned:pfa", "tuned:ldfa"]]),
    "control": (0, 3, [[*CIFAR, "--rules", "bp", "--forward.weight-decay", decay] for decay in ("0.01", "0.03")]),
}
"""Name: first seed, seeds, and the settings of each comparison."""


def train(name: str, first: int | None, seeds: int | None, root: Path | None, workers: int) -> None:
    own_first, own_seeds, comparisons = WHAT[name]
    first, seeds = own_first if first is None else first, seeds or own_seeds
    for i, settings in enumerate(comparisons):
        command = [sys.executable, "-m", "untied", "compare", "--overwrite", "--no-frozen", "--timing-steps", "0",
                   "--out", f"runs/routes-{name}-{i}-from-{first}", "--workers", str(workers),
                   "--seeds", str(seeds), "--first-seed", str(first), *settings]  # fmt: skip
        subprocess.run(command + (["--data.root", str(root)] if root else []), check=True)


def gathered(name: str) -> tuple[dict[str, dict[int, dict[str, Any]]], list[RunFolder]]:
    """By rule and seed, the result of every run that has ended in this part's folders; and the folders."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    folders = [RunFolder.open(path) for path in sorted(Path("runs").glob(f"routes-{name}-*"))]
    for run in folders:
        decay = run.config()["forward"]["weight_decay"]
        for result in run.metrics("runs.jsonl"):
            rule = {"control": f"bp, weight decay {decay:g}", "grid": result["rule"]}.get(name, label(result["rule"]))
            found.setdefault(rule, {})[result["seed"]] = result
    return found, folders


def source(folders: list[RunFolder], command: str) -> str:
    """Settings, commits and machines of the folders, in a sentence."""
    config, about = folders[0].config(), dict[str, None]()
    for run in folders:
        made = run.environment()
        commit = ((made["git"] or {}).get("commit") or "unknown")[:9]
        torch = made["packages"]["torch"]
        about[f"commit {commit}, {made['machine']['cpu']}, {made['machine']['cores']} cores, torch {torch}"] = None
    return (
        f"`{config['model']}`, {config['epochs']} epochs of batches of {config['data']['batch_size']}; "
        f"{'; '.join(about)}: `python benchmarks/product_feedback.py train {command}`\n"
    )


def published() -> dict[int, float]:
    """Backpropagation on the same seeds, in results/routes."""
    with (OUT / "cifar10.csv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["rule"] == "bp")
    return dict(enumerate(100 * float(a) for a in row["accuracies"].split()))


def curves() -> list[str]:
    """How the training loss falls, of every run on CIFAR-10, also of those that have not ended."""
    rows: dict[tuple[str, int], dict[int, float]] = {}
    for name in ("cifar10", "control"):
        for run in gathered(name)[1]:
            decay = run.config()["forward"]["weight_decay"]
            for line in run.metrics():
                rule = f"bp, weight decay {decay:g}" if name == "control" else label(line["rule"])
                rows.setdefault((rule, line["seed"]), {})[line["epoch"]] = line["train_loss"]
    if not rows:
        return []
    epochs = range(1, max(e for row in rows.values() for e in row) + 1)
    text = ["## CIFAR-10 (JPEG): the mean training loss of each epoch\n"]
    text += [f"| rule | seed | {' | '.join(f'epoch {e}' for e in epochs)} |", f"|:--|--:|{'--:|' * len(epochs)}"]
    for (rule, seed), row in rows.items():
        losses = [f"{row[e]:.2f}" if e in row else "–" for e in epochs]
        text.append(f"| `{rule}` | {seed} | {' | '.join(losses)} |")
    return [*text, ""]


def cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def mean(results: list[dict[str, Any]], key: str) -> str:
    return f"{statistics.fmean(r[key] for r in results):.1f}"


def page() -> None:
    """The tables, and each run in a file; what was written by hand below them stays."""
    text = ["# Product feedback alignment: expansion and decay\n", (__doc__ or "").split("\n\n", 2)[2]]
    rows = []
    for name, title, what in (
        ("grid", "Digits, validation images", "validation"),
        ("cifar10", "CIFAR-10 (JPEG), 10,000 images, test images", "test"),
        ("control", "CIFAR-10 (JPEG): backpropagation with these decays", "test"),
    ):
        found, folders = gathered(name)
        if not found:
            continue
        head = f"| rule | {what} accuracy, % | minus bp, paired (95 %) | weight angle, ° | gradient angle, ° | seeds |"
        text += [f"## {title}\n", source(folders, name), head, "|:--|--:|--:|--:|--:|:--|"]
        base = {s: 100 * r["accuracy"] for s, r in found.get("bp", {}).items()}
        base = (published() | base) if name != "grid" else {}
        for rule, results in found.items():
            seeds = sorted(results)
            values = [100 * results[s]["accuracy"] for s in seeds]
            difference = ""
            if rule != "bp" and all(s in base for s in seeds):
                theirs = [base[s] for s in seeds]
                difference = "{:+.1f} ± {:.1f}".format(*paired(values, theirs)) if len(seeds) > 1 else (
                    f"{values[0] - theirs[0]:+.1f}")  # fmt: skip
            found_angles = [mean(list(results.values()), k) for k in ("weight_angle", "gradient_angle")]
            cells = [f"`{rule}`", cell(values), difference, *found_angles, ", ".join(map(str, seeds))]
            text.append(f"| {' | '.join(cells)} |")
            rows += [{"part": name, "rule": rule, "seed": s, **{k: results[s][k] for k in KEPT}} for s in seeds]
        text.append("")
    text += curves()
    with (OUT / "products.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    readme = OUT / "products.md"
    below = readme.read_text(encoding="utf-8").partition(END)[2] if readme.is_file() else "\n"
    readme.write_text("\n".join(text) + f"{END}{below}", encoding="utf-8")
    print(readme)


KEPT = ("accuracy", "weight_angle", "gradient_angle")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("which", choices=list(WHAT))
    training.add_argument("--first-seed", type=int)
    training.add_argument("--seeds", type=int)
    training.add_argument("--root", type=Path, help="of the data")
    training.add_argument("--workers", type=int, default=2)
    commands.add_parser("page")
    given = parser.parse_args()
    if given.command == "page":
        page()
    else:
        train(given.which, given.first_seed, given.seeds, given.root, given.workers)
