"""Networks of Norse: cells without kernels between layers that are called at every time step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied

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


@pytest.mark.parametrize("rule", ["bp", "fa", "sa", "kp", "wm(positions=mean)", "mkp"])
def test_a_spiking_network_is_verified_and_trains(rule: str) -> None:
    torch.manual_seed(0)
    plain, model, x, labels = Spiking(), Spiking(), 20 * torch.randn(16, 6), torch.randint(3, (16,))
    model.load_state_dict(plain.state_dict())
    untied.untie_(model, rule)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x)) and bool(plain(x).any())
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


def test_a_recurrent_cell_with_weights_of_its_own_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 12), norse.LIFRecurrentCell(12, 12))
    with pytest.raises(untied.UntiedError, match=r"1\.recurrent_weights \(12, 12\)"):
        untied.untie_(model, "fa")
