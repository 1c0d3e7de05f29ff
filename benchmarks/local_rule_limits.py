"""What the mirrored Kolen-Pollack rule does not do: where its assumptions are broken, one at a time.

    python benchmarks/local_rule_limits.py train         results/local-rule/limits.csv; a few minutes on one core
    python benchmarks/local_rule_limits.py page          results/local-rule/limits.md from it

A tanh network of four hidden layers of 64 units on the digits, 10 epochs of batches of 32 (330 steps), SGD of rate 0.05
with momentum 0.9 and a cosine, gradients clipped at a norm of 5, no weight decay: set before any run, and not tuned.
Every row has the same seeds, the same initial W and order of images. The difference is paired with backpropagation
under the same disturbance; the interval is Student's at 95 %. *Unseen* means that W moves and the copy does not hear of
it, as on hardware where no synaptic update is sent; *seen* is what this library does. Disturbances come at half of the
run unless it is said otherwise. "for ever" is `until=0`: the mirror never rests. The weight angle is the mean over the
layers that carry errors.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from small_runs import (
    Change,
    accuracy,
    angles,
    cosine,
    digits,
    made,
    network,
    paired,
    publish,
    read,
    train,
    write,
)  # fmt: skip
from torch import Tensor, nn

from untied.layers.layer import untied_layers
from untied.rules.mirror import MirroredKolenPollack
from untied.rules.rule import Visit

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "local-rule"
MODEL = "mlp-64-64-64-64-tanh"
EPOCHS, STEPS = 10, 330
HALF = STEPS // 2
MEASURED = ("accuracy", "weight_angle", "gradient_angle")


def nothing(model: nn.Module, step: int) -> None:
    """No disturbance."""


@torch.no_grad()
def set_weight(layer: Any, W: Tensor, seen: bool) -> None:
    """W becomes another; the copy hears of it or does not."""
    if not seen and "backward_follows" in layer.rule.keeps:
        layer.backward_follows.add_(W - layer.weight)
    layer.weight.copy_(W)


def clipped(seen: bool) -> Change:
    """After every step, |W| is at most 0.15 (at the start a weight of these layers is below 0.13)."""

    def change(model: nn.Module, step: int) -> None:
        for layer in untied_layers(model).values():
            set_weight(layer, layer.weight.clamp(-0.15, 0.15), seen)  # type: ignore[operator, union-attr]

    return change


def pruned(seen: bool) -> Change:
    """The smaller half of each W is 0 from half of the run on."""

    def change(model: nn.Module, step: int) -> None:
        for layer in untied_layers(model).values() if step >= HALF else ():
            W: Any = layer.weight
            if step == HALF:
                layer.kept = W.detach().abs() >= W.detach().abs().median()  # type: ignore[assignment]
            set_weight(layer, W * layer.kept, seen)

    return change


def redrawn(seen: bool) -> Change:
    """The third layer's W is drawn anew, once."""

    def change(model: nn.Module, step: int) -> None:
        if step == HALF:
            layer: Any = list(untied_layers(model).values())[2]
            bound = 1 / math.sqrt(layer.in_features)
            set_weight(layer, torch.empty_like(layer.weight).uniform_(-bound, bound), seen)

    return change


def four_bits(stochastic: bool) -> Change:
    """B is stored in 4 bits: levels of −7 to 7 times a seventh of its largest weight at the start, times 1.5."""

    @torch.no_grad()
    def change(model: nn.Module, step: int) -> None:
        for layer in untied_layers(model).values():
            if "backward_follows" in layer.rule.keeps:
                B: Any = layer.backward_weight
                if step == 0:
                    layer.level = float(B.abs().max()) * 1.5 / 7  # type: ignore[assignment]
                x = B.data / layer.level
                x = (x + torch.rand_like(x)).floor() if stochastic else x.round()
                B.data.copy_(x.clamp(-7, 7) * layer.level)

    return change


