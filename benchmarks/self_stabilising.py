"""Rules whose coefficients are the same at every depth: the table of results/self-stabilising-digits.

Coefficients and learning rates were chosen on the validation split of resnet18-w8. Train, then make the page of what
the folders hold; an interrupted comparison counts with what it has finished.

    python benchmarks/self_stabilising.py train --models resnet18-w8 resnet34-w8 resnet50-w8 --seeds 3
    python benchmarks/self_stabilising.py page runs/self-stabilising/*
    python benchmarks/self_stabilising.py train --first-seed 3 --seeds 5 --runs runs/fresh --rules bp ...
    python benchmarks/self_stabilising.py fresh runs/fresh/*       the second table: seeds that chose nothing
    python benchmarks/self_stabilising.py depth                    depth.csv and its table: some ten minutes on one core
    python benchmarks/self_stabilising.py validation FOLDER ...    comparisons with --evaluate-on validation
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import untied
from untied.lab.keeping.record import RunFolder
from untied.lab.settings.compare import CompareConfig
from untied.lab.training.setup import dataset, network

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "self-stabilising-digits"
RULES = {
    "bp": "backpropagation",
    "sa @ SGD(lr=0.5, momentum=0)": "SA",
    "aa @ Adam(lr=0.04)": "AA",
    "aa(positions=mean, noise=normal) @ SGD(lr=0.1, momentum=0)": "AA, noise input",
    "ia(null=0.1, positions=mean, noise=normal) @ Adam(lr=0.02)": "IA, noise input",
    "ia(null=1, decay=0.1, positions=mean, normalised=true) @ SGD(lr=0.03, momentum=0)": "IA, normalised",
    "wm(decay=balanced, noise=normal, positions=mean) @ SGD(lr=0.1, momentum=0)": "WM, balanced, noise input, τ = 10",
    "wm(decay=balanced, noise=normal, positions=mean) @ SGD(lr=0.4, momentum=0)": "WM, balanced, noise input, τ = 2.5",
    "wm(decay=balanced, noise=codes, positions=mean) @ SGD(lr=0.1, momentum=0)": "WM, balanced, codes, τ = 10",
    "wm(decay=balanced, noise=normal, positions=mean) @ SGD(lr=0.4, momentum=0, schedule=cosine)": (
        "WM, balanced, noise input, τ from 2.5 on, growing"
    ),
    "wm(positions=mean)": "WM",
    "wm(decay=mean_power, positions=mean) @ SGD(lr=0.01, momentum=0)": "WM, balanced",
}


def train(models: list[str], seeds: int, first: int, runs: Path, rules: list[str]) -> None:
    """One comparison a model, in one process."""
    for model in models:
        command = [
            sys.executable, "-m", "untied", "compare", "--model", model, "--workers", "0", "--timing-steps", "0",
            "--seeds", str(seeds), "--first-seed", str(first), "--out", str(runs / model), "--overwrite",
            "--rules", *rules,
        ]  # fmt: skip
        subprocess.run(command, check=True)


def page(folders: list[Path]) -> None:
    """results.csv of every run, and the table in README.md between its marks."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    about, commits = {}, dict[str, None]()
    for folder in map(RunFolder.open, folders):
        config, made = folder.config(), folder.environment()
        about[config["model"]] = made
        commits[(made["git"] or {}).get("commit", "unknown")[:9]] = None
        for row in folder.read_json("results.json"):
            entry = next((e for e in config["rules"] if e in (row["text"], row["rule"])), row["text"])
            seen = rows.setdefault(
                (entry, config["model"]), {"accuracies": [], "angles": [], "gradients": [], "note": ""}
            )
            seen["accuracies"] += row["accuracies"]
            seen["note"] = row["failure"] or ""
            seen["angles"].append(row["weight_angle"])
            seen["gradients"].append(row["gradient_angle"])
    models = sorted(about, key=lambda name: int("".join(c for c in name.split("-")[0] if c.isdigit())))
    lines = [f"| rule | {' | '.join(models)} | weight angle | gradient angle |", "|:--|" + "--:|" * (len(models) + 2)]
    table = ["rule,model,seed,accuracy"]
    for entry, name in RULES.items():
        cells, angles, gradients = [], [], []
        for model in models:
            row = rows.get((entry, model))
            values = [a for a in (row["accuracies"] if row else []) if a is not None]
            cells.append(cell(values))
            table += [f'"{entry}",{model},{seed},{a:.4f}' for seed, a in enumerate(values)]
            angles += [a for a in (row["angles"] if row else []) if a is not None]
            gradients += [g for g in (row["gradients"] if row else []) if g is not None]
        lines.append(f"| {name} | {' | '.join(cells)} | {span(angles)} | {span(gradients)} |")
    made = next(iter(about.values()))
    lines.append("")
    lines.append(
        f"Test accuracy (%), mean ± standard deviation over the seeds in brackets; angles (°) at the end, least to "
        f"greatest over the networks. Commits {', '.join(commits)}, "
        f"{made['machine']['cpu']}, {made['machine']['cores']} cores, torch {made['packages']['torch']}."
    )
    between("table", lines)
    (OUT / "results.csv").write_text("\n".join(table) + "\n")
    (OUT / "environment.json").write_text(json.dumps(made, indent=2) + "\n")


