"""`untied neural`: every layer of every run against every recording; to be interrupted and started again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from threadpoolctl import threadpool_limits
from torch import nn

from untied.errors import UntiedError
from untied.lab.console import interruptible, say
from untied.lab.keeping.record import RunFolder, file_name, new_folder, plain
from untied.lab.neural import figures, fits, recording, summary, tables
from untied.lab.neural.features import features
from untied.lab.neural.fits import Fit
from untied.lab.neural.layers import Layer, chosen, trace
from untied.lab.neural.networks import PIXELS, Network, networks
from untied.lab.neural.preprocess import Prepared, Seeing, prepare
from untied.lab.neural.recording import Recording
from untied.lab.settings.neural import NeuralConfig
from untied.lab.showing import report
from untied.lab.showing.findings import listed
from untied.lab.showing.style import save

__all__ = ["again", "neural"]

FREE = ("runs", "recording", "out", "overwrite", "memory", "device", "root")
"""What may change when a comparison goes on: fits that depend on it say so themselves."""


def neural(config: NeuralConfig, console: Console | None = None) -> int:
    """Fit, and write the folder. Returns the exit code: 0, or 130 if interrupted; finished fits are kept then.

    Raises:
        UntiedError: runs, recordings, layers or the folder are not what they should be.
    """
    console = console or Console()
    if not config.runs:
        raise UntiedError("no runs are given: name folders of untied train or untied compare, and --recording FILE")
    if not config.recording:
        raise UntiedError(
            "no recording is given: --recording FILE; untied neural convert makes one, see docs/neural.md"
        )
    recordings = read_all(config.recording)
    found = networks(
        config.runs, config.checkpoint, config.root, config.random, config.pixels, lambda line: say(console, line)
    )
    if not found:
        raise UntiedError(f"no run in {', '.join(config.runs)} has ended: there is no network to compare")
    for r in recordings:
        fits.check(r, config.settings)
        say(console, str(r))
    for network in {n.model: n for n in reversed(found)}.values():
        layers_of(network, network.load(), network.seeing(), config)  # unknown names are found now, not in an hour
    out = config.out or new_folder("neural")
    config = replace(config, out=out)
    folder = opened(config)
    done: list[str] = []
    with interruptible() as codes:
        try:
            for name in fit_all(config, folder, found, recordings, console):
                done.append(name)
        except KeyboardInterrupt:
            say(console, f"interrupted: {len(done)} fits are kept; the same command with --out {out}  goes on")
            return codes[0]
    seen = list(dict.fromkeys(f"{n.model}: {n.seeing().words}" for n in found if n.model != PIXELS))
    about = [{"name": r.name, "words": str(r), "about": r.about, "noise": r.reliability[1]} for r in recordings]
    folder.write_json("results.json", {"fits": done, "recordings": about, "seen": seen, "rows": []})
    finish(folder, console)
    return 0


def read_all(paths: Sequence[Path]) -> list[Recording]:
    """The recordings.

    Raises:
        UntiedError: one cannot be read, or two have the same name.
    """
    found: dict[str, Recording] = {}
    for path in paths:
        r = recording.read(path.expanduser())
        if r.name in found:
            raise UntiedError(
                f"two recordings have the name {r.name}: give one another with untied neural convert --name"
            )
        found[r.name] = r
    return list(found.values())


def opened(config: NeuralConfig) -> RunFolder:
    """The folder: a new one, or that of the same comparison, which then goes on.

    Raises:
        UntiedError: it holds something else.
    """
    assert config.out is not None
    path = config.out / "config.yaml"
    if config.overwrite or not path.is_file():
        return RunFolder.create(config.out, config, overwrite=config.overwrite)
    folder = RunFolder.open(config.out)
    there = folder.config()
    if "recording" in there:
        here: dict[str, Any] = plain(config)
        other = [key for key in here if key not in FREE and there.get(key) != here[key]]
        if not other:
            folder.write_config(config)
            return folder
        key = other[0]
        raise UntiedError(
            f"{config.out} holds a comparison with {key} {there.get(key)}, here it is {here[key]}: choose another "
            "folder, or --overwrite"
        )
    return RunFolder.create(config.out, config)  # says what is wrong


# Fits


def fit_all(
    config: NeuralConfig, folder: RunFolder, found: Sequence[Network], recordings: Sequence[Recording], console: Console
) -> Iterator[str]:
    """Fit what is not there yet; the names of all fits, one after another."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    total = len(found) * len(recordings)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("networks × recordings", total=total)
        for r in recordings:
            prepared: dict[str, Prepared] = {}
            for network in found:
                began, count = time.perf_counter(), 0
                seeing = network.seeing()
                if seeing.key not in prepared:
                    prepared = {seeing.key: prepare(r, seeing)}
                for name, fresh in fit_network(config, folder, network, seeing, r, prepared[seeing.key]):
                    progress.update(bar, description=f"{r.name}, {network.name}"[:48])
                    count += fresh
                    yield name
                progress.advance(bar)
                if not console.is_terminal and count:
                    say(console, f"{r.name}, {network.name}: {count} layers, {time.perf_counter() - began:.0f} s")


