"""Image folders packed into tar files, the shards of the webdataset library: how they are written and read.

A shard holds KEY.jpg (or .jpeg, .png, ...) and KEY.cls, the number of the class as text, one image after the other.
Beside the shards of a split lies index.json, with the names of the classes and the number of images in each shard:

    {"classes": ["cat", "dog"], "shards": {"000000.tar": 1000, "000001.tar": 350}, "side": 400, "quality": 90}

Where images were made smaller, side is the largest that was kept, in pixels, and quality that of the new JPEG files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from untied.errors import UntiedError
from untied.lab.data.folders import list_splits
from untied.lab.data.smaller import Smaller, as_it_is
from untied.lab.data.splits import SEED
from untied.lab.reading.edges import ShardIndex, expect_file, load_json, validated

__all__ = ["Index", "Sample", "open_index", "samples", "write_shards"]

INDEX = "index.json"
SUFFIXES = tuple(extension.removeprefix(".") for extension in IMG_EXTENSIONS)


@dataclass(frozen=True)
class Index:
    """What a split's index.json says."""

    classes: tuple[str, ...]
    shards: dict[Path, int]
    """The shards, sorted, and the number of images in each."""
    smaller: Smaller | None = None
    """How large images were made smaller, if they were."""


class Sample(NamedTuple):
    """An image in a shard."""

    name: str
    """shard/member."""
    content: bytes
    """The image file."""
    label: int


def write_shards(
    root: Path, out: Path, per_shard: int = 1000, smaller: Smaller | None = None, workers: int = 0
) -> dict[Path, Index]:
    """Pack an image folder into shards.

    The images of each split are shuffled once, always in the same way, so that every shard has images of all
    classes. A split appears in ``out`` when it is complete.

    Args:
        root: a folder that holds train/CLASS/IMAGE, and val/CLASS/IMAGE or test/CLASS/IMAGE.
        out: gets train/*.tar, and val/*.tar or test/*.tar.
        per_shard: images in a shard; the last one has what remains.
        smaller: how large images are made smaller. Without it, files are packed as they are.
        workers: threads that make them smaller, in which Pillow lets go of Python; 0 does it in this one.

    Returns:
        The folders written, and what is in them.

    Raises:
        UntiedError: root is not such a folder, a split is there already, or a file cannot be read or written.
    """
    if per_shard < 1:
        raise UntiedError(f"per_shard is {per_shard}: a shard holds at least 1 image")
    if not 0 <= workers <= 1024:
        raise UntiedError(f"workers is {workers}: it must be 0 (no other thread) to 1024")
    classes, splits = list_splits(root)
    for split in splits:
        if (out / split).exists():
            raise UntiedError(f"{out / split} is there already: remove it, or choose another folder")
    written = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers)) if workers and smaller else None
        for split, (files, labels) in splits.items():
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(SEED))
            part = out / f"{split}.part"
            shards = {}
            try:
                shutil.rmtree(part, ignore_errors=True)  # what an interrupted earlier call has left
                part.mkdir(parents=True)
                for number, index in enumerate(order.split(per_shard)):
                    images = [(Path(files[i]), int(labels[i])) for i in index.tolist()]
                    write_shard(part / f"{number:06d}.tar", images, smaller, pool)
                    shards[out / split / f"{number:06d}.tar"] = len(index)
                written[out / split] = Index(classes, shards, smaller)
                write_index(part, written[out / split])
                part.rename(out / split)
            except OSError as error:
                raise UntiedError(f"cannot pack {root} into {out}: {error}") from error
    return written


def write_shard(
    path: Path, images: list[tuple[Path, int]], smaller: Smaller | None, pool: ThreadPoolExecutor | None
) -> None:
    """Write one shard."""
    from webdataset import TarWriter  # here, as it is slow to import

    contents = (pool.map if pool else map)(smaller or as_it_is, [image for image, _ in images])
    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT") as writer:
        for number, ((image, label), (suffix, packed)) in enumerate(zip(images, contents, strict=True)):
            key = f"{number:06d}-{image.stem.replace('.', '_')}"  # a key ends at its first dot
            writer.write({"__key__": key, suffix: packed, "cls": str(label).encode()})


