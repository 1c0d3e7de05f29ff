"""What is said of a comparison: what came out, in a line; and of each figure a caption, and its numbers in words.

All of it is made from what the figures are made from: so one run is never said to have a spread, and whoever cannot see
a figure is told what is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from untied.lab.rules.signs import FROZEN
from untied.lab.showing.plots import Metrics, by_rule, over_epochs
from untied.lab.showing.scatter import in_numbers, scattered
from untied.lab.showing.tables import Rows, cells, deviation, known, split
from untied.lab.tasks.metric import metric_of

__all__ = ["Words", "captions", "finding", "listed"]

REFERENCE = "bp"


@dataclass(frozen=True)
class Words:
    """Of a figure.

    Attributes:
        caption: below it: how to read it, and what to look for.
        alt: in its place: which data it shows, in numbers.
    """

    caption: str
    alt: str


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    >>> listed(["fa", "kp", "sa"])
    'fa, kp and sa'
    """
    return " and ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


# The finding


def finding(rows: Rows) -> str:
    """What a table shows, in a few short sentences; nothing if no rule has a score yet.

    >>> finding([{"rule": "bp", "accuracy_mean": 0.98}])
    'Backpropagation reaches 98.0 % test accuracy.'
    """
    scored = [row for row in rows if known(row.get("accuracy_mean"))]
    others = [row for row in scored if row["rule"] not in (REFERENCE, FROZEN)]
    reference = next((row for row in scored if row["rule"] == REFERENCE), None)
    baseline = next((row for row in scored if row["rule"] == FROZEN), None)
    if not scored:
        return ""
    said = [_best(scored)] if reference is None or not others else [_reaches(reference), _against(reference, others)]
    if baseline is not None and others:
        said.append(_above(baseline, others))
    if failed := [str(row["rule"]) for row in rows if row.get("failure")]:
        said.append(f"Training failed under {listed(failed)}.")
    if len(scored) > 1 and all(len(row.get("accuracies") or ()) < 2 for row in scored):
        said.append("Each rule ran once, so the spread over seeds is not known.")
    return " ".join(said)


def _reaches(row: Mapping[str, Any]) -> str:
    """A row's score in a sentence."""
    name = "Backpropagation" if row["rule"] == REFERENCE else row["rule"]
    return f"{name} reaches {_score(row)} {split([row])} {metric_of([row]).title}."


def _best(rows: Rows) -> str:
    """Where there is nothing to compare with backpropagation: the best row, chance, and where its B stands."""
    judge = metric_of(rows)
    best = max(rows, key=lambda row: row["accuracy_mean"] if judge.higher else -row["accuracy_mean"])
    said = [_reaches(best)]
    if judge.name == "accuracy" and known(best.get("chance")):
        said.append(f"Guessing reaches {judge.shown(best['chance'])} {judge.unit}.")
    if best["rule"] not in (REFERENCE, FROZEN) and known(best.get("weight_angle")):
        said.append(f"In the end B and W are {best['weight_angle']:.1f}° apart, the mean over layers.")
    return " ".join(said)


def _against(reference: Mapping[str, Any], others: Rows) -> str:
    """How the other rules stand to backpropagation: no more than the spread over seeds allows to be said."""
    sign = 1 if metric_of(others).higher else -1
    behind = {str(row["rule"]): sign * (reference["accuracy_mean"] - row["accuracy_mean"]) for row in others}
    ranked = sorted(others, key=lambda row: behind[row["rule"]])
    nearest, furthest = (f"{row['rule']} with {_score(row)}" for row in (ranked[0], ranked[-1]))
    spread = deviation(reference)
    near = [r for r in ranked if spread is not None and behind[r["rule"]] <= spread + (deviation(r) or 0.0)]
    if near:
        names = listed([str(row["rule"]) for row in near])
        said = f"{names} {'is' if len(near) == 1 else 'are'} within the spread over seeds of it"
        return said + ("." if len(near) == len(others) else f"; furthest from it is {furthest}.")
    if len(others) == 1:
        return _reaches(others[0])
    return f"Closest to it is {nearest}, furthest from it {furthest}."


def _above(baseline: Mapping[str, Any], others: Rows) -> str:
    """Which rules do no better than a network whose hidden layers stay as they were drawn."""
    judge = metric_of(others)
    below = [str(row["rule"]) for row in others if not judge.better(row["accuracy_mean"], baseline["accuracy_mean"])]
    frozen = f"the network with frozen hidden layers ({_score(baseline)})"
    return f"{listed(below)} did no better than {frozen}." if below else f"Every rule did better than {frozen}."


def _score(row: Mapping[str, Any]) -> str:
    """As the table has it, with its unit."""
    return f"{cells(row)[3]} {metric_of([row]).unit}".rstrip()


# The figures