class Coloured(MirroredKolenPollack):
    """A mirror whose noise is correlated: an autoregression over the inputs of a patch, or over the patches."""

    def __init__(self, correlation: float, over: str, **options: Any) -> None:
        super().__init__(**options)
        self.correlation, self.over = correlation, over

    def measurement(self, visit: Visit, patches: int) -> tuple[Tensor, int]:
        W = visit.W.detach()
        x = torch.randn(patches, W.shape[1])
        x = x if self.over == "inputs" else x.T.contiguous()
        for i in range(1, x.shape[1]):
            x[:, i] = self.correlation * x[:, i - 1] + math.sqrt(1 - self.correlation**2) * x[:, i]
        x = x if self.over == "inputs" else x.T.contiguous()
        return (x @ W.T).T @ x / patches, patches


class Running(MirroredKolenPollack):
    """A mirror without a phase of its own: noise is added to running activity, and the task's errors pass it too.

    Σ (T_W (x + ξ)) ξᵀ / (m σ²) is W in the mean; the task's x adds |x|²/σ² to its relative variance. The gain's
    formula does not know of that.
    """

    def __init__(self, sigma: float, **options: Any) -> None:
        super().__init__(**options)
        self.sigma = sigma

    def measurement(self, visit: Visit, patches: int) -> tuple[Tensor, int]:
        W, (x, noise) = visit.W.detach(), RUNNING.get(visit.name, (None, None))
        if noise is None:  # before the first pass there is nothing that runs
            noise = self.sigma * torch.randn(patches, W.shape[1])
            x = noise
        return (x @ W.T).T @ noise / (len(noise) * self.sigma**2), len(noise)


RUNNING: dict[str, tuple[Any, Any]] = {}
"""By layer: what ran in the last pass, and the noise in it."""


