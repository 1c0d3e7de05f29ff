"""The door to Lightning Fabric, which imports torchmetrics to learn its version where that is installed.

torchmetrics imports transformers, torchvision's models and torch.compile's machinery: seconds at the start of every
command. Fabric needs it for the detection of spikes in a loss alone, which is not used here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

__all__ = ["DDPStrategy", "Fabric", "ModelParallelStrategy"]


@contextmanager
def without(package: str) -> Iterator[None]:
    """Within it, a package that has not been imported yet is not installed."""
    if package in sys.modules:
        yield
        return
    modules = cast("dict[str, Any]", sys.modules)
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]


with without("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
