"""What a run remembers beside its weights: the best epoch, and their moving average."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from runs import small
from untied.lab.loop import Run

CONFIG = small(epochs=4, ema=0.9)


def test_the_best_checkpoint_is_the_best_epoch_on_validation(tmp_path: Path) -> None:
    lines: list[dict] = []
    result = Run(CONFIG, folder=tmp_path).train(lines.append)
    accuracies = [line["validation_accuracy"] for line in lines]
    assert result["best_validation_accuracy"] == max(accuracies)
    assert lines[accuracies.index(max(accuracies))]["epoch"] == result["best_epoch"]
    best = load_file(tmp_path / "checkpoints" / "best.safetensors")
    assert any(name.startswith("ema.") for name in best) and not any(name.startswith("optimizer") for name in best)


def test_the_moving_average_is_what_is_evaluated() -> None:
    run = Run(CONFIG)
    assert run.average is not None and run.evaluated is run.average.module
    run.train(lambda metrics: None)
    averaged, own = dict(run.average.module.named_parameters()), dict(run.model.named_parameters())
    for name in ("fc1.weight", "fc1.backward_weight"):
        assert not torch.equal(averaged[name], own[name])
