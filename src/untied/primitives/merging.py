"""R's gradient in as few products as its terms allow: correlations that share a side are summed before they are made.

Legend as in primitives.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import Geometry
from .primitive import Correlation, Number

__all__ = ["merged", "summed"]


def merged(
    terms: list[Correlation], geometry: Geometry, scale: float, free: tuple[Tensor, ...] = (), size: int = 0
) -> Tensor:
    """Σ factor * correlate(left, right) * scale, in W's layout, in as few products as sharing a side allows.

    Activation alignment's two terms share x: correlate(x, p − y). Information alignment's share y:
    correlate(T_B* y − x, y). Where one of ``free`` appears in a single term, the sum may take its place in memory.
    ``size``: of the result in numbers. What multiplies it multiplies the right side instead, where that is smaller.

    Args:
        terms: left sides [n, ..., i], right sides [n, ..., o], factors that are numbers or 0-dim; one or more.

    >>> import torch
    >>> from untied.geometry import DENSE
    >>> x, p, y = torch.ones(5, 4), torch.ones(5, 3), torch.ones(5, 3)
    >>> merged([Correlation(1.0, x, p), Correlation(-2.0, x, y)], DENSE, scale=1 / 5)[0]
    tensor([-1., -1., -1., -1.])
    """
    sides = [side for t in terms for side in (t.left, t.right)]
    once = [t for t in free if sum(t is side for side in sides) == 1]
    groups: list[tuple[list[tuple[Number, Tensor]], list[tuple[Number, Tensor]]]] = []
    for t in terms:
        for lefts, rights in groups:
            if len(rights) == 1 and rights[0][1] is t.right:
                lefts.append((t.factor, t.left))
                break
            if len(lefts) == 1 and lefts[0][1] is t.left:
                if len(rights) == 1:  # the factor moves to the side that is summed
                    rights[0], lefts[0] = (lefts[0][0], rights[0][1]), (1.0, lefts[0][1])
                rights.append((t.factor, t.right))
                break
        else:
            groups.append(([(t.factor, t.left)], [(1.0, t.right)]))
    products = []
    for lefts, rights in groups:
        (a, left), (b, right) = _side(lefts, once), _side(rights, once)
        if right.dtype == torch.float16:  # a sum over batch and positions leaves float16's range
            products.append((a * b, geometry.correlate(left, right * scale)))
        elif right.numel() < size:
            products.append((1.0, geometry.correlate(left, right * (a * b * scale))))
        else:
            products.append((a * b * scale, geometry.correlate(left, right)))
    factor, gradient = products[0]
    return summed(products[1:], _times(gradient, factor))


def _side(terms: list[tuple[Number, Tensor]], once: list[Tensor]) -> tuple[Number, Tensor]:
    """Σ factor * tensor as (factor, tensor); the first of those that may be overwritten becomes the sum."""
    at = next((i for i, (_, t) in enumerate(terms) if any(t is free for free in once)), None)
    factor, result = terms[at or 0]
    for i, (f, t) in enumerate(terms):
        if i != (at or 0):
            result = _plus(result, f / factor, t, in_place=at is not None or i > 1)
    return factor, result


def summed(terms: list[tuple[Number, Tensor]], onto: Tensor | None = None) -> Tensor:
    """Σ factor * tensor, a new tensor; or added to ``onto`` in place. One pass a term, less where a factor is 1.

    Args:
        terms: factors are numbers or 0-dim, tensors of one shape [...]; one or more where ``onto`` is None.
        onto: [...] too.

    >>> import torch
    >>> summed([(2.0, torch.ones(2)), (0.5, torch.ones(2))])
    tensor([2.5000, 2.5000])
    """
    terms = list(terms)
    if onto is None:
        at = next((i for i, (f, _) in enumerate(terms) if not isinstance(f, Tensor) and f == 1), 0)
        (factor, first), *terms = [terms[at], *terms[:at], *terms[at + 1 :]]
        if len(terms) > 0 and not isinstance(factor, Tensor) and factor == 1:
            (f, t), *terms = terms
            onto = _plus(first, f, t)
        else:
            onto = first * factor
    for f, t in terms:
        onto = _plus(onto, f, t, in_place=True)
    return onto


def _plus(a: Tensor, factor: Number, b: Tensor, in_place: bool = False) -> Tensor:
    """``a + factor * b``; into a where that is asked for and b's type goes into a's."""
    if isinstance(factor, Tensor):
        b, factor = factor * b, 1.0
    if in_place and torch.promote_types(a.dtype, b.dtype) == a.dtype:
        return a.add_(b, alpha=factor)
    return torch.add(a, b, alpha=factor)


def _times(a: Tensor, factor: Number) -> Tensor:
    """``a * factor``, in place."""
    return a if not isinstance(factor, Tensor) and factor == 1 else a.mul_(factor)
