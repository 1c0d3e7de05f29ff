"""The networks that are compared: of runs of `untied train` and `untied compare`, and the floor below them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from untied.errors import UntiedError
from untied.lab.data import Dataset
from untied.lab.experiments.compare import weights_kept
from untied.lab.experiments.evaluate import load_run
from untied.lab.keeping.record import RunFolder
from untied.lab.neural.preprocess import Seeing, as_trained
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.entries import is_called, label
from untied.lab.settings.run import TrainConfig
from untied.lab.study.config import KINDS
from untied.lab.training import checkpoint
from untied.lab.training.setup import dataset, network

__all__ = ["PIXELS", "RANDOM", "Network", "networks"]

RANDOM, PIXELS = "random", "pixels"
Which = Literal["last", "best"]
GIVEN = re.compile(r"(?P<label>[^/=]+)=(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True)
class Network:
    """One trained network, or a floor.

    Attributes:
        rule: its group: the learning rule, the label that was given, or "random" or "pixels".
        seed: of its run. model: the architecture. accuracy: at the end of its run, 0 to 1, or None.
        digest: of its weights. load: makes it, in evaluation mode. seeing: makes what it sees.
    """

    rule: str
    seed: int
    model: str
    accuracy: float | None
    digest: str
    load: Callable[[], nn.Module]
    seeing: Callable[[], Seeing]

    @property
    def name(self) -> str:
        """For display and file names."""
        return self.rule if self.rule == PIXELS else f"{self.rule}, seed {self.seed}"


@dataclass(frozen=True)
class Source:
    """A run, and the label under which it was given."""

    label: str | None
    path: Path
    config: TrainConfig
    entry: str | None = None
    """The rule's name among the weights of a comparison; None for a run of untied train."""


def networks(
    runs: Sequence[str],
    which: Which = "last",
    root: Path | None = None,
    random: bool = False,
    pixels: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Network]:
    """The networks of runs, each FOLDER, or LABEL=FOLDER; a comparison, a study or a folder of runs has several.

    Args:
        runs: folders. which: checkpoint of runs of untied train. root: where the data lies now.
        random: add each run's network as it was before training. pixels: add what the networks see.
        say: is told of runs in a study or a folder of runs that are left out, because they failed or have not ended.

    Raises:
        UntiedError: no such run, or two with the same rule and seed.
    """  # fmt: skip
    sources = [source for run in runs for source in sources_of(run, say)]
    if root is not None:
        sources = [replace(s, config=replace(s.config, data=replace(s.config.data, root=root))) for s in sources]
    models, data = ({getattr(s.config, k) for s in sources} for k in ("model", "data"))
    names = {d.name for d in data}

    def named(first: str, c: TrainConfig) -> str:
        """With model and data, where there are several."""
        parts = [first, *([c.model] if len(models) > 1 and first != PIXELS else [])]
        return ", ".join([*parts, *([c.data.name] if len(names) > 1 else [])])

    found: dict[tuple[str, int], Network] = {}
    paths: dict[tuple[str, int], Path] = {}
    for source in sources:
        trained = trained_network(source, which, named(group(source), source.config))
        key = (trained.rule, trained.seed)
        if key in found:
            raise UntiedError(
                f"{paths[key]} and {source.path} both are {trained.name}: name one of them, or tell them apart by "
                f"labels, as in slow={source.path}"
            )
        found[key], paths[key] = trained, source.path
    floors: dict[tuple[str, int], Network] = {}
    for floor, wanted in ((RANDOM, random), (PIXELS, pixels)):
        for c in (source.config for source in sources) if wanted else ():
            name, seed = named(floor, c), 0 if floor == PIXELS else c.seed
            if (name, seed) not in floors:
                floors[name, seed] = (random_network if floor == RANDOM else pixel_network)(c, name)
    return [*found.values(), *floors.values()]


def sources_of(given: str, say: Callable[[str], None]) -> Iterator[Source]:
    """What a folder holds."""
    match = None if Path(given).is_dir() else GIVEN.fullmatch(given)
    name, path = (None, Path(given)) if match is None else (match["label"].strip(), Path(match["path"]).expanduser())
    if name in (RANDOM, PIXELS):
        raise UntiedError(f"the label {name!r} is that of the floor: choose another one for {path}")
    inside = runs_in(path)
    if inside:
        yield from several(name, path, inside, say)
        return
    folder = RunFolder.open(path)
    settings = folder.config()
    if "rule" in settings:
        yield Source(name, path, from_mapping(TrainConfig, settings, f"config of {path}"))
        return
    if "rules" not in settings or "seeds" not in settings:
        raise UntiedError(f"{path} is no run of untied train or untied compare, and no study: it has no network")
    config = from_mapping(CompareConfig, settings, f"config of {path}")
    there = set(folder.weight_names())
    kept = [(e, seed) for e in config.rules for seed in config.all_seeds if weights_kept(e, seed, there)]
    if not kept:
        raise UntiedError(f"{path} has no weights: the comparison has finished no run")
    for entry, seed in kept:
        yield Source(f"{name} {label(entry)}" if name else None, path, config.run(entry, seed), entry)


