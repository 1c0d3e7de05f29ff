"""What is said of a comparison: the finding, captions that know the number of runs, and alt texts with the data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from untied.lab.rules.signs import FROZEN
from untied.lab.showing.findings import captions, finding, listed

SEVERAL = ("mean", "band", "±", "seeds", "deviation", "a seed", "first seed")


def row(rule: str, *scores: float, **more: Any) -> dict[str, Any]:
    mean = sum(scores) / len(scores) if scores else None
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) if mean and len(scores) > 1 else None
    known = {"rule": rule, "accuracies": list(scores), "accuracy_mean": mean, "accuracy_std": std, "chance": 0.1}
    return known | more


def lines(*rules: str, seeds: int = 1, epochs: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "rule": rule, "seed": seed, "epoch": epoch, "validation_accuracy": 0.4 * epoch,
            "weight_angle": {"fc1": 90.0 - 20 * epoch, "fc2": 70.0 - 20 * epoch}, "gradient_angle": 50.0 - 20 * epoch,
        }
        for rule in rules for seed in range(seeds) for epoch in range(1, epochs + 1)
    ]  # fmt: skip


BP = row("bp", 0.98, 0.97)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ""),
        ([row("sa")], ""),
        ([row("sa", 0.95, weight_angle=3.21)],
         "sa reaches 95.0 % test accuracy. Guessing reaches 10.0 %. In the end B and W are 3.2° apart, the mean over "
         "layers."),
        ([row("sa", 0.95), row("fa", 0.6)],
         "sa reaches 95.0 % test accuracy. Guessing reaches 10.0 %. Each rule ran once, so the spread over seeds is "
         "not known."),
        ([BP], "Backpropagation reaches 97.5 ± 0.7 % test accuracy. Guessing reaches 10.0 %."),
        ([BP, row("sa", 0.97, 0.96), row("kp", 0.972, 0.98), row("fa", 0.6, 0.7)],
         "Backpropagation reaches 97.5 ± 0.7 % test accuracy. kp and sa are within the spread over seeds of it; "
         "furthest from it is fa with 65.0 ± 7.1 %."),
        ([BP, row("sa", 0.97, 0.96)],
         "Backpropagation reaches 97.5 ± 0.7 % test accuracy. sa is within the spread over seeds of it."),
        ([BP, row("fa", 0.6, 0.61)],
         "Backpropagation reaches 97.5 ± 0.7 % test accuracy. fa reaches 60.5 ± 0.7 % test accuracy."),
        ([row("bp", 0.98), row("sa", 0.97), row("fa", 0.6, failure="NaN")],
         "Backpropagation reaches 98.0 % test accuracy. Closest to it is sa with 97.0 %, furthest from it fa with "
         "60.0 %. Training failed under fa. Each rule ran once, so the spread over seeds is not known."),
        ([BP, row("sa", 0.97, 0.96), row("fa", 0.5, 0.4), row(FROZEN, 0.5, 0.5)],
         "Backpropagation reaches 97.5 ± 0.7 % test accuracy. sa is within the spread over seeds of it; furthest from "
         "it is fa with 45.0 ± 7.1 %. fa did no better than the network with frozen hidden layers (50.0 ± 0.0 %)."),
        ([BP, row("sa", 0.97, 0.96), row(FROZEN, 0.5, 0.5)],
         "Backpropagation reaches 97.5 ± 0.7 % test accuracy. sa is within the spread over seeds of it. Every rule did "
         "better than the network with frozen hidden layers (50.0 ± 0.0 %)."),
    ],
)  # fmt: skip
def test_what_came_out_is_a_sentence_or_two(rows: list[dict[str, Any]], words: str) -> None:
    assert finding(rows) == words


def test_less_may_be_better() -> None:
    loss = {"metric": {"name": "loss", "title": "loss", "digits": 2, "higher": False}}
    rows = [row("bp", 1.0, **loss), row("fa", 3.0, **loss), row("sa", 1.1, **loss)]
    assert finding(rows).startswith(
        "Backpropagation reaches 1.00 test loss. Closest to it is sa with 1.10, furthest from it fa with 3.00."
    )


def test_captions_fit_a_single_run() -> None:
    for words in captions([row("sa", 0.9)], lines("sa"), {}).values():
        assert not any(word in words.caption.lower() for word in SEVERAL), words.caption
    single = captions([row("bp", 0.9), row("sa", 0.9)], lines("bp", "sa"), {})
    for words in single.values():
        assert not any(word in words.caption.lower() for word in SEVERAL), words.caption
    assert "one run of each rule" in single["accuracy"].caption and "dashed" in single["accuracy"].caption
    assert "this run" in captions([row("sa", 0.9)], lines("sa"), {})["accuracy"].caption


def test_captions_of_several_runs_say_what_band_and_bar_are() -> None:
    several = captions([row("bp", 0.9, 0.8), row("sa", 0.9, 0.8)], lines("bp", "sa", seeds=2), {})
    assert "a band from the worst to the best seed" in several["accuracy"].caption
    assert "mean ± one standard deviation over seeds" in several["results"].caption
    assert "mean over seeds" in several["angles"].caption and "the first seed" in several["scatter"].caption


def test_captions_name_the_split_and_the_metric() -> None:
    rows = [row("sa", 0.9, split="validation", metric={"name": "r2", "title": "R²"})]
    said = captions(rows, [], {})
    assert said["results"].caption.startswith("R² on the validation split at the end of training. ")
    assert "Validation R²" in said["accuracy"].caption and "chosen" not in said["results"].caption


def test_alt_texts_have_the_numbers_of_the_figure() -> None:
    W = torch.linspace(-1, 1, 50)
    weights = {"sa": {"fc1.weight": W, "fc1.backward_weight": 2 * W}, "bp": {"fc1.weight": W}}
    rows = [row("sa", 0.91, 0.93, gradient_angle=12.34), row("bp", 0.98, 0.97, gradient_angle=0.0)]
    said = captions(rows, lines("bp", "sa", seeds=2), weights)
    assert said["accuracy"].alt.endswith("from the first to the last epoch: sa 40.0 to 80.0; bp 40.0 to 80.0.")
    assert "test accuracy (%): sa 92.0 ± 1.4; bp 97.5 ± 0.7." in said["results"].alt
    assert "gradient in degrees: sa 12.3; bp 0.0." in said["results"].alt
    assert "sa 60.0 to 40.0; bp 60.0 to 40.0" in said["angles"].alt and "sa 30.0 to 10.0" in said["angles"].alt
    assert said["scatter"].alt.endswith("sa: fc1 0.0°, ‖B‖/‖W‖ = 2.00.")
    assert "in the one layer that has both" in said["scatter"].caption
    assert all(words.alt != words.caption for words in said.values())


def test_what_is_not_known_is_said() -> None:
    said = captions([row("sa")], [], {})
    assert "none is known" in said["accuracy"].alt and "sa –" in said["results"].alt
    assert "No B is kept" in said["scatter"].alt
    one = captions([row("sa", 0.9)], lines("sa", epochs=1), {})
    assert one["accuracy"].alt.endswith("epoch: sa 40.0.")


@pytest.mark.parametrize(
    ("names", "words"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), ([*"abc"], "a, b and c")]
)
def test_names_are_listed_as_in_a_sentence(names: list[str], words: str) -> None:
    assert listed(names) == words
