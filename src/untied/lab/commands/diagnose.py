"""Say which layers will diverge, stay or collapse under a rule, and what to change (Fig. 2d-f of the paper)."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.settings.diagnose import DiagnoseConfig


def run(words: list[str]) -> int:
    """Read the settings, and do it."""
    config = read_config(DiagnoseConfig, words, "untied diagnose")
    from untied.lab.experiments.diagnose import diagnose

    return diagnose(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.experiments.diagnose import again as write

    return write(path)
