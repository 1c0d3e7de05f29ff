"""One run: a network, a rule and a seed, trained and evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from untied.lab.config import CompareConfig, label, parse_entry
from untied.lab.data import DataConfig, Dataset, Loader, load
from untied.lab.models import build
from untied.lab.optim import Optimizers
from untied.lab.step import NotFinite, Phase, training_step

__all__ = ["NotFinite", "dataset", "delay_epochs", "evaluate", "network", "train"]

Report = Callable[[dict[str, Any]], None]


@lru_cache(maxsize=1)  # successive runs of a process mostly differ in their rule alone
def dataset(config: DataConfig, seed: int, device: str) -> Dataset:
    """The data, read once."""
    return load(config, seed=seed, device=device)


def network(config: CompareConfig, data: Dataset, entry: str, seed: int) -> nn.Module:
    """The untied network: for one seed, W and B start the same under every rule."""
    rule, _ = parse_entry(entry, config.backward)
    torch.manual_seed(seed)
    model = build(config.model, input_shape=data.input_shape, classes=len(data.classes))
    torch.manual_seed(seed)  # the magnitudes of sign symmetry
    start = torch.Generator().manual_seed(seed + 1_000_003) if config.init == "like" else config.init
    untied.untie_(model, rule, init=start)
    return model.to(config.device)


def delay_epochs(config: CompareConfig, entry: str) -> int:
    """Epochs of alignment alone: none for a rule that has nothing to align without the task."""
    rule, _ = parse_entry(entry, config.backward)
    return config.delay if rule.aligns and not rule.copies_gradient else 0


def train(config: CompareConfig, entry: str, seed: int, report: Report) -> tuple[nn.Module, dict[str, Any]]:
    """Train one network with one rule, and evaluate it once, at the end.

    Args:
        entry: the rule, one of ``CompareConfig.entries``.
        report: called after every epoch with that epoch's metrics. Epochs of the task count from 1; those of alignment
            alone, before them, up to 0.

    Returns:
        The network, and its result: accuracy on ``config.evaluate_on``, and final angles.

    Raises:
        NotFinite: the loss stopped being a number; names layer, step and rule.
    """
    data = dataset(config.data, seed, config.device)
    model = network(config, data, entry, seed)
    rule, backward = parse_entry(entry, config.backward)
    delay = delay_epochs(config, entry)
    length = len(data.train)
    total = (delay + config.epochs) * length
    optimizers = Optimizers(model, rule, config.forward, backward, config.epochs * length, delay * length)
    torch.manual_seed(seed)  # noise, dropout
    step = 0
    metrics: dict[str, Any] = {}
    for epoch in range(1 - delay, config.epochs + 1):
        phase = Phase() if epoch > 0 else Phase(task=0.0)
        model.train()
        sums = torch.zeros(3, device=config.device)  # J, R, images right
        # the task sees the same order of images under every rule, whatever went before
        for images, labels in data.train.epoch(epoch - 1 if epoch > 0 else config.epochs - epoch):
            try:
                done = training_step(model, images, labels, optimizers, phase, progress=step / total, step=step)
            except NotFinite as failure:
                raise NotFinite(f"rule {label(entry)}: {failure}; try a lower learning rate") from None
            right = (done.logits.argmax(1) == labels).float().mean()
            sums += torch.stack([done.task, done.penalty.to(done.task), right])
            step += 1
        metrics = {"rule": label(entry), "seed": seed, "epoch": epoch, "step": step}
        means = (sums / length).tolist()
        metrics |= dict(zip(("train_loss", "penalty", "train_accuracy"), means, strict=True))
        if data.validation.size:
            accuracy, loss = evaluate(model, data.validation)
            metrics |= {"validation_loss": loss, "validation_accuracy": accuracy}
        metrics |= {"weight_angle": untied.metrics.weight_angles(model), "gradient_angle": gradient_angle(model, data)}
        report(metrics)
    accuracy, _ = evaluate(model, data.test if config.evaluate_on == "test" else data.validation)
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

    def loss() -> Tensor:
        return F.cross_entropy(model(images[:size]), labels[:size])

    return untied.metrics.gradient_angle(model, loss)
