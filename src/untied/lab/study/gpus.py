"""One GPU for one worker: locks by the GPU's own identity, so that workers never share one by accident."""

from __future__ import annotations

import getpass
import os
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from untied.errors import UntiedError

__all__ = ["SHARES", "claim_gpu"]

SHARES = 16
"""Locks of a GPU. A worker takes all of them, or its part where the study lets several share one."""

_held: list[FileLock] = []  # as long as this process lives


def claim_gpu(accelerator: str, workers: int = 1) -> str | None:
    """Take a GPU that no other worker of this user on this machine has, and hide the others from this process.

    Has to be called before CUDA is used. A lock falls with its process, however that ends.

    Args:
        accelerator: of the runs. cpu and mps need none; auto takes a GPU if the machine has any.
        workers: how many may share a GPU, at most SHARES.

    Returns:
        The GPU's identity, or None if the runs need none.

    Raises:
        UntiedError: every GPU is taken.
    """
    if accelerator not in ("auto", "cuda", "gpu"):
        return None
    visible = visible_gpus()
    for identity in visible:
        taken = _take(identity, SHARES // workers)
        if taken:
            _held.extend(taken)
            os.environ["CUDA_VISIBLE_DEVICES"] = identity
            return identity
    if visible:
        raise UntiedError(
            f"all {len(visible)} GPUs that this process sees have a worker already: start fewer workers, let several "
            "share a GPU (--workers-per-gpu), show this one another GPU (CUDA_VISIBLE_DEVICES), or train on "
            "--run.devices.accelerator cpu"
        )
    return None


def _take(identity: str, shares: int) -> list[FileLock]:
    """So many shares of a GPU, or none."""

    def lock(name: object) -> FileLock:
        return FileLock(Path(tempfile.gettempdir()) / f"untied-{getpass.getuser()}-{identity}-{name}.lock")

    taken: list[FileLock] = []
    with lock("taking"):  # one at a time, or two could each end up with a half
        for number in range(SHARES):
            share = lock(number)
            try:
                share.acquire(blocking=False)
            except Timeout:
                continue
            taken.append(share)
            if len(taken) == shares:
                return taken
        for share in taken:
            share.release()
    return []


def visible_gpus() -> list[str]:
    """The identities of the GPUs that this process may use, as nvidia-smi gives them; none without it."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    by_index = dict(line.replace(" ", "").split(",", 1) for line in said.splitlines() if "," in line)
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return list(by_index.values())
    return [by_index.get(word.strip(), word.strip()) for word in asked.split(",") if word.strip() not in ("", "-1")]
