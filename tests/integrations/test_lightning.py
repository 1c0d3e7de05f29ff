"""The Lightning mixin and callback against the real package: accumulation, clipping, decay, phases, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import untied

lightning = pytest.importorskip("lightning", reason="needs the extra 'lightning'")

from untied.integrations.lightning import UntiedCallback, UntiedMixin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own


class Net(UntiedMixin, lightning.LightningModule):
    def __init__(self, rule: str = "ia", lr: float = 1.0, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        untied.untie_(self.layers, rule)
        self.lr, self.momentum, self.decay = lr, momentum, weight_decay
        self.seen: list[str] = []

    def loss(self, batch: Any) -> torch.Tensor:
        return (self.layers(batch[0]).squeeze(1) - batch[1]).square().mean()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        with self.recorded() as tape:
            task = self.loss(batch)
        self.seen.append(f"{tape.progress:.2f} {tape.step} {tape.align}")
        return task + tape.penalty()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.untied_groups(self.decay), lr=self.lr, momentum=self.momentum)


def loader(batch: int = 8) -> torch.utils.data.DataLoader:
    draw = torch.Generator().manual_seed(3)
    tensors = torch.randn(8, 4, generator=draw), torch.randn(8, generator=draw)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=batch)


def fit(net: Net, epochs: int = 1, batch: int = 8, path: str | None = None, **options: Any) -> Any:
    quiet = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                 enable_model_summary=False)  # fmt: skip
    trainer = lightning.Trainer(max_epochs=epochs, **(quiet | options))
    trainer.fit(net, loader(batch), loader(), ckpt_path=path)
    return trainer


def moved(net: Net) -> list[torch.Tensor]:
    return [b.detach() - p.detach() for b, p in zip(Net().parameters(), net.parameters(), strict=True)]


def by_hand() -> list[torch.Tensor]:
    net = Net()
    with untied.record(net) as tape:
        task = net.loss(next(iter(loader())))
    (task + tape.penalty()).backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_is_the_step_of_j_plus_r_under_accumulation(parts: int) -> None:
    net = Net()
    fit(net, batch=8 // parts, accumulate_grad_batches=parts)
    for a, b in zip(moved(net), by_hand(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["norm", "value"])
def test_clipping_sees_w_alone(how: str) -> None:
    net = Net()
    fit(net, gradient_clip_val=0.01, gradient_clip_algorithm=how)
    found, expected = moved(net), by_hand()
    B = ["backward" in name for name, _ in net.named_parameters()]
    forward = torch.cat([m.flatten() for m, b in zip(found, B, strict=True) if not b])
    size = forward.norm() if how == "norm" else forward.abs().max()
    torch.testing.assert_close(size, torch.tensor(0.01), rtol=1e-3, atol=0)
    for m, e, b in zip(found, expected, B, strict=True):
        if b:
            torch.testing.assert_close(m, e, rtol=1e-4, atol=1e-6)


def test_weight_decay_reaches_w_alone_and_validation_is_free_of_r() -> None:
    net = Net(weight_decay=0.5, lr=0.0)
    trainer = fit(net)
    (forward, backward) = net.configure_optimizers().param_groups
    assert (forward["weight_decay"], backward["weight_decay"]) == (0.5, 0.0)
    expected = net.loss(next(iter(loader()))).item()
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_phases_move_one_side_and_the_step_knows_its_progress() -> None:
    callback = UntiedCallback(mirror_epochs=1, engaged_epochs=2, delay=1)
    assert [callback.phase(e) for e in range(6)] == ["mirror", "mirror", "engaged", "engaged", "mirror", "engaged"]
    # With momentum and decay a gradient of zeros would still move what shall rest.
    net = Net(lr=0.1, momentum=0.9, weight_decay=0.1)
    kept: list[dict[str, torch.Tensor]] = []

    class Watch(lightning.pytorch.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            kept.append({n: p.detach().clone() for n, p in module.named_parameters()})

    trainer = fit(net, epochs=4, callbacks=[callback, Watch()])
    start = dict(Net().named_parameters())
    for before, after, phase in zip([start, *kept], kept, ["mirror", "mirror", "engaged", "engaged"], strict=False):
        for name in start:
            rests = ("backward" in name) != (phase == "mirror")
            assert torch.equal(before[name], after[name]) == rests, (name, phase)
    assert net.seen == ["0.00 0 True", "0.25 1 True", "0.50 2 False", "0.75 3 False"]
    assert 0 < trainer.callback_metrics["weight_angle/layers.0"] < 180


def test_a_run_that_goes_on_is_the_run_that_was_never_interrupted(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [UntiedCallback(mirror_epochs=1, engaged_epochs=1)]

    whole, half, on = Net(lr=0.1), Net(lr=0.1), Net(lr=0.1)
    fit(whole, epochs=4, callbacks=callbacks())
    fit(half, epochs=2, callbacks=callbacks()).save_checkpoint(tmp_path / "half.ckpt")
    with torch.no_grad():
        on.layers[0].backward_weight.zero_()  # what the checkpoint has to bring back
    fit(on, epochs=4, callbacks=callbacks(), path=str(tmp_path / "half.ckpt"))
    for a, b in zip(whole.parameters(), on.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_what_the_callback_cannot_do_is_refused() -> None:
    class Plain(lightning.LightningModule):
        pass

    with pytest.raises(untied.UntiedError, match="give the first two together"):
        UntiedCallback(mirror_epochs=1)
    with pytest.raises(untied.UntiedError, match="Plain has no UntiedMixin"):
        UntiedCallback().setup(None, Plain(), "fit")
    net = Net()
    untied.tie_(net)
    with pytest.raises(untied.UntiedError, match="nothing in Net is untied"):
        UntiedCallback().setup(None, net, "fit")


@pytest.mark.parametrize("whole", [False, True], ids=["a part", "the module"])
@pytest.mark.parametrize("rule", ["fa", "ia"])
def test_the_first_training_pass_is_looked_at_after_a_sanity_validation(rule: str, whole: bool) -> None:
    """Whether the module or its network was untied: a step calls the network, and nobody calls the module."""

    class Passed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.tanh(self[0](x)) @ self[0].weight)  # type: ignore[no-any-return, operator]

    for kind in (nn.Sequential, Passed):
        net = Net(rule)
        untied.tie_(net)
        net.layers = kind(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        untied.untie_(net if whole else net.layers, rule)
        more: dict[str, Any] = dict(num_sanity_val_steps=1, accumulate_grad_batches=2, callbacks=[UntiedCallback()])
        if kind is Passed:
            with pytest.raises(untied.UntiedError, match=r"errors go through (layers\.)?0\.weight by backpropagation"):
                fit(net, batch=2, **more)
        else:
            fit(net, epochs=2, batch=2, **more)
            assert len(net.seen) == 8
