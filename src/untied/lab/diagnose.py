"""`untied diagnose`: which layers of a network will diverge, stay or collapse under a rule, before it is trained.

The paper's section 4 explains it for one weight, and its Fig. 2d-f shows one layer of each kind in a ResNet-18 under
weight mirror. Here every layer is probed with its own data; docs/theory.md, section 8, says what is predicted and how.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import tyro
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import untied
from untied.algebra import Alignment
from untied.dynamics import scalar, time_constant
from untied.errors import UntiedError
from untied.lab.config import CompareConfig, OptimizerConfig, TrainConfig, parse_entry
from untied.lab.data import DataConfig, Dataset
from untied.lab.loop import dataset, network, seed_step
from untied.lab.optim import Optimizers
from untied.lab.plots import STYLE, save, weight_scatter
from untied.lab.probe import Probe, probed, spread
from untied.lab.record import RunFolder
from untied.lab.step import NotFinite, Objective, training_step
from untied.metrics import angle
from untied.primitives import amp, decay

__all__ = ["DiagnoseConfig", "Diagnosis", "diagnose", "diagnosis", "suggestion"]

BALANCED = 1 / 3
"""Decay within a factor of two of amp · x² counts as stable: |decay − amp x²| below a third of their sum."""


@dataclass(frozen=True)
class DiagnoseConfig:
    """Say of each layer whether its backward weights will diverge, stay or collapse under a rule, and what to change."""

    model: Annotated[str, tyro.conf.Positional] = "resnet18-w8"
    """A network, as untied train takes it, freshly initialised; or the folder of a run of untied train."""
    rule: str | None = None
    """The learning rule, perhaps with the optimizer of its backward weights: "wm(decay=2) @ SGD(lr=0.01)". Left out: wm,
    or that of the run."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", batch_size=32, validation=0.2))
    """The data; --data NAME is short for --data.name NAME."""
    batches: int = 4
    """Training batches that are run through the network."""
    examples: int = 32
    """Images of each batch that each layer is probed with."""
    steps: int = 0
    """Then train for so many steps, and show what became of B."""
    seed: int = 0
    """Of initial weights and the order of images."""
    forward: OptimizerConfig = field(default_factory=lambda: CompareConfig().forward)
    """Of the forward weights, if there are steps."""
    backward: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Of the backward weights."""
    device: str = "cpu"
    """Where to compute: cpu, cuda, cuda:1, ..."""
    out: Path | None = None
    """Where to write; runs/diagnose-TIME if left out."""
    overwrite: bool = False
    """Replace what an earlier call has written there."""

    def __post_init__(self) -> None:
        for name, least in (("batches", 1), ("examples", 1), ("steps", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True)
class Diagnosis:
    """One layer. Numbers that are not known or do not exist are NaN.

    Attributes:
        layer: its name. power: mean square of the input that a weight multiplies, as amp sees it (over positions,
            their sum or mean as the rule says).
        condition, effective_rank, channels: of the input's second moment over its channels.
        regime: diverging, stable or collapsing, and others of `untied.dynamics.REGIMES`: decay against amp · power.
        ratio, angle: ‖B‖ / ‖W‖ and the angle (degrees) to W where B comes to rest, W standing still.
        steps: time constant of B's part along W, in steps of the backward optimizer, if that is SGD.
        lr_limit: the learning rate beyond which B oscillates away, with the optimizer's momentum.
        suggestion: what of the rule to change for this layer; empty if nothing.
        measured_ratio, measured_angle: after the training steps that were asked for.
    """

    layer: str
    power: float
    condition: float
    effective_rank: float
    channels: int
    regime: str
    ratio: float
    angle: float
    steps: float
    lr_limit: float
    suggestion: str
    measured_ratio: float = math.nan
    measured_angle: float = math.nan


def diagnose(config: DiagnoseConfig, console: Console | None = None) -> int:
    """Print the table; write results.json, table.csv, table.md and figures. Returns 0, or 1 if the training failed.

    Raises:
        UntiedError: model, rule, data or folder are not what they should be; a rule without dynamics.
    """
    console = console or Console()
    model, data, rule, config, backward = prepared(config)
    out = config.out or Path("runs") / time.strftime("diagnose-%Y%m%d-%H%M%S")
    folder = RunFolder.create(out, replace(config, out=out), overwrite=config.overwrite)
    images = [batch for batch, _ in itertools.islice(cycled(data), config.batches)]
    rows = [diagnosis(probe, backward) for probe in probed(model, images, config.examples)]
    failure = ""
    if config.steps:
        try:
            train(model, data, rule, config, backward)
        except NotFinite as why:
            failure = f"training stopped: {why}"
        ratios, angles = untied.metrics.norm_ratios(model), untied.metrics.weight_angles(model)
        rows = [replace(r, measured_ratio=ratios[r.layer], measured_angle=angles[r.layer]) for r in rows]
        weights = {str(rule): model.state_dict()}
        save(weight_scatter(weights, [r.layer for r in three(rows, weights)]), folder.path / "figures", "scatter")
    folder.write_json("results.json", [asdict(row) for row in rows])
    folder.write_text("table.csv", csv_table(rows))
    folder.write_text("table.md", markdown_table(rows))
    save(picture(rows, rule, config.steps), folder.path / "figures", "diagnosis")
    console.print(rich_table(rows))
    for line in (*in_words(rows, rule, backward), failure):
        if line:
            say(console, line)
    say(console, f"written to {folder.path}: table.md, table.csv, results.json, figures/")
    return 1 if failure else 0


def prepared(config: DiagnoseConfig) -> tuple[nn.Module, Dataset, Alignment, DiagnoseConfig, OptimizerConfig]:
    """The converted network, its data, its rule, the settings written out, and the backward weights' optimizer."""
    if Path(config.model).is_dir():
        from untied.lab.evaluate import load_run  # here, as it is slow to import

        model, data, run = load_run(Path(config.model), "last")
        config = replace(config, data=run.data, forward=run.forward, backward=run.backward,
                         rule=config.rule or run.rule)  # fmt: skip
        rule, backward = parse_entry(config.rule or "", config.backward)
        if str(rule) != run.rule:
            raise UntiedError(f"the run in {config.model} has the rule {run.rule}: leave --rule out")
    else:
        config = replace(config, rule=config.rule or "wm")
        rule, backward = parse_entry(config.rule or "", config.backward)
        if not isinstance(rule, Alignment):
            raise UntiedError(f"{rule} computes B from W at every step: there is nothing to diagnose; try wm")
        data = dataset(config.data, config.seed, config.device)
        model = network(TrainConfig(rule=str(rule), model=config.model, data=config.data, seed=config.seed), data)
    if not isinstance(rule, Alignment):
        raise UntiedError(f"{rule} computes B from W at every step: there is nothing to diagnose; try wm")
    return model.to(config.device), data, rule, config, backward


