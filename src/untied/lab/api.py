"""The lab from Python: `compare`, `train`, `search`, and what they return. docs/python.md shows them at work.

    from untied import lab

    result = lab.compare(model=Net, data=(train_set, test_set), rules=["bp", "sa"], epochs=3)
    result.table()                      # a pandas DataFrame, where pandas is installed
    result.figures["accuracy"]          # shown by a notebook
    result.weights("sa")                # a state dict

Settings are the fields of the commands' configurations, nested ones as mappings: ``forward={"lr": 0.05}``.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from untied.errors import UntiedError
from untied.lab.keeping.record import RunFolder, plain
from untied.lab.reading import own
from untied.lab.reading.fields import from_mapping
from untied.lab.settings.compare import CompareConfig
from untied.lab.settings.entries import label
from untied.lab.settings.recipes import over
from untied.lab.settings.run import TrainConfig
from untied.lab.showing.tables import markdown_table
from untied.rules.rule import Rule

__all__ = ["Compared", "Figure", "Result", "Searched", "Trained", "compare", "open_run", "search", "train"]

Model = str | Callable[..., nn.Module]
"""A name that the commands know, an import path, or a class or function that makes a network."""
Data = str | Mapping[str, Any] | Sequence[Any] | Callable[..., Any]
"""A name, an import path, a function, or what such a function returns: (train, test), or a mapping of splits."""


@dataclass(frozen=True)
class Figure:
    """A figure of a run folder, which a notebook shows."""

    path: Path
    """The PNG; the same name with .svg is beside it."""

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Result:
    """What a command has written, read back from its folder."""

    path: Path
    """The run folder."""

    @cached_property
    def folder(self) -> RunFolder:
        """The folder, for all that is not here."""
        return RunFolder.open(self.path)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table, in plain values."""
        found = self.folder.read_json("results.json")
        return found if isinstance(found, list) else [found]

    def table(self) -> Any:
        """The rows as a pandas DataFrame; as a list of mappings where pandas is not installed."""
        return as_table(self.rows)

    def history(self) -> Any:
        """A row for every epoch, likewise."""
        return as_table(self.folder.metrics())

    @property
    def figures(self) -> dict[str, Figure]:
        """By name."""
        return {path.stem: Figure(path) for path in sorted((self.path / "figures").glob("*.png"))}

    @property
    def page(self) -> Path:
        """All of it on one page."""
        return self.path / "index.html"


@dataclass(frozen=True)
class Compared(Result):
    """Rules compared. Print it for the table."""

    def weights(self, rule: str, seed: int | None = None) -> dict[str, Tensor]:
        """The trained weights and backward weights of a rule, by the name that the table has for it.

        Raises:
            UntiedError: no such run has finished.
        """
        from untied.lab.experiments.compare import weights_name

        config = from_mapping(CompareConfig, self.folder.config(), f"config of {self.path}")
        entry = next((e for e in config.rules if rule in (e, label(e))), rule)
        return self.folder.weights(weights_name(entry, config.first_seed if seed is None else seed))

    def __str__(self) -> str:
        return markdown_table(self.rows)

    _repr_markdown_ = __str__


@dataclass(frozen=True)
class Trained(Result):
    """One network trained."""

    @property
    def scores(self) -> dict[str, float]:
        """The task's metrics on the split that was evaluated, and the loss; nothing if training failed."""
        names = [*(metric["name"] for metric in self.rows[0].get("metrics", ())), "loss"]
        return {name: self.rows[0][name] for name in names if self.rows[0].get(name) is not None}

    @property
    def failure(self) -> str | None:
        """Why training failed, if it did."""
        return self.rows[0].get("failure")

    @cached_property
    def model(self) -> nn.Module:
        """The trained network, untied, on the CPU. `untied.tie_` makes it plain."""
        from untied.lab.experiments.evaluate import load_run

        return load_run(self.path, "last")[0]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Its state dict."""
        return self.model.state_dict()

    def __str__(self) -> str:
        if self.failure:
            return f"training failed: {self.failure}"
        return ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items())


@dataclass(frozen=True)
class Searched(Result):
    """A search of metaparameters."""

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best setting: its "value" (validation accuracy), "params", and whole "config".

        Raises:
            UntiedError: no run has succeeded.
        """
        known = [row for row in self.rows if row["value"] is not None and not row["failure"]]
        if not known:
            raise UntiedError(f"no run of the search in {self.path} has succeeded")
        return max(known, key=lambda row: row["value"])

    def __str__(self) -> str:
        return f"best {100 * self.best['value']:.1f} % of {len(self.rows)}: {self.best['params']}"


def compare(
    rules: Sequence[str | Rule] | None = None, *, model: Model | None = None, data: Data | None = None,
    batch_size: int | None = None, quiet: bool = False, **settings: Any,
) -> Compared:  # fmt: skip
    """Train the same network from the same weights with each of several rules, as ``untied compare`` does.

    Args:
        rules: texts or `untied.rules.Rule` objects.
        model: see `Model`. data: see `Data`. batch_size: examples in a training step.
        quiet: print nothing.
        settings: fields of `untied.lab.settings.compare.CompareConfig`; runs are trained in this process unless
            ``workers`` says otherwise.

    Raises:
        UntiedError: as the command does, before anything is trained.

    Example:
        >>> import tempfile
        >>> from untied import lab
        >>> small = {"name": "synthetic", "synthetic_shape": (1, 4, 4), "synthetic_classes": 3, "synthetic_count": 60}
        >>> result = lab.compare(["bp", "fa"], model="mlp-8", data=small, batch_size=12, epochs=1, seeds=1,
        ...                      out=tempfile.mkdtemp() + "/run", quiet=True)
        >>> [row["rule"] for row in result.rows]
        ['bp', 'fa']
    """
    from untied.lab.experiments.compare import compare as command

    texts = {} if rules is None else {"rules": [str(rule) for rule in rules]}
    values = {"workers": 0} | texts | named(model, data, batch_size, CompareConfig().data) | settings
    return Compared(done(command, configured(CompareConfig, CompareConfig(), values), quiet))


