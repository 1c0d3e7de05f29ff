"""`untied neural convert`: a recording's file from arrays of any name, or from a Brain-Score assembly."""

from __future__ import annotations

import difflib
import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from untied.errors import UntiedError
from untied.lab.neural import recording
from untied.lab.neural.recording import load_arrays
from untied.lab.settings.neural import ConvertConfig

__all__ = ["convert", "of_assembly"]

Array = NDArray[Any]
BRAIN_SCORE = "brainscore:"


def convert(config: ConvertConfig, console: Console | None = None) -> int:
    """Write the recording and say what is in it. Returns the exit code, 0.

    Raises:
        UntiedError: an array is not there, or they do not make a recording.
    """
    fields = from_brain_score(config) if config.source.startswith(BRAIN_SCORE) else from_arrays(config)
    fields = dropped(fields, config.drop)
    for key in ("name", "about"):
        if value := getattr(config, key):
            fields[key] = np.array(value)
    made = recording.write(config.out, fields)
    (console or Console()).print(
        f"{made}\nwritten to {config.out}", markup=False, highlight=False, soft_wrap=True
    )  # fmt: skip
    return 0


def from_arrays(config: ConvertConfig) -> dict[str, Array]:
    """The fields of a recording from arrays under other names."""
    there = {} if config.source == "-" else load_arrays(Path(config.source).expanduser())
    fields = pictures(config, there)
    responses = config.responses or ("responses" if "responses" in there else None)
    if responses is not None:
        fields["responses"] = arranged(array(there, responses, config.source), config)
    for key in ("region", "subject"):
        word = getattr(config, key)
        fields[key] = there[word] if word in there else npy(word) if word.endswith(".npy") else np.array(word)
    for key in ("neuron", "stimulus", "reliability"):
        if (name := getattr(config, key)) is not None:
            fields[key] = array(there, name, config.source)
    if config.rdm:
        fields |= dissimilarities(config, there)
    return {key: value.astype(np.str_) if value.dtype.kind in "OS" else value for key, value in fields.items()}


def array(there: dict[str, Array], name: str, source: str) -> Array:
    """An array by its name in the file, or from an .npy file."""
    if name in there:
        return there[name]
    if name.endswith(".npy"):
        return npy(name)
    near = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UntiedError(f"{source} has no array {name!r}: {hint}it has {', '.join(there) or 'none'}")