def noisy(model: nn.Module, sigma: float) -> None:
    """Every untied layer's input has noise in training, which is kept."""
    RUNNING.clear()
    for name, layer in untied_layers(model).items():

        def add(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> tuple[Tensor] | None:
            if not (module.training and torch.is_grad_enabled()):
                return None
            noise = sigma * torch.randn_like(inputs[0])
            RUNNING[name] = ((inputs[0] + noise).detach(), noise)
            return (inputs[0] + noise,)

        layer.register_forward_pre_hook(add)


@dataclass(frozen=True)
class Condition:
    """One assumption that is broken.

    Attributes:
        after: is called when W has moved; before: when B has. rate: of the learning rate.
        rules: rows; a class of rule takes the options. noise: on running activity.
    """

    rules: dict[str, Callable[[], Any]]
    after: Change = nothing
    before: Change = nothing
    rate: Callable[[float], float] = cosine
    noise: float = 0.0


def plain(**options: Any) -> Callable[[], MirroredKolenPollack]:
    return lambda: MirroredKolenPollack(**options)


MKP = {"mkp": plain(), "mkp, lattice": plain(noise="lattice")}
FOLLOWING = {
    **MKP,
    "mkp, for ever": plain(until=0),
    "mkp, for ever, forget=0.01": plain(until=0, forget=0.01),
    "mkp, lattice, forget=0.1": plain(noise="lattice", until=0, forget=0.1),
}
CONDITIONS: dict[str, Condition] = {
    "none": Condition(FOLLOWING),
    "learning rate times 3 from half on": Condition(MKP, rate=lambda p: cosine(p) * (1 if p < 0.5 else 3)),
    "learning rate 1/10 from half on": Condition(MKP, rate=lambda p: 1.0 if p < 0.5 else 0.1),
    "W clipped in each step, seen": Condition(MKP, after=clipped(True)),
    "W clipped in each step, unseen": Condition(FOLLOWING, after=clipped(False)),
    "half of W pruned, seen": Condition(MKP, after=pruned(True)),
    "half of W pruned, unseen": Condition(FOLLOWING, after=pruned(False)),
    "one layer redrawn, seen": Condition(MKP, after=redrawn(True)),
    "one layer redrawn, unseen": Condition(FOLLOWING, after=redrawn(False)),
    "B in 4 bits, to the nearest": Condition(MKP, before=four_bits(False)),
    "B in 4 bits, at random": Condition(
        {**MKP, "mkp, for ever, forget=0.01": plain(until=0, forget=0.01)}, before=four_bits(True)
    ),
    **{
        f"noise correlated over {over}, {c:g}": Condition(
            {"mkp": lambda c=c, over=over: Coloured(c, over)}  # type: ignore[misc]
        )
        for over, c in (("inputs", 0.3), ("inputs", 0.6), ("patches", 0.6))
    },
    **{
        f"noise of {s:g} on running activity": Condition({"mkp": lambda s=s: Running(s)}, noise=s)  # type: ignore[misc]
        for s in (0.1, 0.3, 1.0)
    },
}


def one(condition: Condition, rule: Any, seed: int) -> tuple[float, float, float]:
    """Test accuracy, weight angle, gradient angle."""
    data = digits(32, seed)
    model = network(MODEL, rule, seed)
    if condition.noise:
        noisy(model, condition.noise)
    torch.manual_seed(2_000_003 + seed)
    W = [p for n, p in model.named_parameters() if "backward" not in n]
    optimizer = torch.optim.SGD(W, 0.05, momentum=0.9)
    train(model, data, EPOCHS, [optimizer], condition.rate, condition.before, condition.after)
    model.eval()
    return accuracy(model, data.test), *angles(model, data.test)


def run(seeds: range, only: list[str]) -> None:
    chosen = {name: c for name, c in CONDITIONS.items() if not only or any(word in name for word in only)}
    before = read(OUT / "limits.csv") if (OUT / "limits.csv").is_file() else []
    rows: list[dict[str, Any]] = [row for row in before if row["disturbance"] not in chosen]
    about = made()
    for name, condition in chosen.items():
        for label, make in {"bp": lambda: "bp", **condition.rules}.items():
            for seed in seeds:
                found = one(condition, make(), seed)
                measured = dict(zip(MEASURED, (f"{v:.3f}" for v in found), strict=True))
                rows.append({"disturbance": name, "rule": label, "seed": seed, **measured, "made": about})
            print(name, label, [row["accuracy"] for row in rows[-len(seeds) :]], rows[-1]["weight_angle"], flush=True)
        write(OUT / "limits.csv", rows)


def page() -> None:
    rows = read(OUT / "limits.csv")
    seeds = sorted({int(row["seed"]) for row in rows})
    text = ["# Where the local rule's assumptions are broken\n", (__doc__ or "").split("\n\n", 2)[2]]
    about = "; ".join(dict.fromkeys(row["made"] for row in rows))
    text += [
        f"{len(seeds)} seeds from {seeds[0]}; {about}: `python benchmarks/local_rule_limits.py train`\n",
        "| disturbance | rule | test accuracy, % | minus bp, paired (95 %) | weight angle, ° | gradient angle, ° |",
        "|:--|:--|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row["disturbance"] for row in rows):
        here = [row for row in rows if row["disturbance"] == name]
        base = [float(row["accuracy"]) for row in here if row["rule"] == "bp"]
        for rule in dict.fromkeys(row["rule"] for row in here):
            own = [row for row in here if row["rule"] == rule]
            values = [float(row["accuracy"]) for row in own]
            mean, half = paired(values, base)
            difference = "" if rule == "bp" else f"{mean:+.2f} ± {half:.2f}"
            found = [f"{statistics.fmean(float(row[k]) for row in own):.1f}" for k in MEASURED[1:]]
            cells = [name, rule, f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}", difference, *found]
            text.append(f"| {' | '.join(cells)} |")
    publish(OUT / "limits.md", [*text, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--seeds", type=int, default=3)
    training.add_argument("--first-seed", type=int, default=20)
    training.add_argument("--only", nargs="+", default=[], help="disturbances whose names contain one of these")
    commands.add_parser("page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "page":
        page()
    else:
        run(range(given.first_seed, given.first_seed + given.seeds), given.only)
