"""Search a rule's metaparameters (TPE), for accuracy on validation images; goes on where it was interrupted."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.study.config import SearchConfig


def run(words: list[str]) -> int:
    """Start a study, or go on with it."""
    config = read_config(SearchConfig, words, "untied search")
    from untied.lab.study.run import run

    return run(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.study.run import again as write

    return write(path)
