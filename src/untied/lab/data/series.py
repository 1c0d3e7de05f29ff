"""A time series that is generated: the chaotic equation of Mackey and Glass (1977)."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from untied.lab.data.config import DataConfig
from untied.lab.data.dataset import Dataset
from untied.lab.data.items import Part, from_parts
from untied.lab.data.text import in_order

__all__ = ["load_series", "mackey_glass"]

LENGTH, AHEAD, POINTS = 32, 6, 2000


def mackey_glass(points: int, delay: float = 17.0, step: float = 0.1, washout: int = 500) -> torch.Tensor:
    """x at whole times (points,), of dx/dt = 0.2 x(t − delay) / (1 + x(t − delay)¹⁰) − 0.1 x, by Euler's method.

    Args:
        points: how many. delay: 17 or more is chaotic. step: of the method. washout: times that are left out first.
    """
    back, each = round(delay / step), round(1 / step)
    x = [1.2] * (back + 1)
    for _ in range((points + washout) * each):
        x.append(x[-1] + step * (0.2 * x[-back - 1] / (1 + x[-back - 1] ** 10) - 0.1 * x[-1]))
    return torch.tensor(x[back + 1 :: each][washout : washout + points])


def load_series(config: DataConfig, *, seed: int, device: torch.device | str) -> Dataset:
    """Inputs are (n, 32, 1) values of the series, targets (n, 1) the value six steps after the last of them.

    Values have mean 0 and deviation 1 over the first 60 %. The last fifth is the test split.
    """
    x = mackey_glass(POINTS)
    known = x[: POINTS * 3 // 5]
    x = (x - known.mean()) / known.std()
    windows = x[: POINTS - AHEAD].unfold(0, LENGTH, 1)
    items = Part(TensorDataset(windows[..., None].contiguous(), x[LENGTH - 1 + AHEAD :][: len(windows), None]))
    return from_parts(
        "Mackey-Glass series", in_order(items, config.validation), config, seed=seed, device=device, task="regression"
    )
