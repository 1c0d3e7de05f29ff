"""Pack an image folder into tar files, for --data shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Packing:
    """Pack an image folder into tar files, for --data shards. The image files are copied as they are."""

    folder: Annotated[Path, tyro.conf.Positional]
    """It holds train/CLASS/IMAGE, and val/CLASS/IMAGE or test/CLASS/IMAGE."""
    out: Annotated[Path, tyro.conf.Positional]
    """Gets train/*.tar, and val/*.tar or test/*.tar."""
    per_shard: int = 1000
    """Images in a tar file."""


def run(words: list[str]) -> int:
    """Pack a folder."""
    packing = read_config(Packing, words, "untied shards")
    from untied.lab.data.shards import write_shards

    for folder, index in write_shards(packing.folder, packing.out, packing.per_shard).items():
        print(f"{folder}: {sum(index.shards.values()):,} images in {len(index.shards):,} shards")
    return 0
