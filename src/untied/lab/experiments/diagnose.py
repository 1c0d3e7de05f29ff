"""`untied diagnose`: which layers of a network will diverge, stay or collapse under a rule, before it is trained.

The paper's section 4 explains it for one weight, and its Fig. 2d-f shows one layer of each kind in a ResNet-18 under
weight mirror. Here every layer is probed with its own data; docs/theory.md, section 8, says what is predicted and how.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import untied
from untied.dynamics import time_constant
from untied.errors import UntiedError
from untied.lab.console import say
from untied.lab.data import Dataset
from untied.lab.devices.devices import single_device
from untied.lab.keeping.record import RunFolder, new_folder
from untied.lab.measuring.probe import Probe, probed, spread
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.diagnose import DiagnoseConfig
from untied.lab.settings.entries import parse_entry
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.showing import report, writers
from untied.lab.showing.findings import listed
from untied.lab.showing.scatter import weight_scatter
from untied.lab.showing.style import SOFT, STYLE, logarithmic, save
from untied.lab.training.fitting import check_fit
from untied.lab.training.loop import seed_step
from untied.lab.training.optim import Optimizers
from untied.lab.training.setup import dataset, network, task_of
from untied.lab.training.step import NotFinite, Objective, training_step
from untied.metrics import angle
from untied.primitives.primitive import amp, decay
from untied.rules.algebra import Alignment
from untied.rules.rule import Rule
from untied.schedules import Coefficient, coefficient_text, multiply
from untied.statistics import Statistic

__all__ = ["Diagnosis", "again", "diagnose", "diagnosis", "suggestion"]

SPAN = 2.0
"""B counts as stable where it rests within this factor of W's size."""
REGIMES = {
    "diverging": "B outgrows W more than twofold, or without end",
    "stable": "B rests within a factor of two of W's size",
    "collapsing": "B shrinks to less than half of W's size",
    "still": "nothing moves B",
    "unknown": "R's gradient is not affine in B, which the prediction needs",
}
"""What `Diagnosis.regime` says."""


@dataclass(frozen=True)
class Diagnosis:
    """One layer. Numbers that are not known or do not exist are NaN.

    Attributes:
        layer: its name. power: mean square of the input that a weight multiplies, as amp sees it (over positions,
            their sum or mean as the rule says).
        condition, effective_rank, channels: of the input's second moment over its channels.
        regime: one of `REGIMES`, by ``ratio``.
        ratio, angle: ‖B‖ / ‖W‖ and the angle (degrees) to W where B comes to rest, W standing still; inf if it never
            does.
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
    out = config.out or new_folder("diagnose")
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
    write(folder, config, rows, rule, backward)
    console.print(rich_table(rows))
    for line in (*in_words(rows, rule, backward), failure):
        if line:
            say(console, line)
    say(console, f"written to {folder.path}: table.md, table.csv, results.json, figures/")
    return 1 if failure else 0


def write(
    folder: RunFolder, config: DiagnoseConfig, rows: Sequence[Diagnosis], rule: Alignment, backward: OptimizerConfig
) -> None:
    """Write results, tables, figure and page."""
    folder.write_json("results.json", [asdict(row) for row in rows])
    folder.write_text("table.csv", csv_table(rows))
    folder.write_text("table.md", markdown_table(rows))
    save(picture(rows, rule, config.steps), folder.path / "figures", "diagnosis")
    heads, *lines = cells(rows)
    table = [dict(zip(heads, line, strict=True)) for line in lines]
    section = report.Section("Layers", "\n\n".join(in_words(rows, rule, backward)), rows=table, words=WORDS)
    report.write_html(
        folder, rows=[], title=f"What each layer will do under {rule}", finding=finding(rows, config.steps),
        sections=[section], captions=captions(rows, config.steps),
    )  # fmt: skip


def again(path: Path, console: Console | None = None) -> int:
    """Write a folder's tables, figure and page again, from what it holds. Returns 0.

    Raises:
        UntiedError: its table.csv is not what ``diagnose`` wrote.
    """
    folder = RunFolder.open(path)
    config = from_mapping(DiagnoseConfig, folder.config(), f"config of {path}")
    rule, backward = parse_entry(str(config.rule), config.backward)
    rule = cast(Alignment, rule)
    types = {f.name: {"float": float, "int": int}.get(str(f.type), str) for f in fields(Diagnosis)}
    try:  # not results.json: JSON has no infinity
        lines = list(csv.DictReader(io.StringIO((path / "table.csv").read_text(encoding="utf-8"))))
        rows = [Diagnosis(**{name: types[name](text) for name, text in line.items()}) for line in lines]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UntiedError(
            f"{path / 'table.csv'} is missing or was changed ({error}): run untied diagnose again"
        ) from error
    write(folder, config, rows, rule, backward)
    say(console or Console(), f"page    {path / 'index.html'}")
    return 0


def prepared(config: DiagnoseConfig) -> tuple[nn.Module, Dataset, Alignment, DiagnoseConfig, OptimizerConfig]:
    """The converted network, its data, its rule, the settings written out, and the backward weights' optimizer."""
    single_device(config.device)  # before anything is built: one that is not there is said in a line
    model: nn.Module | None = None
    if Path(config.model).is_dir():
        from untied.lab.experiments.evaluate import load_run  # here, as it is slow to import

        model, data, run = load_run(Path(config.model), "last")
        if config.rule not in (None, run.rule):
            raise UntiedError(f"the run in {config.model} has the rule {run.rule}: leave --rule out")
        config = replace(
            config, rule=run.rule, data=run.data, task=run.task, forward=run.forward, backward=run.backward
        )
    config = replace(config, rule=config.rule or "wm")
    rule, backward = parse_entry(str(config.rule), config.backward)
    if not rule.combines:
        raise UntiedError(f"{rule} computes B from W, or from measurements of W: there is nothing to diagnose; try wm")
    if not rule.route.like_weight:
        raise UntiedError(f"{rule} has a B in another layout than W's: there is no angle to diagnose; try wm")
    if rule.copies_gradient:
        raise UntiedError(
            f"{rule} also takes W's pseudogradient, which is the task's: R alone says nothing of where B goes"
        )
    if model is None:
        data = dataset(config.data, config.seed, config.device)
        check_fit(as_run(config, rule), data)
        model = network(as_run(config, rule), data)
    return model.to(config.device), data, cast(Alignment, rule), config, backward


