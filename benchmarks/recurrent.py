"""Recurrent networks under BPTT and under rules with a B of their own: the adding problem, and digits as sequences.

    python benchmarks/recurrent.py            all of it, half an hour on one thread of a busy machine
    python benchmarks/recurrent.py choose     forward settings for bp, and kp's decay, on validation data
    python benchmarks/recurrent.py train      every rule with what was chosen, on test data, fresh seeds
    python benchmarks/recurrent.py causes     feedback alignment in one layer alone, and from B = W
    python benchmarks/recurrent.py cost       a step of the untied LSTM over PyTorch's own
    python benchmarks/recurrent.py page       README.md and the figure from what was measured

Forward settings were chosen for backpropagation through time (bp) out of four, on validation data and with another
seed than the runs below; every rule has them. `kp` has its preset's decay, and a second time the best of three on
validation data, which is the decay of W too, so that `bp` is run with it once more. `sa` has its preset's optimizer,
and for `mkp` nothing was tuned. In `frozen` the recurrent layer stays as it was drawn and the readout alone learns.

The adding problem is that of Hochreiter and Schmidhuber (1997) in the form of Arjovsky et al. (2016): values from
U[0, 1], one marked in each half of the sequence, the target their sum. Who knows neither value has an error of 1/6,
who knows one has 1/12. (In 1997: U[-1, 1], marks among the first ten and in the first half, the sum scaled to [0, 1].)
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

import untied
from untied.lab.keeping.environment import environment
from untied.lab.models.sequence import recurrent
from untied.lab.showing.style import STYLE, colours
from untied.rules import parse

OUT = Path(__file__).resolve().parents[1] / "results" / "recurrent"
END = "<!-- /tables -->"
WIDTH, BATCH, CLIP, POINTS = 64, 64, 1.0, 6
CHOOSING, FIRST = 0, 10  # the seed that chooses; the first of those that are reported
Batch = tuple[Tensor, Tensor]


# The tasks


def adding(n: int, length: int, generator: torch.Generator) -> Batch:
    """([n, length, 2] values and marks, [n, 1] sums of the two values that are marked)."""
    values = torch.rand(n, length, generator=generator)
    marks = torch.zeros(n, length)
    for low, high in ((0, length // 2), (length // 2, length)):
        marks.scatter_(1, torch.randint(low, high, (n, 1), generator=generator), 1.0)
    return torch.stack([values, marks], -1), (values * marks).sum(1, keepdim=True)


@dataclass(frozen=True)
class Adding:
    """New sequences in every batch."""

    length: int
    features, outputs, lower, unit, score_name = 2, 1, True, "", "mean squared error"

    def batch(self, generator: torch.Generator, split: str) -> Batch:
        return adding(BATCH, self.length, generator)

    def held_out(self, split: str) -> Batch:
        return adding(1000, self.length, torch.Generator().manual_seed({"validation": 1, "test": 2}[split]))

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out, y)

    def score(self, out: Tensor, y: Tensor) -> float:
        return float(F.mse_loss(out, y))


@functools.cache
def digits() -> Batch:
    """([1797, 64] pixels, labels), in an order that is the same for all seeds."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return ((x - x.mean()) / x.std())[order], y[order]


@dataclass(frozen=True)
class Digits:
    """8 × 8 images, a row or a pixel at each step. The last 450 are for the test, and 270 before them choose."""

    features: int
    outputs, lower, unit, score_name = 10, False, " %", "accuracy"

    @property
    def length(self) -> int:
        return 64 // self.features

    def part(self, rows: slice) -> Batch:
        x, y = digits()
        return x[rows].view(-1, self.length, self.features), y[rows]

    def batch(self, generator: torch.Generator, split: str) -> Batch:
        x, y = self.part(slice(0, 1077 if split == "validation" else 1347))
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        return x[rows], y[rows]

    def held_out(self, split: str) -> Batch:
        return self.part(slice(1077, 1347) if split == "validation" else slice(1347, None))

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y)

    def score(self, out: Tensor, y: Tensor) -> float:
        return 100 * float((out.argmax(1) == y).double().mean())


@dataclass(frozen=True)
class Setting:
    """A task, a kind of layer, and how many steps it trains. A long task may take over another's choices (``like``),
    and be run with some rules alone."""

    kind: str
    data: Any
    steps: int
    title: str
    seeds: int
    like: str = ""
    rules: tuple[str, ...] = ()


