"""Which matrices carry errors outside the untied operation, seen as a pass computes; and the first pass is looked at.

Names and classes prove nothing: a layer may be replaced after `untie_`, or its weight used directly. Under a rule that
needs no recording nobody else would see it.
"""

from __future__ import annotations

import fnmatch
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UntiedError, shown
from ..parametrized import leaves
from .layer import Untied, untied_layers
from .outermost import is_outermost

__all__ = ["Allow", "Products", "allowed", "unwatch", "watch"]

Allow = str | Collection[str] | bool
"""Names or name patterns of parameters that shall keep backpropagation's errors; True for all."""


def allowed(allow: Allow, name: str) -> bool:
    """Whether a parameter, by its full name, may keep backprop's errors. A pattern may leave its module's name out.

    >>> allowed("W_*", "cell.W_rec"), allowed((), "cell.W_rec"), allowed(True, "cell.W_rec")
    (True, False, True)

    Raises:
        UntiedError: these are no patterns.
    """
    if isinstance(allow, bool):
        return allow
    patterns = [allow] if isinstance(allow, str) else list(allow)
    if wrong := [p for p in patterns if not isinstance(p, str)]:
        raise UntiedError(
            f"allow={shown(wrong[0])} is not possible: give names or patterns of parameters, or True for all"
        )
    return any(fnmatch.fnmatchcase(n, p) for n in (name, name.rpartition(".")[2]) for p in patterns)


def watch(model: nn.Module, allow: Allow, left: Collection[str]) -> None:
    """Let a model look at its first training pass, and refuse backpropagation's errors that nobody has allowed.

    Whoever calls the model's parts instead of the model has the first pass of each part looked at. Under
    ``torch.compile`` it sees nothing, nor what stands between such parts: `untied.verify` looks there.

    Args:
        model: converted. allow: as `untied.untie_` takes it. left: names of modules left to backpropagation knowingly.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "fa")
    >>> model[1] = torch.nn.Linear(8, 3)
    >>> try:
    ...     _ = model(torch.randn(5, 4))
    ... except untied.UntiedError as error:
    ...     print(str(error)[:48])
    errors go through 1.weight by backpropagation: t
    """
    unwatch(model)
    for left_by_an_interrupt in _modes()[-1:]:
        if isinstance(left_by_an_interrupt, Products):
            left_by_an_interrupt.leave()
    if isinstance(model, Untied) or all(layer.rule.exact for layer in untied_layers(model).values()):
        return
    for name, module in model.named_modules():
        if not isinstance(module, Untied) and any(isinstance(part, Untied) for part in module.modules()):
            module.register_forward_pre_hook(_FirstPass(allow, tuple(left), name))


def unwatch(model: nn.Module) -> None:
    """Undo `watch`.

    >>> unwatch(torch.nn.Linear(4, 3))
    """
    for module in model.modules():
        _unhook(module)


def _unhook(module: nn.Module) -> None:
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, _FirstPass):
            del module._forward_pre_hooks[key]


@dataclass(frozen=True)
class _FirstPass:
    """A hook that goes with the first training pass. It is a value: a model is copied and pickled with it.

    Attributes:
        at: the name of its module in the model that was untied.
    """

    allow: Allow
    left: tuple[str, ...]
    at: str = ""

    def __call__(self, module: nn.Module, inputs: Any = ()) -> None:
        if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
            return
        layers = untied_layers(module)
        if any("connect" in vars(layer) for layer in layers.values()):
            return  # an oracle's pass, in plain operations
        _unhook(module)
        if any(isinstance(m, Products) and m.covers(module) for m in _modes()):
            return  # it is seen as a part of what has called it
        seen, thread = Products(module), threading.get_ident()

        def end(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if threading.get_ident() != thread or not is_outermost(module):
                return  # another thread's pass, or a part of this one
            handle.remove()
            seen.leave()
            if outputs is None and sys.exception() is not None:
                module.register_forward_pre_hook(self)  # the pass failed: the next one is the first
            else:
                self.judge(module, layers, seen.carriers)

        handle = module.register_forward_hook(end, always_call=True)
        seen.__enter__()

    def judge(self, module: nn.Module, layers: dict[str, Untied], carriers: set[str]) -> None:
        """Raise if something carries errors that nobody has allowed."""
        by_rule = [layer for layer in layers.values() if layer.rule.exact]
        exact = {id(p) for layer in by_rule for w in layer.own_weights() for p in leaves(layer, w)}  # type: ignore[arg-type]
        names = {n for n, p in module.named_parameters() if id(p) not in exact}
        full = sorted(f"{self.at}.{n}" if self.at else n for n in carriers & names)
        found = [n for n in full if not allowed(self.allow, n) and n.rpartition(".")[0] not in self.left]
        if found:
            module.register_forward_pre_hook(self)  # who goes on as before is told again
            shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            raise UntiedError(
                f"errors go through {shown} by backpropagation: the model uses them outside of an untied layer, as it "
                "does with a layer that was put in after untie_, or a weight that is used directly. Untie again, call "
                f"the layer instead, or keep it knowingly with untie_(..., allow={found[:5]})"
            )


class Products(torch.overrides.TorchFunctionMode):
    """Sees each product of what is made of parameters alone with what is activity and needs an error.

    The untied operation is not seen: what happens within an autograd function is without autograd.

    Attributes:
        carriers: names of the matrices in such products: through them errors are backpropagation's.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "fa", filter="0")
    >>> with Products(model) as seen:
    ...     _ = model(torch.randn(5, 4))
    >>> seen.carriers
    {'1.weight'}
    """

    NAMES = frozenset({
        "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv",
        "dot", "einsum", "tensordot", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "bilinear", "multi_head_attention_forward", "rnn_tanh", "rnn_relu", "lstm", "gru",
        "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell", "inner", "convolution", "chain_matmul", "multi_dot",
    })  # fmt: skip
    ADDED = frozenset({"addmm", "baddbmm", "addbmm", "addmv"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made_of: dict[int, tuple[Tensor, frozenset[str]]] = {
            id(p): (p, frozenset({n})) for n, p in model.named_parameters()
        }
        self.constant = {id(b) for b in model.buffers()}
        self.modules = {id(m) for m in model.modules()}
        self.carriers: set[str] = set()

    def leave(self) -> None:
        """Stop looking, if that has not been done: a pass that Ctrl-C ended stops at the next one."""
        if self in _modes()[-1:]:
            self.__exit__(None, None, None)

    def covers(self, module: nn.Module) -> bool:
        """Whether it sees the parameters of this module."""
        return id(module) in self.modules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not torch.is_grad_enabled():
            return result
        name = getattr(func, "__name__", "")
        if name in self.ADDED:  # their first one is added, not multiplied
            args, kwargs = args[1:], {k: v for k, v in kwargs.items() if k != "input"} if not args else kwargs
        given = [t for t in _tensors((args, kwargs)) if id(t) not in self.constant]
        weights = [self.made_of[id(t)] for t in given if id(t) in self.made_of]
        activity = [t for t in given if id(t) not in self.made_of]
        if name in self.NAMES and any(t.requires_grad for t in activity):
            self.carriers |= {n for w, names in weights if w.dim() > 1 for n in names}
        if weights and not activity:  # a view, a transpose, a mask: still a kernel
            names = frozenset().union(*(names for _, names in weights))
            for t in _tensors(result):
                self.made_of.setdefault(id(t), (t, names))
        return result


def _modes() -> list[Any]:
    return torch.overrides._get_current_function_mode_stack()  # type: ignore[no-any-return]


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for part in given:
            yield from _tensors(part)
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))