def as_run(config: DiagnoseConfig, rule: Rule) -> TrainConfig:
    """The run whose network is looked at; of the folder of a run the model is another, and not asked for."""
    model = "mlp" if Path(config.model).is_dir() else config.model
    return TrainConfig(rule=str(rule), model=model, data=config.data, task=config.task, seed=config.seed)


def cycled(data: Dataset) -> Any:
    """Training batches, epoch after epoch."""
    return itertools.chain.from_iterable(data.train.epoch(number) for number in itertools.count())


def train(model: nn.Module, data: Dataset, rule: Alignment, config: DiagnoseConfig, backward: OptimizerConfig) -> None:
    """Train for ``config.steps`` steps."""
    optimizers = Optimizers(model, rule, config.forward, backward, config.steps)
    task = task_of(as_run(config, rule), data)
    objective = Objective(model, task).train()
    for step, batch in enumerate(itertools.islice(cycled(data), config.steps)):
        images, labels = task.batch(batch)
        seed_step(torch.device(config.device), config.seed, step, 0)
        training_step(objective, images, labels, optimizers, progress=step / config.steps, step=step)


# One layer


def diagnosis(probe: Probe, optimizer: OptimizerConfig) -> Diagnosis:
    """What is predicted of one layer.

    Raises:
        UntiedError: its weights are not finite.
    """
    if not bool(probe.W.isfinite().all() and probe.B.isfinite().all()):
        raise UntiedError(f"layer {probe.name} has weights that are not finite: the run has failed before")
    condition, rank, channels = spread(probe)
    size = float(probe.W.norm())
    rest, rate, fastest, ratio = None, math.nan, math.nan, math.nan
    if probe.is_affine:
        rest, rate, fastest = probe.rest(), probe.rate(), probe.fastest()
        ratio = math.inf if rest is None else float(rest.norm()) / size if size else math.nan
    sgd = optimizer.name == "SGD"
    return Diagnosis(
        layer=probe.name,
        power=probe.power if probe.rule.needs_data else math.nan,
        condition=condition,
        effective_rank=rank,
        channels=channels,
        regime=regime(ratio, fastest),
        ratio=ratio,
        angle=math.nan if rest is None else angle(rest, probe.W),
        steps=float(time_constant(rate, optimizer.lr, optimizer.momentum)) if sgd and rate > 0 else math.nan,
        lr_limit=2 * (1 + optimizer.momentum) / fastest if sgd and fastest > 0 else math.nan,
        suggestion=suggestion(probe.rule, ratio),
    )


