"""Train one network in a run folder, on one device or many; --resume RUN goes on with it."""

from __future__ import annotations

from pathlib import Path

from untied.errors import UntiedError
from untied.lab.arguments import read_config, take_option
from untied.lab.settings.recipes import recipe
from untied.lab.settings.run import TrainConfig


def run(words: list[str]) -> int:
    """Start a run, or go on with one."""
    words, before = take_option(words, "--resume")
    if before is not None and words:
        raise UntiedError(f"--resume goes on with the run's own configuration: leave out {words[0]}")
    named = recipe(words.pop(0)) if words and not words[0].startswith("-") else None
    config = None if before is not None else read_config(TrainConfig, words, "untied train [RECIPE]", named)
    from untied.lab.experiments.train import resume, train  # here, as it is slow to import

    return resume(Path(before or "")) if config is None else train(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.experiments.train import rewrite

    return rewrite(path)
