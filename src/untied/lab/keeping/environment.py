"""What made a run: commit, package versions, machine and date. It names neither the host nor the user."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

import untied

__all__ = ["environment", "same_threads"]

MOST_THREADS = 1024  # far beyond it the runtime of threads crashes
PACKAGES = (
    "torchvision", "numpy", "scikit-learn", "matplotlib", "pillow", "safetensors", "pydantic", "tyro", "timm",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """The commit, the package versions, the machine and the date, as a mapping that JSON can hold."""
    commit = _describe(Path(untied.__file__))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": None if commit is None else {"commit": commit.removesuffix("-dirty"), "dirty": "-dirty" in commit},
        "python": platform.python_version(),
        "packages": {"untied": untied.__version__, "torch": str(torch.__version__)}
        | {name: version for name in PACKAGES if (version := _version(name))},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
            "cuda": torch.version.cuda if gpus else None,
        },
    }


@contextmanager
def same_threads(file: Path, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """With as many CPU threads as the run has begun with: the order in which they add changes the last bits.

    Args:
        file: the run's environment.json; nothing changes where there is none yet. say: for a line, if they differ.
    """
    before = threads = torch.get_num_threads()
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))["machine"]["threads"]
        threads = found if isinstance(found, int) and 0 < found <= MOST_THREADS else threads
    if threads == before:
        yield
        return
    say(f"with {threads} CPU threads, as it began, not {before}: another number would change the last bits")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache  # what this process has imported stays the same
def _describe(source: Path) -> str | None:
    """The commit our source is checked out at, with "-dirty" if tracked files differ; None in no checkout."""
    try:
        # site-packages may lie inside somebody else's repository: only a tracked file says it is ours
        for command in (
            ["git", "ls-files", "--error-unmatch", source.name],
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