def captions(rows: Rows, metrics: Metrics, weights: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Words]:
    """The words of each figure of a comparison or a run, by the name under which it is saved, in the page's order.

    Args:
        rows: the table's. metrics: a line for each epoch of each run. weights: by rule, of its first run.
    """
    groups = by_rule(metrics, [str(row["rule"]) for row in rows])
    counts = [len({line.get("seed") for line in lines}) for _, lines in groups]
    several = max([*counts, *(len(row.get("accuracies") or ()) for row in rows)], default=0) > 1
    return {
        "accuracy": _accuracy(rows, groups, several),
        "results": _results(rows, several),
        "angles": _angles(groups, several),
        "scatter": _scatter(weights, several),
    }


Groups = Sequence[tuple[str, Metrics]]


def _accuracy(rows: Rows, groups: Groups, several: bool) -> Words:
    judge, rules = metric_of(rows), [rule for rule, _ in groups]
    caption = f"Validation {judge.title} after each epoch"
    if several:
        caption += ": the mean over seeds, and a band from the worst to the best seed."
    else:
        caption += " of one run of each rule." if len(rules) > 1 else " of this run."
    if REFERENCE in rules and len(rules) > 1:
        caption += (
            " Which rules keep up with backpropagation (dashed)? In the paper symmetric and activation alignment do at "
            "every depth (section 5, Table 4), information alignment comes closer than weight mirror (section 4, "
            "Table 3), and feedback alignment breaks down on hard tasks (section 2)."
        )
    ends = _ends(groups, lambda line: line.get(f"validation_{judge.name}"), judge.scale, judge.digits)
    return Words(caption, f"Lines of validation {judge.head} from the first to the last epoch: {ends}.")


def _results(rows: Rows, several: bool) -> Words:
    judge, on = metric_of(rows), split(rows)
    caption = f"{judge.title[:1].upper()}{judge.title[1:]} on the {on} split at the end of training"
    caption += "; nothing was chosen on it. " if on == "test" else ". "
    if several:
        caption += "A mark is a seed, and the bar spans the mean ± one standard deviation over seeds. "
    else:
        caption += "A mark is the one run of a rule. "
    if any(row["rule"] == REFERENCE for row in rows):
        caption += "The dotted line is backpropagation's mean. " if several else "The dotted line is backpropagation. "
    alt = f"Bars of {on} {judge.head}: " + "; ".join(f"{row['rule']} {cells(row)[3]}" for row in rows) + "."
    angles = [f"{row['rule']} {cells(row)[5]}" for row in rows if known(row.get("gradient_angle"))]
    if angles:
        alt += f" Angle to backpropagation's gradient in degrees: {'; '.join(angles)}."
    return Words(caption + "The axis need not start at zero.", alt)


def _angles(groups: Groups, several: bool) -> Words:
    caption = (
        f"Angle between the backward and the forward weight of each layer{', mean over seeds' if several else ''}. At "
        "0° the weights are symmetric, and the pseudogradient is the exact gradient (section 5); independent random "
        "weights are at about 90°. Dashed: the angle between the network's pseudogradient and backpropagation's "
        "gradient on the same batch, which is what learning depends on."
    )
    weights, gradients = _ends(groups, _mean_angle), _ends(groups, lambda line: line.get("gradient_angle"))
    return Words(
        caption,
        f"Lines of the angle between B and W in degrees, here the mean over layers, from the first to the last epoch: "
        f"{weights}. Angle to backpropagation's gradient: {gradients}.",
    )


def _scatter(weights: Mapping[str, Mapping[str, Tensor]], several: bool) -> Words:
    rules, layers = scattered(weights)
    where = {0: "each layer", 1: "the one layer that has both"}.get(len(layers), f"{len(layers)} layers")
    caption = (
        f"Elements of the backward weight against elements of the forward weight in {where}, after training"
        f"{' with the first seed' if several else ''}, as in Fig. 2d-f. Dots on the dotted diagonal: symmetric "
        "weights, as in backpropagation. Dots on a line of another slope: aligned, but diverging (steeper) or "
        "collapsing (flatter), which is weight mirror's instability (section 4, equation 1). A round cloud: not "
        "aligned."
    )
    said = [f"{r}: " + "; ".join(f"{layer} {in_numbers(weights[r], layer)}" for layer in layers) for r in rules]
    return Words(caption, f"Dots, the angle and the ratio of norms in each layer. {'. '.join(said) or 'No B is kept'}.")


def _ends(
    groups: Groups, value: Callable[[Mapping[str, Any]], float | None], scale: float = 1.0, digits: int = 1
) -> str:
    """Each rule's value after the first and the last epoch, the mean over seeds."""
    found = []
    for rule, lines in groups:
        if curve := over_epochs(lines, value, scale):
            first, last = (f"{float(curve[epoch].mean()):.{digits}f}" for epoch in (min(curve), max(curve)))
            found.append(f"{rule} {last}" if len(curve) == 1 else f"{rule} {first} to {last}")
    return "; ".join(found) or "none is known"


def _mean_angle(line: Mapping[str, Any]) -> float | None:
    angles = [angle for angle in (line.get("weight_angle") or {}).values() if known(angle)]
    return sum(angles) / len(angles) if angles else None
