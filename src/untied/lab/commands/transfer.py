"""Train other architectures with fixed metaparameters (Fig. 3 of the paper)."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.study.config import TransferConfig


def run(words: list[str]) -> int:
    """Start a study, or go on with it."""
    config = read_config(TransferConfig, words, "untied transfer")
    from untied.lab.study.run import run

    return run(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.study.run import again as write

    return write(path)
