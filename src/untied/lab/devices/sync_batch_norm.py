"""Batch normalisation over the parts of a batch that several processes hold, on any device.

PyTorch's own `nn.SyncBatchNorm` does it on GPUs alone; on a CPU another one stands in for it, so that a run means the
same everywhere and can be tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["synchronised"]


class _Sum(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        g = g.clone()
        dist.all_reduce(g)
        return g


class SyncBatchNormOnCPU(_BatchNorm):
    """x is [n, c, ...]: n examples here, others in other processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.dim())]
        count = x.numel() / x.shape[1]
        wide = x.double()  # so that the difference below loses nothing
        sums = _Sum.apply(torch.cat([wide.sum(dims), wide.square().sum(dims), wide.new_tensor([count])]))
        total = float(sums[-1])
        mean, square = (sums[:-1] / total).chunk(2)
        mean, variance = mean.to(x.dtype), (square - mean.square()).to(x.dtype)
        self._remember(mean.detach(), variance.detach() * (total / (total - 1)))
        shape = [1, -1] + [1] * (x.dim() - 2)
        y: Tensor = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Exchange every batch normalisation for a synchronised one: the same parameters, buffers and names."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-any-return]
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNormOnCPU
    return model
