"""A run that is stopped at any step and goes on from its checkpoint is the run that was never stopped, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from untied.errors import UntiedError
from untied.lab.config import DeviceConfig, OptimizerConfig, PhaseConfig, TrainConfig
from untied.lab.data import DataConfig
from untied.lab.loop import Run, Stopped

DATA = DataConfig(
    "synthetic", synthetic_shape=(1, 8, 8), synthetic_count=72, synthetic_classes=4, batch_size=16, augment="standard"
)
ADAM, NOISY = OptimizerConfig("Adam", lr=0.01), OptimizerConfig(lr=0.05, noise=0.1, schedule="cosine", warmup=0.3)
CASES: dict[str, dict[str, Any]] = {
    "sa": {"rule": "sa", "model": "resnet20-w2", "ema": 0.9, "label_smoothing": 0.1},
    "ia, noise, part of the batch": {"rule": "ia(noise=normal, fraction=1/4)", "backward": ADAM},
    "brsf": {"rule": "brsf", "forward": NOISY},
    "kp": {"rule": "kp", "accumulate": 2},
    "aa, every second step": {"rule": "aa(every=2)", "backward": ADAM, "forward": ADAM},
    "wm, alternating": {"rule": "wm(noise=uniform)", "phases": PhaseConfig("alternating", task_steps=2, delay=1)},
    "wm, mirror": {
        "rule": "wm(amp=linear(0, 1), decay=1)",
        "phases": PhaseConfig("mirror", task="steps(1, 0.1)"),
        "backward": dataclasses.replace(NOISY, noise_on="variable", noise_kind="uniform"),
        "devices": DeviceConfig(precision="bf16", channels_last=True),
        "model": "cnn-4",
    },
}


def run_of(case: str, folder: Path) -> Run:
    settings = {"model": "mlp-6", "data": DATA, "epochs": 2, "devices": DeviceConfig(accelerator="cpu")} | CASES[case]
    return Run(TrainConfig(**settings), folder=folder)


def finish(run: Run, lines: list[dict]) -> dict[str, Any]:
    """To the end, with the metrics that a run folder would hold."""
    del lines[run.position.lines :]
    return run.train(lines.append)


@pytest.mark.parametrize("case", CASES)
def test_stopped_at_every_step_it_is_the_same_run(case: str, tmp_path: Path) -> None:
    whole: list[dict] = []
    run = run_of(case, tmp_path / "whole")
    result = finish(run, whole)
    total = run.plan.steps
    broken: list[dict] = []
    again = run_of(case, tmp_path / "broken")
    for step in range(1, total + 1):  # one step, a new process's objects, one step, ...
        again.tick = lambda a=again, at=step: setattr(a, "stop", a.position.step >= at)
        with pytest.raises(Stopped):
            finish(again, broken)
        assert again.position.step == step
        again = run_of(case, tmp_path / "broken")
        again.resume()
    assert finish(again, broken) == result
    assert broken == whole
    first, second = (load_file(tmp_path / name / "checkpoints" / "last.safetensors") for name in ("whole", "broken"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_best_checkpoint_is_the_best_epoch_on_validation(tmp_path: Path) -> None:
    lines: list[dict] = []
    run = run_of("sa", tmp_path)
    result = finish(run, lines)
    accuracies = [line["validation_accuracy"] for line in lines]
    assert result["best_validation_accuracy"] == max(accuracies)
    assert lines[accuracies.index(max(accuracies))]["epoch"] == result["best_epoch"]
    best = load_file(tmp_path / "checkpoints" / "best.safetensors")
    assert any(name.startswith("ema.") for name in best) and not any(name.startswith("optimizer") for name in best)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "fa"}, "its rule is sa and that of config.yaml is fa"),
        ({"model": "mlp-8"}, "its model is resnet20-w2 and that of config.yaml is mlp-8"),
        ({"data": dataclasses.replace(DATA, synthetic_classes=3)}, "its classes is 4 and that of config.yaml is 3"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = run_of("sa", tmp_path)
    run.save("last")
    other = Run(dataclasses.replace(run.config, **change), folder=tmp_path)
    with pytest.raises(UntiedError, match=said):
        other.resume()


def test_the_moving_average_is_what_is_evaluated(tmp_path: Path) -> None:
    run = run_of("sa", tmp_path)
    assert run.average is not None and run.evaluated is run.average.module
    finish(run, [])
    averaged, own = dict(run.average.module.named_parameters()), dict(run.model.named_parameters())
    assert not torch.equal(averaged["fc.weight"], own["fc.weight"])
    assert not torch.equal(averaged["fc.backward_weight"], own["fc.backward_weight"])
