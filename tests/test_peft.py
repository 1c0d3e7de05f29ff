"""LoRA of peft: its layers are untied like any other, the frozen layer beside them carries errors through its B."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from test_docs import run

peft = pytest.importorskip("peft", reason="peft is not installed")


class Net(nn.Module):
    """A body that is adapted, and a head that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))  # type: ignore[no-any-return]


def config(**options: Any) -> Any:
    return peft.LoraConfig(r=2, target_modules=["first", "second"], lora_dropout=0.0, **options)


def adapted(net: nn.Module | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    model = peft.get_peft_model(Net() if net is None else net, config(**options))
    for name, p in model.named_parameters():
        if "lora_B" in name and "backward" not in name:  # as after some training, for at zero nothing reaches lora_A
            nn.init.normal_(p, std=0.3)
    return model


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(16, 6, generator=g), torch.randint(3, (16,), generator=g)


def task(model: nn.Module) -> Tensor:
    x, labels = batch()
    return F.cross_entropy(model(x), labels)


@pytest.mark.parametrize("rule", ["fa", "sa", "kp", "wm", "usf", "mkp", "dfa", "pfa"])
def test_lora_is_untied_and_trains(rule: str) -> None:
    model = adapted()
    plain, before = model(batch()[0]), copy.deepcopy(model.state_dict())
    report = untied.untie_(model, rule)
    layers = {n for n in report.converted if "second" in n}
    assert {n.rpartition("second.")[2] for n in layers} == {"base_layer", "lora_A.default", "lora_B.default"}
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(batch()[0]), plain)
    assert untied.verify(model, task, strict=True)
    optimizer = torch.optim.Adam(untied.parameter_groups(model.train()).with_settings(), lr=1e-2)
    losses = []
    for step in range(30):
        with untied.record(model, step=step) as tape:
            loss = task(model)
        optimizer.zero_grad()
        (loss + tape.penalty()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in model.state_dict().items():
        if name in before:
            assert torch.equal(value, before[name]) != ("lora" in name), name  # W of what is adapted never moves
    untied.tie_(model)
    assert list(model.state_dict()) == list(before)


def test_errors_through_the_frozen_layer_go_through_its_B() -> None:
    """The adapter below gets Bᵀ g of the frozen layer above, and Aᵀ Bᵀ g of that one's adapter: no W."""
    model: Any = adapted().double()
    untied.untie_(model, "fa")
    net = model.base_model.model
    x, labels = batch()
    x = x.double()
    with untied.record(model):
        loss = F.cross_entropy(model(x), labels)
    loss.backward()
    with torch.no_grad():
        a = torch.tanh(net.first(x))
        b = torch.tanh(net.second(a))
        e = (net.head(b).softmax(-1) - F.one_hot(labels, 3)) / len(x)
        g = e @ net.head.backward_weight * (1 - b**2)
        s, up = net.second.scaling["default"], net.second
        back = g @ up.base_layer.backward_weight
        back = back + s * g @ up.lora_B.default.backward_weight @ up.lora_A.default.backward_weight
        g = back * (1 - a**2)
        down = net.first
        wanted = down.scaling["default"] * g.T @ down.lora_A.default(x)
    torch.testing.assert_close(down.lora_B.default.weight.grad, wanted)
    assert net.second.base_layer.weight.grad is None and not net.second.base_layer.weight.requires_grad


@pytest.mark.parametrize("rule", ["fa", "sa"])
def test_an_adapter_that_is_added_later_is_said(rule: str) -> None:
    net = Net()
    untied.untie_(net, rule)
    model = adapted(net)
    words = r"its own layers are plain.*lora_A\.default.*once more"
    with pytest.warns(UserWarning, match=words) as seen, untied.record(model) as tape:
        loss = task(model)
    assert "\n" not in str(seen[0].message)
    if rule == "sa":  # peft has frozen every B
        with pytest.warns(UserWarning, match="frozen, though its rule would move it"):
            tape.penalty()
    with pytest.warns(UserWarning, match=words):
        verdict = untied.verify(model, task).verdict
    assert "lora_A.default.weight carries backprop's errors" in verdict and loss.requires_grad
    untied.untie_(model, rule)
    for B in untied.parameter_groups(model)[1]:
        B.requires_grad_(rule == "sa")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with untied.record(model) as tape:
            loss = task(model)
        (loss + tape.penalty()).backward()
    assert untied.verify(model, task, strict=True)


def test_what_is_meant_to_be_backprop_is_said_with_bp() -> None:
    net = Net()
    untied.untie_(net, "fa")
    model = adapted(net)
    untied.untie_(model, "bp", filter="*lora_*")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with untied.record(model):
            task(model)
    assert untied.verify(model, task, strict=True)


def test_an_adapter_begins_at_zero_and_its_B_does_not() -> None:
    """lora_B's W is zero when it is new. Under feedback alignment a B of zeros would keep lora_A still for good."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), config())
    untied.untie_(model, "fa")
    layer = model.base_model.model.second
    assert not layer.lora_B.default.weight.any() and layer.lora_B.default.backward_weight.std() > 0.1
    untied.verify(model, task, strict=True)


@pytest.mark.parametrize("rule", ["fa", "sa"])
def test_merging_moves_W_alone(rule: str) -> None:
    """The output stays. Errors go through the frozen layer's own B then, and no more through the adapter's."""
    model: Any = adapted()
    untied.untie_(model, rule)
    x, _ = batch()
    wanted = model.eval()(x)
    layer = model.base_model.model.second.base_layer
    W, B = layer.weight.clone(), layer.backward_weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(model(x), wanted)
    assert not torch.equal(layer.weight, W) and torch.equal(layer.backward_weight, B)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.weight, W)
    merged = untied.tie_(model).merge_and_unload()
    torch.testing.assert_close(merged(x), wanted)
    assert type(merged.second) is nn.Linear


def test_adapters_are_saved_with_their_B(tmp_path: Any) -> None:
    model: Any = adapted()
    untied.untie_(model, "sa")
    model.save_pretrained(tmp_path)
    other: Any = adapted()
    untied.untie_(other, "sa")
    from safetensors.torch import load_file

    state = load_file(tmp_path / "adapter_model.safetensors")
    assert any("lora_A.backward_weight" in name for name in state)
    peft.set_peft_model_state_dict(other, state)
    for name, value in other.state_dict().items():
        if "lora" in name:
            assert torch.equal(value, model.state_dict()[name]), name


def test_dora_is_verified_or_named() -> None:
    model = adapted(use_dora=True)
    untied.untie_(model, "fa")
    report = untied.verify(model, task)
    assert report.verified or "carries backprop's errors" in report.verdict


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path(__file__).resolve().parent.parent / "docs/integrations/peft.md")
