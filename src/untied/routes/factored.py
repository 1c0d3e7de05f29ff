"""Errors through two kernels: first P, then R, or through their product K = P R, whichever takes fewer multiplications.

Legend, as in geometry.py, beside P [groups, o, m], R in W's layout with m outputs a group, N rows of g (the batch times
the positions) and i' inputs that reach an output. In multiplications a group:

    once       K = P R, then T_K* g, and Pᵀ dW where R learns      o m i' (once or twice) + N o i'
    in steps   h = Pᵀ g, then T_R* h, and correlate(x, h)          N o m + N m i' (once or twice)

Both are the same numbers up to rounding: Pᵀ correlate(x, g) = correlate(x, Pᵀ g).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..geometry import Geometry
from .autograd import no_view

__all__ = ["Factored", "oja_gradient", "steps_are_cheaper", "through_factor"]


class Factored(torch.autograd.Function):
    """y = T_W x + bias, whose errors pass P and then R. W's and the bias's gradients are backprop's own.

    R's gradient is ``copies`` times the pseudogradient that passes there. P's is Oja's rule, times ``oja``.

    >>> import torch
    >>> from untied.geometry import DENSE
    >>> x, W = torch.ones(5, 4, requires_grad=True), torch.zeros(3, 4)
    >>> Factored.apply(x, W, torch.ones(2, 4), torch.ones(1, 3, 2), None, DENSE, 0.0, 0.0).sum().backward()
    >>> x.grad[0]  # three outputs, through two middle channels
    tensor([6., 6., 6., 6.])
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, R: Tensor, P: Tensor, bias: Tensor | None, geometry: Geometry, copies: float, oja: float
    ) -> Tensor:
        return no_view(geometry.forward(x, W, bias))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, W, R, P, bias, ctx.geometry, ctx.copies, ctx.oja = inputs
        ctx.save_for_backward(x, R, P)
        ctx.shape, ctx.bias_shape = W.shape, None if bias is None else list(bias.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, R, P = (t.detach() for t in ctx.saved_tensors)
        geometry, bias_shape = ctx.geometry, ctx.bias_shape
        needs_x, needs_W, needs_R, needs_P, needs_bias, *_ = ctx.needs_input_grad
        learns = ctx.copies != 0 and needs_R
        rows, K_like, at = geometry.rows(R), R.new_zeros(()).expand(ctx.shape), _features(geometry, x)
        p = P.to(g.dtype)
        dR: Tensor | None
        if steps_are_cheaper(p, rows, g.numel(), needs_x, learns):
            h = through_factor(g, p, at)
            dx, dR, _ = geometry.backward(h, x, R, None, (needs_x, learns, False))
            _, dW, db = geometry.backward(g, x, K_like, bias_shape, (False, needs_W, needs_bias))
        else:
            K = geometry.from_rows(p @ rows, ctx.shape) if needs_x else K_like
            dx, dW, db = geometry.backward(g, x, K, bias_shape, (needs_x, needs_W or learns, needs_bias))
            dR = geometry.from_rows(p.mT @ geometry.rows(dW), R.shape) if learns else None
        if dR is not None and ctx.copies != 1:
            dR = dR * ctx.copies
        dP = ctx.oja * oja_gradient(g, P, at) if ctx.oja and needs_P else None
        return dx, (dW if needs_W else None), dR, dP, db, None, None, None


def steps_are_cheaper(P: Tensor, rows: Tensor, size: int, needs_x: bool, learns: bool) -> bool:
    """Whether one after the other takes fewer multiplications than the product, for a g of ``size`` numbers.

    >>> import torch
    >>> P, rows = torch.ones(1, 512, 2048), torch.ones(1, 2048, 512)
    >>> [steps_are_cheaper(P, rows, N * 512, True, True) for N in (32, 1024)]
    [True, False]
    """
    groups, o, m = P.shape
    N, i = size / (groups * o), rows.shape[-1]
    once = o * m * i * (needs_x + learns) + N * o * i * needs_x
    return N * (o * m + m * i * (needs_x + learns)) < once


def _features(geometry: Geometry, x: Tensor) -> int:
    """The dimension of an output that holds its features: a lone image has no batch in front."""
    return 0 if geometry.positional and geometry.batch_size(x) is None else geometry.features


def _in_groups(g: Tensor, P: Tensor, at: int) -> Tensor:
    """g as [groups, rows, o]."""
    return g.movedim(at, -1).reshape(-1, P.shape[0], P.shape[1]).transpose(0, 1)


def through_factor(g: Tensor, P: Tensor, at: int) -> Tensor:
    """Pᵀ g: in g's shape, but for m outputs a group in place of o along dimension ``at``.

    >>> import torch
    >>> through_factor(torch.ones(5, 3), torch.ones(1, 3, 2), -1).shape
    torch.Size([5, 2])
    """
    h = _in_groups(g, P, at) @ P  # [groups, rows, m]
    return h.transpose(0, 1).reshape(*g.movedim(at, -1).shape[:-1], -1).movedim(-1, at)


def oja_gradient(g: Tensor, P: Tensor, at: int) -> Tensor:
    """−(I − P Pᵀ) gᵀ g P, [groups, o, m], summed over batch and positions: Oja's rule, by which P's columns come to
    span the directions in which g varies most.

    >>> import torch
    >>> oja_gradient(torch.tensor([[0.0, 2.0]]), torch.tensor([[[1.0], [0.5]]]), -1)  # more of the second output
    tensor([[[ 1.0000],
             [-1.5000]]])
    """
    g_ = _in_groups(g.to(P.dtype), P, at)
    A = g_.mT @ (g_ @ P)
    return P @ (P.mT @ A) - A