def fresh(folders: list[Path]) -> None:
    """fresh.csv, and the second table in README.md: rules at seeds after those by which anything was judged."""
    cells, table, commits = {}, ["rule,model,seed,accuracy"], dict[str, None]()
    for folder in sorted(map(RunFolder.open, folders), key=lambda f: f.config()["model"]):
        config, made = folder.config(), folder.environment()
        commits[(made["git"] or {}).get("commit", "unknown")[:9]] = None
        for row in folder.read_json("results.json"):
            cells[RULES[row["text"]], config["model"]] = cell(row["accuracies"])
            first = config["first_seed"]
            table += [f'"{row["text"]}",{config["model"]},{first + i},{a:.4f}' for i, a in enumerate(row["accuracies"])]
    models = list(dict.fromkeys(model for _, model in cells))
    lines = [f"| rule | {' | '.join(models)} |", "|:--|" + "--:|" * len(models)]
    lines += [f"| {r} | {' | '.join(cells[r, m] for m in models)} |" for r in dict.fromkeys(r for r, _ in cells)]
    lines += ["", f"Test accuracy (%), as above. Commits {', '.join(commits)}, the same machine."]
    between("fresh", lines)
    (OUT / "fresh.csv").write_text("\n".join(table) + "\n")


def validation(folders: list[Path]) -> None:
    """validation.csv: what the coefficients were chosen from."""
    lines = ["rule,accuracy,weight_angle,gradient_angle,failed"]
    for row in (row for folder in folders for row in RunFolder.open(folder).read_json("results.json")):
        if row["accuracies"]:
            numbers = (
                "" if row[k] is None else f"{row[k]:.4g}" for k in ("accuracy_mean", "weight_angle", "gradient_angle")
            )
            lines.append(f'"{row["text"]}",{",".join(numbers)},{bool(row["failure"])}')
    (OUT / "validation.csv").write_text("\n".join(dict.fromkeys(lines)) + "\n")


def depth(models: list[str], lrs: list[float], seeds: int, batches: int) -> None:
    """depth.csv: the gradient angle that the estimate's noise alone makes, with W as initialised and B at its rest.

    B starts at W and aligns for three time constants under balanced weight mirror with noise input, without the task. A
    block's last scale is 0 as initialised, so that nearly no kernel carries a gradient: the angle is measured with that
    scale at 0 and at 1, beside the number of kernels with a gradient other than zero. The two share W and B.
    """
    lines = [
        "model,lr,tau_steps,seed,weight_angle_mean,last_scale,kernels,with_gradient,gradient_angle_mean,"
        "gradient_angle_least,gradient_angle_greatest,batches"
    ]
    for lr, model_name, seed in itertools.product(lrs, models, range(seeds)):
        config = CompareConfig(model=model_name)
        data = dataset(config.data, seed, "cpu")
        rule = f"wm(decay=balanced, noise=normal, positions=mean) @ SGD(lr={lr}, momentum=0)"
        model = network(replace(config.run(rule, seed), init="copy"), data).train()
        optimizer = torch.optim.SGD(untied.parameter_groups(model)[1], lr=lr)
        stream = itertools.chain.from_iterable(data.train.epoch(i) for i in itertools.count())
        for images, _ in itertools.islice(stream, math.ceil(3 / lr)):
            with untied.record(model) as tape, torch.no_grad():
                model(images)
            optimizer.zero_grad()
            tape.penalty().backward()
            optimizer.step()
        own = statistics.fmean(untied.metrics.weight_angles(model).values())
        seen = list(itertools.islice(stream, batches))
        last = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
        for scale in (0.0, 1.0):
            for weight in last:
                nn.init.constant_(weight, scale)
            angles = [angle_of(model, *batch) for batch in seen]
            kernels, moved = with_gradient(model, *seen[0])
            lines.append(
                f"{model_name},{lr:g},{1 / lr:g},{seed},{own:.2f},{scale:g},{kernels},{moved},"
                f"{statistics.fmean(angles):.2f},{min(angles):.2f},{max(angles):.2f},{batches}"
            )
            print(lines[-1], flush=True)
        (OUT / "depth.csv").write_text("\n".join(lines) + "\n")
    depth_table()


