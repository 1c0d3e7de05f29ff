"""One training step."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from untied.errors import UntiedError
from untied.lab.tasks import Classification, Task
from untied.lab.tasks.trees import chunks, finite
from untied.lab.training.learners import Heard, learner
from untied.lab.training.optim import Optimizers
from untied.routes.autograd import LossTerm

__all__ = ["NotFinite", "Objective", "Phase", "Step", "training_step"]


class NotFinite(UntiedError):
    """The loss is NaN or infinite: training this network with this rule has failed."""


@dataclass(frozen=True)
class Phase:
    """What is trained: the weights of J and of R in the loss. Where one is 0, its work is left out."""

    task: float = 1.0
    align: float = 1.0


@dataclass(frozen=True)
class Step:
    """What a step has to say: task loss J and penalty R (0-dim, means over the batch's parts), outputs [n, ...]."""

    task: Tensor
    penalty: Tensor
    logits: Tensor


class Objective(nn.Module):
    """J and R of a network as one module: what spreads a module over devices has to see both terms in its forward pass.

    Args:
        model: converted.
        task: whose objective J is.
    """

    def __init__(self, model: nn.Module, task: Task | None = None) -> None:
        super().__init__()
        self.model = model
        self.task = task or Classification()
        self.evaluate = self._evaluate

    def forward(
        self, images: Tensor, labels: Tensor, task: bool, align: bool, progress: float, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(J, R, logits). Without ``task`` or ``align`` that part's work is left out, and its weights' gradients are
        zeros: DDP waits for every one of them."""
        targets = labels if isinstance(labels, Tensor) else None  # for rules that send them
        about = learner(self.model)
        with about.record(self.model, progress=progress, step=step, align=align, targets=targets) as tape:
            J, R, logits = self.evaluate(images, labels, task, tape)
        if not task:
            W = [w for w in about.groups(self.model)[0] if w.requires_grad]
            J = LossTerm.apply(J, len(W), *W, *map(torch.zeros_like, W))
        return J, R, logits

    def _evaluate(self, images: Tensor, labels: Tensor, task: bool, tape: Heard) -> tuple[Tensor, Tensor, Tensor]:
        with nullcontext() if task else torch.no_grad():
            logits = self.model(images)
            J = self.task.objective(logits, labels)
        return J, tape.penalty(), logits

    def compile(self, **options: Any) -> None:
        """Compile network, loss and R as one graph, in place. What a step settles beforehand, such as coefficients on a
        schedule, stays outside, so that no step compiles anew. ``options``: of torch.compile."""
        self.evaluate = torch.compile(self._evaluate, **options)


def training_step(
    objective: nn.Module,
    images: Any,
    labels: Any,
    optimizers: Optimizers,
    phase: Phase = Phase(),
    *,
    progress: float,
    step: int,
    parts: int = 1,
    anywhere: Callable[[bool], bool] | None = bool,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    apart: Callable[[], AbstractContextManager[object]] = nullcontext,
    move: Callable[[], object] | None = None,
) -> Step:
    """L = J + R, its (pseudo)gradients, and a step of each optimizer.

    Args:
        objective: an `Objective`, perhaps spread over several devices.
        images, labels: this process's part of one batch: inputs and targets, such as [n, c, h, w] and [n].
        phase: the weights of J and R.
        progress: of training, 0 to 1. step: number of this step. Both are for the rules' coefficients.
        parts: compute the batch in so many parts, one after the other (gradient accumulation).
        anywhere: whether something is so in any process, asked of a loss that is not finite; None does not look, as
            looking waits for the device.
        backward: what starts the backward pass of a loss, such as Fabric's, which scales it.
        apart: a context in which processes do not exchange gradients, for all parts but the last.
        move: what calls ``optimizers.step``, such as Fabric's wrapper of it.

    Raises:
        NotFinite: J or R is not a number; the message names the first layer with such weights or such an R. Nothing
            has moved then.
    """
    optimizers.zero_grad(set_to_none=True)
    task, align = phase.task > 0, phase.align > 0
    done = []
    for i, (x, y) in enumerate(zip(chunks(images, parts), chunks(labels, parts), strict=True)):
        with apart() if i < parts - 1 else nullcontext():
            J, R, logits = objective(x, y, task, align, progress, step)
            if anywhere is not None and anywhere(not bool(torch.isfinite(J.detach() + R.detach()))):
                raise NotFinite(f"the loss is not finite at step {step} ({culprit(objective, x, progress, step)})")
            backward(((phase.task if task else 1.0) * J + phase.align * R) / parts)
        done.append((J.detach(), R.detach(), logits.detach()))
    optimizers.choose(task, align)
    (move or optimizers.step)()
    Js, Rs, all_logits = zip(*done, strict=True)
    return Step(torch.stack(Js).mean(), torch.stack(Rs).mean(), torch.cat(all_logits))


def culprit(objective: nn.Module, images: Any, progress: float, step: int) -> str:
    """In words, what of a step is the first not to be finite: images, a layer's weights, its R, or the activity."""
    if not finite(images):
        return "there are such values in the inputs"
    model: nn.Module = objective.model  # type: ignore[assignment]
    with learner(model).record(model, progress=progress, step=step) as tape, torch.no_grad():
        model(images)
    penalties = tape.penalties()
    for layer, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not bool(parameter.isfinite().all()):
                return f"first in layer {layer or '(the model)'}: its {name}"
        if layer in penalties and not math.isfinite(penalties[layer]):
            return f"first in layer {layer or '(the model)'}: its R"
    return "weights and R are finite; the activity overflows"