def fit_network(
    config: NeuralConfig, folder: RunFolder, network: Network, seeing: Seeing, r: Recording, pictures: Prepared
) -> Iterator[tuple[str, bool]]:
    """The names of a network's fits to a recording, and whether each is new."""
    model = network.load()
    layers = layers_of(network, model, seeing, config)
    names, missing = {}, []
    for order, layer in enumerate(layers):
        key = fits.identity(network.digest, seeing.key, r, layer.name, config.settings)
        names[layer.name] = (file_name(f"{r.name} {network.name} {layer.name}"), key, order)
        kept = fits.read(folder.path / "fits" / f"{names[layer.name][0]}.safetensors")
        if kept is None or (kept.identity, kept.rule, kept.recording) != (key, network.rule, r.name):
            missing.append(layer)
        else:
            yield names[layer.name][0], False
    for layer, tensors in fit_layers(model.to(config.device), missing, r, pictures, config, network.name):
        name, key, order = names[layer.name]
        fit = Fit(
            rule=network.rule, seed=network.seed, model=network.model, accuracy=network.accuracy, recording=r.name,
            layer=layer.name, order=order, width=layer.width, used=min(layer.width, config.width),
            neurons=tuple(r.neuron.tolist()), region=tuple(r.region.tolist()), subject=tuple(r.subject.tolist()),
            rdm_region=tuple(r.rdm_region.tolist()), source=r.reliability[1] if r.region.size else "", identity=key,
            tensors=tensors,
        )  # fmt: skip
        fits.save(folder.path / "fits" / f"{name}.safetensors", fit)
        yield name, True


def layers_of(network: Network, model: nn.Module, seeing: Seeing, config: NeuralConfig) -> list[Layer]:
    """The layers that are compared; of the pixels the one that they are."""
    traced = trace(model, torch.zeros(1, *seeing.shape))
    return chosen(model, traced, ["default"] if network.model == PIXELS else config.layers)


def fit_layers(
    model: nn.Module, layers: Sequence[Layer], r: Recording, pictures: Prepared, config: NeuralConfig, name: str
) -> Iterator[tuple[Layer, dict[str, Any]]]:
    """What is measured of some layers."""

    def seen(centre: bool) -> Iterator[tuple[Layer, Any]]:
        memory = config.memory * 1_000_000
        for layer, X in features(model, pictures, layers, width=config.width, memory=memory, centre=centre):
            yield layer, finite(X, layer, name)

    results: dict[str, dict[str, Any]] = {}
    if len(r.rdm):
        for layer, X in seen(centre=True):
            results[layer.name] = fits.fit_rdm(X, r, config.settings)
            if not r.region.size:
                yield layer, results[layer.name]
    if r.region.size:
        for layer, found in abreast(lambda X: fits.fit_responses(X, r, config.settings), seen(centre=False)):
            yield layer, found | results.get(layer.name, {})


