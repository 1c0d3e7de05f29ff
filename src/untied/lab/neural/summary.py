"""From the fits of single layers to what is compared: a rule's value for a region, its best layer, its curve."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from untied.lab.neural.fits import Fit
from untied.lab.neural.networks import PIXELS, RANDOM
from untied.lab.neural.recording import regions
from untied.lab.neural.scores import corrected, mean, median, sem
from untied.rules import NAMED

__all__ = ["BEST", "RDM", "Row", "is_floor", "panels", "reference", "rows", "short_names"]

Floats = NDArray[np.float64]
BEST, ALL, RDM = "best", "all", "rdm"


@dataclass(frozen=True)
class Row:
    """A rule's value for a region. Numbers that are not known are NaN.

    Attributes:
        region, map: what was predicted, and how ("pls", "ridge", or "rdm" for dissimilarities).
        rule: or its label, "random", "pixels". recording: its name, or "all" of a region.
        layer: its name, or "best": chosen on training images. order, width, used: see ``Fit``; -1 of "best".
        r: median over neurons, mean over seeds; for rdm Spearman's correlation. sem: of the mean over neurons, of each
            neuron's mean over seeds; for rdm by bootstrap.
        corrected: median of r / √ρ over ``reliable`` neurons; ``neurons`` is the number of all.
        difference, difference_sem: to the reference rule, neuron by neuron: median, and standard error of the mean;
            for rdm the difference of r, and its standard error by bootstrap.
        seeds: of the rule, their r in ``each``; spread: its standard deviation over seeds.
        apart: from the same seed of the reference rule, neuron by neuron: the median of each seed that both have.
        apart_sem: the standard error of its mean over seeds.
        accuracy: of the runs, mean. chosen: the layer chosen most often, and share: how often.
        vector: r of each neuron, the mean over seeds; for rdm of each bootstrap sample.
    """

    region: str
    map: str
    rule: str
    recording: str
    layer: str
    order: int
    width: int
    used: int
    r: float
    sem: float
    corrected: float
    reliable: int
    neurons: int
    difference: float
    difference_sem: float
    seeds: int
    spread: float
    each: tuple[float, ...]
    apart: tuple[float, ...]
    apart_sem: float
    accuracy: float
    chosen: str
    share: float
    vector: Floats


@dataclass(frozen=True)
class _Found:
    """One network's value: a vector over neurons, or a number and bootstrap samples; layers chosen."""

    vector: Floats
    value: float
    chosen: tuple[str, ...] = ()


def reference(rules: Sequence[str]) -> str | None:
    """The rule that the others are compared with: backpropagation, else the first that is no floor."""
    trained = [rule for rule in rules if not is_floor(rule)]
    return next((rule for rule in trained if re.split(r"\W", rule)[0] == "bp"), trained[0] if trained else None)


def is_floor(rule: str) -> bool:
    """Whether it is no trained network."""
    return rule.split(", ")[0] in (RANDOM, PIXELS)


def short_names(rules: Sequence[str]) -> dict[str, str]:
    """A rule's bare name, where that is enough to tell it from the others."""
    bare = {rule: re.split(r"[^\w]", rule, maxsplit=1)[0] for rule in rules}
    count = Counter(bare.values())
    return {r: bare[r] if bare[r] in NAMED and count[bare[r]] == 1 and ", " not in tail(r) else r for r in rules}


def tail(rule: str) -> str:
    """What follows the closing bracket of a rule's text."""
    return rule.rpartition(")")[2]


def panels(fits: Sequence[Fit]) -> list[tuple[str, str]]:
    """The pairs of region and map that there are, responses first."""
    found: dict[tuple[str, str], None] = {}
    for fit in fits:
        maps = [key.removesuffix(".test") for key in fit.tensors if key.endswith(".test")]
        found |= {(region, name): None for region in dict.fromkeys(fit.region) for name in maps}
    for fit in fits:
        found |= {(region, RDM): None for region in dict.fromkeys(fit.rdm_region)}
    return list(found)


def rows(fits: Sequence[Fit]) -> list[Row]:
    """Every row: of each region and map, of all recordings and each, of the best layer and each, of each rule."""
    out: list[Row] = []
    for region, kind in panels(fits):
        own = [f for f in fits if region in (f.rdm_region if kind == RDM else f.region)]
        recordings = list(dict.fromkeys(f.recording for f in own))
        for scope in ([ALL] if len(recordings) > 1 else []) + recordings:
            within = [f for f in own if scope in (ALL, f.recording)]
            out += of_scope(within, region, kind, scope if len(recordings) > 1 else recordings[0])
    return out


def of_scope(fits: Sequence[Fit], region: str, kind: str, scope: str) -> Iterator[Row]:
    """The rows of some recordings, taken together."""
    rules = list(dict.fromkeys(f.rule for f in fits))
    against = reference(rules)
    names = {r: list(dict.fromkeys(f.layer for f in fits if f.rule == r)) for r in rules}
    base: dict[int, _Found] = {}
    for rule in sorted(rules, key=lambda r: (r != against, is_floor(r))):
        for layer in (BEST, *names[rule]):
            own = [f for f in fits if f.rule == rule]
            seeds = sorted({f.seed for f in own})
            found = {s: of_network([f for f in own if f.seed == s], region, kind, layer) for s in seeds}
            if layer == BEST and rule == against:
                base = found
            compared = base if layer == BEST and rule != against else {}
            yield row(own, found, compared, (region, kind, rule, scope, layer))


