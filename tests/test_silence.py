"""Nothing is silently backpropagation, and nothing silently stuck: every way that was found, as a user falls into it.

What `untied.verify` has to say of each, and who says it first: `untie_`, a recording, or the first training pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import untied
from untied import UntiedError
from untied.layers import foreign
from untied.routes.autograd import UntiedOperation

Optimizer = torch.optim.Optimizer | None


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


class Written(nn.Module):
    """A network with a matrix of its own in front of a known layer, in one of four forms; and one that is added."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form, self.first, self.out = form, nn.Linear(4, 4), nn.Linear(4, 3)
        self.pos_embed = nn.Parameter(torch.randn(1, 4))
        if form == "dict":
            self.kernels = nn.ParameterDict({"a": torch.randn(4, 4)})
        else:
            self.W_rec = nn.Parameter(torch.randn(*((2,) if form == "experts" else ()), 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x) + self.pos_embed)
        if self.form == "recurrence":
            for _ in range(3):
                h = torch.tanh(h @ self.W_rec.T)
        elif self.form == "graph":
            h = torch.eye(len(h)).to(h) @ (h @ self.W_rec)
        elif self.form == "experts":
            h = torch.einsum("ni,eio->no", h, self.W_rec)
        else:
            h = h @ self.kernels["a"]
        return self.out(h)  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.middle = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.middle(torch.tanh(self.enc(x))), self.enc.weight.t())


def squared(*shape: int) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(x(*shape)).square().mean()


def penalised(model: nn.Module) -> Tensor:
    """WGAN-GP's term."""
    given = x(6, 4).to(next(model.parameters())).requires_grad_()
    (dx,) = torch.autograd.grad(model(given).square().sum(), given, create_graph=True)
    return (dx.norm(dim=1) - 1).square().mean()


# The cases: how a user comes there, and the closure; then what verify says


def written(form: str) -> Callable[[str], Any]:
    def make(rule: str) -> Any:
        with pytest.raises(UntiedError, match=r"through parameters of no known layer: (W_rec|kernels.a) \("):
            untied.untie_(Written(form), rule)
        model = Written(form)
        untied.untie_(model, rule, allow=True)
        return model, squared(5, 4), None

    return make


def second_order(rule: str) -> Any:
    model = mlp()
    untied.untie_(model, rule)
    return model, penalised, None


def optimizer_first(rule: str) -> Any:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    untied.untie_(model, rule)
    return model, squared(5, 4), optimizer


def frozen_after(rule: str) -> Any:
    model = mlp()
    untied.untie_(model, rule)
    model.requires_grad_(False)  # as get_peft_model does
    model[0].weight.requires_grad_(True)
    return model, squared(5, 4), None


def tied_autoencoder(rule: str) -> Any:
    model = Autoencoder()
    untied.untie_(model, rule)
    with pytest.raises(UntiedError, match=r"through enc\.weight by backpropagation"), untied.record(model):
        model(x(5, 4))
    return model, squared(5, 4), None


def functional_attention(rule: str) -> Any:
    beit = pytest.importorskip("timm.models.beit")
    model = beit.Beit(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2, num_classes=3, qkv_bias=True)
    before = dict(foreign.ATTENTION)
    foreign.ATTENTION.clear()
    try:
        untied.untie_(model, rule, allow=True)
    finally:
        foreign.ATTENTION.update(before)
    return model, squared(2, 3, 16, 16), None


def hook(rule: str) -> Any:
    model = mlp()
    old = model[2].forward
    untied.untie_(model, rule)
    model[2].forward = lambda given: old(given)
    return model, squared(5, 4), None