SETTINGS = {
    "adding-lstm": Setting("lstm", Adding(20), 600, "Adding problem, 20 steps, LSTM", 3),
    "rows-rnn": Setting("rnn", Digits(8), 300, "Digits row by row, 8 steps, RNN", 3),
    "rows-gru": Setting("gru", Digits(8), 300, "Digits row by row, 8 steps, GRU", 3),
    "pixels-gru": Setting(
        "gru", Digits(1), 400, "Digits pixel by pixel, 64 steps, GRU", 3, "rows-gru", ("bp", "fa", "mkp", "frozen")
    ),
}


# The rules


@dataclass(frozen=True)
class Forward:
    """What moves W."""

    name: str
    lr: float

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.name == "SGD":
            return torch.optim.SGD(groups, self.lr, momentum=0.9)
        return torch.optim.AdamW(groups, self.lr, weight_decay=0.0)

    def __str__(self) -> str:
        return f"{self.name}(lr={self.lr:g})"


GRID = {str(f): f for f in (Forward("SGD", 0.1), Forward("SGD", 0.3), Forward("AdamW", 0.003), Forward("AdamW", 0.01))}
DECAYS = {"SGD": (0.001, 0.01, 0.03), "AdamW": (0.01, 0.1, 0.5)}
"""Of kp, for each optimizer: SGD's is inside the gradient, AdamW's beside it."""
PRESET = 0.01


@dataclass(frozen=True)
class Way:
    """A rule, the weight decay of W (and of a B that copies), whether the recurrent layer stays as drawn, where B
    starts, and the one layer that has the rule, if not all."""

    rule: str
    decay: float = 0.0
    frozen: bool = False
    init: str = "like"
    only: str = ""


CAUSES = {
    "fa, the recurrent layer alone": Way("fa", only="rnn"),
    "fa, the readout alone": Way("fa", only="fc"),
    "fa, B = W at first": Way("fa", init="copy"),
    "kp(decay=0.1)": Way("copy", 0.1),
}
CAUSED = "adding-lstm"


def ways(decay: float) -> dict[str, Way]:
    """What is compared, with the decay that was chosen for kp. `copy` and one decay for both is kp under any optimizer
    (docs/maths.md, section 9)."""
    return {
        "bp": Way("bp"),
        "fa": Way("fa"),
        f"kp(decay={PRESET:g})": Way("copy", PRESET),
        f"kp(decay={decay:g})": Way("copy", decay),
        "sa": Way("sa"),
        "mkp": Way("mkp"),
        f"bp, W's decay {decay:g}": Way("bp", decay),
        "frozen": Way("bp", frozen=True),
    }


def network(setting: Setting, way: Way, seed: int) -> Any:
    """The same W for every rule of a seed."""
    data = setting.data
    torch.manual_seed(seed)
    model = recurrent((data.length, data.features), data.outputs, kind=setting.kind, width=WIDTH)
    untied.untie_(model, way.rule, way.only or None, way.init)
    if way.only:
        untied.untie_(model, "bp")
    if way.frozen:
        model.rnn.requires_grad_(False)
    return model


def stepper(model: nn.Module, way: Way, forward: Forward) -> Callable[[int, Callable[[], Tensor]], float]:
    """One training step, given its number and the task's loss; returns that loss."""
    W, B = untied.parameter_groups(model)
    W, B = [p for p in W if p.requires_grad], [p for p in B if p.requires_grad]
    copies = B if parse(way.rule).copies_gradient else []
    optimizer = forward.make([{"params": part, "weight_decay": way.decay} for part in (W, copies) if part])
    aligning = torch.optim.SGD(B, 0.5) if B and not copies else None  # sa's preset

    def step(i: int, loss: Callable[[], Tensor]) -> float:
        with untied.record(model, step=i) as tape:
            task = loss()
        model.zero_grad()
        (task + tape.penalty()).backward()
        norm = nn.utils.get_total_norm([p.grad for p in W if p.grad is not None])
        nn.utils.clip_grads_with_norm_([*W, *copies], CLIP, norm)  # a copy is clipped by W's norm
        optimizer.step()
        if aligning is not None:
            aligning.step()
        return float(task.detach())

    return step


