"""`record`: a training forward pass in which layers tell a tape of their calls, and errors may be broadcast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UntiedError
from .layers import foreign
from .layers.layer import Untied, untied_layers
from .layers.outermost import is_outermost
from .parametrized import read_kernel
from .rules.broadcast import broadcasting
from .rules.call import Listener
from .rules.rule import Visit
from .tape import audit
from .tape.tape import Tape

__all__ = ["listening", "record"]


@contextmanager
def record(
    model: nn.Module,
    *,
    progress: float | None = None,
    step: int | None = None,
    align: bool = True,
    targets: Tensor | None = None,
) -> Iterator[Tape]:
    """Record a training forward pass, for R.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "ia")
    >>> images, labels = torch.randn(5, 4), torch.randint(3, (5,))
    >>> with untied.record(model) as tape:
    ...     task = torch.nn.functional.cross_entropy(model(images), labels)
    >>> (task + tape.penalty()).backward()

    Stop early by ``task``, not by the sum: R has no lower bound under some rules. For the same reason an optimizer that
    minimises a loss by line search, such as LBFGS, is none for B.

    A phase that aligns alone, a mirror phase, needs no autograd through the network:

    >>> with untied.record(model) as tape, torch.no_grad():
    ...     _ = model(images)
    >>> tape.penalty().backward()

    `DistributedDataParallel` averages gradients only after a forward pass with autograd: leave ``no_grad`` out there
    and write ``(0 * task + tape.penalty()).backward()``, or average B's gradients oneself.

    Args:
        model: a converted model, also wrapped in `DistributedDataParallel` or compiled; in training or evaluation mode.
        progress: of training, 0 to 1; needed by coefficients that are functions of it.
        step: number of this training step; needed by rules with ``every``.
        align: False lets every rule rest in this pass, for phases that train the task alone: R is 0, at no cost, and
            every B that aligns still gets a gradient, of zeros, so that DDP waits for none in vain. Neither progress
            nor step is needed then. The pseudogradient that Kolen-Pollack's B copies is the task's, and stays.
        targets: in the shape of the network's output, or classes [n], for rules that send them (`drtp`). They are sent
            as they are, whatever the loss is divided by.

    Raises:
        UntiedError: nothing in the model is converted; two recordings at once; progress or step is missing. Later:
            under a rule that broadcasts, the output is not one tensor, or targets are missing; or a layer is called
            under ``torch.inference_mode()`` (use ``torch.no_grad()``).
    """
    layers = untied_layers(model)
    if not layers:
        raise UntiedError(
            "nothing in this model is converted: call untied.untie_(model, rule) first ('bp' for a baseline)"
        )
    if any(isinstance(listener, Tape) for layer in layers.values() for listener in layer.listeners):
        raise UntiedError("this model is being recorded already: leave the first record() before entering another")
    tape = Tape(layers, progress, step, align)
    audit.begin(layers)
    foreign.adapters(model, layers)
    visit(layers, step, align)
    second = next((n for n, m in model.named_modules() if getattr(m, "batch_first", True) is False), None)
    with _watching(model, layers), broadcasting(layers, targets, second), listening(layers, tape), _every_layer(layers):
        yield tape
    tape.count_patches()
    audit.end(tape)


def visit(layers: Mapping[str, Untied], step: int | None, align: bool) -> None:
    """Let rules that move B themselves do so: once for each kernel, and measure only where W has moved since."""
    seen: set[int] = set()
    for name, layer in layers.items():
        if not layer.rule.moves_itself:
            continue
        for weight in layer.own_weights():
            W, beside = read_kernel(layer, weight), layer.beside(weight)  # type: ignore[arg-type]
            if id(beside["backward_weight"]) in seen:
                continue
            seen.add(id(beside["backward_weight"]))
            version = (id(W), W._version)
            fresh = layer.visited.get(weight) != version
            if align:
                layer.visited = {**layer.visited, weight: version}
            layer.rule.visit(Visit(W, beside, layer.geometry_of(weight), name, step, align and fresh))


@contextmanager
def listening(layers: Mapping[str, Untied], listener: Listener, alone: bool = False) -> Iterator[None]:
    """Let somebody hear of every call of these layers, beside whoever listens already, or ``alone``: a pass that only
    measures is no part of what others record.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa")
    >>> class Watching:
    ...     def note(self, call):
    ...         print(tuple(call.y.shape))
    >>> with listening(untied.layers.untied_layers(model), Watching()):
    ...     _ = model(torch.randn(5, 4))
    (5, 3)
    """
    before = {name: layer.listeners for name, layer in layers.items()}
    for layer in layers.values():
        layer.listeners = (listener,) if alone else (*layer.listeners, listener)
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.listeners = before[name]


@contextmanager
def _every_layer(layers: Mapping[str, Untied]) -> Iterator[None]:
    """In evaluation mode `nn.TransformerEncoderLayer` takes a path that uses its layers' weights and calls none."""
    fast = torch.backends.mha.get_fastpath_enabled()
    if not fast or not any(isinstance(layer, nn.MultiheadAttention) for layer in layers.values()):
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@contextmanager
def _watching(model: nn.Module, layers: Mapping[str, Untied]) -> Iterator[None]:
    """Where errors come from the network's output, see that it is one tensor."""
    if not any(layer.rule.route.broadcasts for layer in layers.values()):
        yield
        return

    def see(module: nn.Module, given: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and not is_outermost(module):
            return
        # a number beside the outputs is a loss that the network computes by itself
        count = sum(t.requires_grad and t.dim() > 0 for t in _tensors(output))
        if count > 1:
            raise UntiedError(
                f"the network's output is {count} tensors, and errors are broadcast from one: return that alone while "
                "training, or use a rule that sends errors through the layers, such as fa"
            )

    handle = model.register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor of a network's output, in mappings, sequences and dataclasses within one another."""
    if isinstance(output, Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, tuple | list):
        parts = list(output)
    elif is_dataclass(output) and not isinstance(output, type):
        parts = [getattr(output, f.name) for f in fields(output)]
    else:
        return
    for part in parts:
        yield from _tensors(part)
