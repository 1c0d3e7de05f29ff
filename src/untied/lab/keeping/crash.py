"""What a mistake of ours leaves: a file from which it can be found, without secrets."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from untied.lab.keeping.environment import environment
from untied.lab.reading.secrets import redacted

__all__ = ["write"]


def write(error: BaseException, words: Sequence[str], settings: str) -> Path | None:
    """Write traceback, command, settings and versions to a new file.

    Args:
        words: of the command line. settings: as YAML, empty where none had been read.

    Returns:
        The file, or None where none can be written.
    """
    where = "".join(traceback.format_exception(error))
    versions = json.dumps(environment(), indent=2)
    parts = {"command": " ".join([Path(sys.argv[0]).name, *words]), "traceback": where, "settings": settings,
             "environment": versions}  # fmt: skip
    text = "\n".join(f"== {name}\n{redacted(part).rstrip()}\n" for name, part in parts.items())
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix=time.strftime("untied-crash-%Y%m%d-%H%M%S-"),
            suffix=".txt", delete=False,
        ) as file:  # fmt: skip
            file.write(text)
    except OSError:
        return None
    return Path(file.name)
