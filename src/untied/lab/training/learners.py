"""What the lab asks of a network that learns, and who answers: untied layers, or blocks with targets.

The questions are the same: which weights are whose, a recorded pass with J and R, angles, the plain network. Everything
else in the lab, from optimizers to checkpoints, does not know which it trains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import untied
from untied.lab.rules.signs import trained_as
from untied.lab.tasks.trees import first, to
from untied.metrics import VANISHING, AlignmentTable, LayerAlignment, angle
from untied.rules.rule import Rule
from untied.targets.propagation import TargetPropagation

__all__ = ["Learner", "learner", "made"]

Closure = Callable[[], Tensor]
EXAMPLES = 64
"""Inputs from which blocks see shapes, and which values an activation never takes."""


class Heard(Protocol):
    """A recorded pass: R, in all and by part."""

    def penalty(self) -> Tensor: ...

    def penalties(self) -> Mapping[str, float]: ...


class Learner(Protocol):
    """The questions."""

    def groups(self, model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Forward weights, and what carries errors or targets back."""

    def record(self, model: nn.Module, *, align: bool = True, **given: Any) -> AbstractContextManager[Heard]:
        """A training pass. ``given``: as `untied.record` takes it."""

    def measure(self, model: nn.Module, closure: Closure, targets: Tensor | None = None) -> AlignmentTable:
        """Every angle on a batch, by layer or block."""

    def gradient_angle(self, model: nn.Module, closure: Closure, targets: Tensor | None = None) -> float:
        """Between the whole step and backpropagation's gradient, in degrees."""

    def weight_angles(self, model: nn.Module, closure: Closure) -> dict[str, float]:
        """Between W and B, of the weights that activity reaches; by layer or block, NaN where there is no such B."""

    def norm_ratios(self, model: nn.Module) -> dict[str, float]:
        """‖B‖ / ‖W‖ likewise."""

    def verify(self, model: nn.Module, task: Callable[[nn.Module], Tensor], **given: Any) -> Any:
        """By number, whether errors go as the rule says: a string, with ``verified`` and ``verdict``."""

    def plain(self, model: nn.Module) -> nn.Module:
        """The network without anything of the rule, in place."""


class Layers:
    """Untied layers."""

    groups = staticmethod(untied.parameter_groups)
    record = staticmethod(untied.record)
    measure = staticmethod(untied.metrics.measure)
    gradient_angle = staticmethod(untied.metrics.gradient_angle)
    weight_angles = staticmethod(untied.metrics.reached_angles)
    norm_ratios = staticmethod(untied.metrics.norm_ratios)
    verify = staticmethod(untied.verify)
    plain = staticmethod(untied.tie_)


@dataclass(frozen=True)
class Verification:
    """What a network of blocks was found to do. ``error``: the largest, over the larger gradient's norm."""

    report: str
    error: float

    @property
    def verified(self) -> bool:
        return self.error < 1e-3

    @property
    def verdict(self) -> str:
        if self.verified:
            return f"verified: blocks learn by their own targets alone (largest relative difference {self.error:.0e})"
        return f"not verified: a block's gradient is not its local loss's (relative difference {self.error:.0e})"

    def __str__(self) -> str:
        return f"{self.report}\n{self.verdict}"


