"""A recording: pictures, and what neurons answered. One .npz file; docs/neural.md describes its fields.

    images            u1 (n, height, width, 3) or (n, height, width); or one of the two below in its place
    image_data        u1, the pictures' files (JPEG, PNG, ...) one after another, and
    image_offsets     integers (n + 1,): picture i is image_data[image_offsets[i]:image_offsets[i + 1]]
    image_paths       text (n,): files, relative to the recording
    stimulus          (n,), text or integers: rows with the same value show the same picture, as do identical files
    responses         float (n, neurons) or (n, neurons, repeats); NaN where a repeat was not measured
    region, subject   text, one or (neurons,)            neuron        text (neurons,), their names
    reliability       float (neurons,), Spearman-Brown, where it is known and repeats are not given
    rdm               float (d, n, n), dissimilarities;  rdm_region, rdm_subject   text (d,)
    name, about       text: for display; where it comes from and under what licence

Responses, dissimilarities, or both are there. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from untied.errors import UntiedError
from untied.lab.data.pixels import rgb
from untied.lab.keeping.record import write_atomically
from untied.lab.neural.scores import split_half, test_retest
from untied.lab.reading.edges import check_archive, expect_file, printable

__all__ = ["Picture", "Recording", "load_arrays", "read", "write"]

Floats = NDArray[np.float64]
Picture = bytes | Path | NDArray[np.uint8]
"""A file's content, a file, or values (height, width, 3) or (height, width)."""

FIELDS = (
    "images", "image_data", "image_offsets", "image_paths", "stimulus", "responses", "region", "subject", "neuron",
    "reliability", "rdm", "rdm_region", "rdm_subject", "name", "about",
)  # fmt: skip


@dataclass(frozen=True)
class Recording:
    """Pictures, and what neurons answered; or how dissimilar these answers were.

    Attributes:
        name: for display and file names.
        pictures: n of them.
        stimulus: (n,), text; rows with the same value show the same picture.
        responses: (n, neurons, repeats), NaN where a repeat was not measured; no neurons where only rdm is known.
        region, subject, neuron: text (neurons,).
        given_reliability: (neurons,), NaN where unknown.
        rdm: (d, n, n); rdm_region, rdm_subject: text (d,).
        about: its source and licence.

    Raises:
        UntiedError: sizes do not match, values are missing, or a neuron never changes its answer.
    """

    name: str
    pictures: Sequence[Picture]
    stimulus: NDArray[np.str_]
    responses: Floats
    region: NDArray[np.str_]
    subject: NDArray[np.str_]
    neuron: NDArray[np.str_]
    given_reliability: Floats
    rdm: Floats
    rdm_region: NDArray[np.str_]
    rdm_subject: NDArray[np.str_]
    about: str = ""
    digest: str = field(default="", compare=False)
    """Of the file, for telling whether it has changed."""

    def __post_init__(self) -> None:
        check(self)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def mean(self) -> Floats:
        """Responses averaged over the repeats that were measured: (n, neurons)."""
        known = np.isfinite(self.responses)
        return np.asarray(np.where(known, self.responses, 0.0).sum(2) / known.sum(2).clip(min=1))

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """Which picture each row shows, (n,), in the order of appearance: one for the same stimulus, file or values."""
        parent: dict[str, str] = {}

        def root(key: str) -> str:
            while parent.setdefault(key, key) != key:
                key = parent[key]
            return key

        keys = [
            ("stimulus " + s, "content " + content_of(p)) for s, p in zip(self.stimulus, self.pictures, strict=True)
        ]
        for a, b in keys:
            parent[root(a)] = root(b)
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(root(a), len(numbers)) for a, _ in keys], np.int64)

    @cached_property
    def reliability(self) -> tuple[Floats, str]:
        """ρ of each neuron's ``mean``, (neurons,), NaN where unknown; and in words where it comes from.

        From repeats; else as the file gives it; else from pictures that were measured in two rows.
        """
        if (np.isfinite(self.responses).sum(2) > 1).any():
            return split_half(self.responses), "split halves of the repeats, Spearman-Brown"
        if np.isfinite(self.given_reliability).any():
            return self.given_reliability, "as the recording gives it"
        found = test_retest(self.mean, self.groups)
        if np.isfinite(found).any():
            twice = len(self) - len(np.unique(self.groups))
            return found, f"{twice} pictures measured again"
        return found, ""

    def open(self, i: int) -> Image.Image:
        """Picture i, in RGB.

        Raises:
            UntiedError: it cannot be read.
        """
        picture = self.pictures[i]
        try:
            if isinstance(picture, np.ndarray):
                return Image.fromarray(picture).convert("RGB")
            if isinstance(picture, Path):
                expect_file(picture)
            with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture) as opened:
                return rgb(opened)
        except Exception as error:  # decoders raise whatever their code runs into in broken files
            what = str(picture) if isinstance(picture, Path) else f"image {i} of recording {self.name}"
            reason = getattr(error, "strerror", None) or (
                str(error) if type(error) is ValueError else type(error).__name__
            )
            raise UntiedError(f"cannot read {what} ({reason}): repair it, or convert without it") from error

    def __str__(self) -> str:
        repeats, shown = self.responses.shape[2], len(np.unique(self.groups))
        said = [f"{len(self):,} images" + (f" of {shown:,} pictures" if shown < len(self) else "")]
        if self.region.size:
            each = [
                f"{int((self.region == r).sum())} neurons of {r or 'no named region'}" for r in regions(self.region)
            ]
            said += [", ".join(each) + (f", up to {repeats} repeats" if repeats > 1 else "")]
        if len(self.rdm):
            said.append(f"dissimilarities of {', '.join(regions(self.rdm_region))}")
        return f"{self.name}: {'; '.join(said)}"


