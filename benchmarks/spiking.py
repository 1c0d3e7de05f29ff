"""Weights from spikes: bias and noise of the estimate, and whether Gaussian noise stands for it in training.

    python benchmarks/spiking.py measure      by width and spiking time, and with a shared drive
    python benchmarks/spiking.py train        rdd, SA with matched noise, SA, mkp by spikes, fa, bp on the digits
    python benchmarks/spiking.py figure       drive against response, the jump at threshold, error against time
    python benchmarks/spiking.py page         results/spiking/README.md from what was measured

"Matched" is SA whose B descends to W plus Gaussian noise of the variance of the estimate of its own layer, drawn anew
wherever `rdd` measures anew: the paper's proxy (section 5) at the size that the real estimator has.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

import untied
from untied.layers.layer import untied_layers
from untied.rules import RegressionDiscontinuity
from untied.spiking import Neurons, estimate

OUT = Path(__file__).resolve().parents[1] / "results" / "spiking"
END = "<!-- /tables -->"


@untied.register_rule
class MatchedNoise(RegressionDiscontinuity):
    """rdd with W plus Gaussian noise in the estimate's place, of the variance that the estimator would have."""

    name, title = "matched", "symmetric alignment with matched noise"
    VARIANCE = 20.0  # relative variance of an estimate, times windows over inputs; measured by `measure`

    def visit(self, visit: Any) -> None:
        measured = int(visit.beside["backward_heard"][2])
        if visit.align and (not measured or self.period == 1 or visit.step % self.period == 0):
            W = visit.W.detach()
            fan_in = visit.geometry.patch(W)[2]
            std = math.sqrt(self.VARIANCE * (fan_in - 1) / self.windows) * W.square().mean().sqrt()
            kept = visit.beside["backward_estimate"]
            kept.lerp_(W + std * torch.randn_like(W), max(1 / (measured + 1), 1 / self.average))
            visit.beside["backward_heard"][2] += 1


