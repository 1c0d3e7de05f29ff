"""What each rule costs on this machine: one table a part, in one command that goes on where it was stopped.

    python benchmarks/performance.py                         all parts that are not done, then the page
    python benchmarks/performance.py --only main             one part: main, large, scaling, compiled, ...
    python benchmarks/performance.py --threads 1 --clock cpu     on a machine that others use too
    python benchmarks/performance.py --page                  the page again, of what is there

Leave the machine alone meanwhile: on 2 cores main takes some 8 to 11 minutes, large 11, scaling 5, processes and
input 1 each, compiled 5, others 3. bf16 is left out on a CPU without AVX-512, which would take minutes for a step.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

import untied
from untied.lab.data import DataConfig, load
from untied.lab.experiments.bench import again, bench
from untied.lab.keeping.environment import environment
from untied.lab.keeping.record import RunFolder
from untied.lab.measuring.timing import Clock, interleaved, plain_step, untied_step
from untied.lab.models import build
from untied.lab.settings.bench import BenchConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.showing.costs import markdown, table_rows
from untied.rules import parse

ROOT = Path(__file__).resolve().parents[1]
FEW = ("fa", "sa", "aa")
EIGHTH = (1.0, 0.125)
BENCHES: dict[str, dict[str, dict[str, Any]]] = {
    "main": {
        "float32": {"fractions": EIGHTH},
        "bf16": {"fractions": EIGHTH, "precisions": ("bf16",)},
    },
    "large": {"float32-batch128": {"batches": (128,), "fractions": EIGHTH, "rules": ("fa", "wm", "aa", "ia")}},
    "scaling": {
        "depth": {"models": tuple(f"resnet{n}-w16" for n in (18, 34, 50, 101, 152)), "batches": (16,), "rules": FEW},
        "width": {"models": tuple(f"resnet18-w{n}" for n in (8, 16, 32)), "rules": FEW},
        "batch": {"models": ("resnet18-w16",), "batches": (16, 64, 256), "rules": FEW},
    },
    "compiled": {"compiled": {"models": ("resnet18-w16",), "rules": FEW, "compile": (False, True)}},
}

PROFILED = ("main", "large")


def run_benches(part: str, runs: Path, threads: int, clock: str) -> None:
    """The tables of a part, each in a folder; those that are complete stay."""
    for name, settings in BENCHES[part].items():
        if "bf16" in settings.get("precisions", ()) and "AVX512" not in torch.backends.cpu.get_cpu_capability():
            print(f"{name}: left out, as this CPU has no AVX-512")
            continue
        folder, rounds = runs / name, 15 if part in PROFILED else 9
        config = BenchConfig(**{"rounds": rounds, "threads": threads, "clock": clock, "out": folder, "overwrite": True,
                                "profile": 5 if part in PROFILED else 0, **settings})  # fmt: skip
        if (folder / "results.json").is_file():
            done = json.loads((folder / "results.json").read_text())
            if len({(r["model"], r["batch"], r["compile"]) for r in done}) == len(config.cases) and all(
                row["rounds"] == rounds for row in done
            ):
                print(f"{name}: done already, in {folder}")
                continue
        if bench(config):
            raise KeyboardInterrupt


# Several processes


def one_process(rank: int, world: int, store: str, out: str, batch: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    x, y, sgd = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)), OptimizerConfig(weight_decay=1e-4)
    steps = {}
    for rule in (None, *FEW):
        model = build("resnet18-w16", input_shape=(3, 32, 32), classes=10).train()
        if rule is None:
            steps["plain"] = plain_step(model, x, y, sgd, wrap=DistributedDataParallel)
        else:
            untied.untie_(model, rule)
            steps[rule] = untied_step(model, parse(rule), x, y, sgd, sgd, wrap=DistributedDataParallel)
    rounds = [{name: p.total for name, p in found.items()} for found in interleaved(steps, Clock(), 9)]
    if rank == 0:
        Path(out).write_text(json.dumps(rounds))
    dist.destroy_process_group()


def processes(runs: Path) -> None:
    """processes.json: 1, 2 and 4 processes over gloo, each with one thread and its own 16 images."""
    found = {}
    for world in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rounds.json"
            mp.spawn(one_process, (world, f"{folder}/store", str(out), 16), nprocs=world)
            rounds = json.loads(out.read_text())
        found[world] = {
            "plain": statistics.median(r["plain"] for r in rounds),
            **{rule: statistics.median(r[rule] / r["plain"] for r in rounds) for rule in FEW},
        }
        print(world, found[world], flush=True)
    (runs / "processes.json").write_text(json.dumps(found, indent=2) + "\n")


# The input


def rate(batches: Callable[[int], Any], images: int) -> float:
    """Images a second, of the second epoch."""
    for epoch in range(2):
        before, seen = time.perf_counter(), 0
        for x, _ in batches(epoch):
            seen += len(x)
            if seen >= images:
                break
    return seen / (time.perf_counter() - before)


def input_rates(runs: Path, workers: int) -> None:
    """input.json: images a second of the loaders, beside the rate of backpropagation in a ResNet-18."""
    settings = DataConfig("synthetic", synthetic_count=10_000, augment="standard")
    found = {"CIFAR's size, shifted and mirrored on the device": rate(load(settings, seed=0).train.epoch, 10_000)}
    with tempfile.TemporaryDirectory() as name:
        for split, number in itertools.product(("train", "val"), range(256)):
            folder = Path(name) / split / str(number % 4)
            folder.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()
            Image.fromarray(noise).resize((500, 375)).save(folder / f"{number}.jpg", quality=90)
        folder_config = DataConfig("folder", root=Path(name), augment="standard", workers=workers, batch_size=32)
        found[f"JPEG files of 500 x 375, cropped to 224, {workers} processes"] = rate(
            load(folder_config, seed=0).train.epoch, 192
        )
    for size, batch in ((32, 64), (224, 8)):
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        y = torch.randint(10, (batch,))
        model = build("resnet18", input_shape=(3, size, size), classes=10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        steps = {"plain": plain_step(model.train(), x, y, OptimizerConfig())}
        seconds = statistics.median(r["plain"].total for r in interleaved(steps, Clock(), 5))
        found[f"resnet18 trains on {size} x {size}"] = batch / seconds
    (runs / "input.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


# The page


def page(runs: Path, out: Path) -> None:
    """README.md, and of each part table.csv and the figure, of what has been run."""
    out.mkdir(parents=True, exist_ok=True)
    made = None
    text = io.StringIO()
    for part, names in BENCHES.items():
        for name in names:
            folder = runs / name
            if not (folder / "results.json").is_file():
                continue
            again(folder)
            run = RunFolder.open(folder)
            made = run.environment()
            config = run.config()
            text.write(f"## {name}\n\n{config['threads']} threads, {config['clock']} clock, commit "
                       f"{((made['git'] or {}).get('commit') or 'unknown')[:9]}.\n\n")  # fmt: skip
            text.write(markdown(table_rows(run.metrics())))
            (out / name).mkdir(exist_ok=True)
            for file in ("config.yaml", "environment.json", "table.csv", "results.json"):
                shutil.copy(folder / file, out / name / file)
            if part in PROFILED:
                text.write(f"![cost]({name}/cost.png)\n\n")
                shutil.copy(folder / "figures" / "cost.png", out / name / "cost.png")
    if (runs / "processes.json").is_file():
        found = json.loads((runs / "processes.json").read_text())
        text.write("## processes\n\nDDP over gloo, resnet18-w16, 16 images and one thread a process.\n\n")
        text.write(f"| processes | plain (ms) | {' | '.join(FEW)} |\n|--:|--:|{'--:|' * len(FEW)}\n")
        for world, row in found.items():
            text.write(f"| {world} | {1e3 * row['plain']:.0f} | {' | '.join(f'{row[r]:.3f}' for r in FEW)} |\n")
        text.write("\n")
    if (runs / "input.json").is_file():
        text.write("## input\n\n| images a second | |\n|:--|--:|\n")
        for what, images in json.loads((runs / "input.json").read_text()).items():
            text.write(f"| {what} | {images:,.0f} |\n")
        text.write("\n")
    if (runs / "others.md").is_file():
        text.write(f"## others\n\n{(runs / 'others.md').read_text()}\n")
    machine = (made or environment())["machine"]
    torch_version = (made or environment())["packages"]["torch"]
    head = (
        f"# Cost of a training step\n\nMade by `python benchmarks/performance.py`: {machine['cpu']}, "
        f"{machine['cores']} cores, torch {torch_version}. What the columns are, and what the numbers say: "
        "[docs/performance.md](../../docs/performance.md).\n\n"
    )
    (out / "README.md").write_text(head + text.getvalue().rstrip() + "\n")
    print(out / "README.md")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = ["main", "large", "scaling", "processes", "input", "others", "compiled"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--runs", type=Path, default=Path("runs/performance"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "performance-cpu")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    for part in () if given.page else given.only:
        if part in BENCHES:
            run_benches(part, given.runs, given.threads, given.clock)
            continue
        file = given.runs / {"processes": "processes.json", "input": "input.json", "others": "others.md"}[part]
        if file.is_file():
            print(f"{part}: done already, in {file}")
        elif part == "processes":
            processes(given.runs)
        elif part == "input":
            input_rates(given.runs, given.threads)
        else:
            from others import write

            write(file, given.threads, given.clock)
    page(given.runs, given.out)


if __name__ == "__main__":
    main()