def abreast(fit: Callable[[Any], dict[str, Any]], given: Iterable[tuple[Layer, Any]]) -> Iterator[tuple[Layer, Any]]:
    """A fit of each layer, in their order: as many at a time as there are cores, which is faster than one on all."""
    cores = min(8, torch.get_num_threads())
    pool, waiting = ThreadPoolExecutor(cores), deque[tuple[Layer, Future[dict[str, Any]]]]()
    try:
        with threadpool_limits(None if cores == 1 else 1, user_api="blas"):
            for layer, X in given:
                waiting.append((layer, pool.submit(fit, X)))
                if len(waiting) > cores:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def finite(X: torch.Tensor, layer: Layer, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not bool(X.isfinite().all()):
        raise UntiedError(
            f"{name}: layer {layer.name} is not finite, as after a run that has failed: leave this run out"
        )
    return X.numpy()


# Results


def finish(folder: RunFolder, console: Console) -> None:
    """Write tables, figures and page from the fits; print the table."""
    result = folder.read_json("results.json")
    kept = [fits.read(folder.path / "fits" / f"{name}.safetensors") for name in result["fits"]]
    whole = [fit for fit in kept if fit is not None]
    if len(whole) < len(kept):
        raise UntiedError(f"{len(kept) - len(whole)} of {len(kept)} fits in {folder.path} are gone or damaged: "
                          "the command that made them makes them again")  # fmt: skip
    rows = summary.rows(whole)
    main = tables.main_rows(rows)
    pooled, each = tables.shown(main), each_recording(rows)
    best = [row for row in rows if row.layer == summary.BEST]
    result["rows"] = [{k: v for k, v in vars(row).items() if k not in ("order", "width", "used")} for row in best]
    folder.write_json("results.json", result)
    folder.write_text("table.md", tables.markdown_table(pooled) + ("\n" + tables.markdown_table(each) if each else ""))
    folder.write_text("table.csv", tables.csv_table(rows))
    folder.write_text("neurons.csv", tables.neurons_table(whole))
    place = folder.path / "figures"
    save(figures.bars(rows), place, "fits")
    save(figures.curves(rows), place, "layers")
    scatter = figures.neurons(rows)
    if scatter is not None:
        save(scatter, place, "neurons")
    page = write_page(folder, whole, rows, pooled, each, scatter is not None)
    console.print(tables.rich_table(pooled))
    say(console, f"folder  {folder.path}")
    say(console, f"page    {page}")


def each_recording(rows: Sequence[summary.Row]) -> list[dict[str, str]]:
    """The table of single recordings, if there are several of a region."""
    main = {id(row) for row in tables.main_rows(rows)}
    apart = [row for row in rows if row.layer == summary.BEST and id(row) not in main]
    return tables.shown(apart, recording=True)


def write_page(
    folder: RunFolder, whole: Sequence[Fit], rows: Sequence[summary.Row], pooled: list[dict[str, str]],
    each: list[dict[str, str]], scatter: bool,
) -> Path:  # fmt: skip
    """The page."""
    result, c = folder.read_json("results.json"), folder.config()
    wide = sorted({(f.model, f.layer, f.width, f.used) for f in whole if f.used < f.width})
    few = sorted({f.layer for f in whole if f.used < c["components"]}) if "pls" in c["maps"] else []
    seen = "\n\n".join(f"What the networks saw: {line}." for line in result["seen"])
    how = (
        f"Maps are fitted on {100 * (1 - c['test']):.0f} % of the pictures and tested on the others, {c['splits']} "
        "times; rows that show one picture stay together. The layer is chosen in each split by the median r over "
        f"neurons on {c['inner']} inner folds of its training pictures; the table names the one chosen most often. "
        "A neuron's r is its mean over splits. ± is the standard error of the mean over neurons (for dissimilarities, "
        "by bootstrap over images). Differences are taken neuron by neuron. Neurons are not independent, and the error "
        "over neurons says nothing about other seeds: see the spread over them, and the differences by seed, whose ± "
        "is the standard error over seeds.\n\n" + seen
    )
    if wide:
        how += f"\n\nProjected onto {c['width']:,} random orthogonal directions: " + ", ".join(
            f"{layer} of {model} ({width:,} wide)" for model, layer, width, _ in wide
        )
    if few:
        how += f"\n\nFewer than {c['components']} components, as there are no more features: {', '.join(few)}."
    noise = [f"{r['name']} ({r['noise']})" for r in result["recordings"] if r["noise"]]
    how += (
        "\n\nNoise-corrected is r / √ρ, with the reliability ρ of a neuron's mean response: "
        + ", ".join(noise)
        + ". In "
        "brackets the number of neurons whose ρ is known and at least 0.1, where that is not all of them."
        if noise
        else "\n\nNo reliability is known, so nothing is corrected for noise."
    )
    ceilings = {name: f.tensors["rdm.ceiling"][g] for f in whole if "rdm.ceiling" in f.tensors
                for g, name in enumerate(dict.fromkeys(f.rdm_region))}  # fmt: skip
    for name, (low, high) in ceilings.items():
        if np.isfinite(low):
            how += f"\n\nNoise ceiling of the dissimilarities of {name}, from its subjects: {low:.3f} to {high:.3f}."
    about = [
        {"recording": r["name"], "content": r["words"].partition(": ")[2], "source": r["about"] or "–"}
        for r in result["recordings"]
    ]
    sections = [
        report.Section("Fits", how, pooled, ["fits"], tables.WORDS),
        report.Section("Layers", "", (), ["layers"]),
        *([report.Section("Neurons", "", (), ["neurons"])] if scatter else []),
        *([report.Section("Each recording", "", each, (), tables.WORDS)] if each else []),
        report.Section("Recordings", "", about, (), ("recording", "content", "source")),
    ]
    title = f"Neural fits of {listed([r['name'] for r in result['recordings']])}"
    return report.write_html(
        folder, rows=(), title=title, finding=figures.finding(rows), sections=sections, captions=figures.captions(rows)
    )


def again(path: Path, console: Console | None = None) -> int:
    """Write a folder's tables, figures and page again, without fitting. Returns the exit code, 0.

    Raises:
        UntiedError: the comparison has not ended, or a fit is gone.
    """
    folder = RunFolder.open(path)
    if not (path / "results.json").is_file():
        raise UntiedError(
            f"the comparison in {path} has not ended: the command that began it goes on, with --out {path}"
        )
    finish(folder, console or Console())
    return 0
