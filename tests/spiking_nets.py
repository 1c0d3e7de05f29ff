"""What a spiking network of any package has to do: keep its output, be verified, and train."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import untied

by_rule = pytest.mark.parametrize("rule", ["bp", "fa", "sa", "kp", "wm(positions=mean)", "mkp"])


def trained(make: Callable[[], nn.Module], rule: str, drive: float) -> nn.Module:
    """The network after twenty steps on 16 inputs [16, 6] of size ``drive``, in three classes."""
    torch.manual_seed(0)
    plain, model, x, labels = make(), make(), drive * torch.randn(16, 6), torch.randint(3, (16,))
    model.load_state_dict(plain.state_dict())
    untied.untie_(model, rule)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x)) and bool(plain(x).any())

    def task(m: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(m(x), labels)

    untied.verify(model, task, strict=True)
    optimizer = torch.optim.Adam(untied.parameter_groups(model).with_settings(), lr=1e-2)
    losses: list[float] = []
    for _ in range(20):
        with untied.record(model.train()) as tape:
            loss = task(model)
        optimizer.zero_grad()
        (loss + tape.penalty()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert untied.metrics.measure(model, lambda: task(model)).layers["first"].gradient_norm > 0
    return model