def train(
    rule: str | Rule | None = None, *, model: Model | None = None, data: Data | None = None,
    batch_size: int | None = None, quiet: bool = False, **settings: Any,
) -> Trained:  # fmt: skip
    """Train one network with one rule, as ``untied train`` does.

    Args:
        rule: a text or a `untied.rules.Rule`. model: see `Model`. data: see `Data`. batch_size: examples in a step.
        quiet: print nothing.
        settings: fields of `untied.lab.settings.run.TrainConfig`.

    Raises:
        UntiedError: as the command does, before anything is trained.
    """
    from untied.lab.experiments.train import train as command

    text = {} if rule is None else {"rule": str(rule)}
    values = text | named(model, data, batch_size, TrainConfig().data) | settings
    return Trained(done(command, configured(TrainConfig, TrainConfig(), values), quiet))


def search(
    space: str = "wm", *, model: Model | None = None, data: Data | None = None, batch_size: int | None = None,
    quiet: bool = False, run: Mapping[str, Any] | None = None, **settings: Any,
) -> Searched:  # fmt: skip
    """Search a rule's metaparameters by TPE, as ``untied search`` does.

    Args:
        space: wm, wm-adaptive, wm-operations, ia, or a YAML file.
        model: see `Model`. data: see `Data`. batch_size: examples in a step.
        quiet: print nothing.
        run: fields of `untied.lab.settings.run.TrainConfig` that all runs have in common.
        settings: fields of `untied.lab.study.config.SearchConfig`.

    Raises:
        UntiedError: as the command does, before anything is trained.
    """
    from untied.lab.study.config import SearchConfig
    from untied.lab.study.run import named as with_names
    from untied.lab.study.run import run as command

    default = SearchConfig()
    common = named(model, data, batch_size, default.run.data) | dict(run or {})
    values: dict[str, Any] = {"space": space, "workers": 0, "run": common} | settings
    config = with_names(configured(SearchConfig, default, values))
    return Searched(done(command, config, quiet))


def open_run(path: str | Path) -> Compared | Trained | Searched:
    """What a command has written before, from its folder.

    Raises:
        UntiedError: it is no folder of ``untied compare``, ``train`` or ``search``, or has not ended.
    """
    folder = RunFolder.open(path)
    settings = folder.config()
    if not (folder.path / "results.json").is_file():
        raise UntiedError(f"nothing in {path} has ended yet")
    if "kind" in settings:
        return Searched(folder.path)
    return Trained(folder.path) if "rule" in settings else Compared(folder.path)


# Between Python's values and a configuration


def named(model: Model | None, data: Data | None, batch_size: int | None, default: Any) -> dict[str, Any]:
    """Fields of a configuration for a network and data that may be objects."""
    values: dict[str, Any] = {}
    if model is not None:
        values["model"] = model if isinstance(model, str) else own.hold(model)
    about: dict[str, Any] = {}
    if isinstance(data, str):
        about = {"name": data}
    elif isinstance(data, Mapping) and "name" in data and "train" not in data:  # fields of DataConfig
        about = dict(data)
    elif data is not None:
        about = {"name": own.hold(data if callable(data) else Splits(data))}
    if batch_size is not None:
        about["batch_size"] = batch_size
    return values | ({"data": about} if about else {})


class Splits:
    """A function that returns the same splits each time."""

    def __init__(self, splits: Any) -> None:
        self.splits = splits

    def __call__(self) -> Any:
        return self.splits


def configured(kind: type[Any], default: Any, values: Mapping[str, Any]) -> Any:
    """A configuration: the command's defaults, and over them what was given, objects of the lab's own too."""
    try:
        config = from_mapping(kind, over(plain(default), plain(values)), f"lab.{kind.__name__}")
    except UntiedError as error:
        raise UntiedError(str(error).removeprefix(f"lab.{kind.__name__}: ")) from None
    workers, run = getattr(config, "workers", 0), getattr(config, "run", None)
    common = run if dataclasses.is_dataclass(run) else config
    if workers and any(name.startswith(f"{own.PYTHON}:") for name in (common.model, common.data.name)):  # type: ignore[union-attr]
        raise UntiedError(
            f"workers is {workers}, but network or data are objects of this process, which others cannot import: "
            "leave workers out, or put them into a module"
        )
    return config


def done(command: Callable[[Any, Console], int], config: Any, quiet: bool) -> Path:
    """Run a command. Returns its folder, which a line of it names."""
    said = io.StringIO()
    console = Console(file=said, width=200) if quiet else Console()
    if config.out is None:
        name = type(config).__name__.removesuffix("Config").lower()
        config = dataclasses.replace(config, out=Path("runs") / time.strftime(f"{name}-%Y%m%d-%H%M%S"))
    if command(config, console) >= 128:
        raise KeyboardInterrupt
    return Path(config.out)


def as_table(rows: list[dict[str, Any]]) -> Any:
    """A pandas DataFrame where pandas is installed, else the rows."""
    if find_spec("pandas") is None:
        return rows
    return importlib.import_module("pandas").DataFrame(rows)
