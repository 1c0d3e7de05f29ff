"""Train recipes with several seeds, and put what came out into one small folder: table, curves, configs, machine.

    python benchmarks/train_recipes.py two-cores/resnet18 --seeds 3 --jobs 2 --out results/two-cores -- \
        --data.root data/cifar10_jpeg.npz

A name without a rule stands for all rules of that model. Words after -- go to untied train. Call it again after an
interruption: runs that have ended are kept, others go on. Runs stay in --runs (not committed); the results are the mean
and standard deviation over seeds, accuracy after the last epoch on the test split, which chose nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from untied.lab.experiments.train import open_run
from untied.lab.keeping.record import RunFolder, plain
from untied.lab.settings.recipes import recipes
from untied.lab.showing import plots, style
from untied.lab.showing.tables import csv_table
from untied.lab.training.setup import dataset
from untied.rules import parse


def main() -> int:
    """Train, then write the results. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; one for each GPU, or CPU core")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--speed", action="store_true", help="show images a second: where nothing else has run")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    chosen, more = parser.parse_args(words[:cut]), words[cut + 1 :]
    names = [name for wanted in chosen.recipes for name in recipes() if name == wanted or name.startswith(f"{wanted}-")]
    if not names:
        parser.error(f"no recipe is or begins with {', '.join(chosen.recipes)}: see untied recipes")
    jobs = [(name, seed) for seed in range(chosen.seeds) for name in dict.fromkeys(names)]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        codes = list(pool.map(lambda job: train(*job, chosen.runs, more), jobs))
    write(chosen.out, list(dict.fromkeys(names)), chosen.seeds, chosen.runs, more, chosen.speed)
    return max(codes)


def where(runs: Path, name: str, seed: int) -> Path:
    """The folder of a run."""
    return runs / name.replace("/", "-") / f"seed{seed}"


def train(name: str, seed: int, runs: Path, more: list[str]) -> int:
    """Start a run, or go on with it. A run whose loss was not finite has ended, with code 1."""
    folder = where(runs, name, seed)
    if (folder / "results.json").is_file():
        return 0
    again = (folder / "checkpoints" / "last.safetensors").is_file()
    fresh = [name, "--seed", str(seed), "--out", str(folder), "--overwrite", *more]
    words = ["--resume", str(folder)] if again else fresh
    code = subprocess.run([sys.executable, "-m", "untied", "train", *words], check=False).returncode
    return 0 if code == 1 and (folder / "results.json").is_file() else code


def write(out: Path, names: list[str], seeds: int, runs: Path, more: list[str], speed: bool) -> None:
    """The table, the figures, each recipe's whole config, and what made them."""
    out.mkdir(parents=True, exist_ok=True)
    rows, metrics = [], []
    for name in names:
        folders = [where(runs, name, seed) for seed in range(seeds)]
        ended = [folder for folder in folders if (folder / "results.json").is_file()]
        if ended:
            row, lines = summary(name, ended, seeds)
            rows.append(row)
            metrics += lines
            (out / f"{name.replace('/', '-')}.yaml").write_text(config_text(ended[0]))
            shutil.copy(ended[0] / "environment.json", out / "environment.json")
            config = open_run(ended[0])[1]
            data = str(dataset(config.data, 0, "cpu"))
    style.save(plots.accuracy_curves(metrics), out, "accuracy")
    style.save(plots.angles_over_time(metrics), out, "angles")
    style.save(plots.accuracy_bars(rows), out, "results")
    for svg in out.glob("*.svg"):
        svg.unlink()  # the PNG is enough beside a table
    (out / "table.csv").write_text(csv_table(rows))
    keep = ("rule", "seed", "epoch", "train_loss", "train_accuracy", "validation_accuracy", "gradient_angle")
    (out / "epochs.jsonl").write_text("".join(json.dumps({k: line.get(k) for k in keep}) + "\n" for line in metrics))
    (out / "README.md").write_text(readme(names, rows, out, more, data, speed))


