"""Write the tables, figures and page of a run folder again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from untied.lab import commands
from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Where:
    """Write the tables, figures and page of a run folder again, without training."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder of any command."""


def run(words: list[str]) -> int:
    """Write a folder again."""
    return commands.again(read_config(Where, words, "untied report").run)