def cycled(data: Dataset) -> Any:
    """Training batches, epoch after epoch."""
    return itertools.chain.from_iterable(data.train.epoch(number) for number in itertools.count())


def train(model: nn.Module, data: Dataset, rule: Alignment, config: DiagnoseConfig, backward: OptimizerConfig) -> None:
    """Train for ``config.steps`` steps."""
    optimizers = Optimizers(model, rule, config.forward, backward, config.steps)
    objective = Objective(model).train()
    for step, (images, labels) in enumerate(itertools.islice(cycled(data), config.steps)):
        seed_step(config.seed, step, 0)
        training_step(objective, images, labels, optimizers, progress=step / config.steps, step=step)


# One layer


def diagnosis(probe: Probe, optimizer: OptimizerConfig) -> Diagnosis:
    """What is predicted of one layer."""
    power = probe.power if probe.rule.needs_data else math.nan
    condition, rank, channels = spread(probe)
    affine = probe.is_affine
    rest = probe.rest() if affine else None
    size = float(probe.W.norm())
    rate, fastest = (probe.rate(), probe.fastest()) if affine else (math.nan, math.nan)
    sgd = optimizer.name == "SGD" and rate > 0
    beyond = affine and rest is None and rate == rate
    return Diagnosis(
        layer=probe.name,
        power=power,
        condition=condition,
        effective_rank=rank,
        channels=channels,
        regime=regime(probe.rule, power),
        ratio=math.inf if beyond else math.nan if rest is None or not size else float(rest.norm()) / size,
        angle=math.nan if rest is None else angle(rest, probe.W),
        steps=float(time_constant(rate, optimizer.lr, optimizer.momentum)) if sgd else math.nan,
        lr_limit=2 * (1 + optimizer.momentum) / fastest if fastest > 0 else math.inf if fastest == 0 else math.nan,
        suggestion=suggestion(probe.rule, power),
    )


def regime(rule: Alignment, power: float) -> str:
    """What the scalar flow at x² = power says, with some width to the line between divergence and collapse."""
    plain = Alignment(rule.combination)
    d = scalar(plain, math.sqrt(power) if power == power else 1.0, progress=0.5)
    if d.eigenvalues is None:
        return d.regime
    symmetric, skew = d.eigenvalues
    if abs(symmetric) <= BALANCED * abs(skew) and skew > 0:
        return "stable"
    return d.regime


def suggestion(rule: Alignment, power: float) -> str:
    """The decay that balances amp in this layer; empty for a rule without the two, or balanced as it is."""
    c = rule.combination
    if amp not in c or not isinstance(c.get(decay, 0.0), int | float) or set(c) - {amp, decay}:
        return ""
    if not power > 0:
        return "no input: nothing for amp to learn from"
    gain = rule.coefficients(0.5)[amp]
    wanted = float(gain) * power
    return f"decay={wanted:.3g}" if regime(rule, power) != "stable" else ""