def look(model: Any, setting: Setting, x: Tensor, y: Tensor) -> dict[str, float]:
    """Score on held-out data; the recurrent layer's gradient angle to BPTT, and BPTT's norm, on 256 examples."""
    with torch.no_grad():
        score = setting.data.score(model(x), y)
    table = untied.metrics.measure(model, lambda: setting.data.loss(model(x[:256]), y[:256]))
    rnn = table.layers["rnn"]
    W = model.rnn.weight_hh_l0
    between = untied.metrics.angle(W, model.rnn.backward_kernel("weight_hh_l0", W))
    return {"score": score, "gradient_angle": rnn.gradient_angle, "gradient_norm": rnn.gradient_norm,
            "weight_angle": between, "readout_angle": table.layers["fc"].weight_angle}  # fmt: skip


def train(setting: Setting, way: Way, forward: Forward, seed: int, split: str, points: int) -> list[dict[str, float]]:
    """What `look` saw, at the start and at so many places; nothing more once the loss is not finite."""
    model, data = network(setting, way, seed), setting.data
    step, generator = stepper(model, way, forward), torch.Generator().manual_seed(1000 + seed)
    x, y = data.held_out(split)
    seen = [{"step": 0, **look(model, setting, x, y)}] if points > 1 else []
    start = time.process_time()
    for i in range(setting.steps):
        given, wanted = data.batch(generator, split)
        if not math.isfinite(step(i, lambda g=given, w=wanted: data.loss(model(g), w))):  # type: ignore[misc]
            nothing = dict.fromkeys(("score", "gradient_angle", "gradient_norm", "weight_angle", "readout_angle"))
            return [*seen, {"step": i, **{k: math.nan for k in nothing}, "seconds": time.process_time() - start}]
        if (i + 1) * points % setting.steps < points:
            seen.append({"step": i + 1, **look(model, setting, x, y)})
    return [*seen[:-1], seen[-1] | {"seconds": time.process_time() - start}]


# The stages


def choose(names: list[str]) -> None:
    """Every forward setting under bp and fa, then kp's decays with bp's best one."""
    for name in names:
        if SETTINGS[name].like:
            continue
        rows = [tried(name, rule, Way(rule), forward) for rule in ("bp", "fa") for forward in GRID.values()]
        best = GRID[min(rows[: len(GRID)], key=lambda row: badness(name, row))["forward"]]
        rows += [tried(name, "kp", Way("copy", decay), best) for decay in DECAYS[best.name]]
        write("choices", [r for r in read("choices") if r["setting"] != name] + rows)


def tried(name: str, rule: str, way: Way, forward: Forward) -> dict[str, Any]:
    score = train(SETTINGS[name], way, forward, CHOOSING, "validation", 1)[-1]["score"]
    print(name, rule, forward, way.decay, f"{score:.4g}", flush=True)
    return {"setting": name, "rule": rule, "forward": str(forward), "decay": way.decay, "score": score}


def badness(name: str, row: dict[str, Any]) -> float:
    """Lower is better; a run that diverged is the worst."""
    score = float(row["score"])
    return math.inf if not math.isfinite(score) else score if SETTINGS[name].data.lower else -score


def chosen(name: str) -> tuple[Forward, float]:
    """bp's best forward setting on validation data, and kp's best decay with it."""
    name = SETTINGS[name].like or name
    rows = [r for r in read("choices") if r["setting"] == name]
    first, second = (
        min((r for r in rows if r["rule"] == rule), key=lambda r: badness(name, r)) for rule in ("bp", "kp")
    )
    return GRID[first["forward"]], float(second["decay"])


def run(names: list[str], seeds: int | None, rules: list[str]) -> None:
    """Every rule with what was chosen."""
    for name in names:
        setting, compared = SETTINGS[name], ways(chosen(name)[1])
        several(
            name,
            {rule: way for rule, way in compared.items() if rule in (setting.rules or [rule])},
            seeds,
            "runs",
            rules,
        )


def several(name: str, compared: dict[str, Way], seeds: int | None, file: str, rules: list[str]) -> None:
    """Train each, or those of ``rules`` alone; rows of others stay."""
    setting, (forward, _) = SETTINGS[name], chosen(name)
    runs, curves = [], []
    compared = {rule: way for rule, way in compared.items() if rule in (rules or [rule])}
    for (rule, way), seed in itertools.product(compared.items(), range(FIRST, FIRST + (seeds or setting.seeds))):
        found = train(setting, way, forward, seed, "test", POINTS)
        key = {"setting": name, "rule": rule, "seed": seed}
        runs.append(key | {"start_angle": found[0]["gradient_angle"], **found[-1]})
        curves += [key | {k: f[k] for k in ("step", "score", "gradient_angle", "gradient_norm")} for f in found]
        print(*key.values(), *(f"{v:.4g}" for v in found[-1].values()), flush=True)
    for into, rows in ((file, runs), ("curves", curves)):
        if into == file or file == "runs":
            kept = [r for r in read(into) if r["setting"] != name or r["rule"] not in compared]
            write(into, kept + rows, name if file == "runs" else file)


