"""Networks of Norse: cells without kernels between layers that are called at every time step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import untied
from spiking_nets import by_rule, trained

norse = pytest.importorskip("norse.torch", reason="Norse is not installed")


class Spiking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)
        self.unit, self.out = norse.LIFCell(), norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        state, u, total = None, None, torch.zeros(())
        for _ in range(20):
            spikes, state = self.unit(self.first(x), state)
            v, u = self.out(self.second(spikes), u)
            total = total + v
        return total


@by_rule
def test_a_spiking_network_is_verified_and_trains(rule: str) -> None:
    trained(Spiking, rule, drive=20)


def test_a_recurrent_cell_with_weights_of_its_own_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 12), norse.LIFRecurrentCell(12, 12))
    with pytest.raises(untied.UntiedError, match=r"1\.recurrent_weights \(12, 12\)"):
        untied.untie_(model, "fa")