def angle_of(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The gradient angle of the whole network on one batch."""
    return untied.metrics.gradient_angle(model, lambda: F.cross_entropy(model(images), labels))


def with_gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    """(kernels, those among them whose pseudogradient on one batch is not zero)."""
    weights = [module.weight for module in untied.layers.untied_layers(model).values()]
    with untied.record(model, align=False):
        loss = F.cross_entropy(model(images), labels)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return len(weights), sum(g is not None and bool(g.any()) for g in found)


def depth_table() -> None:
    """The table of depth.csv in README.md: spans over seeds of the mean over batches."""
    with (OUT / "depth.csv").open() as file:
        rows = list(csv.DictReader(file))
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [f"| last scale | τ (steps) | {' | '.join(models)} | weight angle |"]
    lines.append("|--:|--:|" + "--:|" * (len(models) + 1))
    for scale, tau in itertools.product(("1", "0"), dict.fromkeys(row["tau_steps"] for row in rows)):
        here = [row for row in rows if (row["last_scale"], row["tau_steps"]) == (scale, tau)]
        cells = []
        for model in models:
            own = [row for row in here if row["model"] == model]
            cells.append(
                f"{span([float(row['gradient_angle_mean']) for row in own])}° "
                f"({span([float(row['with_gradient']) for row in own], single=True)} of {own[0]['kernels']})"
            )
        weights = span([float(row["weight_angle_mean"]) for row in here])
        lines.append(f"| {scale} | {tau} | {' | '.join(cells)} | {weights}° |")
    seeds, batches = len({row["seed"] for row in rows}), rows[0]["batches"]
    lines += [
        "",
        f"Gradient angle, the mean over {batches} batches, least to greatest over {seeds} seeds. In brackets stand the "
        "kernels whose gradient is not zero.",
    ]
    between("depth", lines)


def between(mark: str, lines: list[str]) -> None:
    """Put the lines into README.md between the mark's comments."""
    readme = OUT / "README.md"
    before, _, rest = readme.read_text().partition(f"<!-- {mark} -->")
    after = rest.partition(f"<!-- /{mark} -->")[2]
    readme.write_text(f"{before}<!-- {mark} -->\n\n" + "\n".join(lines) + f"\n\n<!-- /{mark} -->{after}")


def cell(values: list[float]) -> str:
    """Mean ± standard deviation (seeds), in percent."""
    if not values:
        return "–"
    mean = f"{100 * statistics.fmean(values):.1f}"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean}{spread} ({len(values)})"


def span(values: list[float], single: bool = False) -> str:
    """Least to greatest; one number where ``single`` and they are the same."""
    if single and len(set(values)) == 1:
        return f"{values[0]:.0f}"
    return f"{min(values):.0f}–{max(values):.0f}" if values else "–"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--models", nargs="+", default=["resnet18-w8", "resnet34-w8", "resnet50-w8"])
    training.add_argument("--seeds", type=int, default=3)
    training.add_argument("--first-seed", type=int, default=0)
    training.add_argument("--rules", nargs="+", default=list(RULES))
    training.add_argument("--runs", type=Path, default=Path("runs/self-stabilising"))
    for name in ("page", "fresh", "validation"):
        commands.add_parser(name).add_argument("folders", nargs="+", type=Path)
    probing = commands.add_parser("depth")
    probing.add_argument("--models", nargs="+", default=["resnet18-w8", "resnet34-w8", "resnet50-w8"])
    probing.add_argument("--lrs", nargs="+", type=float, default=[0.4, 0.1, 0.025])
    probing.add_argument("--seeds", type=int, default=3)
    probing.add_argument("--batches", type=int, default=3)
    given = parser.parse_args()
    if given.command == "train":
        train(given.models, given.seeds, given.first_seed, given.runs, given.rules)
    elif given.command == "depth":
        depth(given.models, given.lrs, given.seeds, given.batches)
    else:
        {"page": page, "fresh": fresh, "validation": validation}[given.command](given.folders)