def runs_in(path: Path) -> list[Path]:
    """The runs of untied train in a study's folder, or in a folder of runs; none of any other folder."""
    if (path / "config.yaml").is_file():
        if RunFolder.open(path).config().get("kind") not in KINDS:
            return []
        path = path / "runs"
    found = sorted(path.glob("*/config.yaml")) if path.is_dir() else []
    return [config.parent for config in found if "rule" in RunFolder.open(config.parent).config()]


def several(name: str | None, path: Path, runs: Sequence[Path], say: Callable[[str], None]) -> Iterator[Source]:
    """The runs that have ended and have not failed, each under the label that the study has put into its name."""
    for run in runs:
        folder = RunFolder.open(run)
        result = folder.read_json("results.json") if (run / "results.json").is_file() else None
        if result is None or result.get("failure"):
            say(f"left out: {run} ({'has not ended' if result is None else result['failure']})")
            continue
        config = from_mapping(TrainConfig, folder.config(), f"config of {run}")
        own = re.sub(rf"-{re.escape(config.model)}-seed{config.seed}(\.\d+)?(?=-|$)", "", run.name)
        label = config.rule if own == run.name else own
        yield Source(f"{name} {label}" if name else label, run, config)


def group(source: Source) -> str:
    """What a run is called: its label, the short name of its rule in a comparison, or the rule's text."""
    return source.label or (label(source.entry) if source.entry is not None else source.config.rule)


def data_of(config: TrainConfig) -> Dataset:
    """The data of a run. Its statistics do not depend on the seed, so runs share them."""
    return dataset(config.data, 0, "cpu")


def seen_by(config: TrainConfig) -> Callable[[], Seeing]:
    return lambda: as_trained(data_of(config), config.data)


def trained_network(source: Source, which: Which, name: str) -> Network:
    """The network at the end of a run."""
    config, folder = source.config, RunFolder.open(source.path)
    if source.entry is None:
        file = source.path / "checkpoints" / f"{which}.safetensors"

        def load() -> nn.Module:
            return load_run(source.path, which, replace(config, seed=0))[
                0
            ].eval()  # the data of every seed are the same

    else:
        kept = weights_kept(source.entry, config.seed, set(folder.weight_names())) or ""
        file = source.path / "weights" / f"{kept}.safetensors"

        def load() -> nn.Module:
            model = network(config, data_of(config))
            checkpoint.load(model, folder.weights(kept), "", str(file))
            return model.eval()

    if not file.is_file():
        raise UntiedError(
            f"{source.path} has no {which} checkpoint: untied train --resume {source.path} goes on with it"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Network(name, config.seed, config.model, accuracy(folder, source), digest, load, seen_by(config))


def accuracy(folder: RunFolder, source: Source) -> float | None:
    """At the end of a run, if it has ended."""
    if not (folder.path / "results.json").is_file():
        return None
    result = folder.read_json("results.json")
    if source.entry is None:
        return dict(result).get("accuracy")
    row = next((r for r in result if is_called(r["rule"], source.entry)), None)
    values = [] if row is None else row["accuracies"]
    first = from_mapping(CompareConfig, folder.config(), "config").first_seed
    place = source.config.seed - first
    return values[place] if place < len(values) and row is not None and row["finished"] else None


def random_network(config: TrainConfig, name: str) -> Network:
    """A run's network as it was before training; the same under every rule."""
    about = f"{RANDOM} {config.model} {config.data} {config.seed}"
    return Network(
        name, config.seed, config.model, None, hashlib.sha256(about.encode(errors="backslashreplace")).hexdigest(),
        lambda: network(config, data_of(config)).eval(), seen_by(config),
    )  # fmt: skip


def pixel_network(config: TrainConfig, name: str) -> Network:
    """What the networks see."""
    about = f"{PIXELS} {dataclasses.asdict(config.data)}"
    return Network(
        name, 0, PIXELS, None, hashlib.sha256(about.encode(errors="backslashreplace")).hexdigest(),
        lambda: nn.Sequential(OrderedDict(pixels=nn.Identity())), seen_by(config),
    )  # fmt: skip
