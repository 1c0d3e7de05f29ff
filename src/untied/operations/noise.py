"""Noise in the form of a layer's input: independent, or orthogonal over the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["NOISE", "codes_like", "hadamard", "noise_like"]

NOISE = ("normal", "uniform", "codes")
"""What the operation ``noise`` may be."""


def noise_like(x: Tensor, kind: str, std: float) -> Tensor:
    """Noise of mean 0 and standard deviation ``std`` in the shape, dtype and memory format of x.

    >>> import torch
    >>> noise_like(torch.zeros(2, 3), "uniform", 1.0).shape
    torch.Size([2, 3])
    """
    noise = torch.empty_like(x)  # without gaps, whatever its memory format
    flat = noise.as_strided((noise.numel(),), (1,))  # PyTorch draws much faster into what is contiguous
    if kind == "normal":
        flat.normal_(0.0, std)
    else:
        flat.uniform_(-math.sqrt(3.0) * std, math.sqrt(3.0) * std)
    return noise


def codes_like(x: Tensor, features: int, std: float) -> Tensor:
    """Orthogonal noise in the form of x: each feature (a channel) emits a code of ±std over examples and positions.

    The codes are columns of a Hadamard matrix, as in code-division multiplexing, a part of its rows in a random order
    and with random signs: mean 0, covariance std² 1. With m examples times positions, a power of two and no fewer than
    there are features, the covariance *over the batch* is std² 1 too, where independent noise has it on average. Each
    feature needs no more than its own code, so this is as local as independent noise.

    Args:
        x: in whose shape, dtype and memory format.
        features: the dimension of x that holds them.

    >>> import torch
    >>> codes = codes_like(torch.zeros(8, 4), features=-1, std=1.0)
    >>> codes.T @ codes / 8
    tensor([[1., 0., 0., 0.],
            [0., 1., 0., 0.],
            [0., 0., 1., 0.],
            [0., 0., 0., 1.]])
    """
    noise = torch.empty_like(x)
    shape = noise.movedim(features, -1).shape
    m, count = math.prod(shape[:-1]), shape[-1]
    bits = (max(m, count, 2) - 1).bit_length()
    low, high = bits // 2, bits - bits // 2
    rows = torch.randperm(1 << bits, device=x.device)[:m]
    columns = torch.randperm(1 << bits, device=x.device)[:count]
    signs = torch.randint(2, (m, 1), device=x.device).mul_(2).sub_(1).to(x.dtype)
    # an element of a Hadamard matrix is (-1) to the parity of row & column: that of the low bits times that of the high
    codes = hadamard(torch.arange(1 << low, device=x.device), columns, x.dtype)[rows & (1 << low) - 1] * (signs * std)
    codes *= hadamard(torch.arange(1 << high, device=x.device), columns >> low, x.dtype)[rows >> low]
    return noise.copy_(codes.view(shape).movedim(-1, features))


def hadamard(rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Elements of a Hadamard matrix, 1 and -1, at these rows and columns: [rows, columns].

    >>> import torch
    >>> hadamard(torch.arange(2), torch.arange(2), torch.float32)
    tensor([[ 1.,  1.],
            [ 1., -1.]])
    """
    parity = rows[:, None] & columns
    for shift in (16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return (1 - 2 * (parity & 1)).to(dtype)
