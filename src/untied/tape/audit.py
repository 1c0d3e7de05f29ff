"""What a training loop may have forgotten: to ask for R, to move B, to call a layer. Seen by the next recording.

One recording cannot see that its R never reaches a loss, or that no optimizer holds B: the next one can. What is kept
for that lies on the layers, is of a few numbers, and is no part of a copy or a checkpoint. Neither can one see that an
optimizer searches along a line: what counts its recordings lies on the optimizer.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import UntiedError
from ..parametrized import leaves
from ..rules.call import Layer

__all__ = ["History", "begin", "end"]

PATIENCE = 10
"""Steps in which W moves and B does not, before that is said."""
EVALUATIONS = 3
"""Of R in one step of an optimizer, at which it is said that it searches."""


@dataclass
class History:
    """Of a layer, between two recordings.

    Attributes:
        owes: the last recording's R was not asked for. stuck: steps in which W moved and B did not.
        versions: of its kernels and of its B's when R was asked for last.
        watched: whether its weights say so when they get a gradient.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa")
    >>> with untied.record(model):
    ...     _ = model(torch.randn(5, 4))
    >>> model.history  # nobody has asked for R
    History(owes=True, stuck=0, versions=None, watched=False)
    """

    owes: bool = False
    stuck: int = 0
    versions: tuple[int, int] | None = None
    watched: bool = False


class Recorded(Protocol):
    """What is asked of a recording; `untied.tape.Tape` is one."""

    layers: Mapping[str, Layer]
    called: list[Layer]
    connections: dict[Any, Any]
    resting: dict[int, bool]
    handed_over: Any


def begin(layers: Mapping[str, Layer]) -> None:
    """A recording begins: what became of the last one?

    >>> import torch, untied, warnings
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa")
    >>> model.history = History(owes=True)
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     begin({"fc": model})
    >>> print(str(said[0].message)[:72])
    R of the last recording was never asked for, so B does not align (layers
    """
    owing, stuck = [], []
    for name, layer in layers.items():
        history = layer.history
        if history is None:
            continue
        if history.owes:
            owing.append(name)
            history.owes = False
        if history.versions is not None:
            W, B = _versions(layer)
            moved = history.versions[0] != W, history.versions[1] != B
            history.stuck = 0 if moved[1] else history.stuck + moved[0]
            history.versions = None
            if history.stuck == PATIENCE:
                stuck.append(name)
    if owing:
        warnings.warn(
            f"R of the last recording was never asked for, so B does not align ({_several(owing)}): add tape.penalty() "
            "to the loss, or record with align=False where nothing shall align",
            stacklevel=5,
        )
    if stuck:
        warnings.warn(
            f"W has moved in {PATIENCE} steps and B has not ({_several(stuck)}): no optimizer holds B; make optimizers "
            "after untie_, of all of model.parameters()",
            stacklevel=5,
        )


def end(tape: Recorded) -> None:
    """A recording ends without an error: note what the next one shall see.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa")
    >>> with untied.record(model) as tape:
    ...     _ = model(torch.randn(5, 4))
    >>> model.history = None
    >>> end(tape)
    >>> model.history.owes
    True
    """
    for layer in tape.called:
        layer.was_called = True
    called = {id(p) for layer in tape.called for p in _weights(layer)}
    owes = {id(c.layer) for c in tape.connections.values() if not tape.resting[id(c.rule)]}
    for name, layer in tape.layers.items():
        if id(layer) in owes and tape.handed_over is None:
            _history(layer).owes = True
        if not layer.was_called and not _history(layer).watched:
            _watch(name, layer, called)


def asked(tape: Recorded) -> None:
    """R is asked for."""
    for connection in tape.connections.values():
        layer = connection.layer
        history = _history(layer)
        history.owes = False
        learns = connection.kernels[1].requires_grad and not tape.resting[id(connection.rule)]
        history.versions = _versions(layer) if learns else None
    if not all(tape.resting.values()):
        _searched()


class _Evaluations:
    """A hook that goes with an optimizer: how often R was asked for since its last step."""

    def __init__(self) -> None:
        self.count, self.said = 0, False

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.count = 0


def _searched() -> None:
    """Say if an optimizer asks for J + R again and again within one step."""
    optimizer = _stepping()
    if optimizer is None:
        return
    hooks = optimizer._optimizer_step_post_hooks.values()
    own = next((hook for hook in hooks if isinstance(hook, _Evaluations)), None)
    if own is None:
        optimizer.register_step_post_hook(own := _Evaluations())
    own.count += 1
    if own.count == EVALUATIONS and not own.said:
        own.said = True
        warnings.warn(
            f"{type(optimizer).__name__} has evaluated J + R {EVALUATIONS} times in one step, as it would to minimise "
            "it: R may have no lower bound, and what goes back through B is no gradient of J, so the search may lead "
            "anywhere; use an optimizer that takes one gradient a step, such as SGD or Adam",
            stacklevel=5,
        )


def _stepping() -> Any:
    """The optimizer whose step this is a part of, as in a closure; None if there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "step" and isinstance(found := frame.f_locals.get("self"), torch.optim.Optimizer):
            return found
        frame = frame.f_back
    return None


def _watch(name: str, layer: Layer, called: set[int]) -> None:
    """Let the weights of a layer that nobody has called say so when they get a gradient: then they are used without it.

    A layer that this pass happens to skip, as stochastic depth or experts without tokens do, gets none.
    """
    _history(layer).watched = True

    def refuse(g: Tensor) -> None:
        if layer.__dict__.get("history") is None or layer.was_called or not bool(g.any()):
            return
        raise UntiedError(
            f"layer {name} was never called, yet its weight gets a gradient: the model uses the weight directly (as "
            "functional attention does), and errors through it are backprop's; leave it out with "
            "untie_(model, rule, filter=...), or register the module that uses it (untied.register_layer)"
        )

    for p in _weights(layer):
        if p.is_leaf and p.requires_grad and id(p) not in called:
            p.register_hook(refuse)


def _weights(layer: Any) -> list[Tensor]:
    return [p for w in layer.own_weights() for p in leaves(layer, w)]


def _versions(layer: Any) -> tuple[int, int]:
    """How often its kernels, and its backward weights, were changed."""
    return sum(p._version for p in _weights(layer)), sum(p._version for p in layer.backward_parameters())


def _history(layer: Layer) -> History:
    if layer.history is None:
        layer.history = History()
    history: History = layer.history
    return history


def _several(names: list[str]) -> str:
    shown = ", ".join(n or "(the model)" for n in names[:5])
    return f"layers {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def frozen(tape: Recorded) -> None:
    """Say which B carries errors, has an R, and cannot move."""
    if torch.compiler.is_compiling():
        return
    names = {id(layer): name for name, layer in tape.layers.items()}
    still = [
        names[id(c.layer)]
        for c in tape.connections.values()
        if c.carries and not c.kernels[1].requires_grad and not tape.resting[id(c.rule)]
        if c.kernels[0].requires_grad or not c.rule.follows
    ]
    if still:
        warnings.warn(
            f"B carries errors and is frozen, though its rule would move it ({_several(list(dict.fromkeys(still)))}): "
            "set requires_grad, or give these layers rule fa, where B stays as it is",
            stacklevel=5,
        )
