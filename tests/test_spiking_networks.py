"""Networks of snnTorch: layers that are called at every time step, errors through surrogate derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from untied.metrics import measure

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


@pytest.mark.parametrize("rule", ["bp", "fa", "sa", "kp", "wm(positions=mean)", "mkp"])
def test_a_spiking_network_is_verified_and_trains(rule: str) -> None:
    torch.manual_seed(0)
    plain, model, x, labels = Spiking(), Spiking(), 3 * torch.randn(16, 6), torch.randint(3, (16,))
    model.load_state_dict(plain.state_dict())
    untied.untie_(model, rule)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    untied.verify(model, lambda m: nn.functional.cross_entropy(m(x), labels), strict=True)
    optimizer = torch.optim.Adam(untied.parameter_groups(model).with_settings(), lr=1e-2)
    losses: list[Any] = []
    for _ in range(20):
        with untied.record(model.train()) as tape:
            task = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        (task + tape.penalty()).backward()
        optimizer.step()
        losses.append(task.item())
    assert losses[-1] < losses[0]
    assert measure(model, lambda: nn.functional.cross_entropy(model(x), labels)).layers["first"].gradient_norm > 0