def write_index(folder: Path, index: Index) -> None:
    """Write index.json, at once: other processes may be about to read it."""
    fields: dict[str, Any] = {
        "classes": index.classes,
        "shards": {path.name: count for path, count in index.shards.items()},
    }
    fields |= dataclasses.asdict(index.smaller) if index.smaller else {}
    part = folder / f"{INDEX}.{os.getpid()}.part"
    part.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / INDEX)


def open_index(folder: Path) -> Index:
    """The index of a split. Where there is none, the shards are read once, and it is written if it can be.

    Classes then have their numbers for names.

    Raises:
        UntiedError: shards are missing, incomplete, or not those of the index.
    """
    found = sorted(folder.glob("*.tar"))
    if not found:
        raise UntiedError(
            f"no {folder}/*.tar: root must hold train/*.tar and val/*.tar, as untied shards packs a folder"
        )
    for path in found:
        if not ends(path):
            raise UntiedError(f"the shard {path} is cut short: fetch or make it again")
    path = folder / INDEX
    if not path.exists():
        labels = {path: [sample.label for sample in samples(path)] for path in found}
        last = max((label for part in labels.values() for label in part), default=-1)
        index = Index(tuple(map(str, range(last + 1))), {path: len(part) for path, part in labels.items()})
        with contextlib.suppress(OSError):  # where it cannot be written, it is made again the next time
            write_index(folder, index)
    else:
        index = read_index(path)
        if differing := sorted(set(index.shards) ^ set(found)):
            there = "is there, but not in" if differing[0] in found else "is missing, but in"
            raise UntiedError(
                f"{differing[0]} {there} {INDEX}: fetch all shards, or delete {path}, and it is made again"
            )
    if not sum(index.shards.values()):
        raise UntiedError(f"the shards in {folder} have no images: each is KEY.jpg or KEY.png beside KEY.cls")
    return index


def read_index(path: Path) -> Index:
    """Read index.json."""
    try:
        expect_file(path)
        fields = validated(ShardIndex, load_json(path.read_text(encoding="utf-8"), "it"), "it")
        shards = {path.parent / name: count for name, count in sorted(fields.shards.items())}
        smaller = Smaller(fields.side, fields.quality) if fields.side and fields.quality else None
        return Index(tuple(map(str, fields.classes)), shards, smaller)
    except (OSError, ValueError) as error:
        raise UntiedError(f"cannot read {path} ({error}): delete it, and it is made again") from error


def ends(path: Path) -> bool:
    """Whether a tar file has its end, two blocks of zeros, which one that was half downloaded lacks."""
    try:
        expect_file(path)
        with path.open("rb") as file:
            file.seek(-1024, os.SEEK_END)
            return not any(file.read())
    except OSError:
        return False


def samples(path: Path) -> Iterator[Sample]:
    """The images in a shard, in their order.

    Raises:
        UntiedError: the file cannot be read to its end, or an image has no class.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander  # here, as it is slow to import

    try:
        with path.open("rb") as file:
            for fields in group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])):
                images, label = [suffix for suffix in SUFFIXES if suffix in fields], fields.get("cls", b"").strip()
                if len(images) != 1 or not (label.isdigit() and len(label) <= 6):
                    raise UntiedError(
                        f"{path}: {fields['__key__']} must be one image ({', '.join(SUFFIXES)}) and .cls, a whole "
                        f"number below a million, but is {', '.join(key for key in fields if key[0] != '_')}: "
                        "make the shard again"
                    )
                yield Sample(f"{path}/{fields['__key__']}.{images[0]}", fields[images[0]], int(label))
    except UntiedError:
        raise
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error.args[0]).partition(" @ ")[0]
        raise UntiedError(f"cannot read the shard {path} ({reason}): fetch or make it again") from error
