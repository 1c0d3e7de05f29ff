"""Where a run computes: a Lightning Fabric for devices, processes and precision, and what we need beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from untied.errors import UntiedError
from untied.lab.devices.fabric import DDPStrategy, Fabric, ModelParallelStrategy
from untied.lab.devices.sync_batch_norm import synchronised
from untied.lab.settings.devices import DeviceConfig
from untied.layers.layer import Untied

__all__ = [
    "agree",
    "broadcast_buffers",
    "fabric_of",
    "full",
    "gathered",
    "place",
    "prepared",
    "processes",
    "put",
    "single_device",
    "summed",
    "unsharded",
]

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # we say ourselves what runs where
PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def processes(config: DeviceConfig) -> int:
    """On each machine: as many as asked for, or as torchrun has started."""
    return config.devices or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def fabric_of(config: DeviceConfig, batch_size: int, accumulate: int = 1) -> Fabric:
    """Fabric as configured, not launched.

    Raises:
        UntiedError: there is no such device, there are too few, or the batch cannot be divided among the processes.
    """
    count, world = processes(config), processes(config) * config.nodes
    if batch_size % (world * accumulate):
        parts = f"{world} processes" + (f" of {accumulate} parts each" if accumulate > 1 else "")
        raise UntiedError(
            f"data.batch_size is {batch_size} and {parts} share it: choose a multiple of {world * accumulate}"
        )
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    _check_precision(accelerator, config.precision)
    strategy: Any = "auto"
    if config.strategy == "fsdp":
        strategy = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
    elif world > 1 or config.strategy == "ddp":
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    precision = cast(Any, PRECISION[config.precision])
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = config.tf32
    try:
        return Fabric(
            accelerator=accelerator, devices=count, num_nodes=config.nodes, strategy=strategy,
            precision=precision,
        )  # fmt: skip
    except (RuntimeError, ValueError, TypeError, ImportError) as error:  # each accelerator has its own
        reason = " ".join(str(error).split())
        raise UntiedError(
            f"devices: accelerator {accelerator}, {count} of them, precision {config.precision}, cannot be "
            f"used: {reason[:300]}; accelerator cpu always can"
        ) from error


def single_device(device: str = "cpu", precision: str = "32") -> Fabric:
    """One device by name, such as cpu, cuda or cuda:1.

    Raises:
        UntiedError: it cannot be used.
    """
    _check_precision(device, precision)
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
        index: Any = 1 if chosen.index is None else [chosen.index]
        return Fabric(accelerator=chosen.type, devices=index, precision=cast(Any, PRECISION[precision]))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UntiedError(f"device {device!r} cannot be used: {reason}; cpu always can") from None


def _check_precision(accelerator: str, precision: str) -> None:
    if accelerator == "cpu" and precision == "16":  # Fabric would use bfloat16, with a warning
        raise UntiedError("precision is 16 but the device is cpu, which has no float16 training: use bf16 or 32")


def shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2, each untied layer a unit of its own, kept whole from the forward to the backward pass.

    R reads W and B at the end of the forward pass, so resharding before would gather them twice.
    """
    for layer in module.modules():
        if isinstance(layer, Untied):
            fully_shard(layer, mesh=mesh["data_parallel"], reshard_after_forward=False)
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=False)
    return module


def prepared(model: nn.Module, config: DeviceConfig, fabric: Fabric) -> nn.Module:
    """A converted model as the devices want it: memory format, batch normalisation."""
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.sync_batch_norm and fabric.world_size > 1:
        model = synchronised(model, fabric.device)
    return model


def agree(fabric: Fabric, *flags: bool) -> list[bool]:
    """Which of the flags are set in any process: the same answer in all of them."""
    if fabric.world_size == 1:
        return list(flags)
    together = torch.tensor(flags, dtype=torch.float32, device=fabric.device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]


def gathered(fabric: Fabric, tensor: Tensor) -> Tensor:
    """A tensor of every process, one after the other: (processes, ...)."""
    if fabric.world_size == 1:
        return tensor[None]
    all_of_them = [torch.empty_like(tensor) for _ in range(fabric.world_size)]
    dist.all_gather(all_of_them, tensor.contiguous())
    return torch.stack(all_of_them)


def summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum of a tensor over processes."""
    return gathered(fabric, tensor).sum(0)


def broadcast_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the first one's buffers: running statistics see each process's own part of the batch."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Every weight whole on every device for a while, for what is not a training step."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded; then every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(target: Tensor, whole: Tensor) -> None:
    """Fill a tensor that may be sharded from the whole of it."""
    with torch.no_grad():
        target.copy_(place(whole, target))


def place(whole: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor on the device, and in the shards, of another of its shape."""
    if isinstance(like, DTensor):
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=whole.dtype, requires_grad=False).copy_(whole)
