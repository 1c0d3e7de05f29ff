"""Which layers of a network are compared: by name, all of them, or a sensible few."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from untied.errors import UntiedError

__all__ = ["Layer", "chosen", "default", "trace"]

INPUT = ":input"
"""``NAME:input`` is what goes into a module, such as the pooled features that a classifier sees."""
WEIGHTED = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.MultiheadAttention,
)  # fmt: skip
PASSING = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
STACKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Layer:
    """A place in a network.

    Attributes:
        name: of a module, perhaps with ``:input``.
        module: the module's name.
        width: numbers that one image evokes there.
        call: which call of the module is meant, from 1: its last one in a forward pass.
        same: where the tensor lay, to find two names for one thing.
    """

    name: str
    module: str
    width: int
    call: int
    same: tuple[int, int]

    @property
    def of_input(self) -> bool:
        """Whether it is what goes into the module."""
        return self.name.endswith(INPUT)


def trace(model: nn.Module, image: Tensor) -> dict[str, Layer]:
    """Every module that makes one tensor of an image, and every module's input, in the order of the forward pass.

    Args:
        model: in evaluation mode. image: (1, channels, height, width).
    """
    found: dict[str, Layer] = {}
    calls: dict[str, int] = {}
    held: list[Tensor] = []  # as long as all of them are held, no two lie in the same place

    def note(name: str, module: str, tensor: Any, call: int) -> None:
        if isinstance(tensor, Tensor) and tensor.ndim > 1 and len(tensor) == 1 and tensor.is_floating_point():
            held.append(tensor)
            found.pop(name, None)  # the last call counts, in its place
            found[name] = Layer(name, module, tensor.numel(), call, (tensor.data_ptr(), tensor.numel()))

    def before(name: str, inputs: tuple[Any, ...]) -> None:
        calls[name] = calls.get(name, 0) + 1
        note(name + INPUT, name, inputs[0] if inputs else None, calls[name])

    with hooks(model, before, lambda name, output: note(name, name, output, calls[name])), torch.no_grad():
        model(image)
    return found


@contextmanager
def hooks(model: nn.Module, before: Any, after: Any, names: Sequence[str] | None = None) -> Iterator[None]:
    """Call ``before(name, inputs)`` and ``after(name, output)`` around the modules of those names, the root aside."""
    handles = []
    for name, module in model.named_modules():
        if name and (names is None or name in names):
            handles.append(module.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs)))
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def chosen(model: nn.Module, traced: dict[str, Layer], words: Sequence[str]) -> list[Layer]:
    """The layers that ``words`` ask for, in the order of the forward pass: "default", "all", or names.

    Raises:
        UntiedError: an unknown name; the nearest are listed.
    """
    names: list[str] = []
    for word in words:
        if word == "default":
            names += default(model, traced)
        elif word == "all":
            names += every(model, traced)
        elif word in traced:
            names.append(word)
        else:
            near = difflib.get_close_matches(word, traced, n=4, cutoff=0.4)
            known = [name for name in traced if not name.endswith(INPUT)]
            hint = f"nearest: {', '.join(near)}" if near else f"it has {', '.join(known[:8])}, ..."
            raise UntiedError(f"the network has no layer {word!r}; {hint}; or default, or all")
    return [layer for name, layer in traced.items() if name in names]


def default(model: nn.Module, traced: dict[str, Layer]) -> list[str]:
    """The output of each residual block and of each layer outside of them, and what the last linear layer sees.

    Of a layer's output, what is left of it after the normalisation, activation and pooling modules that follow it.
    The last linear layer's own output, the classes, is left out.
    """
    modules = dict(model.named_modules())
    last = next((n for n in reversed(list(traced)) if isinstance(modules.get(n), nn.Linear)), None)
    units: list[str] = []
    fresh = True  # whether the next small module begins a unit
    for name in parts(model):
        module = modules[name]
        if name not in traced or name == last or isinstance(module, (nn.Flatten, nn.Dropout)):
            continue
        small = not any(True for _ in module.children())
        if not small or isinstance(module, WEIGHTED) or fresh:
            units.append(name)
        else:
            units[-1] = name
        fresh = not small
    if last is not None:
        units.append(last + INPUT)
    return once(units, traced)


def every(model: nn.Module, traced: dict[str, Layer]) -> list[str]:
    """All layers with weights of their own, all blocks and stages of them, and what the last linear layer sees."""
    modules = dict(model.named_modules())
    names = [
        name
        for name in traced
        if name in modules
        and (isinstance(modules[name], WEIGHTED) or any(isinstance(m, WEIGHTED) for m in modules[name].modules()))
    ]
    last = next((n for n in reversed(names) if isinstance(modules[n], nn.Linear)), None)
    return once([*names, *([last + INPUT] if last else [])], traced)


def once(names: Sequence[str], traced: dict[str, Layer]) -> list[str]:
    """The names without those of a tensor that has had one: a stage's output is that of its last block."""
    seen: set[tuple[int, int]] = set()
    out = []
    for name in names:
        if traced[name].same not in seen:
            seen.add(traced[name].same)
            out.append(name)
    return out


def parts(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """The names of a network's blocks and of the layers outside of them."""
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        grandchildren = list(child.children())
        stack = isinstance(child, STACKS) or any(isinstance(g, STACKS) and deep(g) > 1 for g in grandchildren)
        if grandchildren and stack:
            yield from parts(child, full)
        else:
            yield full


def deep(stack: nn.Module) -> int:
    """How many of its entries are made of modules themselves."""
    return sum(any(True for _ in child.children()) for child in stack.children())
