"""What evaluating R on a part of each batch costs in accuracy: rules at fractions from 1 to 1/16 on the same data.

    python benchmarks/fraction_study.py digits
    python benchmarks/fraction_study.py cifar10 --root FILE        the .npz of JPEG images, 5 epochs, 2 seeds
    python benchmarks/fraction_study.py page runs/fraction-*       results/fraction/README.md

Settings are those of `untied compare`'s presets (benchmarks/tune_digits.py chose them at fraction 1, on validation).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from untied.lab.keeping.record import RunFolder
from untied.lab.settings.entries import PRESETS

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "fraction"
END = "<!-- /tables -->"
FRACTIONS = ("1", "1/2", "1/4", "1/8", "1/16")
RULES = ("ia", "aa")
NAMES = {"cifar10": "CIFAR-10 (JPEG)"}  # which is what --root FILE has


def entries() -> dict[str, tuple[str, str]]:
    """By rule as compare takes it: short name and fraction."""
    found = {"bp": ("bp", "1")}
    for name in RULES:
        rule, at, optimizer = PRESETS[name].partition("@")
        rule = rule.strip() if "(" in rule else f"{rule.strip()}()"
        for fraction in FRACTIONS:
            inside = rule[rule.index("(") + 1 : -1]
            options = ", ".join(filter(None, [inside, f"fraction={fraction}" if fraction != "1" else ""]))
            found[f"{name}({options}) {at}{optimizer}".strip()] = (name, fraction)
    return found


def train(data: str, root: Path | None, seeds: int, epochs: int, model: str, workers: int) -> None:
    """One comparison."""
    out = f"runs/fraction-{data}"
    command = [sys.executable, "-m", "untied", "compare", "--out", out, "--overwrite", "--data", data,
               "--model", model, "--epochs", str(epochs), "--seeds", str(seeds), "--timing-steps", "0",
               "--workers", str(workers), "--rules", *entries()]  # fmt: skip
    if root is not None:
        command += ["--data.root", str(root), "--data.batch-size", "64", "--data.augment", "standard"]
    subprocess.run(command, check=True)


def page(folders: list[Path]) -> None:
    """A table of accuracy by fraction, and each comparison's own table; what stands below the mark stays."""
    OUT.mkdir(parents=True, exist_ok=True)
    text = "# What a fraction costs in accuracy\n\n"
    rules = list(entries().values())
    for folder in map(RunFolder.open, folders):
        config, made = folder.config(), folder.environment()
        rows: dict[tuple[str, str], dict[str, Any]] = dict(zip(rules, folder.read_json("results.json"), strict=True))
        name = config["data"]["name"]
        text += f"**{NAMES.get(name, name)}**: {config['model']}, {config['epochs']} epochs, {config['seeds']} seeds; "
        text += f"test accuracy (%), mean ± standard deviation. Backpropagation: {cell(rows['bp', '1'])}. Commit "
        text += f"{((made['git'] or {}).get('commit') or 'unknown')[:9]}, {made['machine']['cpu']}, "
        text += f"{made['machine']['cores']} cores, torch {made['packages']['torch']}: `python benchmarks/"
        text += f"fraction_study.py {name}`; angles are in [{name}.csv]({name}.csv).\n\n"
        text += f"| rule | {' | '.join(FRACTIONS)} |\n"
        shutil.copy(folder.path / "table.csv", OUT / f"{name}.csv")
        text += f"|:--|{'--:|' * len(FRACTIONS)}\n"
        for rule in RULES:
            text += f"| `{rule}` | {' | '.join(cell(rows[rule, f]) for f in FRACTIONS)} |\n"
        text += "\n"
    readme = OUT / "README.md"
    below = readme.read_text().partition(END)[2] if readme.is_file() else "\n"
    readme.write_text(f"{text}{END}{below}")
    print(OUT / "README.md")


def cell(row: dict[str, Any]) -> str:
    mean, std = row["accuracy_mean"], row["accuracy_std"]
    return "–" if mean is None else f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, model, epochs, seeds in (("digits", "resnet18-w8", 7, 3), ("cifar10", "resnet18-w16", 5, 2)):
        sub = commands.add_parser(name)
        sub.add_argument("--root", type=Path, required=name == "cifar10")
        sub.add_argument("--model", default=model)
        sub.add_argument("--epochs", type=int, default=epochs)
        sub.add_argument("--seeds", type=int, default=seeds)
        sub.add_argument("--workers", type=int, default=2)
    commands.add_parser("page").add_argument("folders", nargs="+", type=Path)
    given = parser.parse_args()
    if given.command == "page":
        page(given.folders)
    else:
        train(given.command, given.root, given.seeds, given.epochs, given.model, given.workers)