def row(
    own: Sequence[Fit], found: dict[int, _Found], base: dict[int, _Found], key: tuple[str, str, str, str, str]
) -> Row:
    """One row.

    Args:
        own: fits of the rule. found: by seed; base: the reference rule's likewise, none for no difference.
    """
    region, kind, rule, scope, layer = key
    at = next((f for f in own if f.layer == layer), None)
    chosen = Counter(name for f in found.values() for name in f.chosen).most_common(1)
    vector = mean(np.array([f.vector for f in found.values()]))
    rho = reliability(own, region, layer) if kind != RDM else np.array([])
    fixed = corrected(vector, rho) if kind != RDM else rho
    values = [f.value for f in found.values()]
    apart = vector - mean(np.array([f.vector for f in base.values()])) if base else None
    difference = math.nan if apart is None else median(apart)
    paired = [median(f.vector - base[s].vector) for s, f in found.items() if s in base]
    if kind == RDM and base:  # the vectors are samples about these values
        difference = statistics.fmean(values) - statistics.fmean(f.value for f in base.values())
        paired = [f.value - base[s].value for s, f in found.items() if s in base]
    known = [a for a in {f.seed: f.accuracy for f in own}.values() if a is not None]
    return Row(
        region=region, map=kind, rule=rule, recording=scope, layer=layer,
        order=at.order if at else -1, width=at.width if at else -1, used=at.used if at else -1,
        r=statistics.fmean(values), sem=spread(vector) if kind == RDM else sem(vector),
        corrected=median(fixed), reliable=int(np.isfinite(fixed).sum()), neurons=0 if kind == RDM else len(vector),
        difference=difference,
        difference_sem=math.nan if apart is None else spread(apart) if kind == RDM else sem(apart),
        seeds=len(found), spread=statistics.stdev(values) if len(values) > 1 else math.nan, each=tuple(values),
        apart=tuple(paired), apart_sem=sem(np.array(paired)),
        accuracy=statistics.fmean(known) if known else math.nan,
        chosen=chosen[0][0] if chosen else "", vector=vector,
        share=chosen[0][1] / sum(len(f.chosen) for f in found.values()) if chosen else math.nan,
    )  # fmt: skip


def spread(samples: Floats) -> float:
    """Standard deviation of bootstrap samples, which is their statistic's standard error."""
    return float(samples.std(ddof=1)) if len(samples) > 1 else math.nan


def of_network(fits: Sequence[Fit], region: str, kind: str, layer: str) -> _Found:
    """One network's values in some recordings, neurons one after another."""
    parts = []
    for recording in dict.fromkeys(f.recording for f in fits):
        own = [f for f in fits if f.recording == recording]
        chosen = own if layer == BEST else [f for f in own if f.layer == layer]
        parts.append((dissimilar if kind == RDM else responsive)(chosen, region, kind))
    if kind == RDM:
        return _Found(
            mean(np.array([p.vector for p in parts])), statistics.fmean(p.value for p in parts),
            tuple(name for p in parts for name in p.chosen),
        )  # fmt: skip
    vector = np.concatenate([p.vector for p in parts])
    return _Found(vector, median(vector), tuple(name for p in parts for name in p.chosen))


def responsive(layers: Sequence[Fit], region: str, kind: str) -> _Found:
    """Of one recording: for each split the layer that is best on its training images; each neuron's r on the others."""
    own = np.array(layers[0].region) == region
    inner = np.array([[median(s) for s in f.tensors[f"{kind}.inner"][:, own]] for f in layers])  # (layer, split)
    best = np.nan_to_num(inner, nan=-np.inf).argmax(0)
    tests = np.array([layers[b].tensors[f"{kind}.test"][s, own] for s, b in enumerate(best)])
    vector = mean(tests)
    return _Found(vector, median(vector), tuple(layers[b].layer for b in best))


def dissimilar(layers: Sequence[Fit], region: str, kind: str) -> _Found:
    """Of one recording: the layer that is best on half of the images, judged on the other half; both ways, many halves.

    Of a single layer the similarity over all images. Samples are those of the layer chosen most often.
    """
    g = regions(np.array(layers[0].rdm_region)).index(region)
    if len(layers) == 1:
        only = layers[0].tensors
        return _Found(only["rdm.bootstrap"][:, g], float(only["rdm.whole"][g]), (layers[0].layer,))
    halves = np.nan_to_num(np.array([f.tensors["rdm.halves"][:, :, g] for f in layers]))  # (layer, halving, half)
    best = halves.argmax(0)  # (halving, half)
    picked = np.array([[halves[best[h, k], h, 1 - k] for k in (0, 1)] for h in range(len(best))])
    names = tuple(layers[b].layer for b in best.flatten())
    most = Counter(best.flatten().tolist()).most_common(1)[0][0]
    return _Found(layers[most].tensors["rdm.bootstrap"][:, g], float(picked.mean()), names)


def reliability(own: Sequence[Fit], region: str, layer: str) -> Floats:
    """ρ of the neurons, in the order of ``of_network``."""
    first = {f.recording: f for f in reversed(own) if layer in (BEST, f.layer)}
    order = dict.fromkeys(f.recording for f in own)
    return np.concatenate(
        [first[name].tensors["reliability"][np.array(first[name].region) == region] for name in order if name in first]
    )
