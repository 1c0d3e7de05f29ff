"""Malformed inputs by the thousand, each against the reader it is meant for.

    python benchmarks/fuzz.py --count 1200 --seed 0        # minutes
    python benchmarks/fuzz.py --minutes 60                 # an hour's battery

An input passes if the reader takes it or raises one line of UntiedError, within 10 seconds. Everything else is printed
with its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import optuna
import torch

from untied.errors import UntiedError
from untied.lab.data import DataConfig
from untied.lab.data.shards import read_index
from untied.lab.keeping import processes
from untied.lab.keeping.processes import LOCK, Lock, here
from untied.lab.neural import recording
from untied.lab.reading.edges import printable
from untied.lab.reading.fields import read_yaml
from untied.lab.reading.secrets import redacted
from untied.lab.settings.entries import parse_entry
from untied.lab.settings.optimizer import OptimizerConfig
from untied.lab.settings.run import TrainConfig
from untied.lab.study.config import TransferConfig
from untied.lab.study.recover import recover
from untied.lab.study.run import run
from untied.lab.study.storage import load, open_storage
from untied.lab.training import checkpoint
from untied.lab.training.checkpoint import Position

SLOW = 10.0  # seconds
processes.WATCH = 0.05  # as long as a lock of nobody known is watched
SMALL = TrainConfig(
    model="mlp-8",
    epochs=1,
    angles="weights",
    data=DataConfig(
        "synthetic", synthetic_shape=(1, 4, 4), synthetic_classes=3, synthetic_count=60, batch_size=12, validation=0.2
    ),
)
ATOMS = ["amp", "decay", "null", "sa", "ia", "kp", "wm(", "linear(0,1)", "@", "SGD(lr=", "*a", "1e300/1e-300", "1e-9",
         "-", "+", "*", "/", "(", ")", "=", ",", "9" * 400, "every", " ", "\x00", "é", "none"]  # fmt: skip
YAML = ["rule", "seed", "data", "epochs", ": ", "\n", "  ", "[", "]",
        "{", "}", "&a ", "*a", "- ", "!!python/x ",
        "9" * 5000, "1e400", ".nan", "sa", "'", '"', "|", "? ", "0x" + "f" * 300]  # fmt: skip
VALUES = [-5, 30.7, 10**12, 2**70, float("inf"), None, "x", [], {}, [[[]]], True]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut off or repeated."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed[: draw.randrange(1, len(changed))] if draw.random() < 0.3 else changed)


def rule(draw: random.Random, folder: Path) -> None:
    parse_entry("".join(draw.choices(ATOMS, k=draw.randint(1, 12))), OptimizerConfig())


def config(draw: random.Random, folder: Path) -> None:
    path = folder / "config.yaml"
    text = "".join(draw.choices(YAML, k=draw.randint(1, 30))) * draw.choice([1, 1, 1, 3000])
    path.write_text(text[:200_000])
    read_yaml(TrainConfig, path)


def header(draw: random.Random, folder: Path) -> None:
    from safetensors.torch import save_file

    position = {name: draw.choice(VALUES) for name in draw.sample(["step", "lines", "best", "identity", "x"], 2)}
    fields = {
        "position": draw.choice([position, *VALUES]),
        draw.choice(["optimizers", "averaged"]): draw.choice(VALUES),
    }
    text = "[" * 50_000 if draw.random() < 0.1 else json.dumps(fields)
    save_file({"model.w": torch.zeros(3)}, folder / "last.safetensors", {"untied": text})
    checkpoint.read(folder / "last.safetensors")


def weights(draw: random.Random, folder: Path) -> None:
    path, given = folder / "best.safetensors", torch.arange(50.0)
    checkpoint.save(path, Position(step=3), {"model.w": given})
    path.write_bytes(flipped(path.read_bytes(), draw))
    if not torch.equal(checkpoint.read(path)[0]["model.w"], given):
        raise AssertionError("damaged weights were taken for good")


def index(draw: random.Random, folder: Path) -> None:
    fields = {
        "classes": draw.choice([["a"], *VALUES]),
        "shards": draw.choice([{"0.tar": draw.choice(VALUES)}, *VALUES]),
    }
    (folder / "index.json").write_text(json.dumps(fields))
    read_index(folder / "index.json")


def npz(draw: random.Random, folder: Path) -> None:
    path = folder / "r.npz"
    np.savez_compressed(path, images=np.zeros((3, 4, 4), np.uint8), responses=np.eye(3), region=np.array("IT"))
    path.write_bytes(flipped(path.read_bytes(), draw))
    recording.read(path)


def name(draw: random.Random, folder: Path) -> None:
    text = "".join(chr(draw.choice([draw.randrange(0x3000), draw.randrange(0xD800, 0xE000)])) for _ in range(20))
    printable(text).encode("utf-8")
    if not printable(text).isprintable():
        raise AssertionError("a name is not escaped")


def address(draw: random.Random, folder: Path) -> None:
    pieces = ["postgresql", "mysql", ":", "/", "//", "me", "host", "/d", "?", "sslpassword=", "&", "@", "x", " ", "é"]
    text = "".join(draw.choices(pieces, k=draw.randint(0, 8)))
    if "secret" in redacted(f"{text}me:secret@host/{draw.choice(pieces)}"):
        raise AssertionError("a password is shown")


def lock(draw: random.Random, folder: Path) -> None:
    path = folder / LOCK
    path.write_bytes(flipped(json.dumps(here() | {"pid": draw.choice(VALUES)}).encode(), draw))
    with Lock(folder):
        pass
    if path.exists():
        raise AssertionError("a lock is left behind")


def journal(draw: random.Random, folder: Path) -> None:
    path = folder / f"{draw.random()}.log"
    made = optuna.create_study(storage=open_storage(f"journal:{path}"), study_name="s")
    made.ask().suggest_float("x", 0, 1)
    path.write_bytes(flipped(path.read_bytes(), draw))
    load(open_storage(f"journal:{path}"), "s")


def trial(draw: random.Random, folder: Path) -> None:
    """A study's folder from a stranger, whose database is gone."""
    with quiet():
        path = folder / f"study-{draw.random()}"
        shutil.copytree(folder / "study", path, ignore=shutil.ignore_patterns("study.db*"))
        file = draw.choice([path / "definition.json", path / "results.json", *(path / "runs").glob("*/trial.json")])
        given = json.loads(file.read_text())
        if isinstance(given, dict) and draw.random() < 0.5:
            given[draw.choice(list(given))] = draw.choice(VALUES)
            file.write_text(json.dumps(given))
        else:
            file.write_bytes(flipped(file.read_bytes(), draw))
        try:
            recover(path, f"sqlite:///{path / 'study.db'}")
        finally:
            shutil.rmtree(path)


