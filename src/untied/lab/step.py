"""One training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from untied.errors import UntiedError
from untied.lab.optim import Optimizers

__all__ = ["NotFinite", "Phase", "Step", "training_step"]


class NotFinite(UntiedError):
    """The loss is NaN or infinite: training this network with this rule has failed."""


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

    Raises:
        NotFinite: J or R is not a number; the message names the first layer with such weights or such an R. Nothing
            has moved then.
    """
    optimizers.zero()
    with untied.record(model, progress=progress, step=step) as tape:
        logits = model(images)
        task = F.cross_entropy(logits, labels)
    penalty = tape.penalty()
    if not bool(torch.isfinite(task.detach() + penalty.detach())):
        raise NotFinite(f"the loss is not finite at step {step} ({culprit(model, images, tape)})")
    (phase.task * task + phase.align * penalty).backward()
    if phase.task:  # momentum and weight decay would move W without a task
        optimizers.forward.move()
    if optimizers.backward is not None and phase.align:
        optimizers.backward.move()
    return Step(task.detach(), penalty.detach(), logits.detach())


def culprit(model: nn.Module, images: Tensor, tape: untied.Tape) -> str:
    """In words, what of a step is the first not to be finite: images, a layer's weights, its R, or the logits."""
    if not bool(images.isfinite().all()):
        return "there are such values in the images"
    penalties = tape.penalties()
    for layer, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not bool(parameter.isfinite().all()):
                return f"first in layer {layer or '(the model)'}: its {name}"
        if layer in penalties and not abs(penalties[layer]) < float("inf"):
            return f"first in layer {layer or '(the model)'}: its R"
    return "weights and R are finite; the activity overflows"
