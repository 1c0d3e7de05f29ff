"""`untied bench`: what it counts, writes, and says of nonsense. No test depends on how fast a machine is."""

from __future__ import annotations

import csv
import gc
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import untied
from untied import UntiedError
from untied.lab.cli import main
from untied.lab.experiments import bench as module
from untied.lab.experiments.bench import _counted, again, bench
from untied.lab.keeping.record import RunFolder
from untied.lab.measuring.memory import Held
from untied.lab.measuring.timing import Clock, Parts, Step, interleaved, plain_step, untied_step
from untied.lab.settings.bench import BenchConfig
from untied.lab.settings.optimizer import OptimizerConfig
from untied.rules import counted_cost, parse


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


def small(out: Path, **settings: Any) -> BenchConfig:
    given: dict[str, Any] = {"models": ("cnn-4-8",), "batches": (8,), "image_size": 8, "rounds": 2, "profile": 1}
    return BenchConfig(**{**given, "rules": ("sa", "aa"), "out": out, **settings})


def test_what_further_steps_of_alignment_count(tmp_path: Path) -> None:
    """Each has a forward pass and R's products: docs/training.md has the formula."""
    found = {}
    for k in (1, 4):
        assert bench(small(tmp_path / f"{k}", align_steps=k, rules=("bp", "sa", "aa")), silent()) == 0
        rows = RunFolder.open(tmp_path / f"{k}").read_json("results.json")
        found[k] = {row["rule"]: row["counted"] for row in rows}
    # of the plain network's products, three for a layer and two for the first, whose input needs no gradient
    first, rest = 8 * 64 * 4 * 27, 8 * (16 * 8 * 36 + 8 * 10)
    forward = (first + rest) / (2 * first + 3 * rest)
    assert found[4]["bp"] == found[1]["bp"] == 1
    assert found[4]["sa"] == pytest.approx(found[1]["sa"] + 3 * forward)
    assert found[4]["aa"] == pytest.approx(found[1]["aa"] + 3 * (found[1]["aa"] - 1 + forward))


def test_a_run_has_every_row_and_can_be_drawn_again(tmp_path: Path) -> None:
    config = small(tmp_path / "b", batches=(4, 8), precisions=("32", "bf16"), fractions=(1.0, 0.25))
    assert bench(config, silent()) == 0
    folder = RunFolder.open(tmp_path / "b")
    rows = folder.read_json("results.json")
    assert [row["rule"] for row in rows] == 4 * ["plain", "plain again", "sa", "aa", "aa on 0.25"]
    assert [(row["batch"], row["precision"]) for row in rows[::5]] == [(4, "32"), (4, "bf16"), (8, "32"), (8, "bf16")]
    for row in rows:
        assert row["rounds"] == 2 and row["low"] <= row["ratio"] <= row["high"] and row["images_per_second"] > 0
        assert min(row["forward"], row["backward"], row["optimizer"]) > 0
    plain, control, sa, aa, part = rows[:5]
    assert plain["ratio"] == 1 and plain["counted"] == control["counted"] == sa["counted"] == 1
    assert control["above_plain_mb"] == 0 and 1 < part["counted"] < aa["counted"]
    assert aa["counted"] - 1 == pytest.approx(4 * (part["counted"] - 1))
    table = list(csv.DictReader(io.StringIO((tmp_path / "b/table.csv").read_text())))
    assert len(table) == len(rows) and float(table[3]["ratio"]) == aa["ratio"]
    files = ["table.md", "results.json", "figures/cost.svg", "figures/cost.png", "index.html"]
    before = {name: (tmp_path / "b" / name).read_bytes() for name in files}
    for name in files:
        (tmp_path / "b" / name).unlink()
    assert main(["report", str(tmp_path / "b")]) == 0
    assert {name: (tmp_path / "b" / name).read_bytes() for name in files} == before


