"""Put what studies ended with into one small folder of results: tables, figures, configurations, machine.

    python benchmarks/publish_studies.py studies/search-wm studies/transfer-digits --out results/studies-digits

README.md gets a section a study, between <!-- NAME --> and <!-- /NAME -->; text around them stays. Run folders stay
where they are.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import yaml

from untied.lab.keeping.record import RunFolder
from untied.lab.study.report import crossovers, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="the data's name in the text, where it is not the configuration's")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    readme = given.out / "README.md"
    text = readme.read_text() if readme.is_file() else f"# {given.out.name}\n"
    for folder in map(RunFolder.open, given.studies):
        name, section = publish(folder, given.out, given.data)
        before, found, rest = text.partition(f"<!-- {name} -->\n")
        after = rest.partition(f"<!-- /{name} -->\n")[2] if found else ""
        text = f"{before if found else before + chr(10)}<!-- {name} -->\n{section}<!-- /{name} -->\n{after}"
    readme.write_text(text)


def publish(folder: RunFolder, out: Path, named: str | None) -> tuple[str, str]:
    """Copy a study's files. Returns its name, and its section of the README."""
    config, made = folder.config(), folder.environment()
    name = config["name"]
    shutil.copy(folder.path / "table.csv", out / f"{name}.csv")
    (out / f"{name}.yaml").write_text(yaml.safe_dump(without_places(config), sort_keys=False, allow_unicode=True))
    pictures = ""
    for figure in ("history", "parameters", "transfer", "noise"):
        if (folder.path / "figures" / f"{figure}.png").is_file():
            shutil.copy(folder.path / "figures" / f"{figure}.png", out / f"{name}-{figure}.png")
            pictures += f"![{figure}]({name}-{figure}.png)\n\n"
    rows = folder.read_json("results.json")
    states = [row["state"] for row in rows]
    data = config["run"]["data"]
    said = f"{len(rows)} runs" + (f", {states.count('pruned')} of them stopped early" if "pruned" in states else "")
    failed = sum(bool(row["failure"]) for row in rows)
    said += f", {failed} without a finite loss (counted at chance)" if failed else ""
    split = next((r["split"] for row in rows for r in row["results"] if r.get("split")), "test")
    table = (folder.path / "table.md").read_text()
    if config["kind"] == "search":
        table = best(rows)
    if config["kind"] == "noise":
        lines = [list(line.values()) for line in crossovers(rows)]
        table += "\n" + markdown([["architecture", "rule", "more accurate than backpropagation from σ ="], *lines])
    git = made["git"] or {"commit": "unknown"}
    about = (
        f"{said}; accuracy (%) on {split} images, {named or data['name']}, {config['run']['epochs']} epochs of batches "
        f"of {data['batch_size']}. Commit {git['commit'][:9]}, {made['machine']['cpu']}, "
        f"{made['machine']['cores']} cores, torch {made['packages']['torch']}, {made['date'][:10]}. All runs: "
        f"[{name}.csv]({name}.csv), configuration: "
        f"[{name}.yaml]({name}.yaml)."
    )
    return name, f"\n{table}\n{about}\n\n{pictures}"


def best(rows: list[dict[str, Any]]) -> str:
    """The three best settings of a search, as rules."""
    done = sorted((row for row in rows if row["state"] == "complete"), key=lambda row: -row["value"])[:3]
    lines = [
        "| validation accuracy (%) | rule | backward weights | forward lr | phases | batch |",
        "|--:|:--|:--|--:|:--|--:|",
    ]
    for row in done:
        c = row["config"]
        phases = c["phases"]["kind"] + (f", delay {c['phases']['delay']}" if c["phases"]["delay"] else "")
        lines.append(
            f"| {100 * row['value']:.1f} | `{c['rule']}` | {c['backward']['name']}, {c['backward']['lr']:.2g} | "
            f"{c['forward']['lr']:.2g} | {phases} | {c['data']['batch_size']} |"
        )
    return "\n".join(lines) + "\n"


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without where things lay on the machine that ran it."""
    kept = {key: value for key, value in config.items() if key not in ("out", "storage")}
    kept["run"] = {key: value for key, value in config["run"].items() if key != "out"}
    kept["run"]["data"] = {key: value for key, value in config["run"]["data"].items() if key != "root"}
    if "rules" in kept:
        kept["rules"] = list(kept["rules"])
    return kept


if __name__ == "__main__":
    main()
