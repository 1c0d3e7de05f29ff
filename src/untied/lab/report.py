"""One self-contained HTML page for a run folder: it opens from disk, with no network, on a phone too.

The page shows what the folder holds: the table, every figure, the configuration, the environment, the files. An
experiment adds a summary and sections of its own. Figures are put into the page as images.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from untied.lab.record import CONFIG, ENVIRONMENT, RunFolder
from untied.lab.tables import Rows, cells, csv_table, heads, markdown_table, rich_table

__all__ = ["CAPTIONS", "Section", "csv_table", "markdown_table", "rich_table", "write_html"]

CAPTIONS = {
    "accuracy": (
        "Validation accuracy after each epoch: the mean over seeds, and a band from the worst to the best seed. "
        "Which rules keep up with backpropagation (dashed)? In the paper symmetric and activation alignment do at "
        "every depth (section 5, Table 4), information alignment comes closer than weight mirror (section 4, "
        "Table 3), and feedback alignment breaks down on hard tasks (section 2)."
    ),
    "results": (
        "Accuracy at the end of training, on the split that the axis names; nothing was chosen on the test split. "
        "A dot is a seed; the bar spans the mean ± one standard deviation over seeds; the dotted line is "
        "backpropagation's mean. The axis need not start at zero."
    ),
    "angles": (
        "Angle between the backward and the forward weight of each layer, mean over seeds. At 0° the weights are "
        "symmetric, and the pseudogradient is the exact gradient (section 5); independent random weights are at "
        "about 90°. Dashed: the angle between the network's pseudogradient and backpropagation's gradient on the "
        "same batch, which is what learning depends on."
    ),
    "scatter": (
        "Elements of the backward weight against elements of the forward weight in three layers, after training with "
        "one seed, as in Fig. 2d-f. Dots on the dotted diagonal: symmetric weights, as in backpropagation. Dots on a "
        "line of another slope: aligned, but diverging (steeper) or collapsing (flatter), which is weight mirror's "
        "instability (section 4, equation 1). A round cloud: not aligned."
    ),
}
"""Captions of the figures that untied.lab.plots draws, by the name they are saved under, in the page's order."""

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
    """

    title: str
    text: str = ""
    rows: Sequence[Mapping[str, Any]] = ()
    figures: Sequence[str] = ()


def write_html(
    run: RunFolder | str | Path,
    *,
    rows: Rows | None = None,
    title: str = "Learning rules compared",
    summary: str = "",
    sections: Sequence[Section] = (),
    captions: Mapping[str, str] | None = None,
) -> Path:
    """Write index.html into a run folder. Returns its path.

    Args:
        run: the run folder, finished or not.
        rows: of the table of rules; by default those of results.json. Empty: only the sections' own tables.
        title: the page's heading.
        summary: what was run, in plain words; a blank line starts a new paragraph.
        sections: what the experiment adds, after the table and the figures.
        captions: of figures that CAPTIONS does not know, or knows otherwise.

    Raises:
        UntiedError: not a run folder, a damaged file in it, or a page that cannot be written.
    """
    run = run if isinstance(run, RunFolder) else RunFolder.open(run)
    captions = CAPTIONS | dict(captions or {})
    if rows is None:
        rows = run.read_json("results.json") if (run.path / "results.json").is_file() else []
    elsewhere = {name for section in sections for name in section.figures}
    drawn = [name for name in _figure_names(run.path, list(captions)) if name not in elsewhere]
    page = _template().render(
        title=title,
        summary=_paragraphs(summary),
        facts=list(_facts(rows, run.config(), run.environment())),
        heads=heads(rows),
        rows=[(row, cells(row)) for row in rows],
        unfinished=[row["rule"] for row in rows if not row.get("finished", True) or row.get("failure")],
        figures=[_figure(run.path, name, captions) for name in drawn],
        sections=[
            {
                "title": section.title,
                "paragraphs": _paragraphs(section.text),
                "heads": list(section.rows[0]) if section.rows else [],
                "rows": [[_cell(value) for value in row.values()] for row in section.rows],
                "figures": [_figure(run.path, name, captions) for name in section.figures],
            }
            for section in sections
        ],
        config=yaml.safe_dump(run.config(), sort_keys=False, allow_unicode=True),
        environment=yaml.safe_dump(run.environment(), sort_keys=False, allow_unicode=True),
        files=[(name, about) for name, about in FILES.items() if (run.path / name).exists()],
    )
    return run.write_text("index.html", page)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("untied.lab", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def _facts(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], environment: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """What a reader wants to know first, as pairs of name and value."""
    for name in ("data", "model", "epochs"):
        value = config.get(name)
        if value := value.get("name") if isinstance(value, Mapping) else value:
            yield name, str(value)
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


def _figure(folder: Path, name: str, captions: Mapping[str, str]) -> dict[str, str]:
    """A figure as an image inside the page: the SVG, which stays sharp, or else the PNG."""
    for ending, kind in (("svg", "image/svg+xml"), ("png", "image/png")):
        path = folder / "figures" / f"{name}.{ending}"
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            return {"name": name, "source": f"data:{kind};base64,{data}", "caption": captions.get(name, name)}
    return {"name": name, "source": "", "caption": captions.get(name, name)}


def _paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
