"""Networks of snnTorch: layers that are called at every time step, errors through surrogate derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spiking_nets import by_rule, trained

snntorch = pytest.importorskip("snntorch")


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.unit, self.out = snntorch.Leaky(beta=0.9), snntorch.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        v, u, total = x.new_zeros(len(x), 8), x.new_zeros(len(x), 3), torch.zeros(())
        for _ in range(10):
            spikes, v = self.unit(self.first(x), v)
            _, u = self.out(self.second(spikes), u)
            total = total + u
        return total


@by_rule
def test_a_spiking_network_is_verified_and_trains(rule: str) -> None:
    trained(Spiking, rule, drive=3)
