"""Fig. 6 on recordings: the table and figures of results/neural-v4, from runs of untied train.

    python benchmarks/neural_fits.py fit RUN ... --recordings FILE ... [--runs FOLDER] [-- OPTION ...]
    python benchmarks/neural_fits.py page [--runs FOLDER]
    python benchmarks/neural_fits.py time [--maps pls ridge]

``fit`` runs `untied neural RUN ... --random --pixels --maps pls ridge` into a folder (runs/neural-v4), where an
interrupted call goes on, and then makes the page; what follows -- goes to the command. ``page`` makes the page alone:
README.md between its marks, table.csv, figures, environment. ``time`` measures a ResNet-18 of full width, all layers,
1,000 images, 200 neurons, 5 splits, and appends to timing.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from untied.lab.environment import environment
from untied.lab.models import build
from untied.lab.neural.features import features
from untied.lab.neural.fits import Settings, fit_responses
from untied.lab.neural.layers import chosen, trace
from untied.lab.neural.preprocess import Prepared
from untied.lab.neural.recording import of_arrays
from untied.lab.record import RunFolder

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "neural-v4"
START, END = "<!-- table -->", "<!-- /table -->"


def fit(runs: list[str], recordings: list[Path], out: Path, options: list[str]) -> None:
    """One call of the command, in a process of its own."""
    words = [*runs, "--recording", *map(str, recordings), "--random", "--pixels", "--maps", "pls", "ridge"]
    subprocess.run([sys.executable, "-m", "untied", "neural", *words, "--out", str(out), *options], check=True)


def page(out: Path) -> None:
    """README.md between its marks, and what it shows, beside it."""
    folder = RunFolder.open(out)
    result, made, config = folder.read_json("results.json"), folder.environment(), folder.config()
    OUT.mkdir(parents=True, exist_ok=True)
    for path in (out / "figures").glob("*.png"):
        shutil.copy(path, OUT / path.name)
    (OUT / "table.csv").write_text(best_rows((out / "table.csv").read_text()))
    (OUT / "environment.json").write_text(json.dumps(made, indent=2) + "\n")
    seen = "; ".join(line.partition(": ")[2] for line in result["seen"])
    lines = [
        START, "", (out / "table.md").read_text().strip(), "",
        f"{', '.join(r['words'] for r in result['recordings'])}. {config['splits']} splits, {config['components']} "
        f"components. Pictures: {seen}. Commit {(made['git'] or {}).get('commit', 'unknown')[:9]}, "
        f"{made['machine']['cpu']}, {made['machine']['cores']} cores, torch {made['packages']['torch']}.", "", END,
    ]  # fmt: skip
    readme = OUT / "README.md"
    text = readme.read_text() if readme.is_file() else f"# Neural fits\n\n{START}\n{END}\n"
    before, _, rest = text.partition(START)
    readme.write_text(before + "\n".join(lines) + rest.partition(END)[2])


def best_rows(text: str) -> str:
    """The rows of best layers, and of single layers over all recordings."""
    rows = list(csv.DictReader(io.StringIO(text)))
    several = {(r["region"], r["map"]) for r in rows if r["recording"] == "all"}
    kept = [
        r for r in rows if r["layer"] == "best" or r["recording"] == "all" or (r["region"], r["map"]) not in several
    ]
    out = io.StringIO()
    table = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(kept)
    return out.getvalue()


def timing(maps: list[str], images: int = 1000, neurons: int = 200) -> None:
    """Seconds of features and of fits, all layers of a ResNet-18 of width 64 on 32×32 pictures of noise."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(256, size=(images, 3, 32, 32), dtype=np.uint8))
    arrays: dict[str, Any] = {
        "images": pixels.permute(0, 2, 3, 1).numpy(), "responses": random.normal(size=(images, neurons)),
        "name": np.array("noise"),
    }  # fmt: skip
    recording = of_arrays(arrays, Path())
    model = build("resnet18", input_shape=(3, 32, 32), classes=10).eval()
    layers = chosen(model, trace(model, torch.zeros(1, 3, 32, 32)), ["all"])
    pictures = Prepared(pixels, lambda x: x.float() / 128 - 1)
    spent = {"features": 0.0, "pls": 0.0, "ridge": 0.0}
    cpu = time.process_time()
    began = time.perf_counter()
    for layer, X in features(model, pictures, layers, width=16384, memory=1_000_000_000):
        spent["features"] += time.perf_counter() - began
        for name in maps:
            began = time.perf_counter()
            fit_responses(X.numpy(), recording, Settings((name,)))
            spent[name] += time.perf_counter() - began
        print(
            f"{layer.name} ({layer.width:,} wide): " + ", ".join(f"{k} {v:.0f} s" for k, v in spent.items()), flush=True
        )
        began = time.perf_counter()
    made = environment()
    row = {"layers": len(layers), "images": images, "neurons": neurons, "splits": 5, "inner folds": 3,
           **{f"{k} (s)": f"{v:.1f}" for k, v in spent.items()},
           "processor time (s)": f"{time.process_time() - cpu:.1f}",
           "threads": torch.get_num_threads(),
           "cpu": made["machine"]["cpu"], "commit": (made["git"] or {}).get("commit", "unknown")[:9],
           "date": made["date"]}  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "timing.csv"
    old = path.read_text() if path.is_file() else ",".join(row) + "\n"
    path.write_text(old + ",".join(map(str, row.values())) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    words, options = sys.argv[1:], []
    if "--" in words:
        words, options = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    fitting = commands.add_parser("fit")
    fitting.add_argument("folders", nargs="+")
    fitting.add_argument("--recordings", nargs="+", type=Path, required=True)
    for command in (fitting, commands.add_parser("page")):
        command.add_argument("--runs", type=Path, default=Path("runs/neural-v4"))
    commands.add_parser("time").add_argument("--maps", nargs="+", choices=["pls", "ridge"], default=["pls"])
    given = parser.parse_args(words)
    if given.command == "time":
        timing(given.maps)
    else:
        if given.command == "fit":
            fit(given.folders, given.recordings, given.runs, options)
        page(given.runs)