SIZES = ((20, 2, 64, 64), (32, 64, 256, 64))
"""Steps, features, width, batch."""


def lstm(kind: str, features: int, width: int) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.LSTM(features, width, batch_first=True)
    if kind == "by hand":
        return Cells(features, width)
    if not kind.startswith("plain"):
        untied.untie_(layer, kind)
    return layer


class Cells(nn.Module):
    """An `nn.LSTMCell` called at each step: what plain PyTorch takes where the steps are not in one call."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(features, width)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        state, outs = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            outs.append(state[0])
        return torch.stack(outs, 1), None


def timed(layer: nn.Module, x: Tensor, i: int) -> float:
    """Seconds of this process's CPU time for forward and backward passes, R with them."""
    start = time.process_time()
    out: Any
    if isinstance(layer, untied.Untied):
        with untied.record(layer, step=i) as tape:
            out = layer(x)[0].square().mean()
        (out + tape.penalty()).backward()
    else:
        layer(x)[0].square().mean().backward()
    spent = time.process_time() - start
    with torch.no_grad():  # W moves, as `mkp` measures only then
        for p in layer.parameters():
            p.mul_(1.0)
    layer.zero_grad()
    return spent


def cost(rounds: int) -> None:
    """Plain, plain again, cells by hand and rules take turns; ratios are to the plain layer in the same round."""
    kinds, rows = ("plain", "plain again", "by hand", "bp", "fa", "kp", "sa", "mkp(until=1)", "mkp(until=0)"), []
    for steps, features, width, batch in SIZES:
        layers = {kind: lstm(kind, features, width) for kind in kinds}
        x = torch.randn(batch, steps, features).requires_grad_()  # as in a network: an error goes on to what is below
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        for i in range(rounds + 3):
            for kind, layer in layers.items():
                seconds = timed(layer, x, i)
                if i >= 3:
                    found[kind].append(seconds)
        for kind, values in found.items():
            ratios = [a / b for a, b in zip(values, found["plain"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            rows.append({"steps": steps, "features": features, "width": width, "batch": batch, "kind": kind,
                         "ratio": middle, "low": low, "high": high,
                         "ms": 1000 * statistics.median(values), "rounds": rounds})  # fmt: skip
            print(*rows[-1].values(), flush=True)
    write("cost", rows)


def read(name: str) -> list[dict[str, Any]]:
    path = OUT / f"{name}.csv"
    return list(csv.DictReader(path.open(newline=""))) if path.is_file() else []


def write(name: str, rows: list[dict[str, Any]], made_by: str = "") -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    made = json.loads((OUT / "environment.json").read_text()) if (OUT / "environment.json").is_file() else {}
    made[made_by or name] = environment() | {"command": " ".join(["python", *sys.argv])}
    (OUT / "environment.json").write_text(json.dumps(made, indent=1) + "\n")


# What is shown


def spread(values: Iterable[float], form: str) -> str:
    """Mean ± standard deviation; a dash where a run has none."""
    given = list(values)
    if not all(map(math.isfinite, given)):
        return "–"
    return f"{statistics.fmean(given):{form}} ± {statistics.stdev(given):{form}}"


def paired(ours: list[float], theirs: list[float], form: str) -> str:
    """The mean of the differences in one seed, with Student's 95 % interval."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, differences)):
        return "–"
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.fmean(differences):+{form}} ± {half:{form}}"


def source(stage: str) -> str:
    made = json.loads((OUT / "environment.json").read_text())[stage]
    commit = (made["git"] or {}).get("commit", "unknown")[:9]
    return (f"`{made['command']}`; commit {commit}, {made['machine']['cpu']}, {made['machine']['threads']} thread of "
            f"{made['machine']['cores']} cores that others used, torch {made['packages']['torch']}")  # fmt: skip


HEADS = ("rule", "test {score}", "minus bp, paired (95 %)", "gradient angle before training, °", "at the end, °",
         "norm of BPTT's gradient", "angle of W_hh and B, °", "of the readout's, °")  # fmt: skip


def table(name: str, rows: list[dict[str, Any]], base: list[float]) -> Iterator[str]:
    """A row for each rule of a setting."""
    data = SETTINGS[name].data
    form = ".4f" if data.lower else ".1f"
    heads = [h.format(score=data.score_name + ("," + data.unit if data.unit else "")) for h in HEADS]
    yield f"| {' | '.join(heads)} |"
    yield "|:--|" + "--:|" * (len(heads) - 1)
    for rule in dict.fromkeys(r["rule"] for r in rows):
        own = [r for r in rows if r["rule"] == rule]
        values = [float(r["score"]) for r in own]
        angles = [spread((float(r[k]) for r in own), ".1f") for k in ("start_angle", "gradient_angle")]
        norm = statistics.fmean(float(r["gradient_norm"]) for r in own)
        cells = [spread(values, form), paired(values, base, form) if rule != "bp" else "", *angles,
                 f"{norm:.2g}" if math.isfinite(norm) else "–",
                 *(spread((float(r[k]) for r in own), ".1f") for k in ("weight_angle", "readout_angle"))]  # fmt: skip
        if rule == "frozen":
            cells[2:] = ["–"] * 5
        yield f"| `{rule}` | {' | '.join(cells)} |"
    yield ""


def section(name: str) -> Iterator[str]:
    """What a setting gave, and how it was made."""
    setting, (forward, decay) = SETTINGS[name], chosen(name)
    rows = [r for r in read("runs") if r["setting"] == name]
    if not rows:
        return
    base = [float(r["score"]) for r in rows if r["rule"] == "bp"]
    where = f" in `{setting.like}`" if setting.like else ""
    yield f"## {setting.title}\n"
    yield f"{len(base)} seeds, {setting.steps} steps; chosen{where}: {forward} for `bp`, a decay of {decay:g} for `kp`."
    yield f"{source(name)}.\n"
    yield from table(name, rows, base)
    causes = [r for r in read("causes") if r["setting"] == name]
    if causes:
        yield "Why: feedback alignment in one of the layers, `bp` in the other, and from B = W; `kp` with more decay."
        yield f"{source('causes')}.\n"
        yield from table(name, causes, base)


def page() -> None:
    """Tables, and the figure; what was written by hand below them stays."""
    intro = (__doc__ or "").split("\n\n")
    text = ["# Recurrent networks\n", intro[2] + "\n", intro[3].strip() + "\n"]
    text += [f"Networks of {WIDTH} units, one recurrent layer and a readout of its last state; batches of {BATCH}, "
             f"gradients clipped to a norm of {CLIP:g}; seeds from {FIRST}, which decide W, B and batches; "
             "test data are the same for all seeds. Mean ± standard deviation over seeds; angles and norms are the "
             "recurrent layer's weights', on 256 test examples.\n",
             "![Score and gradient angle over training](curves.png)\n"]  # fmt: skip
    for name in SETTINGS:
        text += section(name)
    text += ["## What was tried on validation data\n", f"One seed; {source('choices')}.\n",
             f"| setting | rule | {' | '.join(f'`{f}`' for f in GRID)} |",
             "|:--|:--|" + "--:|" * len(GRID)]  # fmt: skip
    choices = read("choices")
    for name, rule in itertools.product(SETTINGS, ("bp", "fa")):
        found = {r["forward"]: r["score"] for r in choices if (r["setting"], r["rule"]) == (name, rule)}
        if found:
            text.append(f"| {name} | `{rule}` | {' | '.join(rounded(name, found[f]) for f in GRID)} |")
    text += ["", "| setting | `kp`'s decay: score |", "|:--|:--|"]
    for name in SETTINGS:
        own = [r for r in choices if (r["setting"], r["rule"]) == (name, "kp")]
        if own:
            scores = ", ".join(f"{r['decay']}: {rounded(name, r['score'])}" for r in own)
            text.append(f"| {name} | {scores} |")
    if read("cost"):
        text += ["", "## What an untied LSTM costs\n",
                 "Forward and backward pass, no optimizer, CPU time of one thread; the ratio to `nn.LSTM` in the same "
                 f"round, its median over {read('cost')[0]['rounds']} rounds and its middle half. `plain again` is a "
                 "second plain layer, a null control; `by hand` is plain PyTorch with an `nn.LSTMCell` called at each "
                 f"step. {source('cost')}.\n",
                 "| steps, features, width, batch | layer | over `nn.LSTM` | middle half | ms |",
                 "|:--|:--|--:|--:|--:|"]  # fmt: skip
        text += [f"| {r['steps']}, {r['features']}, {r['width']}, {r['batch']} | `{r['kind']}` | "
                 f"{float(r['ratio']):.2f} | {float(r['low']):.2f}–{float(r['high']):.2f} | {float(r['ms']):.1f} |"
                 for r in read("cost")]  # fmt: skip
    readme = OUT / "README.md"
    below = readme.read_text(encoding="utf-8").partition(END)[2] if readme.is_file() else "\n"
    readme.write_text("\n".join([*text, "", END]) + below, encoding="utf-8")
    figure().savefig(OUT / "curves.png", dpi=110, metadata={"Software": None})
    print(readme)


def rounded(name: str, score: str) -> str:
    value = float(score)
    return "–" if not math.isfinite(value) else f"{value:.4f}" if SETTINGS[name].data.lower else f"{value:.1f}"


def figure() -> Figure:
    """Score above, gradient angle below, for three settings; mean, and a band over seeds."""
    curves = read("curves")
    shown = [n for n in ("adding-lstm", "rows-rnn", "pixels-gru") if any(r["setting"] == n for r in curves)]
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(1.5 + 4.2 * len(shown), 7.2), layout="constrained")
        axes = drawn.subplots(2, len(shown), squeeze=False)
        for column, name in enumerate(shown):
            rows, data = [r for r in curves if r["setting"] == name], SETTINGS[name].data
            above, below = axes[:, column]
            rules = [r for r in dict.fromkeys(r["rule"] for r in rows) if not r.startswith("bp,")]
            palette = colours(rules)
            for rule, (axis, key) in itertools.product(rules, ((above, "score"), (below, "gradient_angle"))):
                own: dict[int, list[float]] = {}
                for r in rows:
                    if r["rule"] == rule and math.isfinite(float(r[key])):
                        own.setdefault(int(r["step"]), []).append(float(r[key]))
                if own:
                    style = {"frozen": "dotted", f"kp(decay={PRESET:g})": "dashed"}.get(rule, "solid")
                    axis.plot(list(own), [statistics.fmean(v) for v in own.values()], color=palette[rule], label=rule,
                              linestyle=style, linewidth=1.8)  # fmt: skip
                    axis.fill_between(list(own), [min(v) for v in own.values()], [max(v) for v in own.values()],
                                      color=palette[rule], alpha=0.15, linewidth=0)  # fmt: skip
            above.set(title=SETTINGS[name].title, ylabel=f"test {data.score_name}{data.unit}")
            below.set(xlabel="step", ylabel="gradient angle to BPTT, °", ylim=(-5, 185), yticks=range(0, 181, 45))
            below.axhline(90, color="black", linewidth=0.8, linestyle=":")
            if data.lower:
                above.set_yscale("log")
                for value, word in ((1 / 6, "neither value known: 1/6"), (1 / 12, "one value known: 1/12")):
                    above.axhline(value, color="black", linewidth=0.8, linestyle=":")
                    place = {"xycoords": ("axes fraction", "data"), "va": "bottom", "ha": "right"}
                    above.annotate(word, (0.98, 1.1 * value), **place, fontsize=8)
            above.legend(fontsize=8, ncols=2, loc="lower left" if data.lower else "lower right")
        return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help="of choose, train, causes, cost, page; all by default"
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--seeds", type=int, help="instead of each setting's own number")
    parser.add_argument(
        "--rules", nargs="+", default=[], help="of a table, to train these alone; the others' rows stay"
    )
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    torch.set_num_threads(1)
    stages: dict[str, Callable[[], None]] = {
        "choose": lambda: choose(given.settings),
        "train": lambda: run(given.settings, given.seeds, given.rules),
        "causes": lambda: several(CAUSED, CAUSES, given.seeds, "causes", given.rules),
        "cost": lambda: cost(given.rounds),
        "page": page,
    }
    for stage in given.stages or stages:
        if stage not in stages:
            parser.error(f"unknown stage {stage!r}: possible are {', '.join(stages)}")
        stages[stage]()


if __name__ == "__main__":
    main()
