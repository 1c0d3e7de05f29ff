"""Batch normalisation over the parts of a batch that several processes hold, on any device.

PyTorch's own `nn.SyncBatchNorm` does it on GPUs alone; on a CPU this stands in for it, so that a run means the same
everywhere and can be tested without one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["synchronised"]


class _Sum(torch.autograd.Function):
    """The sum over processes; so is the sum of its gradient."""

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


class SyncBatchNorm(nn.SyncBatchNorm):
    """`nn.SyncBatchNorm`, on CPUs too. x is [n, c, ...], n of it here, the rest in other processes."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.training or self.running_mean is None
        if x.device.type != "cpu":
            return super().forward(x)
        if not statistics or not dist.is_initialized():
            return self._alone(x)
        dims = [0, *range(2, x.dim())]
        count = x.numel() / x.shape[1]
        wide = x.double()  # so that the difference below loses nothing
        sums = _Sum.apply(torch.cat([wide.sum(dims), wide.square().sum(dims), wide.new_tensor([count])]))
        total = sums[-1].detach()
        mean, square = (sums[:-1] / total).chunk(2)
        mean, variance = mean.to(x.dtype), (square - mean.square()).to(x.dtype)
        self._remember(mean.detach(), variance.detach() * float(total / (total - 1)))
        shape = [1, -1] + [1] * (x.dim() - 2)
        y: Tensor = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)

    def _alone(self, x: Tensor) -> Tensor:
        training = self.training or self.running_mean is None
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, momentum, self.eps
        )

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def synchronised(model: nn.Module) -> nn.Module:
    """Exchange every batch normalisation for a synchronised one, in place: the same parameters and buffers."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.__class__ = SyncBatchNorm
            module.process_group = None  # type: ignore[assignment]
    return model