def write(name: str, rows: list[dict[str, Any]]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), "")  # fmt: skip
    made = {"command": " ".join(["python", *sys.argv]), "commit": commit.stdout.strip(), "cpu": cpu,
            "torch": torch.__version__}  # fmt: skip
    (OUT / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")


def measure(options: argparse.Namespace) -> None:
    """Bias is the regression of the estimate on W less 1, and W's part of the squared error that seeds share."""
    rows = []
    for shared in (0.0, 0.3):
        for width in options.widths:
            for seconds in options.seconds:
                found, errors = [], []
                torch.manual_seed(width)
                W = torch.randn(32, width) / math.sqrt(width)
                start = time.perf_counter()
                for seed in range(options.seeds):
                    torch.manual_seed(1000 + seed)
                    e = estimate(W, windows=round(seconds * 1000 / 30), neurons=Neurons(shared=shared))
                    found.append(e.weight)
                    errors.append(e.error)
                spent = (time.perf_counter() - start) / options.seeds
                each, mean = torch.stack(found), torch.stack(found).mean(0)
                size, noise = W.square().sum(), (each - W).square().sum((1, 2)).mean()
                within = each.var(0).sum()
                bias = ((mean - W).square().sum() - within / options.seeds) / size  # what averaging would leave
                rows.append({
                    "shared": shared, "width": width, "seconds": seconds, "slope": float((mean * W).sum() / size),
                    "bias": float(bias), "variance": float(within / size),
                    "per_window": float(within / size) * seconds * 1000 / 30 / width,
                    "angle": statistics.fmean(untied.metrics.angle(w, W) for w in found),
                    "z": float(((each - W) / torch.stack(errors)).std()), "error": float((noise / size).sqrt()),
                    "wall": spent})  # fmt: skip
                print({k: round(v, 3) for k, v in rows[-1].items()}, flush=True)
    write("estimator", rows)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    x = ((x - x.mean()) / x.std()).view(-1, 1, 8, 8)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, y = x[order], y[order]
    return x[:1347], y[:1347], x[1347:], y[1347:]


def network(kind: str) -> nn.Sequential:
    if kind == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def one(kind: str, rule: str, seed: int, epochs: int, lr: float) -> dict[str, Any]:
    x, y, test_x, test_y = digits(seed)
    torch.manual_seed(seed)
    model = network(kind)
    untied.untie_(model, rule)
    weights, others = untied.parameter_groups(model)
    others = [B for B in others if B.requires_grad]
    forward = torch.optim.SGD(weights, lr, momentum=0.9)
    backward = torch.optim.SGD(others, 0.1) if others else None
    torch.manual_seed(1000 + seed)
    start = time.perf_counter()
    for i in range(epochs * 21):
        rows = torch.randint(len(x), (64,))
        with untied.record(model, step=i) as tape:
            task = F.cross_entropy(model(x[rows]), y[rows])
        (task + tape.penalty()).backward()
        for optimizer in (forward, backward):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
    spent = time.perf_counter() - start
    angles = untied.metrics.weight_angles(model)
    names = list(untied_layers(model))[1:]  # no error goes through the first
    model.eval()
    with torch.no_grad():
        right = float((model(test_x).argmax(1) == test_y).double().mean())
    return {"network": kind, "rule": rule, "seed": seed, "accuracy": 100 * right,
            "angle": statistics.fmean(angles[n] for n in names), "seconds": spent}  # fmt: skip


def train(options: argparse.Namespace) -> None:
    rules = ["bp", "fa", "sa"]
    for windows in options.windows:
        rules += [f"{name}(windows={windows}, period={options.period})" for name in ("rdd", "matched")]
    rules += ["mkp(noise=spikes, until=8)", "mkp(until=8)"]
    rows = []
    for kind in options.networks:
        for rule in rules:
            for seed in range(options.seeds):
                rows.append(one(kind, rule, seed, options.epochs, options.lr))
                print(rows[-1], flush=True)
            write("training", rows)


def figure(options: argparse.Namespace) -> None:
    """Fig. 4(b)'s kind: one unit's drive and what arrives at one output, in every window."""
    torch.manual_seed(0)
    W = torch.randn(1, 20)
    W[0, 0] = 5.0
    neurons = Neurons()
    windows = neurons.run(20, 4000)
    R = (windows.trace @ W.T)[:, 0] * 1000
    z = windows.drive[:, 0]
    drawn = Figure(figsize=(8.5, 3.2), layout="constrained")
    left, right = drawn.subplots(1, 2)
    near = (z - 1).abs() <= neurons.bandwidth
    left.plot(z[~near], R[~near], ".", color="0.85", markersize=2)
    for side, colour, word in (
        (near & (z < 1), "tab:blue", "just did not spike"),
        (near & (z >= 1), "tab:red", "spiked"),
    ):
        line = torch.linalg.lstsq(torch.stack([torch.ones_like(z[side]), z[side] - 1], 1), R[side, None]).solution[:, 0]
        ends = torch.stack([z[side].min(), z[side].max()])
        left.plot(z[side], R[side], ".", color=colour, markersize=2, alpha=0.25)
        left.plot(ends, line[0] + line[1] * (ends - 1), color=colour, linewidth=3, label=word, zorder=3)
    left.axvline(1, color="0.5", linewidth=0.8)
    left.set(xlabel="highest drive of the window", ylabel="what arrives downstream", title="The jump at threshold")
    left.legend(frameon=False)
    seconds = [6, 12, 25, 50, 100, 200]
    for width in (16, 64, 256):
        W = torch.randn(16, width)
        errors = []
        for s in seconds:
            e = estimate(W, windows=round(s * 1000 / 30))
            errors.append(float(((e.weight - W).square().sum() / W.square().sum()).sqrt()))
        right.loglog(seconds, errors, "o-", label=f"{width} inputs")
    right.set(xlabel="seconds of spiking", ylabel="‖Ŵ − W‖ / ‖W‖", title="The error falls with the root of time")
    right.legend(frameon=False)
    drawn.savefig(options.image, dpi=80)


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def page(options: argparse.Namespace) -> None:
    text = ["# Weights from spikes, on the digits\n"]
    for name in ("estimator", "training"):
        if not (OUT / f"{name}.csv").is_file():
            continue
        made = json.loads((OUT / f"{name}.json").read_text())
        rows = list(csv.DictReader((OUT / f"{name}.csv").open()))
        text.append("## The estimator\n" if name == "estimator" else "## Training with a learning rate of 0.01\n")
        text.append(f"`{made['command']}`; commit {made['commit']}, {made['cpu']}, one thread of a machine that others "
                    f"used, torch {made['torch']}\n")  # fmt: skip
        if name == "estimator":
            heads = ["shared drive", "inputs", "seconds of spiking", "relative error", "slope on W", "bias²", "noise²",
                     "noise² · windows / inputs", "weight angle, °", "spread of (Ŵ − W) / error"]  # fmt: skip
            text += [f"| {' | '.join(heads)} |", "|" + "--:|" * len(heads)]
            for r in rows:
                text.append("| " + " | ".join([
                    r["shared"], r["width"], r["seconds"], *(f"{float(r[k]):.3f}" for k in ("error", "slope", "bias",
                    "variance")), f"{float(r['per_window']):.1f}", f"{float(r['angle']):.1f}", f"{float(r['z']):.2f}",
                ]) + " |")  # fmt: skip
        else:
            text += [
                "| network | rule | test accuracy, % | each seed | weight angle, ° | seconds |",
                "|:--|:--|--:|--:|--:|--:|",
            ]
            for key in dict.fromkeys((r["network"], r["rule"]) for r in rows):
                own = [r for r in rows if (r["network"], r["rule"]) == key]
                cells = [spread([float(r[k]) for r in own]) for k in ("accuracy", "angle")]
                cells.insert(1, ", ".join(f"{float(r['accuracy']):.1f}" for r in own))
                wall = statistics.fmean(float(r["seconds"]) for r in own)
                text.append(f"| {key[0]} | `{key[1]}` | {' | '.join(cells)} | {wall:.1f} |")
        text.append("")
    readme = OUT / "README.md"
    below = readme.read_text().partition(END)[2] if readme.is_file() else "\n"
    readme.write_text("\n".join(text) + END + below)
    print(readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--widths", type=int, nargs="+", default=[16, 64, 256])
    measuring.add_argument("--seconds", type=float, nargs="+", default=[15, 60, 240])
    measuring.add_argument("--seeds", type=int, default=4)
    training = commands.add_parser("train")
    training.add_argument("--networks", nargs="+", default=["mlp", "conv"], choices=["mlp", "conv"])
    training.add_argument("--windows", type=int, nargs="+", default=[400, 2000])
    training.add_argument("--period", type=int, default=20)
    training.add_argument("--epochs", type=int, default=10)
    training.add_argument("--lr", type=float, default=0.01)  # with 0.05 a noisy or random B ends many runs at chance
    training.add_argument("--seeds", type=int, default=3)
    drawing = commands.add_parser("figure")
    drawing.add_argument("--image", type=Path, default=OUT / "jump.png")
    commands.add_parser("page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"measure": measure, "train": train, "figure": figure, "page": page}[options.command](options)


if __name__ == "__main__":
    main()
