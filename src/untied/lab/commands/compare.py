"""Train the same network with each of several rules: table, figures and a page; --resume RUN goes on with it."""

from __future__ import annotations

from pathlib import Path

from untied.errors import UntiedError
from untied.lab.arguments import read_config, take_option
from untied.lab.settings.compare import CompareConfig


def run(words: list[str]) -> int:
    """Compare rules, or go on with a comparison."""
    words, before = take_option(words, "--resume")
    if before is not None and words:
        raise UntiedError(f"--resume goes on with the comparison's own configuration: leave out {words[0]}")
    config = None if before is not None else read_config(CompareConfig, words, "untied compare")
    from untied.lab.experiments.compare import compare, resume  # here, as it is slow to import

    return resume(Path(before or "")) if config is None else compare(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.experiments.compare import again as write

    return write(path)
