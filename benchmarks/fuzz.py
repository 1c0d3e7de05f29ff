"""Malformed inputs by the thousand, each against the reader it is meant for.

    python benchmarks/fuzz.py --count 1200 --seed 0        # minutes
    python benchmarks/fuzz.py --minutes 60                 # an hour's battery

An input passes if the reader takes it or raises one line of UntiedError, within 10 seconds. Everything else is printed
with its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from untied.errors import UntiedError
from untied.lab import checkpoint
from untied.lab.checkpoint import Position
from untied.lab.config import OptimizerConfig, TrainConfig, parse_entry
from untied.lab.data.shards import read_index
from untied.lab.edges import printable
from untied.lab.neural import recording
from untied.lab.reading import read_yaml

SLOW = 10.0  # seconds
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


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    f.__name__: f for f in (rule, config, header, weights, index, npz, name)
}


def main() -> int:
    """Run the battery and print a table. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Malformed inputs by the thousand.")
    parser.add_argument("--count", type=int, default=1200, help="inputs, over all kinds")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on for so long, whatever the count")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; each next one counts on")
    given = parser.parse_args()
    taken, refused, failed, worst = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    began, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        while number < given.count or time.monotonic() - began < 60 * given.minutes:
            kind = list(KINDS)[number % len(KINDS)]
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
    for kind in KINDS:
        print(f"| {kind} | {taken[kind]} | {refused[kind]} | {failed[kind]} | {worst[kind]} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{number} inputs, {failed.total()} failed, peak memory of the process {peak} MB")
    return int(failed.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
