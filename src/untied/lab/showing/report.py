"""One self-contained HTML page for a run folder: it opens from disk, with no network, on a phone too.

The page says what was trained on what, and what came out; it shows what the folder holds: the table, every figure, the
configuration, the environment, the files. An experiment adds a summary and sections of its own. Figures are put into
the page as images, each with a caption and, for whoever cannot see it, its numbers in words.
"""

from __future__ import annotations

import base64
import importlib.metadata
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml

from untied.lab.keeping.record import CONFIG, ENVIRONMENT, RunFolder
from untied.lab.rules import signs
from untied.lab.showing.findings import Words, listed
from untied.lab.showing.style import looks
from untied.lab.showing.tables import Rows, cells, csv_table, heads, known, markdown_table, rich_table
from untied.lab.tasks.metric import metric_of

__all__ = [
    "Section", "Words", "csv_table", "documentation", "in_depth", "markdown_table", "rich_table", "subject",
    "write_html",
]  # fmt: skip

PAPER = "https://arxiv.org/abs/2003.01513"
GUIDES = {
    "compare": "rules", "train": "training", "search": "studies", "transfer": "studies", "noise": "studies",
    "neural": "neural", "bench": "performance", "dynamics": "theory", "diagnose": "theory",
}  # fmt: skip
"""By the command that makes a page: the page of the documentation that explains it."""
SHAPES = {
    "o": "M5 1a4 4 0 1 0 .01 0z", "s": "M1.5 1.5h7v7h-7z", "D": "M5 .3L9.7 5 5 9.7 .3 5z", "^": "M5 1l4.6 8H.4z",
    "v": "M5 9L.4 1h9.2z", "<": "M1 5l8-4.6v9.2z", ">": "M9 5L1 .4v9.2z",
    "P": "M3.4 .5h3.2v2.9h2.9v3.2H6.6v2.9H3.4V6.6H.5V3.4h2.9z",
    "X": "M2.6 .4L5 2.8 7.4 .4 9.6 2.6 7.2 5l2.4 2.4-2.2 2.2L5 7.2 2.6 9.6 .4 7.4 2.8 5 .4 2.6z",
    "*": "M5 .2l1.4 3.3 3.5.3-2.7 2.3.8 3.5L5 7.8 2 9.6l.8-3.5L.1 3.8l3.5-.3z",
}  # fmt: skip
"""A rule's marker as a path in a square of 10, for its place in the table."""

FILES = {
    "results.json": "the table's rows, in full precision",
    "table.md": "the table for a README",
    "table.csv": "the table for a spreadsheet",
    "metrics.jsonl": "every epoch of every rule and seed, a JSON object a line",
    "runs.jsonl": "the result of every run, as it ended",
    "card.md": "what was trained, with what result, and how to use it",
    "timing.jsonl": "seconds and images a second of every epoch",
    "checkpoints": "the last state, to go on from, and the best one on validation (safetensors)",
    "tensorboard": "the metrics for TensorBoard",
    "flow.csv": "the flow on a grid, for each rule",
    "neurons.csv": "every neuron's correlation, for each network and layer",
    "fits": "the fit of each layer (safetensors): r of each neuron in each split",
    "weights": "the trained weights (safetensors): weight and backward_weight of each layer",
    "figures": "the figures as PNG and SVG",
    CONFIG: "the configuration, every field of it",
    ENVIRONMENT: "commit, package versions, machine",
}


@dataclass(frozen=True)
class Section:
    """A part of the page that an experiment adds.

    Attributes:
        title: its heading.
        text: plain text; a blank line starts a new paragraph.
        rows: a table: mappings from column name to value, all with the same keys.
        figures: names of files in figures/, without the ending.
        words: the columns of words, which stand on the left and may break; numbers stand on the right.
    """

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[str] = ()
    words: Collection[str] = ()


