"""Small runs of `untied train`: in this process, in one of their own, and killed; and the pages that runs leave."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image
from rich.console import Console

from untied.lab.data import DataConfig
from untied.lab.settings.run import TrainConfig

DATA = DataConfig("synthetic", synthetic_shape=(1, 4, 4), synthetic_classes=3, synthetic_count=60, batch_size=12)
WORDS = [
    "--model", "mlp-8", "--data", "synthetic", "--set", "data.synthetic_shape=[1,4,4]", "data.synthetic_classes=3",
    "data.synthetic_count=60", "--data.batch-size", "12", "--devices.accelerator", "cpu",
]  # fmt: skip


def small(out: Path | None = None, **changes) -> TrainConfig:
    """Four steps an epoch, two epochs."""
    return TrainConfig(**({"model": "mlp-8", "data": DATA, "epochs": 2, "out": out} | changes))


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


def command(*words: str, **options) -> subprocess.Popen[str]:
    """`untied` in a process, and a process group, of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "untied", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


def until(so: Callable[[], bool], of: subprocess.Popen[str]) -> None:
    """Wait until something is so, while a process lives."""
    deadline = time.monotonic() + 300  # a busy machine imports slowly
    while not so():
        assert of.poll() is None, of.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def state(run: Path) -> dict[str, bytes]:
    """All that has to be the same of two runs: weights, optimizers, averages and position; metrics; results."""
    names = ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.jsonl", "results.json")
    return {name: (run / name).read_bytes() for name in names if (run / name).exists()}


def pictures(root: Path, *classes: str, val: tuple[str, ...] | None = None) -> Path:
    """An image folder of eight pictures a class."""
    classes = classes or ("a", "b")
    for split, names in {"train": classes, "val": val or classes}.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), (i * 20, 50, 100)).save(root / split / name / f"{i}.png")
    return root


class Page(HTMLParser):
    """Checks that tags are closed in order; collects tags with their attributes, and the text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[tuple[str, str]] = []
        self.feed(text)
        assert not self.open

    @property
    def text(self) -> str:
        return "".join(part for _, part in self.parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.parts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> str:
        """All text that stands directly in a kind of tag."""
        return " ".join(part.strip() for where, part in self.parts if where == tag)

    def values(self, tag: str, attribute: str) -> list[str]:
        """An attribute of every tag of a kind."""
        return [str(attributes.get(attribute, "")) for name, attributes in self.tags if name == tag]