def config_text(folder: Path) -> str:
    """A run's whole configuration, without where things lay on the machine that ran it."""
    config = RunFolder.open(folder).config()
    config["data"].pop("root"), config.pop("out")
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def summary(name: str, folders: list[Path], seeds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A table's row, and the epochs' metrics, of one recipe. A failed run counts at chance."""
    label = name.rpartition("/")[2].partition("-")[2]
    runs, lines, speeds = [], [], []
    for folder in folders:
        run, config = open_run(folder)
        runs.append(run.read_json("results.json"))
        lines += [line | {"rule": label} for line in run.metrics()]
        timing = folder / "timing.jsonl"
        speeds += [json.loads(line)["images_per_second"] for line in timing.read_text().splitlines()]
    accuracies = [run["chance"] if run.get("failure") else run["accuracy"] for run in runs]
    ok = [run for run in runs if not run.get("failure")]
    return {
        "rule": label,
        "text": config.rule,
        "optimizer": plain(config.backward),
        "local": parse(config.rule).local,
        "split": config.evaluate_on,
        "accuracies": accuracies,
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "top5": statistics.fmean([run["top5"] for run in ok]) if ok else None,
        "weight_angle": statistics.fmean([run["weight_angle"] for run in ok]) if ok else None,
        "gradient_angle": statistics.fmean([run["gradient_angle"] for run in ok]) if ok else None,
        "images_per_second": statistics.median(speeds),
        "seeds": len(runs),
        "finished": len(runs) == seeds,
        "failure": next((run["failure"] for run in runs if run.get("failure")), None),
    }, lines


def readme(names: list[str], rows: list[dict[str, Any]], out: Path, more: list[str], data: str, speed: bool) -> str:
    """The results for people."""
    environment = json.loads((out / "environment.json").read_text())
    machine, git = environment["machine"], environment["git"]
    heads = ("rule", "", "local", "top-1 (%)", "top-5 (%)", "weight angle (°)", "gradient angle (°)")
    heads += ("images/s",) if speed else ()
    table = [heads, (":--", ":--", ":--", *["--:"] * (len(heads) - 3))]
    for row in rows:
        spread = "" if row["accuracy_std"] is None else f" ± {100 * row['accuracy_std']:.2f}"
        numbers = [row["top5"] and 100 * row["top5"], row["weight_angle"], row["gradient_angle"]]
        table.append((
            f"`{row['rule']}`", f"`{row['text']}`" + (" (failed)" if row["failure"] else ""),
            "yes" if row["local"] else "no", f"{100 * row['accuracy_mean']:.2f}{spread}",
            *("–" if n is None else f"{n:.1f}" for n in numbers),
            *([f"{row['images_per_second']:.0f}"] if speed else []),
        ))  # fmt: skip
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    made = (
        f"Commit {git['commit'][:9] if git else 'unknown'}{' (changed)' if git and git['dirty'] else ''}, "
        f"{machine['cpu']}, {machine['cores']} cores{''.join(', ' + gpu for gpu in machine['gpus'])}, "
        f"torch {environment['packages']['torch']}, {environment['date'][:10]}."
    )
    asked = " ".join("…" if "/" in word else word for word in more)  # not where things lay on that machine
    return (
        f"# {names[0].partition('/')[0]}\n\n{data}.\n\n{lines}\n\n"
        f"{rows[0]['split'].capitalize()} accuracy after the last epoch, mean ± standard deviation over "
        f"{max(row['seeds'] for row in rows)} seeds; angles at the end, mean over layers and seeds. {made}\n\n"
        f"Made by `benchmarks/train_recipes.py`"
        f"{' with ' + asked if asked else ''}; each recipe's whole configuration is beside this file.\n\n"
        "![Validation accuracy over epochs](accuracy.png)\n\n![Test accuracy](results.png)\n\n"
        "![Angles between W and B over epochs](angles.png)\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