CASES = [
    pytest.param("fa", written("recurrence"), "W_rec carries backprop's errors", id="1 a recurrence written by hand"),
    pytest.param("fa", written("graph"), "W_rec carries backprop's errors", id="1 a graph convolution"),
    pytest.param("sa", written("dict"), r"kernels\.a carries backprop's errors", id="1 a dict of parameters"),
    pytest.param("usf", written("experts"), "W_rec carries backprop's errors", id="1 experts in three dimensions"),
    pytest.param("sa", optimizer_first, r"0\.backward_weight in no optimizer", id="3 an optimizer before untie_"),
    pytest.param("sa", frozen_after, r"2\.backward_weight is frozen", id="3 everything frozen afterwards"),
    pytest.param("fa", tied_autoencoder, r"enc\.weight carries backprop's errors", id="4 a tied autoencoder, fa"),
    pytest.param("usf", tied_autoencoder, r"enc\.weight carries backprop's errors", id="4 a tied autoencoder, usf"),
    pytest.param("fa", functional_attention, r"qkv\.backward_weight is never used", id="4 functional attention, fa"),
    pytest.param("brsf", functional_attention, r"qkv\.weight carries backprop's", id="4 functional attention, brsf"),
    pytest.param("fa", hook, r"2\.backward_weight is never used", id="4 a hook that calls the old forward"),
]


@pytest.mark.parametrize(("rule", "come", "words"), CASES)
def test_verify_catches(rule: str, come: Callable[[str], Any], words: str) -> None:
    model, closure, optimizer = come(rule)
    with pytest.raises(UntiedError, match=f"^not verified: .*{words}") as error:
        untied.verify(model, closure, optimizer, strict=True)
    assert "pos_embed" not in str(error.value) and "\n" not in str(error.value)


@contextmanager
def tampered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operation as it once was, with x and B in the graph of a second derivative."""

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx, dW, db = ctx.geometry.backward(g, *saved, ctx.bias_shape, (needs[0], needs[1], needs[3]))
        return dx, dW if needs[1] else None, None, db, None, None

    with monkeypatch.context() as patch:
        patch.setattr(UntiedOperation, "backward", staticmethod(backward))
        yield


@pytest.mark.parametrize("rule", ["bp", "fa", "sa", "usf"])
def test_second_derivatives_are_verified_and_wrong_ones_caught(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 2."""
    model, closure, _ = second_order(rule)
    untied.verify(model, closure, strict=True)
    if rule in ("fa", "sa"):
        with tampered(monkeypatch), pytest.raises(UntiedError, match="backward_weight gets the task's gradient"):
            untied.verify(model, closure, strict=True)


def test_a_closure_that_differentiates_under_a_broadcast_is_refused() -> None:
    model, closure, _ = second_order("dfa")
    with pytest.raises(UntiedError, match="takes a gradient by itself, and under a rule that broadcasts"):
        untied.verify(model, closure)


@pytest.mark.parametrize("forgets", ["to ask", "autograd"])
def test_a_recording_says_that_R_is_not_asked_for(forgets: str) -> None:
    """Case 3, of which a closure knows nothing: it is the loop that forgets."""
    model = mlp()
    untied.untie_(model, "sa")
    with untied.record(model) as tape:
        squared(5, 4)(model)
    if forgets == "autograd":
        with pytest.raises(UntiedError, match=r"under torch\.no_grad\(\) has no gradient"), torch.no_grad():
            tape.penalty()
        return
    with pytest.warns(UserWarning, match="never asked for"), untied.record(model):
        pass


def test_a_mirror_phase_in_evaluation_mode_moves_every_B() -> None:
    """Case 3: the fast path of an encoder layer skips its layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    untied.untie_(model, "sa")
    for training in (True, False):
        model.train(training).zero_grad()
        with untied.record(model) as tape, torch.set_grad_enabled(training):
            model(x(4, 5, 8))
        tape.penalty().backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if "backward" in n)


def test_an_export_in_training_mode_is_refused() -> None:
    """Case 6. Case 5 is the command line's: tests/lab/test_compare.py."""
    model = mlp()
    untied.untie_(model, "sa")
    with pytest.raises(UntiedError, match=r"keep the forward pass alone.*untied\.tie_"):
        torch.export.export(model, (x(5, 4),))
    torch.export.export(untied.tie_(model), (x(5, 4),))


def test_who_is_well_is_told_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mlp()
        untied.untie_(model, "sa")
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(12):
            with untied.record(model) as tape:
                loss = squared(5, 4)(model)
            optimizer.zero_grad()
            (loss + tape.penalty()).backward()
            optimizer.step()
        untied.verify(model, squared(5, 4), optimizer, strict=True)
