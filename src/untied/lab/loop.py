"""One run: a network, a rule and a seed, trained and evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import untied
from untied.errors import UntiedError
from untied.lab.config import CompareConfig, parse_entry
from untied.lab.data import Dataset, Loader, load
from untied.lab.models import build
from untied.lab.optim import Optimizers
from untied.lab.step import Phase, Step, training_step

__all__ = ["NotFinite", "evaluate", "network", "train"]

Report = Callable[[dict[str, Any]], None]


class NotFinite(UntiedError):
    """The loss is NaN or infinite: training this network with this rule has failed."""


def network(config: CompareConfig, data: Dataset, entry: str, seed: int) -> nn.Module:
    """The untied network: for one seed, W and B start the same under every rule."""
    rule, _ = parse_entry(entry, config.backward)
    torch.manual_seed(seed)
    model = build(config.model, input_shape=data.input_shape, classes=len(data.classes))
    torch.manual_seed(seed)  # the magnitudes of sign symmetry
    start = torch.Generator().manual_seed(seed + 1_000_003) if config.init == "like" else config.init
    untied.untie_(model, rule, init=start)
    return model.to(config.device)


def train(config: CompareConfig, entry: str, seed: int, report: Report) -> tuple[nn.Module, dict[str, Any]]:
    """Train one network with one rule, and evaluate it once, at the end.

    Args:
        entry: the rule, as in ``CompareConfig.rules``.
        report: called after every epoch with that epoch's metrics.

    Returns:
        The network, and its result: accuracy on ``config.evaluate_on``, and final angles.

    Raises:
        NotFinite: the loss stopped being a number; names layer, step and rule.
    """
    data = load(config.data, seed=seed, device=config.device)
    model = network(config, data, entry, seed)
    rule, backward = parse_entry(entry, config.backward)
    epochs = config.delay + config.epochs
    steps = epochs * len(data.train)
    optimizers = Optimizers(model, rule, config.forward, backward, steps)
    torch.manual_seed(seed)  # noise, dropout
    step = 0
    metrics: dict[str, Any] = {}
    for epoch in range(epochs):
        phase = Phase(task=0.0) if epoch < config.delay else Phase()
        model.train()
        loss = penalty = correct = count = 0.0
        for images, labels in data.train.epoch(epoch):
            done = training_step(model, images, labels, optimizers, phase, progress=step / steps, step=step)
            check_finite(done, model, entry, step)
            loss += float(done.task) * len(labels)
            penalty += float(done.penalty) * len(labels)
            correct += float((done.logits.argmax(1) == labels).sum())
            count += len(labels)
            step += 1
        metrics = {"rule": entry, "seed": seed, "epoch": epoch + 1, "step": step}
        metrics |= {"train_loss": loss / count, "train_accuracy": correct / count, "penalty": penalty / count}
        if data.validation.size:
            metrics |= dict(
                zip(("validation_accuracy", "validation_loss"), evaluate(model, data.validation), strict=True)
            )
        metrics |= {"weight_angle": untied.metrics.weight_angles(model), "gradient_angle": gradient_angle(model, data)}
        report(metrics)
    split = data.test if config.evaluate_on == "test" else data.validation
    accuracy, _ = evaluate(model, split)
    angles = [a for a in metrics["weight_angle"].values() if math.isfinite(a)]
    return model, {
        "accuracy": accuracy,
        "weight_angle": sum(angles) / len(angles) if angles else None,
        "gradient_angle": metrics["gradient_angle"],
    }


def evaluate(model: nn.Module, loader: Loader) -> tuple[float, float]:
    """(accuracy, mean loss) over a split, in evaluation mode."""
    model.eval()
    correct = loss = 0.0
    with torch.no_grad():
        for images, labels in loader:
            logits = model(images)
            correct += float((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return correct / loader.size, loss / loader.size


def gradient_angle(model: nn.Module, data: Dataset) -> float:
    """Degrees between pseudogradient and gradient of the whole network, on one fixed batch, in training mode."""
    images, labels = next(iter(data.validation if data.validation.size else data.train))
    size = data.train.batch_size
    model.train()
    return untied.metrics.measure(model, lambda: F.cross_entropy(model(images[:size]), labels[:size])).gradient_angle


def check_finite(done: Step, model: nn.Module, entry: str, step: int) -> None:
    """Stop at the first loss that is not a number, and say where it came from."""
    if math.isfinite(float(done.task)) and math.isfinite(float(done.penalty)):
        return
    broken = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    first = next((n for n in broken if n.endswith("backward_weight")), broken[0] if broken else "no weight")
    what = "task loss" if not math.isfinite(float(done.task)) else "penalty R"
    raise NotFinite(
        f"rule {entry}: {what} is {float(done.task if what == 'task loss' else done.penalty)} at step {step}; first not "
        f"finite: {first}; lower the learning rate or the rule's coefficients"
    )
