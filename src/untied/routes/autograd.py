"""The untied operation: forward through W, errors back through B. And the penalty as a term of the loss."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ..errors import UntiedError
from ..geometry import Geometry

__all__ = ["LossTerm", "cast_for_autocast", "no_view", "untied_operation"]


def no_view(y: Tensor) -> Tensor:
    """y, same memory, as no view of another tensor: PyTorch forbids in-place operations, as `nn.ReLU(inplace=True)`
    does, on a view that an autograd function returns. ``squeeze`` makes one, and `F.linear` on some processors.

    >>> import torch
    >>> y = torch.ones(1, 3).squeeze(0)
    >>> y._is_view(), no_view(y)._is_view()
    (True, False)
    """
    return torch.ops.aten._unsafe_view(y, y.shape)  # type: ignore[no-any-return]


class UntiedOperation(torch.autograd.Function):
    """y = T_W x + bias, whose input pseudogradient is T_B* g. W's and bias's gradients are backprop's own.

    One backward kernel call gives all three. B gets no gradient from the task, but for ``copies``, the
    share of W's that `copy` gives it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry, copies: float) -> Tensor:
        return no_view(geometry.forward(x, W, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _W, B, bias, ctx.geometry, ctx.copies = inputs
        ctx.save_for_backward(x, B)
        ctx.bias_shape = None if bias is None else list(bias.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, B = ctx.saved_tensors
        needs_x, needs_W, needs_B, needs_bias, *_ = ctx.needs_input_grad
        copies = ctx.copies != 0 and needs_B
        x, B = x.detach(), B.detach()  # a gradient of gradients goes through g alone, as in the straight-through oracle
        dx, dW, db = ctx.geometry.backward(g, x, B, ctx.bias_shape, (needs_x, needs_W or copies, needs_bias))
        dB = (dW if ctx.copies == 1 else dW * ctx.copies) if copies and dW is not None else None
        return dx, (dW if needs_W else None), dB, db, None, None


def untied_operation(
    x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry, copies: float = 0.0
) -> Tensor:
    """Apply a layer forward through W while its errors go back through B.

    Args:
        x: input, [n, ...] as the geometry's legend says.
        W, B: forward and backward kernel, the same shape.
        bias: [o] or None.
        geometry: the layer type.
        copies: how much of W's pseudogradient is B's gradient (`copy`): 0 for none.

    >>> import torch
    >>> from untied.geometry import DENSE
    >>> x, W, B = torch.ones(1, 4, requires_grad=True), torch.ones(3, 4), torch.full((3, 4), 2.0)
    >>> untied_operation(x, W, B, None, DENSE).sum().backward()
    >>> x.grad  # through B: through W it would be 3
    tensor([[6., 6., 6., 6.]])
    """
    return UntiedOperation.apply(geometry.prepare(x), W, B, bias, geometry, copies)  # type: ignore[no-any-return]


def cast_for_autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Cast to autocast's dtype where autocast is on: before the autograd function, so that gradients come
    back in each parameter's own dtype. As autocast does, leaves float64 and integers alone.

    >>> import torch
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     x, bias = cast_for_autocast(torch.ones(2), None)
    >>> x.dtype, bias
    (torch.bfloat16, None)
    """
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype) for t in tensors
    )


class _FirstOrder(torch.autograd.Function):
    """The identity on R's gradient, which is a number to autograd: its derivative is refused rather than zero."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, *depends_on: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        raise UntiedError(
            "R (tape.penalty()) has a first derivative alone: take gradients of gradients of the task loss by itself"
        )


class LossTerm(torch.autograd.Function):
    """A scalar whose gradient is known beforehand: R, with the closed form of its gradient.

    Being an ordinary term of the loss, it follows loss scaling, gradient accumulation and DDP's averaging. It takes the
    gradients over: the backward pass multiplies them in place and hands them on, unless the graph is kept.

    It is applied to the value, 0-dim, the number of targets, the targets, and for each a gradient of its shape.

    >>> import torch
    >>> B = torch.zeros(2, requires_grad=True)
    >>> R = LossTerm.apply(torch.tensor(1.0), 1, B, torch.tensor([3.0, 4.0]))
    >>> (10 * R).backward()
    >>> B.grad
    tensor([30., 40.])
    """

    @staticmethod
    def forward(value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.count = inputs[1]
        ctx.save_for_backward(*inputs[2 + ctx.count :])
        if not torch.compiler.is_compiling():
            ctx.targets = inputs[2 : 2 + ctx.count]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            pairs = zip(gradients, ctx.targets, strict=True)
            scaled = (_FirstOrder.apply(t * g.detach().to(t.device, t.dtype), g, target) for t, target in pairs)
            return None, None, *scaled, *(None,) * ctx.count
        if torch.compiler.is_compiling() or not _release(ctx):
            gradients = [t * g.to(t.device, t.dtype) for t in gradients]
        elif type(g) is not Tensor or g.device.type != "cpu" or g != 1:  # elsewhere, looking would wait for the device
            gradients = [t.mul_(g.to(t.device)) for t in gradients]
        return None, None, *gradients, *(None,) * ctx.count


def _release(ctx: Any) -> bool:
    """Let go of what was saved, and say whether it is gone: not while the graph is to be walked again."""
    kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
    if kept or not hasattr(ctx, "maybe_clear_saved_tensors"):
        return False
    ctx.maybe_clear_saved_tensors()
    return True


# PyTorch reads it at every call, for a tenth of a small network's time.
for _forward in (UntiedOperation.forward, LossTerm.forward):
    vars(_forward)["__signature__"] = inspect.signature(_forward)
