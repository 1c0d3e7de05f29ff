"""R of one layer by its readable penalty, for comparison with what a recording has made of closed forms.

Legend, as in primitives.py: R = Σ_P c_P P, a mean over the n examples where P sees activity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.layer import Untied
from ..operations.signals import Signals
from ..recording import listening, record
from ..rules.call import Call

__all__ = ["Readable", "assert_R_is_readable"]

Pass = Callable[[nn.Module], Tensor]
"""A forward pass of a module."""

Key = tuple[int, int | None]
"""Which backward kernel, by id, and the first row of its part."""

PROGRESS, STEP = 0.5, 1e-5


@dataclass
class Readable:
    """Listens to the calls of one layer, and adds its readable penalties up.

    Attributes:
        calls: of each kernel, or of each part of one that was used.

    >>> import torch, untied
    >>> layer = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(layer, "1*decay")
    >>> with listening({"": layer}, readable := Readable()):
    ...     _ = layer(torch.randn(5, 4))
    >>> R = readable.penalty(layer.rule, readable.kernels())
    >>> bool(R == layer.backward_weight.square().sum() / 2)
    True
    """

    calls: dict[Key, list[Call]] = field(default_factory=dict)

    def note(self, call: Call) -> None:
        """A layer was called."""
        key = (id(call.kernels[1]), None if call.part is None else call.part.start)
        self.calls.setdefault(key, []).append(call)

    def kernels(self) -> dict[Key, tuple[Tensor, Tensor]]:
        """W and B of each entry of ``calls``, cut to their rows: leaves of their own."""
        first = {key: calls[0] for key, calls in self.calls.items()}
        rows = {key: (slice(None) if c.part is None else c.part, c.kernels) for key, c in first.items()}
        return {key: (_leaf(W[of]), _leaf(B[of])) for key, (of, (W, B)) in rows.items()}

    def penalty(self, rule: Any, kernels: dict[Key, tuple[Tensor, Tensor]]) -> Tensor:
        """R at these kernels, 0-dim. What has no activity counts once for each kernel."""
        R: Tensor | float = 0.0
        coefficients = rule.coefficients(PROGRESS).items()
        for key, calls in self.calls.items():
            for at, call in enumerate(calls):
                s, scale = _signals(call, rule, *kernels[key])
                scale /= len(calls) if rule.positions == "mean" else 1
                for primitive, c in coefficients:
                    if primitive.needs_data or at == 0:
                        R = R + c * (scale if primitive.needs_data else rule.every) * primitive.penalty(s)
        return torch.as_tensor(R)


def assert_R_is_readable(layer: Untied, forward: Pass, name: str) -> None:
    """Compare R of one layer, its value and its gradients, with the readable penalty: by autograd, and by differences.

    Args:
        layer: untied in float64, its rule made of primitives. forward: runs it. name: for the message.

    Raises:
        AssertionError: they differ.

    >>> import torch, untied
    >>> layer, x = torch.nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    >>> _ = untied.untie_(layer, "ia")
    >>> assert_R_is_readable(layer, lambda module: module(x), "a dense layer")
    """
    module: Any = layer
    rule: Any = layer.rule
    R, of_tape = _recorded(layer, forward)
    readable = Readable()
    with listening({"": layer}, readable):
        forward(module)
    kernels = readable.kernels()
    # the shape's own random numbers, in the order in which the tape draws them
    wanted = _drawn(lambda: readable.penalty(rule, kernels))
    where = f"R of {name} under {rule}"
    assert_close(R, wanted.detach(), where)
    moving = [t for pair in kernels.values() for t in pair]
    gradients = torch.autograd.grad(wanted, moving, allow_unused=True, materialize_grads=True)
    by_kernel = dict(zip(kernels, zip(gradients[::2], gradients[1::2], strict=True), strict=True))
    for (key, (dW, dB)), call in zip(by_kernel.items(), (c[0] for c in readable.calls.values()), strict=True):
        rows = slice(None) if call.part is None else call.part
        own_W, own_B = (of_tape.get(id(t)) for t in call.kernels)
        assert own_B is not None, f"{where}: B gets no gradient"
        assert_close(own_B[rows], dB, f"gradient in B of {where}")
        if rule.operations.update_forward:
            assert own_W is not None, f"{where}: W gets no gradient"
            assert_close(own_W[rows], dW, f"gradient in W of {where}")
        else:
            assert own_W is None, f"{where}: it moves W"
        _assert_slope(readable, rule, kernels, key, own_B[rows], f"gradient in B of {where}, by differences")


def _assert_slope(
    readable: Readable, rule: Any, kernels: dict[Key, tuple[Tensor, Tensor]], key: Key, dB: Tensor, what: str
) -> None:
    """Central differences of the readable penalty along one random direction in B."""
    W, B = (t.detach() for t in kernels[key])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        direction = torch.randn_like(B)

    def at(h: float) -> Tensor:
        moved = {k: (w.detach(), b.detach()) for k, (w, b) in kernels.items()} | {key: (W, B + h * direction)}
        return _drawn(lambda: readable.penalty(rule, moved))

    with torch.enable_grad():  # a penalty may take gradients of its own
        slope = (at(STEP) - at(-STEP)) / (2 * STEP)
    assert_close((dB * direction).sum(), slope.detach(), what, rtol=1e-5, atol=1e-6)


def _recorded(layer: Untied, forward: Pass) -> tuple[Tensor, dict[int, Tensor]]:
    """R of a recorded pass, and its gradient in each of the layer's parameters, by the parameter's id."""
    module: Any = layer
    module.zero_grad()

    def R() -> Tensor:
        with record(module, progress=PROGRESS, step=0) as tape:
            forward(module)
        return tape.penalty()

    value = _drawn(R)
    value.backward()
    return value.detach(), {id(p): p.grad for p in module.parameters() if p.grad is not None}


def _signals(call: Call, rule: Any, W: Tensor, B: Tensor) -> tuple[Signals, float]:
    """What the rule sees of a call at these kernels, and what makes a sum over it a mean."""
    x, bias = call.x.detach(), None if call.bias is None else call.bias.detach()
    x = x if call.geometry.batch_size(x) is not None else x.unsqueeze(0)
    scale = rule.every / len(x)
    if rule.positions == "mean":
        scale /= call.geometry.positions(x, call.geometry.project(x, W.detach()))
    return Signals(x, W, B, call.geometry, rule.operations, bias).with_input_operations(), scale


def _drawn(value: Callable[[], Tensor]) -> Tensor:
    """What a function gives with the same random numbers each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return value()


def assert_close(a: Tensor | None, b: Tensor | None, what: str, **tolerance: Any) -> None:
    """Two tensors agree; ``what`` they are is in the message."""
    torch.testing.assert_close(a, b, msg=lambda m: f"{what}: {m}", **tolerance)


def _leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()
