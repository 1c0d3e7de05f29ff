"""One layer against one recording: what is measured, and the file that keeps it.

A fit is kept as fits/NAME.safetensors in the run folder. Its tensors, with s splits and q neurons:

    MAP.test     (s, q)      Pearson's r on each split's test images
    MAP.inner    (s, q)      mean r over the inner folds of that split's training images: what layers are chosen by
    ridge.penalty (s,)
    reliability  (q,)        of the recording, NaN where unknown
    rdm.whole    (g,)        similarity to the matrix of each of g regions, over all images
    rdm.bootstrap (b, g)     the same for samples of the images
    rdm.halves   (h, 2, g)   on the half of the images that a layer is chosen by, and on the other one
    rdm.ceiling  (g, 2)
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.keeping.record import open_tensors, write_tensors
from untied.lab.neural import rsa
from untied.lab.neural.maps import chosen_penalty, gram, pls, ridge
from untied.lab.neural.recording import Recording, regions
from untied.lab.neural.scores import mean, pearson
from untied.lab.neural.splits import Split, folds, splits
from untied.lab.settings.neural import Settings

__all__ = ["Fit", "check", "fit_rdm", "fit_responses", "read", "save"]

Floats = NDArray[np.float64]
HALVES = 50  # random halves of the images, for choosing a layer by dissimilarities


@dataclass(frozen=True)
class Fit:
    """A layer's fit, as it is kept.

    Attributes:
        rule, seed, model, accuracy: of the network. recording: its name.
        layer: its name; order: its place in the network; width: numbers an image; used: after a projection.
        neurons: their names; region, subject: theirs. rdm_region: of the matrices.
        source: of the reliability, in words. tensors: see above.
    """

    rule: str
    seed: int
    model: str
    accuracy: float | None
    recording: str
    layer: str
    order: int
    width: int
    used: int
    neurons: tuple[str, ...]
    region: tuple[str, ...]
    subject: tuple[str, ...]
    rdm_region: tuple[str, ...]
    source: str
    identity: str
    tensors: Mapping[str, Floats]


def check(recording: Recording, settings: Settings) -> list[Split]:
    """The splits of a recording.

    Raises:
        UntiedError: it has too few images for them.
    """
    shown = len(np.unique(recording.groups))
    parts = max(2, round(1 / settings.test))
    if not recording.region.size:
        if len(recording) < 8:
            raise UntiedError(
                f"recording {recording.name} has {len(recording)} images: dissimilarities need at least 8"
            )
        return []
    if shown < parts * settings.inner:
        raise UntiedError(
            f"recording {recording.name} has {shown} pictures, too few for {parts} parts with {settings.inner} "
            "inner folds"
        )
    found = splits(recording.groups, settings.splits, settings.test, settings.seed)
    for fit, _ in found:
        least = min(len(inside) for inside, _ in folds(recording.groups[fit], settings.inner, settings.seed))
        if "pls" in settings.maps and least <= settings.components:
            raise UntiedError(
                f"recording {recording.name} has {shown} pictures, of which {least} are left to fit on in an "
                f"inner fold: too few for {settings.components} components; use fewer --components, or more images"
            )
    return found


def fit_responses(X: NDArray[np.floating], recording: Recording, settings: Settings) -> dict[str, Floats]:
    """Fit every neuron from a layer's features, each region's neurons together.

    Args:
        X: (n, d). recording: with responses. settings: see there.
    """
    K, Y, groups = gram(X), recording.mean, recording.groups
    out: dict[str, Floats] = {"reliability": recording.reliability[0]}
    cuts = check(recording, settings)
    components = min(settings.components, X.shape[1])
    for name in settings.maps:
        out[f"{name}.test"], out[f"{name}.inner"] = np.empty((2, len(cuts), Y.shape[1]))
    if "ridge" in settings.maps:
        out["ridge.penalty"] = np.empty((len(cuts), len(regions(recording.region))))
    inner = [inner_folds(groups, split, settings, s) for s, split in enumerate(cuts)]
    for g, region in enumerate(regions(recording.region)):
        own = recording.region == region
        y = Y[:, own]
        if "pls" in settings.maps:
            every = [*cuts, *itertools.chain.from_iterable(inner)]
            r = np.array([pearson(p, y[c[1]]) for p, c in zip(pls(K, y, every, components), every, strict=True)])
            out["pls.test"][:, own] = r[: len(cuts)]
            out["pls.inner"][:, own] = mean(r[len(cuts) :].reshape(len(cuts), settings.inner, -1).swapaxes(0, 1))
        if "ridge" in settings.maps:
            for s, split in enumerate(cuts):
                penalty, out["ridge.inner"][s, own] = chosen_penalty(K, y, inner[s])
                out["ridge.penalty"][s, g] = penalty
                out["ridge.test"][s, own] = pearson(ridge(K, y, split, [penalty])[0], y[split[1]])
    return out


def inner_folds(groups: NDArray[np.int64], split: Split, settings: Settings, s: int) -> list[Split]:
    """The folds of a split's training images that layers and penalties are chosen on, as rows of the recording."""
    fit = split[0]
    return [(fit[a], fit[b]) for a, b in folds(groups[fit], settings.inner, (settings.seed, s))]


def fit_rdm(X: NDArray[np.floating], recording: Recording, settings: Settings) -> dict[str, Floats]:
    """Compare a layer's dissimilarities with each region's: the mean over its matrices."""
    D, names = rsa.dissimilarity(X), regions(recording.rdm_region)
    halves = rsa.halves(len(D), HALVES, settings.seed)
    whole, samples, parts, ceilings = [], [], [], []
    for region in names:
        subjects = recording.rdm[recording.rdm_region == region]
        target = subjects.mean(0)
        whole.append(rsa.similarity(D, target))
        samples.append(rsa.bootstrap(D, target, settings.bootstrap, settings.seed))
        parts.append([[rsa.similarity(D, target, rows) for rows in pair] for pair in halves])
        ceilings.append(rsa.ceiling(subjects))
    return {
        "rdm.whole": np.array(whole), "rdm.bootstrap": np.array(samples).T,
        "rdm.halves": np.moveaxis(np.array(parts), 0, -1), "rdm.ceiling": np.array(ceilings),
    }  # fmt: skip


def identity(network: str, seeing: str, recording: Recording, layer: str, settings: Settings) -> str:
    """What a fit depends on, in short: one that is there already is good if this is the same."""
    about = [network, seeing, recording.digest, layer, asdict(settings)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def save(path: Path, fit: Fit) -> None:
    """Keep a fit, all or nothing.

    Raises:
        UntiedError: it cannot be written.
    """
    about = {k: v for k, v in vars(fit).items() if k != "tensors"}
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in fit.tensors.items()}
    write_tensors(path, tensors, {"fit": json.dumps(about)})


def read(path: Path) -> Fit | None:
    """A kept fit; None if the file is not one."""
    try:
        with open_tensors(path) as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["fit"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
        return Fit(**about, tensors={k: t.double().numpy() for k, t in tensors.items()})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
