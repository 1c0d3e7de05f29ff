"""Pack an image folder into tar files, for --data shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from untied.errors import UntiedError
from untied.lab.arguments import read_config


@dataclass(frozen=True)
class Packing:
    """Pack an image folder into tar files, for --data shards.

    The image files are copied as they are. With --side, those that are larger are made smaller first, which makes
    training faster: there is less to decode.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """The image folder: it holds train/CLASS/IMAGE, and val/CLASS/IMAGE or test/CLASS/IMAGE."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder that gets train/*.tar, and val/*.tar or test/*.tar."""
    per_shard: int = 1000
    """How many images a tar file holds."""
    side: int | None = None
    """The largest side in pixels, such as 400. Larger images are made smaller and saved as JPEG."""
    quality: int | None = None
    """The quality of these JPEG files, from 1 to 95. It is 90 if left out."""
    workers: int = 2
    """How many threads make images smaller."""


def run(words: list[str]) -> int:
    """Pack a folder."""
    packing = read_config(Packing, words, "untied shards")
    if packing.quality is not None and packing.side is None:
        raise UntiedError("quality is set, but no image is made smaller: add --side, or leave --quality out")
    from untied.lab.data.shards import write_shards
    from untied.lab.data.smaller import Smaller

    smaller = None if packing.side is None else Smaller(packing.side, packing.quality or 90)
    written = write_shards(packing.folder, packing.out, packing.per_shard, smaller, packing.workers)
    for folder, index in written.items():
        print(f"{folder}: {sum(index.shards.values()):,} images in {len(index.shards):,} shards")
    return 0
