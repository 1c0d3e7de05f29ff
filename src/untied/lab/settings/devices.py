"""Where a run computes, and in which numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from untied.errors import UntiedError
from untied.lab.reading.edges import bounded
from untied.lab.reading.fields import Rare

__all__ = ["DeviceConfig"]


@dataclass(frozen=True)
class DeviceConfig:
    """Where a run computes, and in which numbers."""

    accelerator: str = "auto"
    """The kind of device: cpu, cuda, mps, tpu, or auto for the best there is."""
    devices: int | None = None
    """The number of processes on each machine, one a device. By default one, or as many as torchrun has started."""
    nodes: int = 1
    """The number of machines. Start the same command on each, with torchrun or srun."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How processes share the network: ddp (auto) copies it to each, fsdp shards weights, gradients and optimizers."""
    precision: Literal["32", "bf16", "16"] = "32"
    """The numbers: 32 bits; or mixed with bfloat16 (bf16), or with float16 and loss scaling (16)."""
    tf32: Rare[bool] = False
    """Whether float32 products round to TF32 on GPUs that have it."""
    compile: bool = False
    """Whether torch.compile compiles the training pass (network, J and R). Evaluation is not compiled."""
    channels_last: Rare[bool] = False
    """Whether convolutions' tensors have channels last, which many devices prefer."""
    sync_batch_norm: Rare[bool] = False
    """Whether batch normalisation sees the whole batch rather than each process's part of it."""

    def __post_init__(self) -> None:
        bounded(self, devices=10**5, nodes=10**5)
        if self.devices is not None and self.devices < 1:
            raise UntiedError(f"devices is {self.devices}: it must be at least 1, or left out")
        if self.nodes < 1:
            raise UntiedError(f"nodes is {self.nodes}: it must be at least 1")