def regime(ratio: float, fastest: float) -> str:
    """In a word, from ‖B‖ / ‖W‖ at rest and R's fastest rate."""
    if fastest == 0:
        return "still"
    if math.isnan(ratio):
        return "unknown"
    return "diverging" if ratio > SPAN else "collapsing" if ratio < 1 / SPAN else "stable"


def suggestion(rule: Alignment, ratio: float) -> str:
    """The decay at which B would rest at W's size: B is proportional to 1 / decay in a rule of amp and decay alone."""
    if set(rule.combination) != {amp, decay} or not 0 <= ratio < math.inf or 1 / SPAN <= ratio <= SPAN:
        return ""
    if not ratio:
        return "no input to learn from"
    c = multiply(rule.combination[decay], ratio)
    return "decay=" + (f"{c:.3g}" if isinstance(c, int | float) else coefficient_text(rounded(c)))


def rounded(c: Coefficient) -> Coefficient:
    """A statistic's factor to three digits; anything else as it is."""
    if isinstance(c, Statistic) and isinstance(c.factor, int | float):
        return replace(c, factor=float(f"{c.factor:.3g}"))
    return c


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
    "regime": "regime", "‖B‖/‖W‖": "ratio", "angle °": "angle", "τ (steps)": "steps", "lr below": "lr_limit",
    "suggestion": "suggestion", "measured ‖B‖/‖W‖": "measured_ratio", "measured angle °": "measured_angle",
}  # fmt: skip
WORDS = ("layer", "regime", "suggestion")
TERMINAL = ("condition", "of", "lr below")  # left out there: 80 columns are soon full


def cells(rows: Sequence[Diagnosis], without: Sequence[str] = ()) -> list[list[str]]:
    """Heads, then a line a layer, as text; columns of which nothing is known are left out."""
    table = [[head, *(cell(getattr(row, name)) for row in rows)] for head, name in COLUMNS.items()]
    shown = [column for column in table if column[0] not in without and any(c not in ("–", "") for c in column[1:])]
    return [list(line) for line in zip(*shown, strict=True)]


