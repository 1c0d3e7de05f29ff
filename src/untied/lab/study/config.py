"""The three kinds of study: search, transfer and noise. What each trains, as planned runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from untied.errors import UntiedError
from untied.lab.keeping.record import file_name, plain
from untied.lab.reading.fields import from_mapping
from untied.lab.reading.secrets import without_password
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.devices import DeviceConfig
from untied.lab.settings.entries import parse_entry
from untied.lab.settings.recipes import over, recipe
from untied.lab.settings.run import TrainConfig
from untied.lab.study.gpus import SHARES
from untied.lab.study.space import Space, space
from untied.rules import parse

if TYPE_CHECKING:  # it takes a second, and --help needs it not
    from optuna.trial import BaseTrial

__all__ = ["KINDS", "NoiseConfig", "SearchConfig", "StudyConfig", "TransferConfig", "kind_of", "tuned"]

Definition = dict[str, Any]


def small_run() -> TrainConfig:
    """What untied compare trains by default: some seconds on a CPU core."""
    return dataclasses.replace(CompareConfig().run("sa", 0), devices=DeviceConfig(accelerator="cpu"))


@dataclass(frozen=True)
class StudyConfig:
    """What every kind of study has."""

    name: str = ""
    """The name of the study in its database. By default it is made from its kind."""
    run: TrainConfig = field(default_factory=small_run)
    """What all runs have in common: any setting of untied train. The study sets the ones that it varies."""
    seeds: int = 1
    """How many runs each setting has. Their seeds count up from run.seed."""
    storage: str = ""
    """The database: sqlite:///FILE, journal:FILE, postgresql://..., mysql://... By default it is an SQLite file in the
    study's folder."""
    out: Path | None = None
    """The study's folder, which holds runs/, table, figures and page. By default it is studies/NAME."""
    workers: int = 1
    """How many processes of this machine train. 0 trains in this one."""
    workers_per_gpu: int = 1
    """How many workers may share a GPU, up to 16. Small networks do not fill one."""
    silence: float = 180.0
    """After how many seconds a worker that does not report is taken for dead. Its run is then given to another."""
    retries: int = 3
    """How often a run is tried again that its worker did not survive."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("workers", 0), ("retries", 0)):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not 1 <= self.workers_per_gpu <= SHARES:
            raise UntiedError(f"workers_per_gpu is {self.workers_per_gpu}: it must be from 1 to {SHARES}")
        if not self.silence >= 1:
            raise UntiedError(f"silence is {self.silence}: it must be at least 1 second")
        if self.run.task not in ("", "classification") or self.run.data.name in ("text", "series"):
            raise UntiedError(
                f"run.task is {self.run.task or 'that of ' + self.run.data.name}, but studies compare accuracies of "
                "classification: use untied compare, or untied train"
            )
        if (self.run.devices.devices or 1) * self.run.devices.nodes > 1:
            raise UntiedError("run.devices asks for several processes, but a study's run has one device: start more "
                              "workers instead")  # fmt: skip

    kind = ""

    @property
    def networks(self) -> tuple[str, ...]:
        """The models that its runs train."""
        return (self.run.model,)

    # What identifies a study, and what it trains

    def define(self) -> Definition:
        """The study as plain values, with everything that it reads from elsewhere in them."""
        whole = plain(dataclasses.asdict(self)) | {"storage": without_password(self.storage)}
        return {"kind": self.kind, **whole}

    def plan(self, definition: Definition) -> dict[str, dict[str, Any]]:
        """The runs by key, each with the parameters that are fixed for it."""
        raise NotImplementedError(f"{type(self).__name__}.plan")

    def configs(self, definition: Definition, trial: BaseTrial) -> list[TrainConfig]:
        """The configurations of a planned run, one a seed."""
        raise NotImplementedError(f"{type(self).__name__}.configs")

    def made(self, part: Mapping[str, Any], seed: int, what: str) -> TrainConfig:
        """The run in common with a part of it replaced."""
        whole = over(plain(self.run), part) | {"seed": seed, "out": None, "overwrite": False}
        return from_mapping(TrainConfig, whole, what)


CHANGEABLE = ("workers", "workers_per_gpu", "out", "storage", "trials", "silence", "retries", "name")
"""Fields that may differ when a study is continued."""


@dataclass(frozen=True)
class SearchConfig(StudyConfig):
    """Search metaparameters by TPE (Bergstra et al. 2011), for the best accuracy on validation images."""

    space: str = "wm"
    """The space that is searched: wm, wm-adaptive, wm-operations or ia, as in the paper's section 4; or a file."""
    trials: int = 40
    """How many settings are tried in all. A larger number continues a study that has ended."""
    startup: int = 10
    """How many random settings are tried before TPE begins."""
    prune: Literal["none", "median", "hyperband"] = "median"
    """Whether poor runs stop early. With median, a run stops that is below the median of earlier runs after the same
    epoch. With hyperband, Hyperband's brackets say which runs stop."""
    prune_after: int = 1
    """How many epochs every run is given before median may stop it."""
    sampler_seed: int = 0
    """The seed of TPE's random numbers. With one worker the search can be repeated exactly, however it was
    interrupted."""

    kind = "search"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("trials", 1), ("startup", 0), ("prune_after", 1)):
            if getattr(self, name) < least:
                raise UntiedError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if not self.run.data.validation:
            raise UntiedError("run.data.validation is 0, but a search chooses on validation images: hold some out")

    def define(self) -> Definition:
        return super().define() | {"definition": plain(space(self.space))}

    def space_of(self, definition: Definition) -> Space:
        """The space that the study was made with."""
        return Space.of(definition["definition"], f"space {self.space}")

    def plan(self, definition: Definition) -> dict[str, dict[str, Any]]:
        start = self.space_of(definition).start
        return {f"{i:04d}": dict(start[i]) if i < len(start) else {} for i in range(self.trials)}

    def configs(self, definition: Definition, trial: BaseTrial) -> list[TrainConfig]:
        own = self.space_of(definition)
        part = own.fill(own.suggest(trial)) | {"evaluate_on": "validation"}
        seeds = range(self.run.seed, self.run.seed + self.seeds)
        return [self.made(part, seed, f"space {self.space}") for seed in seeds]


