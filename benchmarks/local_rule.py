"""The mirrored Kolen-Pollack rule against backpropagation, paired by seed: same weights, same order of images.

    python benchmarks/local_rule.py train --networks digits     all whose name begins so
    python benchmarks/local_rule.py page                         results/local-rule/README.md from runs/local-rule-*

Nothing is tuned for `mkp`. Forward settings are those of `untied compare`, which were chosen for backpropagation; the
other rules have compare's presets. The interval is Student's, of the mean paired difference, at 95 %.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from scipy import stats

from untied.lab.keeping.record import RunFolder

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "local-rule"
LATTICE = "mkp(noise=lattice)"
END = "<!-- /tables -->"
RULES = ("bp", "mkp", LATTICE, "tuned:sa", "tuned:kp", "fa")
NORMAL = ("bp", "mkp", "mkp(until=0)", LATTICE)
PLAIN = "mlp-" + "-".join(["64"] * 19)

NETWORKS: dict[str, tuple[str, int, tuple[str, ...], list[str]]] = {
    "digits/resnet18-w8": ("resnet18-w8", 5, RULES, []),
    "digits/resnet34-w8": ("resnet34-w8", 3, RULES, []),
    "digits/resnet50-w8": ("resnet50-w8", 3, RULES, []),
    "digits/mlp-20-layers": (PLAIN, 5, RULES, ["--forward.lr", "0.01"]),
    "digits/mlp-20-never-at-rest": (PLAIN, 5, NORMAL, ["--forward.lr", "0.01"]),
    "digits/mlp-20-calibrated": (PLAIN, 5, NORMAL, ["--forward.lr", "0.01", "--calibrate", "16"]),
}
"""Name: network, seeds, rules, further settings of compare."""


def folder(name: str) -> Path:
    return Path("runs") / f"local-rule-{name.replace('/', '-')}"


def train(names: list[str], first: int, workers: int) -> None:
    """One comparison for each network."""
    for name, (model, seeds, rules, extra) in NETWORKS.items():
        if not any(name.startswith(given) for given in names):
            continue
        command = [sys.executable, "-m", "untied", "compare", "--out", str(folder(name)), "--overwrite",
                   "--data", name.split("/")[0], "--model", model, "--seeds", str(seeds), "--first-seed", str(first),
                   "--timing-steps", "0", "--workers", str(workers), *extra, "--rules", *rules]  # fmt: skip
        subprocess.run(command, check=True)


def paired(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Mean of the paired differences, and half the width of its 95 % interval."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), spread * float(stats.t.ppf(0.975, len(differences) - 1))


def page() -> None:
    """Accuracy, paired difference from backpropagation, and angles at the end, for each network that was run."""
    OUT.mkdir(parents=True, exist_ok=True)
    text = ["# The local rule against backpropagation\n", f"{(__doc__ or '').split(chr(10) * 2)[2]}\n"]
    readme = OUT / "README.md"
    before, _, below = readme.read_text().partition(END) if readme.is_file() else ("", "", "\n")
    published = {part.partition("\n")[0]: part for part in before.split("\n## ")[1:]}
    for name, (_, seeds, _, extra) in NETWORKS.items():
        if not folder(name).is_dir():  # what was published of a run that is not here stays, and what is written by hand
            text += [f"## {published[name].rstrip()}\n"] if name in published else []
            continue
        run = RunFolder.open(folder(name))
        rows: list[dict[str, Any]] = run.read_json("results.json")
        made, config = run.environment(), run.config()
        text.append(f"## {name}\n")
        text.append(
            f"`{config['model']}`, {config['epochs']} epochs, {seeds} seeds from {config['first_seed']}"
            + (f", {' '.join(extra)}" if extra else "")
            + f"; commit {((made['git'] or {}).get('commit') or 'unknown')[:9]}, {made['machine']['cpu']}, "
            + f"{made['machine']['cores']} cores, torch {made['packages']['torch']}: "
            + f"`python benchmarks/local_rule.py train --networks {name}`\n"
        )
        text.append("| rule | test accuracy, % | minus bp, paired (95 %) | weight angle, ° | gradient angle, ° |")
        text.append("|:--|--:|--:|--:|--:|")
        for row in rows:
            accuracy = [100 * a for a in row["accuracies"]]
            mean, half = paired(accuracy, [100 * a for a in rows[0]["accuracies"]])
            difference = "" if row["rule"] == "bp" else f"{mean:+.2f} ± {half:.2f}"
            angles = [f"{row[k]:.1f}" if row[k] is not None else "–" for k in ("weight_angle", "gradient_angle")]
            cell = f"{statistics.fmean(accuracy):.1f} ± {statistics.stdev(accuracy):.1f}"
            text.append(f"| `{row['rule']}` | {cell} | {difference} | {' | '.join(angles)} |")
        text.append("")
    readme.write_text("\n".join(text) + f"{END}{below}")
    print(readme)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--networks", nargs="+", default=["digits"])
    training.add_argument("--first-seed", type=int, default=10)  # fresh: presets were chosen with the first ones
    training.add_argument("--workers", type=int, default=2)
    commands.add_parser("page")
    given = parser.parse_args()
    if given.command == "page":
        page()
    else:
        train(given.networks, given.first_seed, given.workers)
