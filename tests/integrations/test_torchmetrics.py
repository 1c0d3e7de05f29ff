"""The angles as torchmetrics, against `untied.metrics`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import untied

pytest.importorskip("torchmetrics", reason="needs the extra 'torchmetrics'")

from untied.integrations.torchmetrics import GradientAngle, WeightAngle

pytestmark = pytest.mark.filterwarnings("ignore")  # torchmetrics' own


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    untied.untie_(model, "fa")
    return model


def test_the_weight_angle_is_the_mean_over_layers_and_updates() -> None:
    metric, models = WeightAngle(), [net(), net()]
    for model in models:
        metric.update(model)
    every = [a for model in models for a in untied.metrics.weight_angles(model).values()]
    assert metric.compute().item() == pytest.approx(sum(every) / 4)
    metric.reset()
    assert math.isnan(metric.compute())


def test_the_gradient_angle_is_the_one_of_metrics_also_without_gradients() -> None:
    metric, model, x = GradientAngle(), net(), torch.randn(5, 4)

    def closure() -> torch.Tensor:
        return model(x).square().mean()

    with torch.no_grad():  # as in a validation loop
        metric.update(model, closure)
    assert metric.compute().item() == pytest.approx(untied.metrics.gradient_angle(model, closure))
    assert all(p.grad is None for p in model.parameters())


def test_a_zero_vector_has_no_angle_and_does_not_count() -> None:
    metric, model = WeightAngle(), net()
    with torch.no_grad():
        model[0].backward_weight.zero_()
    metric.update(model)
    assert metric.compute().item() == pytest.approx(untied.metrics.weight_angles(model)["2"])