def make_study(path: Path) -> None:
    with quiet():
        run(TransferConfig(run=SMALL, rules=("bp",), models=("mlp-8",), seeds=1, workers=0, out=path))


@contextmanager
def quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):
        yield


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    f.__name__: f for f in (rule, config, header, weights, index, npz, name, address, lock, journal, trial)
}


def main() -> int:
    """Run the battery and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Malformed inputs by the thousand.")
    parser.add_argument("--count", type=int, default=1200, help="inputs, over all kinds")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long, whatever the count")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the first input; each next one counts on")
    given = parser.parse_args()
    taken, refused, failed, worst = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        if "trial" in given.kinds:
            make_study(Path(folder) / "study")
        began = time.monotonic()
        while number < given.count or time.monotonic() - began < 60 * given.minutes:
            kind = given.kinds[number % len(given.kinds)]
            start = time.monotonic()
            try:
                KINDS[kind](random.Random(given.seed + number), Path(folder))
                taken[kind] += 1
            except UntiedError as error:
                refused[kind] += 1
                if "\n" in str(error) or len(str(error)) > 3000:
                    failed[kind] += 1
                    print(f"{kind}, seed {given.seed + number}: not one line of bounded length")
            except BaseException as error:
                failed[kind] += 1
                print(f"{kind}, seed {given.seed + number}: {type(error).__name__}: {str(error)[:150]}")
            seconds = time.monotonic() - start
            worst[kind] = max(worst[kind], round(1000 * seconds))
            if seconds > SLOW:
                failed[kind] += 1
                print(f"{kind}, seed {given.seed + number}: took {seconds:.1f} s")
            number += 1
    print("| input | taken | refused in one line | failed | slowest, ms |\n|---|--:|--:|--:|--:|")
    for kind in given.kinds:
        print(f"| {kind} | {taken[kind]} | {refused[kind]} | {failed[kind]} | {worst[kind]} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{number} inputs, {failed.total()} failed, peak memory of the process {peak} MB")
    return int(failed.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