def regions(names: NDArray[np.str_]) -> list[str]:
    """Each once, in the order in which they come."""
    return list(dict.fromkeys(names.tolist()))


def content_of(picture: Picture) -> str:
    """A digest of a picture's file or values."""
    if isinstance(picture, np.ndarray):
        return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()
    try:
        return hashlib.sha256(picture if isinstance(picture, bytes) else picture.read_bytes()).hexdigest()
    except OSError as error:
        raise UntiedError(
            f"cannot read {picture!s}: {error.strerror}; image_paths are relative to the recording"
        ) from None


def check(r: Recording) -> None:
    """Raise UntiedError unless sizes match, values are there and neurons answer."""
    n, k = len(r.pictures), r.responses.shape[1]
    if not n:
        raise UntiedError(f"recording {r.name} has no images")
    if len(r.responses) != n:
        raise UntiedError(
            f"recording {r.name} has {n} images and responses to {len(r.responses)}: there must be as many of both"
        )
    for name, length in (("stimulus", n), ("region", k), ("subject", k), ("neuron", k), ("given_reliability", k),
                         ("rdm_region", len(r.rdm)), ("rdm_subject", len(r.rdm))):  # fmt: skip
        if (found := len(getattr(r, name))) != length:
            of = {"stimulus": "images", "rdm_region": "matrices", "rdm_subject": "matrices"}.get(name, "neurons")
            short = name.removeprefix("given_")
            raise UntiedError(
                f"recording {r.name} has {length} {of} and {found} values of {short}: one for each is needed"
            )
    if not k and not len(r.rdm):
        raise UntiedError(f"recording {r.name} has neither responses nor rdm: one of the two is needed")
    if r.rdm.shape[1:] != (n, n) and len(r.rdm):
        raise UntiedError(f"recording {r.name}: rdm is {r.rdm.shape}, and {n} images need (d, {n}, {n})")
    if not np.isfinite(r.rdm).all():
        raise UntiedError(f"recording {r.name}: rdm has {int((~np.isfinite(r.rdm)).sum())} values that are not finite")
    if not np.allclose(r.rdm, r.rdm.swapaxes(1, 2), atol=1e-6 * float(np.abs(r.rdm).max(initial=0.0))):
        raise UntiedError(f"recording {r.name}: rdm is not symmetric; give the mean of it and its transpose")
    if np.isinf(r.responses).any():
        raise UntiedError(
            f"recording {r.name} has {int(np.isinf(r.responses).sum())} infinite responses: make them NaN"
        )
    missing = ~np.isfinite(r.responses).any(2)
    if missing.any():
        i, j = np.argwhere(missing)[0]
        raise UntiedError(
            f"recording {r.name}: {int(missing.sum())} of {missing.size} responses are NaN in every repeat, the first "
            f"of neuron {j} to image {i}: leave them out with untied neural convert --drop images or --drop neurons"
        )
    still = np.flatnonzero(np.ptp(r.mean, axis=0) == 0) if k else np.array([], int)
    if still.size:
        raise UntiedError(
            f"recording {r.name}: {still.size} of {k} neurons answer every image alike, the first is "
            f"neuron {still[0]}: leave them out with untied neural convert --drop neurons"
        )


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file.

    Raises:
        UntiedError: it cannot be read, or has pickled objects in it.
    """
    try:
        expect_file(path)
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                check_archive(file, str(path))
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UntiedError(f"{path} holds one array, not an .npz of several")
            return {name: archive[name] for name in archive.files}
    except UntiedError:
        raise
    except (
        OSError, ValueError, TypeError, EOFError, OverflowError, MemoryError, NotImplementedError, RuntimeError,
        RecursionError, SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UntiedError(f"cannot read {path} ({reason}): a recording is an .npz file, see docs/neural.md") from None


def read(path: Path) -> Recording:
    """A recording from its file.

    Raises:
        UntiedError: it cannot be read, is no recording, or is not whole.
    """
    arrays = load_arrays(path)
    if not {"responses", "rdm"} & arrays.keys() or not {"images", "image_data", "image_paths"} & arrays.keys():
        raise UntiedError(
            f"{path} is not a recording: it has {', '.join(arrays)[:200]}, and images (or image_data, image_paths) and "
            "responses or rdm are needed; untied neural convert makes one of it"
        )
    arrays.setdefault("name", np.array(path.stem))
    return of_arrays(arrays, path.parent, hashlib.sha256(path.read_bytes()).hexdigest())


def of_arrays(arrays: Mapping[str, NDArray[Any]], folder: Path, digest: str = "") -> Recording:
    """A recording from its fields."""
    name = printable(str(arrays["name"]))
    unknown = sorted(arrays.keys() - set(FIELDS))
    if unknown:
        raise UntiedError(f"recording {name} has an unknown field {unknown[0]!r}: possible are {', '.join(FIELDS)}")
    pictures = list(pictures_of(arrays, folder, name))
    n = len(pictures)
    try:
        responses = np.asarray(arrays.get("responses", np.empty((n, 0))), np.float64)
        reliability = np.asarray(arrays.get("reliability", np.nan), np.float64)
        rdm = np.asarray(arrays.get("rdm", np.empty((0, n, n))), np.float64)
    except (ValueError, TypeError):
        raise UntiedError(f"recording {name}: responses, reliability and rdm must be numbers") from None
    if responses.ndim not in (2, 3):
        raise UntiedError(
            f"recording {name}: responses are {responses.shape}, (image, neuron) or (image, neuron, repeat) is needed"
        )
    if rdm.ndim == 2:
        rdm = rdm[None]
    if rdm.ndim != 3:
        raise UntiedError(f"recording {name}: rdm is {rdm.shape}, (matrix, image, image) is needed")
    k = responses.shape[1]

    def words(key: str, length: int, default: Any = "") -> NDArray[np.str_]:
        value = np.asarray(arrays.get(key, default)).astype(np.str_)
        value = np.array([printable(word) for word in value.ravel().tolist()], np.str_).reshape(value.shape)
        return np.full(length, value) if value.ndim == 0 else value

    return Recording(
        name=name, pictures=pictures, stimulus=words("stimulus", n, np.arange(n)),
        responses=responses if responses.ndim == 3 else responses[:, :, None],
        region=words("region", k), subject=words("subject", k), neuron=words("neuron", k, np.arange(k)),
        given_reliability=np.full(k, reliability) if reliability.ndim == 0 else reliability,
        rdm=rdm, rdm_region=words("rdm_region", len(rdm)), rdm_subject=words("rdm_subject", len(rdm)),
        about=str(arrays.get("about", "")), digest=digest,
    )  # fmt: skip


def pictures_of(arrays: Mapping[str, NDArray[Any]], folder: Path, name: str) -> Iterator[Picture]:
    """The pictures, in whichever of the three ways they are given."""
    if "images" in arrays:
        images = arrays["images"]
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise UntiedError(
                f"recording {name}: images are {images.dtype} of shape {images.shape}, uint8 (n, height, width, 3) or "
                "(n, height, width) is needed"
            )
        yield from images
    elif "image_data" in arrays:
        data, offsets = arrays["image_data"], arrays.get("image_offsets")
        if offsets is None or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
            raise UntiedError(f"recording {name}: image_data needs image_offsets, integers, one more than images")
        ends = offsets.astype(np.int64)
        if data.dtype != np.uint8 or ends[0] < 0 or (np.diff(ends) <= 0).any() or ends[-1] > data.size:
            raise UntiedError(
                f"recording {name}: image_offsets must rise from 0 to the size of image_data, {data.size}"
            )
        yield from (data[start:stop].tobytes() for start, stop in itertools.pairwise(ends))
    elif "image_paths" in arrays:
        yield from (folder / str(path) for path in np.atleast_1d(arrays["image_paths"]))
    else:
        raise UntiedError(f"recording {name} has no images: give images, image_data or image_paths")


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Recording:
    """Write a recording from its fields, all or nothing, after reading them as ``read`` would.

    Raises:
        UntiedError: they are not a recording's, or the file cannot be written.
    """
    if path.suffix != ".npz":
        raise UntiedError(f"{path} is not a name for a recording: they are written as .npz")
    fields = dict(arrays)
    fields.setdefault("name", np.array(path.stem))
    recording = of_arrays(fields, path.parent)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **fields)
    write_atomically(path, buffer.getvalue())
    return recording
