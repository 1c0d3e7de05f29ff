"""Fig. 6 on recordings: the table and figures of results/neural-v4, from a study of runs.

    python benchmarks/neural_fits.py convert DATA RECORDINGS
    python benchmarks/neural_fits.py fit STUDY ... --recordings FILE ... [--maps pls] [--runs FOLDER] [-- OPTION ...]
    python benchmarks/neural_fits.py page [--runs FOLDER]
    python benchmarks/neural_fits.py time [--maps pls ridge]

``convert`` makes the recordings: of V4 from DATA/v4/v4_cowley_*.npz, of IT from DATA/it92_kriegeskorte2008.npz.
``fit`` runs `untied neural STUDY ... --random --pixels --maps pls ridge` into a folder (runs/neural-v4), where an
interrupted call goes on, and then makes the page; a STUDY is the folder of `untied transfer`, or a folder of runs;
what follows -- goes to the command. ``page`` makes the page alone: README.md between its marks, table.csv, figures,
environment. ``time`` measures a ResNet-18 of full width, all layers, 1,000 images, 200 neurons, 5 splits, and appends
to timing.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from untied.lab.keeping.environment import environment
from untied.lab.keeping.record import RunFolder
from untied.lab.models import build
from untied.lab.neural.command import abreast
from untied.lab.neural.convert import convert
from untied.lab.neural.features import features
from untied.lab.neural.fits import fit_responses
from untied.lab.neural.layers import chosen, trace
from untied.lab.neural.preprocess import Prepared
from untied.lab.neural.recording import of_arrays
from untied.lab.settings.neural import ConvertConfig, Settings

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "results" / "neural-v4"
START, END = "<!-- table -->", "<!-- /table -->"


def recordings(data: Path, out: Path) -> None:
    """All recordings, with single repeats where there are some; dissimilarities of each human subject."""
    cowley, kriegeskorte = "Cowley et al. 2023, GPL-3.0", "Kriegeskorte et al. 2008, MIT"
    packed = {"images": "jpeg_data", "image_offsets": "jpeg_offsets", "region": "region", "subject": "animal"}
    for path in sorted((data / "v4").glob("v4_cowley_*.npz")):
        with np.load(path) as arrays:
            single = "responses_raw" in arrays.files
        chosen: dict[str, Any] = {"responses": "responses_raw", "missing": -1} if single else {
            "responses": "responses_avg"}  # fmt: skip
        name = f"v4-{path.stem.rpartition('_')[2]}"
        convert(ConvertConfig(str(path), out / f"{name}.npz", **packed, **chosen, about=cowley))
    matrices = ("rdm_monkeyIT_674neurons", "rdm_humanIT_subj_session")
    convert(ConvertConfig(str(data / "it92_kriegeskorte2008.npz"), out / "it92.npz", rdm=matrices,
                          rdm_region=("monkey IT", "human IT"), about=kriegeskorte))  # fmt: skip


def fit(runs: list[str], recordings: list[Path], maps: list[str], out: Path, options: list[str]) -> None:
    """One call of the command, in a process of its own."""
    words = [*runs, "--recording", *map(str, recordings), "--random", "--pixels", "--maps", *maps]
    code = subprocess.run([sys.executable, "-m", "untied", "neural", *words, "--out", str(out), *options]).returncode
    if code:
        sys.exit(code)  # it has said why; the same call goes on


def page(out: Path) -> None:
    """README.md between its marks, and what it shows, beside it."""
    folder = RunFolder.open(out)
    result, made, config = folder.read_json("results.json"), folder.environment(), folder.config()
    OUT.mkdir(parents=True, exist_ok=True)
    for path in (out / "figures").glob("*.png"):
        shutil.copy(path, OUT / path.name)
    (OUT / "table.csv").write_text(best_rows((out / "table.csv").read_text()))
    (OUT / "environment.json").write_text(json.dumps(made, indent=2) + "\n")
    figures = [
        f"![{name}]({name}.png)\n" for name in ("layers", "neurons") if (out / "figures" / f"{name}.png").is_file()
    ]
    machine = f"{made['machine']['cpu']}, {made['machine']['cores']} cores, torch {made['packages']['torch']}"
    seen = "; ".join(dict.fromkeys(line.partition(": ")[2] for line in result["seen"]))
    lines = [
        START, "", "![fits](fits.png)", "", (out / "table.md").read_text().strip(), "",
        f"{', '.join(r['words'] for r in result['recordings'])}. {config['splits']} splits, {config['components']} "
        f"components. Pictures: {seen}. Commit {(made['git'] or {}).get('commit', 'unknown')[:9]}, "
        f"{machine}, {made['date'][:10]}: `python benchmarks/neural_fits.py fit STUDY --recordings v4-*.npz it92.npz "
        f"--maps {' '.join(config['maps'])}`.",
        "",
        *figures, END,
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
    """Seconds for all layers of a ResNet-18 of width 64 on 32×32 pictures of noise, as the command fits them."""
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
    cpu, began = time.process_time(), time.perf_counter()
    seen = features(model, pictures, layers, width=16384, memory=1_000_000_000)
    given = ((layer, X.numpy()) for layer, X in seen)
    for layer, _ in abreast(lambda X: fit_responses(X, recording, Settings(tuple(maps))), given):
        print(f"{layer.name} ({layer.width:,} wide): {time.perf_counter() - began:.0f} s", flush=True)
    made = environment()
    row = {"maps": " ".join(maps), "layers": len(layers), "images": images, "neurons": neurons, "splits": 5,
           "inner folds": 3, "seconds": f"{time.perf_counter() - began:.0f}",
           "processor seconds": f"{time.process_time() - cpu:.0f}", "threads": torch.get_num_threads(),
           "other processes running": f"{max(0.0, os.getloadavg()[0] - torch.get_num_threads()):.0f}",
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
    for command, maps in ((fitting, ["pls", "ridge"]), (commands.add_parser("time"), ["pls"])):
        command.add_argument("--maps", nargs="+", choices=["pls", "ridge"], default=maps)
    converting = commands.add_parser("convert")
    for name in ("data", "out"):
        converting.add_argument(name, type=Path)
    given = parser.parse_args(words)
    if given.command == "convert":
        recordings(given.data, given.out)
    elif given.command == "time":
        timing(given.maps)
    else:
        if given.command == "fit":
            fit(given.folders, given.recordings, given.maps, given.runs, options)
        page(given.runs)