def cell(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def rich_table(rows: Sequence[Diagnosis]) -> Table:
    """For a terminal of 80 columns."""
    heads, *lines = cells(rows, TERMINAL)
    lines = [[c.removeprefix("decay=") for c in line] for line in lines]
    titles = {head: head.replace(" ", "\n", 1) for head in heads}
    return writers.terminal(heads, lines, WORDS, titles=titles, widths=dict.fromkeys(heads, 4))


def markdown_table(rows: Sequence[Diagnosis]) -> str:
    """In GitHub's Markdown."""
    heads, *lines = cells(rows)
    return writers.markdown(heads, lines, WORDS)


def csv_table(rows: Sequence[Diagnosis]) -> str:
    """In full precision."""
    return writers.comma_separated(list(COLUMNS.values()), [asdict(row) for row in rows])


def finding(rows: Sequence[Diagnosis], steps: int) -> str:
    """The sum of it, in a line or two."""
    counts = {kind: sum(row.regime == kind for row in rows) for kind in REGIMES}
    predicted = listed([f"{count} {kind}" for kind, count in counts.items() if count])
    said = f"Predicted for {len(rows)} layer{'s' if len(rows) != 1 else ''}: {predicted}."
    measured = [row.measured_ratio for row in rows if math.isfinite(row.measured_ratio)]
    if measured:
        said += f" After {steps} steps ‖B‖ over ‖W‖ lies between {min(measured):.3g} and {max(measured):.3g}."
    return said


def captions(rows: Sequence[Diagnosis], steps: int) -> dict[str, report.Words]:
    """The words of the figures; those of a scatter plot stand for nothing where there is none."""
    measured = [row for row in rows if not math.isnan(row.measured_ratio)]
    predicted = "; ".join(f"{row.layer} {cell(row.ratio)} {row.regime}" for row in extremes(rows))
    alt = f"Dots, one a layer: ‖B‖ over ‖W‖ as predicted at rest, {part(rows)}: {predicted}."
    caption = (
        "The size of each layer's backward weights over its forward weights where they come to rest, as predicted from "
        "the layer's own data before training"
    )
    if measured:
        caption += f", and as measured after {steps} training steps (crosses)"
        found = "; ".join(f"{row.layer} {cell(row.measured_ratio)}" for row in extremes(rows))
        alt += f" Crosses, measured after {steps} steps: {found}."
    angles = "; ".join(
        f"{row.layer} {cell(row.measured_angle)}°, ‖B‖/‖W‖ = {cell(row.measured_ratio)}" for row in extremes(measured)
    )
    return {
        "diagnosis": report.Words(f"{caption}. On the dotted line B is as large as W.", alt),
        "scatter": report.Words(
            f"Elements of the backward weight against elements of the forward weight after {steps} training steps, as "
            "in Fig. 2d-f: the layer whose B has grown most over W, one that is near W in size, and the one whose B "
            "has shrunk most. On the dotted diagonal B is W.",
            f"Dots, of at most three layers. Measured after {steps} steps, {part(measured)}: {angles}.",
        ),
    }


SHOWN = 24
"""At most so many layers are told one by one in the words of a figure."""


def extremes(rows: Sequence[Diagnosis]) -> list[Diagnosis]:
    """All layers; of very many those with the smallest and the largest predicted ratios, in the network's order."""
    ranked = sorted(rows, key=lambda row: (math.isnan(row.ratio), row.ratio))
    kept = {row.layer for row in (*ranked[: SHOWN // 2], *ranked[-(SHOWN // 2) :])}
    return [row for row in rows if row.layer in kept]


def part(rows: Sequence[Diagnosis]) -> str:
    """Which layers `extremes` tells of."""
    return "of every layer" if len(rows) <= SHOWN else f"the smallest and the largest of {len(rows)}"


COLOURS = {"diverging": "#D55E00", "stable": "#009E73", "collapsing": "#0072B2"}
MARKERS = {"diverging": "^", "stable": "o", "collapsing": "v"}


def picture(rows: Sequence[Diagnosis], rule: Alignment, steps: int) -> Figure:
    """‖B‖ / ‖W‖ of every layer, predicted at rest and, if there were steps, measured after them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 0.3 * len(rows) + 3.0), 4.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(1.0, color="black", linestyle=":", linewidth=1)
        for name in dict.fromkeys(row.regime for row in rows):
            own = [i for i, row in enumerate(rows) if row.regime == name and 0 < row.ratio < math.inf]
            axes.plot(own, [rows[i].ratio for i in own], MARKERS.get(name, "s"),
                      color=COLOURS.get(name, SOFT), label=f"{name}: predicted at rest")  # fmt: skip
        measured = [i for i, row in enumerate(rows) if 0 < row.measured_ratio < math.inf]
        if measured:
            axes.plot(measured, [rows[i].measured_ratio for i in measured], "x", color="black", markersize=7,
                      label=f"measured after {steps} steps")  # fmt: skip
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
        axes.set_xticks(range(len(rows)), [row.layer for row in rows], rotation=90, fontsize=8)
        axes.set(ylabel="norm of B over norm of W", title=f"{rule}"[:90])
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        return figure


def in_words(rows: Sequence[Diagnosis], rule: Alignment, optimizer: OptimizerConfig) -> list[str]:
    """The sum of it, in a few lines."""
    found = {kind: [row.layer for row in rows if row.regime == kind] for kind in REGIMES}
    lines = [
        f"{kind}: {len(names)} of {len(rows)} layers, {names[0]} for one ({REGIMES[kind]})"
        for kind, names in found.items() if names
    ]  # fmt: skip
    if any(row.suggestion.startswith("decay=") for row in rows):
        lines.append(
            "suggestion: a decay for each layer (untie_ with a filter); or one rule for all, measured in each layer: "
            f"{rule.name}(decay=balanced, positions=mean), with noise=normal at rest at W itself"
        )
    over = [row for row in rows if row.lr_limit < optimizer.lr]
    if over:
        worst = min(over, key=lambda row: row.lr_limit)
        lines.append(
            f"lr {optimizer.lr:g} makes B oscillate away in {len(over)} layers: {worst.layer} needs less than "
            f"{worst.lr_limit:.3g}; or normalised=true"
        )
    return lines
