"""What a run remembers beside its weights: the best epoch, and their moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runs import small
from untied.errors import UntiedError
from untied.initial import at_angle
from untied.lab.settings.phases import PhaseConfig
from untied.lab.training.loop import Run
from untied.lab.training.setup import dataset, network
from untied.metrics import angle

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


def test_B_at_an_angle_is_not_drawn_from_the_numbers_that_W_was() -> None:
    """W and B would else be functions of one another, whatever the angle between them says."""
    config = small(rule="fa", init="angle(90)")
    model = network(config, dataset(config.data, config.seed, "cpu"))
    torch.manual_seed(config.seed)
    of_W = at_angle(model.fc1.weight.detach(), 90.0)
    assert abs(angle(model.fc1.backward_weight, model.fc1.weight) - 90) < 1e-3
    assert 60 < angle(model.fc1.backward_weight, of_W) < 120


def test_a_run_may_start_calibrated() -> None:
    """As `untied.mirror_` does it, whatever moves B afterwards; W and what is drawn later stay as they were."""

    def made(**phases: int) -> Any:
        config = small(rule="fa", phases=PhaseConfig(**phases))
        return network(config, dataset(config.data, config.seed, "cpu")), torch.rand(1)

    (plain, drawn), (model, drawn_too) = made(), made(calibrate=64)
    assert torch.equal(model.fc1.weight, plain.fc1.weight) and torch.equal(drawn, drawn_too)
    assert angle(plain.fc1.backward_weight, plain.fc1.weight) > 60
    assert 2 < angle(model.fc1.backward_weight, model.fc1.weight) < 12  # about 1/√64


def test_nothing_to_calibrate_is_said() -> None:
    config = small(rule="bp", phases=PhaseConfig(calibrate=4))
    with pytest.raises(UntiedError, match="no layer of this model has a backward weight to calibrate"):
        network(config, dataset(config.data, config.seed, "cpu"))
