"""The local rule beside backpropagation under five optimizers, over their learning rates, and over batch sizes.

    python benchmarks/local_rule_optimizers.py train     results/local-rule/optimizers.csv; some minutes on one core
    python benchmarks/local_rule_optimizers.py page      optimizers.md and optimizers.png beside it

A tanh network of four hidden layers of 64 units on the digits, 6 epochs, batches of 32 where it is not said otherwise
(198 steps), a cosine, gradients clipped at a norm of 5. Learning rates span 1.5 decades, set before any run. Nothing is
tuned for `mkp`. Weight decay is 0.1 for AdamW and 0 for the others. Muon moves the matrices, and AdamW of rate 0.003
biases. Batch sizes are under SGD with momentum 0.9 at a rate of 0.03, so that the larger ones take fewer steps. Rules
of a seed have the same initial W and the same order of images; differences are paired, with Student's interval at
95 %.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from small_runs import accuracy, angles, cosine, digits, made, network, paired, publish, read, train, write
from torch import nn

from untied.lab.showing.style import STYLE, looks

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "local-rule"
MODEL = "mlp-64-64-64-64-tanh"
EPOCHS = 6
RULES = ("bp", "mkp", "mkp(noise=lattice)")
MEASURED = ("accuracy", "weight_angle", "gradient_angle")

Parameters = list[nn.Parameter]
Make = Callable[[Parameters, float], list[torch.optim.Optimizer]]


def muon(W: Parameters, lr: float) -> list[torch.optim.Optimizer]:
    matrices, others = [w for w in W if w.dim() == 2], [w for w in W if w.dim() != 2]
    return [torch.optim.Muon(matrices, lr, weight_decay=0.0), torch.optim.AdamW(others, 0.003, weight_decay=0.0)]


OPTIMIZERS: dict[str, tuple[Make, tuple[float, ...]]] = {
    "SGD": (lambda W, lr: [torch.optim.SGD(W, lr)], (0.03, 0.1, 0.3, 1.0)),
    "SGD, momentum 0.9": (lambda W, lr: [torch.optim.SGD(W, lr, 0.9)], (0.01, 0.03, 0.1, 0.3)),
    "Adam": (lambda W, lr: [torch.optim.Adam(W, lr)], (0.001, 0.003, 0.01, 0.03)),
    "AdamW": (lambda W, lr: [torch.optim.AdamW(W, lr, weight_decay=0.1)], (0.001, 0.003, 0.01, 0.03)),
    "Muon": (muon, (0.01, 0.03, 0.1, 0.3)),
}
BATCHES = (16, 32, 64, 128, 256, 512)
BATCH = "batch size"


def settings() -> list[tuple[str, float, Make, float, int]]:
    """Panel, place on its axis, optimizer, learning rate, batch."""
    rates = [(name, lr, make, lr, 32) for name, (make, given) in OPTIMIZERS.items() for lr in given]
    make = OPTIMIZERS["SGD, momentum 0.9"][0]
    return rates + [(BATCH, float(batch), make, 0.03, batch) for batch in BATCHES]


def run(seeds: range) -> None:
    rows, about = [], made()
    for panel, at, make, lr, batch in settings():
        for rule in RULES:
            for seed in seeds:
                data, model = digits(batch, seed), network(MODEL, rule, seed)
                torch.manual_seed(2_000_003 + seed)
                W = [p for name, p in model.named_parameters() if "backward" not in name]
                train(model, data, EPOCHS, make(W, lr), cosine)
                model.eval()
                found = (accuracy(model, data.test), *angles(model, data.test))
                measured = dict(zip(MEASURED, (f"{v:.3f}" for v in found), strict=True))
                rows.append({"panel": panel, "at": at, "rule": rule, "seed": seed, **measured, "made": about})
            print(panel, at, rule, [row["accuracy"] for row in rows[-len(seeds) :]], flush=True)
        write(OUT / "optimizers.csv", rows)


def page() -> None:
    rows = read(OUT / "optimizers.csv")
    seeds = sorted({int(row["seed"]) for row in rows})
    found: dict[tuple[str, float, str], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((row["panel"], float(row["at"]), row["rule"]), []).append(row)
    text = ["# The local rule under other optimizers, rates and batches\n", (__doc__ or "").split("\n\n", 2)[2]]
    text += [
        f"{len(seeds)} seeds from {seeds[0]}; {rows[0]['made']}: `python benchmarks/local_rule_optimizers.py train`\n",
        "![Test accuracy over the learning rate under each optimizer, and over the batch size](optimizers.png)\n",
        "| optimizer | at | bp, % | mkp minus bp (95 %) | lattice minus bp (95 %) | gradient angle, mkp, ° |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for panel, at in dict.fromkeys((panel, at) for panel, at, _ in found):
        values = {rule: [float(row["accuracy"]) for row in found[panel, at, rule]] for rule in RULES}
        differences = ["{:+.2f} ± {:.2f}".format(*paired(values[rule], values["bp"])) for rule in RULES[1:]]
        base = f"{statistics.fmean(values['bp']):.1f} ± {statistics.stdev(values['bp']):.1f}"
        angle = statistics.fmean(float(row["gradient_angle"]) for row in found[panel, at, "mkp"])
        text.append(f"| {panel} | {at:g} | {base} | {' | '.join(differences)} | {angle:.1f} |")
    every = {rule: [float(r["accuracy"]) for key, group in found.items() if key[2] == rule for r in group]
             for rule in RULES}  # fmt: skip
    for rule in RULES[1:]:
        below = np.subtract(every[rule], every["bp"])
        text.append(
            f"\nOver all {len(below)} pairs `{rule}` minus `bp` is {below.mean():+.2f} in the mean, "
            f"{np.median(below):+.2f} in the median, and lies within 1 point in {np.mean(np.abs(below) <= 1):.0%}."
        )
    figure(found).savefig(OUT / "optimizers.png", dpi=90, metadata={"Software": None})
    publish(OUT / "optimizers.md", [*text, ""])


def figure(found: dict[tuple[str, float, str], list[dict[str, str]]]) -> Figure:
    """Mean accuracy and its range over seeds."""
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(10, 6), layout="constrained")
        for axes, panel in zip(drawn.subplots(2, 3, sharey=True).flat, [*OPTIMIZERS, BATCH], strict=True):
            for rule, look in looks(RULES).items():
                places = [at for p, at, r in found if p == panel and r == rule]
                values = np.array([[float(row["accuracy"]) for row in found[panel, at, rule]] for at in places])
                mean = values.mean(1)
                spread = np.abs(np.stack([values.min(1), values.max(1)]) - mean)
                axes.errorbar(places, mean, spread, color=look.colour, marker=look.marker, linestyle=look.dash,
                              markersize=5, capsize=2, label=rule)  # fmt: skip
            axes.set(xscale="log", title=panel, xlabel="images a batch" if panel == BATCH else "learning rate")
        drawn.axes[-1].set_xticks(BATCHES, map(str, BATCHES))
        drawn.axes[-1].minorticks_off()
        drawn.axes[0].set_ylabel("test accuracy, %")
        drawn.axes[3].set_ylabel("test accuracy, %")
        drawn.axes[0].legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--seeds", type=int, default=3)
    training.add_argument("--first-seed", type=int, default=30)
    commands.add_parser("page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "page":
        page()
    else:
        run(range(given.first_seed, given.first_seed + given.seeds))