def write_html(
    run: RunFolder | str | Path,
    *,
    rows: Rows | None = None,
    title: str = "Learning rules compared",
    finding: str = "",
    summary: str = "",
    sections: Sequence[Section] = (),
    captions: Mapping[str, Words] | None = None,
) -> Path:
    """Write index.html into a run folder. Returns its path.

    Args:
        run: the run folder, finished or not.
        rows: of the table of rules; by default those of results.json. Empty: only the sections' own tables.
        title: the page's heading; `subject` is added to it.
        finding: what came out, in a line.
        summary: what was run, in plain words; a blank line starts a new paragraph.
        sections: what the experiment adds, after the table and the figures.
        captions: the words of figures, by name, in the page's order; a figure without any has its name.

    Raises:
        UntiedError: not a run folder, a damaged file in it, or a page that cannot be written.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    config, environment, captions = run.config(), run.environment(), captions or {}
    if rows is None:
        rows = run.read_json("results.json") if (run.path / "results.json").is_file() else []
    elsewhere = {name for section in sections for name in section.figures}
    drawn = [name for name in _figure_names(run.path, list(captions)) if name not in elsewhere]
    palette = looks(row["rule"] for row in rows)
    page = _template().render(
        title=": ".join(part for part in (title, subject(config)) if part),
        finding=finding.replace(" %", "\u00a0%"),  # which belong on one line
        summary=_paragraphs(summary),
        paper=PAPER,
        documentation=documentation(run.path, environment.get("command")),
        facts=list(_facts(rows, config, environment)),
        heads=heads(rows),
        rows=[(row, cells(row), palette[row["rule"]]) for row in rows],
        shapes=SHAPES,
        several=any(len(row.get("accuracies") or ()) > 1 for row in rows),
        spread=any(known(row.get("gradient_angle_std")) for row in rows),
        score=metric_of(rows).title,
        unfinished=[row["rule"] for row in rows if not row.get("finished", True) or row.get("failure")],
        figures=[_figure(run.path, name, captions) for name in drawn],
        sections=[
            {
                "title": section.title,
                "paragraphs": _paragraphs(section.text),
                "heads": list(section.rows[0]) if section.rows else [],
                "rows": [[_cell(value) for value in row.values()] for row in section.rows],
                "words": section.words,
                "figures": [_figure(run.path, name, captions) for name in section.figures],
            }
            for section in sections
        ],
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        environment=yaml.safe_dump(environment, sort_keys=False, allow_unicode=True),
        files=[(name, about) for name, about in FILES.items() if (run.path / name).exists()],
    )
    return run.write_text("index.html", page)


def in_depth(rows: Rows) -> list[Section]:
    """The section that says whether hidden layers learn; none of rows that do not know."""
    found = signs.table(rows)
    return [Section("Does it learn in depth?", signs.LEGEND, rows=found, words=("rule",))] if found else []


def subject(config: Mapping[str, Any]) -> str:
    """The network and the data of a configuration, in words; nothing where it has none.

    >>> subject({"model": "mlp-8", "data": {"name": "digits"}})
    'mlp-8 on digits'
    >>> subject({"models": ["mlp-8", "mlp-4"], "run": {"model": "resnet18", "data": {"name": "digits"}}})
    'mlp-8 and mlp-4 on digits'
    """
    names = _models(config)
    parts = (listed(names) if len(names) < 5 else f"{len(names)} networks", _name(_of_run(config).get("data")))
    return " on ".join(part for part in parts if part)


def documentation(folder: Path, command: str | None) -> tuple[str, str]:
    """The address of the page that explains a command's results, and its name; no address if none is known.

    It is on the site that the installed package names, if it names one; else a file of the checkout that the package is
    installed from, seen from ``folder``.
    """
    guide = GUIDES.get(command or "", "index")
    if site := _site():
        return f"{site.rstrip('/')}/{guide}.html", guide
    page = Path(__file__).resolve().parents[4] / "docs" / f"{guide}.md"
    return quote(os.fsencode(os.path.relpath(page, folder.resolve()))) if page.is_file() else "", f"docs/{guide}.md"


def _site() -> str:
    """The address of the documentation, from the package's own description; nothing if it names none."""
    named: list[str] = []
    with suppress(importlib.metadata.PackageNotFoundError):  # where it runs from its source
        named = importlib.metadata.metadata("torch-untied").get_all("Project-URL") or []
    addresses = dict(line.split(", ", 1) for line in named)
    return addresses.get("Documentation", "")


def _of_run(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of training: a study has them one level down."""
    return {**config, **(config.get("run") or {})}


def _models(config: Mapping[str, Any]) -> list[str]:
    """The networks of a configuration: of a study, those that it varies."""
    return [str(name) for name in config.get("models") or [_of_run(config).get("model")] if name]


def _name(value: Any) -> str:
    """A setting by its name: of a mapping, what it calls itself."""
    found = value.get("name") if isinstance(value, Mapping) else value
    return str(found) if found else ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("untied.lab.showing"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def _facts(rows: Rows, config: Mapping[str, Any], environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a reader wants to know first, as pairs of name and value."""
    run = _of_run(config)
    for name, value in (("data", _name(run.get("data"))), ("model", ", ".join(_models(config)))):
        if value:
            yield name, value
    if run.get("epochs"):
        yield "epochs", str(run["epochs"])
    if rows:
        yield "rules", ", ".join(str(row["rule"]) for row in rows)
        seeds = sorted({row["seeds"] for row in rows if row.get("seeds") is not None})
        yield "seeds", " to ".join(str(number) for number in dict.fromkeys((seeds or ["–"])[:: max(1, len(seeds) - 1)]))
    machine, git = environment.get("machine") or {}, environment.get("git")
    if environment.get("command"):
        yield "made by", f"untied {environment['command']}"
    if environment.get("date"):
        yield "begun", str(environment["date"]).replace("T", " ").replace("+00:00", " UTC")
    packages = environment.get("packages") or {}
    yield "software", ", ".join(f"{name} {packages[name]}" for name in ("untied", "torch") if name in packages)
    if git:
        yield "commit", git["commit"][:12] + (", with uncommitted changes" if git.get("dirty") else "")
    devices = [*(machine.get("gpus") or ()), f"{machine.get('cpu')} ({machine.get('cores')} cores)"]
    if machine:
        yield "machine", ", ".join(devices)


def _figure_names(folder: Path, order: Sequence[str]) -> list[str]:
    """The figures of a run: those that have a place in the order first, then the others by name."""
    there = {path.stem for ending in ("svg", "png") for path in (folder / "figures").glob(f"*.{ending}")}
    return [name for name in order if name in there] + sorted(there.difference(order))


def _figure(folder: Path, name: str, captions: Mapping[str, Words]) -> dict[str, Any]:
    """A figure as an image inside the page: the SVG, which stays sharp, or else the PNG."""
    words = captions.get(name, Words(name, f"The figure {name}, of which nothing is said."))
    for ending, kind in (("svg", "image/svg+xml"), ("png", "image/png")):
        path = folder / "figures" / f"{name}.{ending}"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            return {"name": name, "source": f"data:{kind};base64,{data}", "words": words}
    return {"name": name, "source": "", "words": words}


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