@dataclass(frozen=True)
class GridConfig(StudyConfig):
    """Rules and architectures, every one with every other."""

    rules: tuple[str, ...] = ("bp", "tuned:sa", "tuned:aa")
    """The learning rules, each perhaps with a label, a colon and a space before it. An entry is a rule as in untied
    compare, such as "aa @ Adam(lr=0.003)" or tuned:aa. Or it is "ia-tpe: best of STUDY", the best setting of a search's
    folder, or "recipe NAME"."""
    models: tuple[str, ...] = ("resnet18-w8", "resnet34-w8", "resnet18v2-w8", "resnet34v2-w8")
    """The architectures."""
    seeds: int = 3
    """How many runs each rule has in each architecture. Their seeds count up from run.seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rules", "models"):
            given = getattr(self, name)
            if not given:
                raise UntiedError(f"no {name} are given: name at least one")
            if len(set(given)) < len(given):
                twice = next(one for one in given if given.count(one) > 1)
                raise UntiedError(f"{name} has {twice!r} twice: name each once")

    def define(self) -> Definition:
        entrants: dict[str, Any] = {}
        for text in self.rules:
            label, part = entrant(text, self.run)
            if label in entrants:
                raise UntiedError(f"two rules are called {label!r}: give one another label, as in 'other: {text}'")
            entrants[label] = part
        return super().define() | {"definition": entrants}

    @property
    def networks(self) -> tuple[str, ...]:
        return self.models

    def points(self) -> list[dict[str, Any]]:
        """What else is varied, beside rule, model and seed."""
        return [{}]

    def plan(self, definition: Definition) -> dict[str, dict[str, Any]]:
        planned = {}
        for seed in range(self.run.seed, self.run.seed + self.seeds):
            for model in self.models:
                for point in self.points():
                    for rule in definition["definition"]:
                        fixed = {"rule": rule, "model": model, "seed": seed, **point}
                        planned[file_name("-".join(_word(k, v) for k, v in fixed.items()))] = fixed
        return planned

    def configs(self, definition: Definition, trial: BaseTrial) -> list[TrainConfig]:
        lists = {
            "rule": list(definition["definition"]),
            "model": list(self.models),
            "seed": list(range(self.run.seed, self.run.seed + self.seeds)),
        }
        for point in self.points():
            for name, value in point.items():
                lists.setdefault(name, []).append(value)
        chosen = {name: trial.suggest_categorical(name, values) for name, values in lists.items()}
        part = definition["definition"][chosen["rule"]] | {"model": chosen["model"]}
        return [self.made(self.changed(part, chosen), int(chosen["seed"]), f"rule {chosen['rule']}")]

    def changed(self, part: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """What a point changes in a configuration."""
        return part


def _word(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    short = f"{value:g}"
    return name + (short if float(short) == value else repr(value))  # another number is another run


@dataclass(frozen=True)
class TransferConfig(GridConfig):
    """Train other architectures with the settings that were found for one (Fig. 3 of the paper)."""

    kind = "transfer"


@dataclass(frozen=True)
class NoiseConfig(GridConfig):
    """Train with Gaussian noise on every update of the backward weights, or of backpropagation's weights (Fig. 5)."""

    models: tuple[str, ...] = ("resnet18-w8", "resnet34-w8")
    """The architectures."""
    sigmas: tuple[float, ...] = (0.0, 0.001, 0.01, 0.1, 1.0)
    """The standard deviations of the noise. It goes on the gradient of R for rules that align, and on the gradient of J
    for all others. The settings run.forward.noise_on and run.backward.noise_on can say otherwise."""

    kind = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sigmas or min(self.sigmas) < 0 or len(set(self.sigmas)) < len(self.sigmas):
            raise UntiedError(f"sigmas is {self.sigmas}: give standard deviations, at least 0, each once")

    def points(self) -> list[dict[str, Any]]:
        return [{"sigma": float(sigma)} for sigma in self.sigmas]

    def changed(self, part: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        rule = parse(part.get("rule", self.run.rule))
        side = "backward" if rule.aligns and not rule.copies_gradient else "forward"
        return over(part, {side: {"noise": chosen["sigma"]}})


KINDS: dict[str, type[StudyConfig]] = {kind.kind: kind for kind in (SearchConfig, TransferConfig, NoiseConfig)}


def kind_of(definition: Mapping[str, Any], what: str) -> StudyConfig:
    """The configuration of a study from its definition.

    Raises:
        UntiedError: it is none.
    """
    values = {key: value for key, value in definition.items() if key not in ("kind", "definition")}
    kind = definition.get("kind")
    if kind not in KINDS:
        raise UntiedError(f"{what}: kind is {kind!r}: possible are {', '.join(KINDS)}")
    return from_mapping(KINDS[kind], values, what)


# Who takes part

METAPARAMETERS = ("rule", "init", "forward", "backward", "phases", "label_smoothing", "ema")
_ENTRANT = re.compile(r"(?:(?P<label>[\w.+-]+)\s*:\s+)?(?:best of (?P<study>.+)|recipe (?P<recipe>\S+)|(?P<rule>.+))")


def entrant(text: str, run: TrainConfig) -> tuple[str, dict[str, Any]]:
    """A rule by its label, and the part of a configuration that comes with it.

    Raises:
        UntiedError: it cannot be read, or the study or recipe that it names.
    """
    match = _ENTRANT.fullmatch(text.strip())
    if match is None:
        raise UntiedError("a rule is empty: name one, such as sa")
    if match["study"]:
        folder = Path(match["study"].strip())
        return match["label"] or folder.name, best_of(folder)
    if match["recipe"]:
        return match["label"] or match["recipe"].rpartition("/")[2], tuned(recipe(match["recipe"]))
    entry = match["rule"].strip()
    rule, backward = parse_entry(entry, run.backward)
    return match["label"] or entry, {"rule": str(rule), "backward": plain(backward)}


def tuned(config: TrainConfig) -> dict[str, Any]:
    """The metaparameters of a run: what is kept when model, data or length change."""
    whole = plain(config)
    return {name: whole[name] for name in METAPARAMETERS} | {"data": {"batch_size": config.data.batch_size}}


def best_of(folder: Path) -> dict[str, Any]:
    """The metaparameters of the best setting of a search, by its folder.

    Raises:
        UntiedError: it is no search's folder, or nothing in it has finished.
    """
    from untied.lab.keeping.record import RunFolder

    found = RunFolder.open(folder)
    if found.config().get("kind") != "search" or not (found.path / "results.json").is_file():
        raise UntiedError(f"{folder} is not the folder of a search that has ended")
    rows = [row for row in found.read_json("results.json") if row["value"] is not None and not row["failure"]]
    if not rows:
        raise UntiedError(f"no run of the search in {folder} has succeeded")
    best = max(rows, key=lambda row: row["value"])
    return tuned(from_mapping(TrainConfig, best["config"], f"the best of {folder}"))