def npy(name: str) -> Array:
    try:
        return np.asarray(np.load(Path(name).expanduser(), allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UntiedError(f"cannot read the array {name} ({reason})") from None


def pictures(config: ConvertConfig, there: dict[str, Array]) -> dict[str, Array]:
    """The pictures' fields: arrays, or files packed into one."""
    folder = Path(config.images).expanduser()
    if config.images not in there and folder.is_dir():
        if config.image_names is not None:
            files = [folder / str(name) for name in array(there, config.image_names, config.source)]
        else:
            files = sorted(path for path in folder.iterdir() if path.suffix.lower() in Image.registered_extensions())
        if not files:
            raise UntiedError(f"no image files in {folder}")
        return packed(files)
    found = array(there, config.images, config.source)
    if config.image_offsets is None:
        return {"images": found}
    return {"image_data": found, "image_offsets": array(there, config.image_offsets, config.source)}


def packed(files: list[Path]) -> dict[str, Array]:
    """Image files, as they are, one after another."""
    contents = []
    for path in files:
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise UntiedError(f"cannot read the image {path}: {error.strerror}") from None
    offsets = list(itertools.accumulate(map(len, contents), initial=0))
    return {"image_data": np.frombuffer(b"".join(contents), np.uint8), "image_offsets": np.array(offsets)}


def arranged(found: Array, config: ConvertConfig) -> Array:
    """Responses as float (image, neuron[, repeat]), NaN where they are missing."""
    axes = config.axes[: found.ndim] if config.axes == ("image", "neuron", "repeat") else config.axes
    if len(axes) != found.ndim or sorted(axes) not in (["image", "neuron"], ["image", "neuron", "repeat"]):
        raise UntiedError(
            f"responses are {found.shape} and --axes says {' '.join(config.axes)}: name each axis once, image, neuron "
            "and perhaps repeat"
        )
    if found.dtype.kind not in "biuf":
        raise UntiedError(f"responses are {found.dtype}: numbers are needed")
    order = [axes.index(axis) for axis in ("image", "neuron", "repeat") if axis in axes]
    values = found.transpose(order).astype(np.float32)
    if config.missing is not None:
        values[values == np.float32(config.missing)] = np.nan
    return values


def dissimilarities(config: ConvertConfig, there: dict[str, Array]) -> dict[str, Array]:
    """The matrices one after another, with their regions and subjects."""
    names = config.rdm_region or config.rdm
    if len(names) != len(config.rdm):
        raise UntiedError(f"--rdm names {len(config.rdm)} arrays and --rdm-region {len(names)}: one for each is needed")
    matrices, region, subject = [], [], []
    for key, name in zip(config.rdm, names, strict=True):
        found = array(there, key, config.source).astype(np.float64)
        if not 2 <= found.ndim <= 4 or found.shape[-1] != found.shape[-2]:
            raise UntiedError(f"{key} is {found.shape}: (n, n), (subject, n, n) or (subject, session, n, n) is needed")
        if found.ndim == 2:
            found = found[None]
        if found.ndim == 4:
            found = found.mean(1)
        matrices.append(found)
        region += [name] * len(found)
        subject += [str(i) for i in range(len(found))]
    sizes = sorted({m.shape[-1] for m in matrices})
    if len(sizes) > 1:
        raise UntiedError(f"--rdm names matrices of {sizes[0]} and {sizes[-1]} images: they must be of the same ones")
    return {"rdm": np.concatenate(matrices), "rdm_region": np.array(region), "rdm_subject": np.array(subject)}


def dropped(fields: dict[str, Array], what: str) -> dict[str, Array]:
    """The fields without the neurons, or the images, that are not whole."""
    if what == "nothing" or "responses" not in fields:
        return fields
    responses = fields["responses"]
    repeats = responses if responses.ndim == 3 else responses[:, :, None]
    known: Array = np.asarray(np.isfinite(repeats).any(axis=2))
    if what == "images":
        return kept(
            fields, np.asarray(known.all(axis=1)), ("responses", "stimulus", "images", "image_paths"), len(known), True
        )
    values = np.where(np.isfinite(repeats), repeats, 0.0).sum(2) / np.isfinite(repeats).sum(2).clip(min=1)
    whole: Array = np.asarray(known.all(axis=0) & (np.ptp(values, axis=0) > 0))
    fields = {**fields, "responses": np.moveaxis(responses, 1, 0)}
    fields = kept(fields, whole, ("responses", "region", "subject", "neuron", "reliability"), known.shape[1], False)
    return {**fields, "responses": np.moveaxis(fields["responses"], 0, 1)}


def kept(
    fields: dict[str, Array], whole: NDArray[np.bool_], keys: tuple[str, ...], length: int, images: bool
) -> dict[str, Array]:
    """The fields with the marked places of their first axis alone; of packed images and of rdm too."""
    if not whole.any():
        raise UntiedError(f"--drop {'images' if images else 'neurons'} would leave none of {length}: try the other one")
    out = {k: v[whole] if k in keys and v.ndim and len(v) == length else v for k, v in fields.items()}
    if images and "image_data" in fields:
        data, ends = fields["image_data"], fields["image_offsets"].astype(np.int64)
        parts = [data[ends[i] : ends[i + 1]] for i in np.flatnonzero(whole)]
        offsets = list(itertools.accumulate(map(len, parts), initial=0))
        out |= {"image_data": np.concatenate(parts), "image_offsets": np.array(offsets)}
    if images and "rdm" in fields:
        out["rdm"] = fields["rdm"][:, whole][:, :, whole]
    return out


# Brain-Score


def from_brain_score(config: ConvertConfig) -> dict[str, Array]:
    """A recording that Brain-Score knows by name; it fetches what it has not got."""
    identifier = config.source.removeprefix(BRAIN_SCORE)
    try:
        package = importlib.import_module("brainscore_vision")
    except ImportError:
        raise UntiedError(
            f"{config.source} needs Brain-Score, which is not installed: pip install brainscore_vision; or name an "
            ".npz file"
        ) from None
    try:
        assembly = package.load_dataset(identifier)
    except Exception as error:  # whatever its plugins, the network or the store may raise
        raise UntiedError(f"Brain-Score cannot load {identifier!r}: {' '.join(str(error).split())[:200]}") from error
    return of_assembly(assembly, identifier)


def of_assembly(assembly: Any, name: str) -> dict[str, Array]:
    """The fields of a recording from an assembly: an xarray.DataArray with dimensions presentation, neuroid and,
    perhaps, one time_bin, and with a ``stimulus_set`` whose ``get_stimulus`` knows the files.

    Presentations of one stimulus become repeats, padded with NaN.

    Raises:
        UntiedError: it is no such assembly.
    """
    dims = tuple(assembly.dims)
    values = np.asarray(assembly.values, np.float32)
    if "time_bin" in dims:
        if values.shape[dims.index("time_bin")] != 1:
            raise UntiedError(
                f"{name} has {values.shape[dims.index('time_bin')]} time bins: average or choose one first"
            )
        values = values.squeeze(dims.index("time_bin"))
        dims = tuple(d for d in dims if d != "time_bin")
    if sorted(dims) != ["neuroid", "presentation"]:
        raise UntiedError(f"{name} has dimensions {', '.join(map(str, dims))}: presentation and neuroid are needed")
    values = values if dims[0] == "presentation" else values.T

    def coordinate(*names: str) -> Array | None:
        found = next((key for key in names if key in assembly.coords), None)
        return None if found is None else np.asarray(assembly.coords[found].values).astype(np.str_)

    stimuli = coordinate("stimulus_id", "image_id")
    if stimuli is None:
        raise UntiedError(f"{name} has no coordinate stimulus_id or image_id: what was shown is not known")
    shown, index = np.unique(stimuli, return_inverse=True)
    counts = np.bincount(index)
    place = np.zeros(len(index), int)  # of each presentation among those of its stimulus
    for i in range(len(shown)):
        place[index == i] = np.arange(counts[i])
    responses = np.full((len(shown), values.shape[1], int(counts.max())), np.nan, np.float32)
    responses[index, :, place] = values
    files = assembly.attrs.get("stimulus_set")
    if files is None:
        raise UntiedError(f"{name} has no stimulus_set: where its images lie is not known")
    get = getattr(files, "get_stimulus", None) or files.get_image
    fields = packed([Path(get(stimulus)) for stimulus in shown.tolist()])
    fields |= {"responses": responses, "stimulus": shown, "name": np.array(name)}
    for key, names in {"region": ("region",), "subject": ("animal", "subject"), "neuron": ("neuroid_id",)}.items():
        if (found := coordinate(*names)) is not None:
            fields[key] = found
    return fields