# What is shown


def three(rows: Sequence[Diagnosis], weights: Mapping[str, Mapping[str, Tensor]]) -> list[Diagnosis]:
    """The layer whose B has grown most over W, the one nearest to it in size, and the one most shrunk."""
    known = [r for r in rows if r.measured_ratio > 0 and math.isfinite(r.measured_ratio)]
    known = [r for r in known if all(f"{r.layer}.backward_weight" in w for w in weights.values())]
    by_size = sorted(known, key=lambda r: -r.measured_ratio)
    if len(by_size) < 4:
        return by_size
    middle = min(by_size[1:-1], key=lambda r: abs(math.log(r.measured_ratio)))
    return [by_size[0], middle, by_size[-1]]


COLUMNS = {
    "layer": "layer", "mean x²": "power", "condition": "condition", "rank": "effective_rank", "of": "channels",
    "regime": "regime", "‖B‖/‖W‖ at rest": "ratio", "angle °": "angle", "τ (steps)": "steps",
    "lr below": "lr_limit", "suggestion": "suggestion", "‖B‖/‖W‖ measured": "measured_ratio",
    "angle ° measured": "measured_angle",
}  # fmt: skip
WORDS = ("layer", "regime", "suggestion")


def cells(rows: Sequence[Diagnosis]) -> list[list[str]]:
    """Heads, then a line a layer, as text; columns of which nothing is known are left out."""
    table = [[head, *(cell(getattr(row, name)) for row in rows)] for head, name in COLUMNS.items()]
    shown = [column for column in table if any(c not in ("–", "") for c in column[1:])]
    return [list(line) for line in zip(*shown, strict=True)]


def cell(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:.3g}"


def rich_table(rows: Sequence[Diagnosis]) -> Table:
    """For a terminal."""
    heads, *lines = cells(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(
            head.replace(" ", "\n", 1), justify="left" if head in WORDS else "right", no_wrap=head == "layer"
        )
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(rows: Sequence[Diagnosis]) -> str:
    """In GitHub's Markdown."""
    heads, *lines = cells(rows)
    rule = [":--" if head in WORDS else "--:" for head in heads]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *lines))


def csv_table(rows: Sequence[Diagnosis]) -> str:
    """In full precision."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(COLUMNS.values()), lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    return text.getvalue()


COLOURS = {"diverging": "#D55E00", "stable": "#009E73", "stable point": "#009E73", "collapsing": "#0072B2"}


def picture(rows: Sequence[Diagnosis], rule: Alignment, steps: int) -> Figure:
    """‖B‖ / ‖W‖ of every layer, predicted at rest and, if there were steps, measured after them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 0.3 * len(rows) + 3.0), 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(1.0, color="black", linestyle=":", linewidth=1)
        for name in dict.fromkeys(row.regime for row in rows):
            own = [i for i, row in enumerate(rows) if row.regime == name and 0 < row.ratio < math.inf]
            axes.plot(own, [rows[i].ratio for i in own], "o", color=COLOURS.get(name, "#999999"),
                      label=f"{name}: predicted at rest")  # fmt: skip
        measured = [i for i, row in enumerate(rows) if 0 < row.measured_ratio < math.inf]
        if measured:
            axes.plot(measured, [rows[i].measured_ratio for i in measured], "x", color="black", markersize=7,
                      label=f"measured after {steps} steps")  # fmt: skip
        axes.set_yscale("log")
        axes.set_xticks(range(len(rows)), [row.layer for row in rows], rotation=90, fontsize=8)
        axes.set(ylabel="norm of B over norm of W", title=f"{rule}"[:90])
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        return figure


def in_words(rows: Sequence[Diagnosis], rule: Alignment, optimizer: OptimizerConfig) -> list[str]:
    """The sum of it, in a few lines."""
    lines = []
    kinds = {kind: [row.layer for row in rows if row.regime == kind] for kind in dict.fromkeys(r.regime for r in rows)}
    lines.append("; ".join(f"{kind}: {len(names)} of {len(rows)} layers" for kind, names in kinds.items()))
    needed = [row.power for row in rows if row.suggestion.startswith("decay=")]
    if needed:
        lines.append(
            f"a decay for each layer, as suggested, or one for all that is measured: {rule.name}(decay=balanced)"
            + (", best with positions=mean" if rule.positions == "sum" else "")
        )
    over = [row for row in rows if optimizer.name == "SGD" and row.lr_limit < optimizer.lr]
    if over:
        worst = min(over, key=lambda row: row.lr_limit)
        lines.append(
            f"lr {optimizer.lr:g} is too large for {len(over)} layers: B oscillates away; {worst.layer} needs less "
            f"than {worst.lr_limit:.3g}, or normalised=true"
        )
    return lines


def say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