def test_what_is_measured_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*arguments: Any) -> Any:
        for number, line in enumerate(real(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield line

    real = module._measure
    monkeypatch.setattr(module, "_measure", measure)
    assert bench(small(tmp_path / "b", rounds=5), silent()) == 130
    assert {row["rounds"] for row in RunFolder.open(tmp_path / "b").read_json("results.json")} == {1}
    monkeypatch.undo()
    assert again(tmp_path / "b", silent()) == 0


def test_an_interruption_before_any_round_leaves_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_measure", measure)
    assert bench(small(tmp_path / "b"), silent()) == 130
    assert again(tmp_path / "b", silent()) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rules", "sa", "sa"], ["each once"]),
        (["--rules", "ao"], ["ao"]),
        (["--batches", "0"], ["at least 1 image"]),
        (["--fractions", "2"], ["above 0 and at most 1"]),
        (["--rounds", "0"], ["rounds is 0"]),
        (["--threads", "0"], ["threads is 0"]),
        (["--models", "resnet19"], ["resnet19"]),
        (["--clock", "cpu", "--device", "cuda"], ["CPU time"]),
        (["--device", "nowhere"], ["nowhere"]),
        (["--precisions", "16"], ["float16"]),
        (["--ruls", "sa"], ["--rules"]),
    ],
)
def test_nonsense_is_answered_in_one_line(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", *arguments, "--out", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words) and not (tmp_path / "b").exists()


def test_rounds_are_interleaved_and_a_period_counts_once() -> None:
    calls: list[str] = []

    def step(name: str, period: int) -> Step:
        def run(clock: Clock) -> None:
            clock.start()
            for _ in range(3):
                clock.mark()
            calls.append(name)

        return Step(run, nn.Identity(), (), period)

    found = list(interleaved({"a": step("a", 1), "b": step("b", 2)}, Clock(), rounds=2, warming=1))
    assert calls == 3 * ["a", "b", "b"] and len(found) == 2
    assert all(isinstance(parts, Parts) and min(parts) >= 0 for r in found for parts in r.values())


# Memory: it does not depend on the machine either

RULES = ("bp", "fa", "kp", "usf", "sa", "wm", "aa", "ia", "aa(fraction=1/8)", "aa(every=2)")


def peak(rule: str | None) -> tuple[int, int, int]:
    """Of a step's tensors; of the kernels; of the largest layer's activation or kernel: bytes."""
    torch.manual_seed(0)
    n, c = 16, 8
    model = nn.Sequential(
        nn.Conv2d(3, c, 3, padding=1), nn.ReLU(), *(nn.Conv2d(c, c, 3, padding=1) for _ in range(4)), nn.Flatten(),
        nn.Linear(c * 64, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip
    sizes = [4 * p.numel() for p in model.parameters() if p.dim() > 1]
    x, y, sgd = torch.randn(n, 3, 8, 8), torch.randint(10, (n,)), OptimizerConfig()
    if rule is None:
        step = plain_step(model, x, y, sgd)
    else:
        untied.untie_(model, rule)
        step = untied_step(model, parse(rule), x, y, sgd, sgd)
    step.run(Clock())
    for p in model.parameters():
        p.grad = None
    gc.collect()
    with Held(step.tensors()) as held:
        step.run(Clock())
    return held.peak, sum(sizes), max(4 * n * c * 64, max(sizes))


@pytest.mark.parametrize("rule", RULES)
def test_memory_above_backpropagation_is_bounded(rule: str) -> None:
    """B, its momentum, one tensor of each weight's size, and one layer's activation (Kolen-Pollack: kernel)."""
    plain, kernels, activation = peak(None)
    own, _, _ = peak(rule)
    has_B, moves = rule not in ("bp", "usf"), rule not in ("bp", "usf", "fa")
    tensors = has_B + 2 * moves + (rule == "usf")  # sign symmetry makes its B in each step
    assert own - plain <= tensors * kernels + activation + 4096


def test_what_is_held_is_counted_once_and_let_go() -> None:
    a = torch.zeros(1000)
    with Held([a, a[:10]]) as held:
        assert held.bytes == 4000
        b = a + 1
        b.view(10, 100).add_(1)
        assert held.bytes == 8000
        del b
        assert held.bytes == 4000 and held.peak == 8000


def test_counted_costs_are_those_of_the_rules(tmp_path: Path) -> None:
    names = ("fa", "wm", "aa", "wm(noise=normal)")
    assert bench(small(tmp_path / "b", rules=names, models=("cnn-8-8-8",), rounds=1, profile=0), silent()) == 0
    rows = {row["rule"]: row for row in RunFolder.open(tmp_path / "b").read_json("results.json")}
    for name in names:  # the first layer's input needs no gradient, so that R adds more to less
        wanted = counted_cost(parse(name))
        assert wanted <= rows[name]["counted"] <= 1 + 1.5 * (wanted - 1)


def test_a_compiled_step_is_timed_too(tmp_path: Path) -> None:
    config = small(tmp_path / "b", rules=("aa",), compile=(True,), backend="aot_eager", profile=0, rounds=1)
    assert bench(config, silent()) == 0
    assert all(row["first_step"] > 0 for row in RunFolder.open(tmp_path / "b").read_json("results.json"))


def test_a_config_can_be_wrong_in_python_too() -> None:
    with pytest.raises(UntiedError, match="precisions is empty"):
        BenchConfig(precisions=())


def test_a_mirrors_step_is_taken_at_rest_and_measuring_by_name() -> None:
    """At rest a step has backpropagation's products; measuring, two more for each three."""

    def flops(rule: str) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))
        untied.untie_(model, rule)
        x, y, sgd = torch.randn(32, 16), torch.randint(10, (32,)), OptimizerConfig()
        return _counted(untied_step(model, parse(rule), x, y, sgd, sgd), Clock())["flops"]

    bp = flops("bp")
    assert flops("mkp") == bp and flops("mkp(noise=lattice)") == bp
    product = 2 * 32 * 16 * 16
    assert flops("mkp(until=0)") == bp + 5 * 2 * product