class Blocks:
    """Blocks with targets."""

    def groups(self, model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return model.forward_parameters(), model.feedback_parameters()

    def record(self, model: Any, *, align: bool = True, **given: Any) -> AbstractContextManager[Heard]:
        found: AbstractContextManager[Heard] = model.recording(align)
        return found

    def measure(self, model: Any, closure: Closure, targets: Tensor | None = None) -> AlignmentTable:
        ours, true, grown = _both(model, closure)
        none = math.nan  # blocks have no B that could be compared with W
        rows = {
            name: LayerAlignment(
                none, none, none, _angle(g, true[name]), none, none, float(true[name].norm()), grown[name]
            )
            for name, g in ours.items()
        }
        return AlignmentTable(rows, _angle(*(torch.cat(list(g.values())) for g in (ours, true))))

    def gradient_angle(self, model: Any, closure: Closure, targets: Tensor | None = None) -> float:
        return self.measure(model, closure).gradient_angle

    def weight_angles(self, model: Any, closure: Closure) -> dict[str, float]:
        return dict.fromkeys(_names(model), math.nan)

    def norm_ratios(self, model: Any) -> dict[str, float]:
        return dict.fromkeys(_names(model), math.nan)

    def verify(self, model: Any, task: Callable[[nn.Module], Tensor], **given: Any) -> Verification:
        """Against `TargetPropagation.local_losses`, which takes gradients block by block."""
        net = copy.deepcopy(model).train()
        W = net.forward_parameters()
        found = torch.autograd.grad(task(net), W)
        with net.recording() as heard:
            task(net)
        wanted = torch.autograd.grad(torch.stack(net.local_losses(heard.passes[0], _Same(net, task))).sum(), W)
        size = max(float(torch.stack([g.norm() for g in wanted]).norm()), 1e-30)
        worst = max(float((a - b).norm()) / size for a, b in zip(found, wanted, strict=True))
        return Verification(net.report(), worst)

    def plain(self, model: Any) -> nn.Module:
        found: nn.Module = model.whole[0]
        return found


class _Same:
    """The task's loss of an output that is given, whatever the network would answer."""

    def __init__(self, net: nn.Module, task: Callable[[nn.Module], Tensor]) -> None:
        self.net, self.task = net, task

    def __call__(self, y: Tensor) -> Tensor:
        return self.task(_Answers(y))


class _Answers(nn.Module):
    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Any) -> Tensor:
        return self.y


LAYERS, BLOCKS = Layers(), Blocks()


def learner(model: nn.Module) -> Learner:
    """Who answers for a network."""
    found: Any = BLOCKS if isinstance(model, TargetPropagation) else LAYERS
    return found  # type: ignore[no-any-return]


def made(model: nn.Module, rule: Rule, x: Any, seed: int | None = None, init: str = "like") -> nn.Module:
    """A plain network under a rule: its own layers in place, or a network of its blocks.

    Args:
        model: as PyTorch has it. x: gives an example batch, for the shapes of feedback. init: of B, as `untied.untie_`.
        seed: of what is drawn; the current random numbers if left out.

    Raises:
        UntiedError: the model cannot be untied, or not cut into blocks that the rule can train.
    """
    if seed is not None:
        torch.manual_seed(seed)  # a kernel that is broadcast, a factor, magnitudes of sign symmetry, a B at an angle
    blocks: nn.Module | None = rule.of_blocks(model, lambda: to(first(x(), EXAMPLES), "cpu"))
    if blocks is not None:
        return blocks
    draws = None if seed is None else torch.Generator().manual_seed(seed)
    own = trained_as(rule)
    start: Any = init if init != "like" or draws is None or not own.takes_init else draws
    untied.untie_(model, own, init=start)
    return model


# Angles of blocks


def _names(model: Any) -> list[str]:
    return [f"block {at}" for at in range(1, model.depth + 1)]


def _angle(a: Tensor, b: Tensor) -> float:
    return angle(a, b) if float(b.norm()) >= VANISHING else math.nan


def _both(model: Any, closure: Closure) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """By block: its step, backpropagation's gradient, how its input has grown. No trace is left in buffers."""
    buffers = {b: b.clone() for b in model.buffers()}
    W = [list(block.parameters()) for block in model.blocks]
    flat = [p for own in W for p in own]
    with torch.enable_grad():
        with model.recording() as heard:
            ours = torch.autograd.grad(closure(), flat, materialize_grads=True)
        with _backpropagating(model):
            true = torch.autograd.grad(closure(), flat, materialize_grads=True)
    with torch.no_grad():
        for buffer, before in buffers.items():
            buffer.copy_(before)
    sizes = [float(h.detach().float().norm()) for h in heard.passes[0]]
    grown = [math.nan, *(b / a if a else math.nan for a, b in pairwise(sizes[:-1]))]
    names, found = _names(model), []
    for gradients in (ours, true):
        rest = iter(gradients)
        found.append({name: torch.cat([next(rest).flatten() for _ in own]) for name, own in zip(names, W, strict=True)})
    return found[0], found[1], dict(zip(names, grown, strict=True))


@contextmanager
def _backpropagating(model: Any) -> Any:
    model.forward = model.plain
    try:
        yield
    finally:
        del model.forward
