"""One training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

import untied
from untied.lab.optim import Optimizers

__all__ = ["Phase", "Step", "training_step"]


@dataclass(frozen=True)
class Phase:
    """What is trained: the weights of J and of R in the loss. 0 multiplies, it does not drop: every gradient exists."""

    task: float = 1.0
    align: float = 1.0


@dataclass(frozen=True)
class Step:
    """What a step has to say: task loss J and penalty R (0-dim), logits [n, classes]."""

    task: Tensor
    penalty: Tensor
    logits: Tensor


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizers: Optimizers,
    phase: Phase = Phase(),
    *,
    progress: float,
    step: int,
) -> Step:
    """L = J + R, its (pseudo)gradients, and a step of each optimizer.

    Args:
        images, labels: one batch, [n, c, h, w] and [n].
        phase: the weights of J and R.
        progress: of training, 0 to 1. step: number of this step. Both are for the rules' coefficients.
    """
    optimizers.zero()
    with untied.record(model, progress=progress, step=step) as tape:
        logits = model(images)
        task = F.cross_entropy(logits, labels)
    penalty = tape.penalty()
    (phase.task * task + phase.align * penalty).backward()
    if phase.task:  # momentum and weight decay would move W without a task
        optimizers.forward.move()
    if optimizers.backward is not None and phase.align:
        optimizers.backward.move()
    return Step(task.detach(), penalty.detach(), logits.detach())
