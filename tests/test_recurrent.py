"""Recurrent layers: outputs and backpropagation are the plain layers', other gradients a BPTT written by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import untied
from cases import CELLS, RECURRENT, RuleCase, assert_same, by_every_rule, by_rule, gradients
from untied import UntiedError
from untied.layers.layer import backward_name

I, H, T, N = 3, 4, 5, 3  # noqa: E741
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": dict(batch_first=True),
    "no bias": dict(bias=False),
    "bidirectional": dict(bidirectional=True),
    "three layers": dict(num_layers=3),
    "all": dict(num_layers=2, bidirectional=True, batch_first=True, dropout=0.4),
}
INPUTS = ("whole", "given state", "unbatched", "packed", "packed unsorted", "packed with state")


def flat(out: Any) -> list[Tensor]:
    """Every tensor of floats in a nested output."""
    if isinstance(out, PackedSequence):
        return [out.data]
    return [out] if isinstance(out, Tensor) else [t for part in out for t in flat(part)]


def given(layer: Any, how: str) -> tuple[list[Tensor], Any]:
    """(leaves that need a gradient, a function that calls a layer with them)."""
    g = torch.Generator().manual_seed(1)
    shape = (T, I) if how == "unbatched" else (N, T, I) if layer.batch_first else (T, N, I)
    x = torch.randn(shape, generator=g, dtype=torch.float64).requires_grad_()
    leaves, hx = [x], None
    if "state" in how or how == "unbatched":
        count = layer.num_layers * (1 + layer.bidirectional)
        widths = [layer.proj_size or H] + ([H] if isinstance(layer, nn.LSTM) else [])
        batch = () if how == "unbatched" else (N,)
        states = [torch.randn(count, *batch, w, generator=g, dtype=torch.float64).requires_grad_() for w in widths]
        leaves += states
        hx = tuple(states) if len(states) > 1 else states[0]

    def call(m: nn.Module) -> list[Tensor]:
        torch.manual_seed(4)
        lengths = [3, 5, 1] if "unsorted" in how else [5, 3, 1]
        seen = x
        if "packed" in how:
            seen = pack_padded_sequence(x, torch.tensor(lengths), m.batch_first, "unsorted" not in how)  # type: ignore
        return flat(m(seen, hx))

    return leaves, call


def loss_of(outs: list[Tensor]) -> Tensor:
    """Something that every output has a part in."""
    return torch.stack([(o * torch.linspace(0.2, 1, o.numel(), dtype=o.dtype).view_as(o)).sum() for o in outs]).sum()


@pytest.mark.parametrize("how", INPUTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", RECURRENT)
def test_outputs_and_backpropagation_are_the_plain_layers(kind: str, form: str, how: str) -> None:
    torch.manual_seed(0)
    plain = RECURRENT[kind](I, H, **FORMS[form]).double()
    for rule, init in (("bp", "like"), ("fa", "copy")):
        model = copy.deepcopy(plain)
        untied.untie_(model, rule, init=init)
        leaves, call = given(plain, how)
        own = [p for n, p in model.named_parameters() if "backward" not in n]
        wanted = torch.autograd.grad(loss_of(call(plain)), [*leaves, *plain.parameters()])
        outs = call(model)
        for a, b in zip(outs, call(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        got = torch.autograd.grad(loss_of(outs), [*leaves, *own])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_the_plain_ones(kind: str, batched: bool, bias: bool) -> None:
    torch.manual_seed(0)
    plain = CELLS[kind](I, H, bias=bias).double()
    model = copy.deepcopy(plain)
    untied.untie_(model, "fa", init="copy")
    x = torch.randn(*((N,) if batched else ()), I, dtype=torch.float64, requires_grad=True)

    def run(m: Any) -> list[Tensor]:
        hx = None
        for _ in range(3):
            hx = m(x, hx)
        return flat(hx)

    own = [p for n, p in model.named_parameters() if "backward" not in n]
    outs, wanted = run(model), run(plain)
    for a, b in zip(outs, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    got = torch.autograd.grad(loss_of(outs), [x, *own])
    for a, b in zip(got, torch.autograd.grad(loss_of(wanted), [x, *plain.parameters()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_random_B_gives_the_backpropagation_through_time_written_by_hand() -> None:
    torch.manual_seed(0)
    layer: Any = nn.RNN(I, H).double()
    untied.untie_(layer, "fa")
    x, e = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True), torch.randn(T, N, H, dtype=torch.float64)
    out, _ = layer(x)
    (out * e).sum().backward()
    W_i, W_h, b = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0
    h = [torch.zeros(N, H, dtype=torch.float64)]
    for t in range(T):
        h.append(torch.tanh(x[t] @ W_i.T + h[-1] @ W_h.T + b).detach())
    dW_i, dW_h, db, dx, back = 0.0, 0.0, 0.0, [], torch.zeros(N, H, dtype=torch.float64)
    for t in reversed(range(T)):
        error = (e[t] + back) * (1 - h[t + 1] ** 2)
        dW_i, dW_h, db = dW_i + error.T @ x[t], dW_h + error.T @ h[t], db + error.sum(0)
        dx.insert(0, error @ layer.backward_weight_ih_l0)
        back = error @ layer.backward_weight_hh_l0
    for got, wanted in (
        (layer.weight_ih_l0.grad, dW_i),
        (layer.weight_hh_l0.grad, dW_h),
        (layer.bias_hh_l0.grad, db),
        (x.grad, torch.stack(dx)),
    ):
        torch.testing.assert_close(got, wanted.detach())


class ByHand(nn.Module):
    """An RNN over a batch first, of two linear layers that `untie_` knows."""

    def __init__(self, like: nn.RNN) -> None:
        super().__init__()
        self.inputs, self.hidden = nn.Linear(I, H).double(), nn.Linear(H, H).double()
        for linear, name in ((self.inputs, "ih"), (self.hidden, "hh")):
            linear.weight.data = getattr(like, f"weight_{name}_l0").data.clone()
            linear.bias.data = getattr(like, f"bias_{name}_l0").data.clone()

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)  # noise is drawn in the order in which x lies in memory
        from_input, h, outs = self.inputs(x), x.new_zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            h = torch.tanh(from_input[:, t] + self.hidden(h))
            outs.append(h)
        return torch.stack(outs, 1)


def step(model: nn.Module, run: Any = None) -> Tensor:
    torch.manual_seed(2)
    x = torch.randn(N, T, I, dtype=next(model.parameters()).dtype)
    torch.manual_seed(3)
    with untied.record(model, progress=0.5, step=0) as tape:
        out = (model if run is None else run)(x)
    R = tape.penalty()
    (loss_of(flat(out)[:1]) + R).backward()
    return R.detach()


@by_rule
def test_terms_add_up_over_time_as_two_linear_layers_would(rule: RuleCase) -> None:
    if rule.text == "mkp":
        pytest.skip("two networks have two streams of noise; its lattice form is exact in both")
    torch.manual_seed(0)
    layer: Any = nn.RNN(I, H, batch_first=True).double()
    hand: Any = ByHand(layer)
    untied.untie_(hand, rule.text)
    untied.untie_(layer, rule.text)
    if hasattr(layer, "backward_weight_ih_l0"):
        layer.backward_weight_ih_l0.data = hand.inputs.backward_weight.data.clone()
        layer.backward_weight_hh_l0.data = hand.hidden.backward_weight.data.clone()
    for name in ("ih", "hh"):
        if hasattr(layer, f"backward_magnitude_{name}_l0"):
            part = hand.inputs if name == "ih" else hand.hidden
            getattr(layer, f"backward_magnitude_{name}_l0").copy_(part.backward_magnitude)
    torch.testing.assert_close(step(layer), step(hand))
    for part, name in ((hand.inputs, "ih"), (hand.hidden, "hh")):
        torch.testing.assert_close(getattr(layer, f"weight_{name}_l0").grad, part.weight.grad)
        B = getattr(layer, f"backward_weight_{name}_l0", None)
        if B is not None and B.grad is not None:
            torch.testing.assert_close(B.grad, part.backward_weight.grad)
            assert layer.rule.aligns or layer.rule.copies_gradient


@by_rule
@pytest.mark.parametrize("kind", ["gru", "lstm projected"])
def test_every_rule_trains_every_kernel(kind: str, rule: RuleCase) -> None:
    torch.manual_seed(0)
    model: Any = RECURRENT[kind](I, H, num_layers=2, bidirectional=True, batch_first=True).double()
    before = list(model.state_dict())
    own = dict(model.__dict__)
    untied.untie_(model, rule.text)
    twin = copy.deepcopy(model)
    step(model)
    step(twin)
    assert_same(gradients(model), gradients(twin))
    for name in model.weights:
        assert getattr(model, name).grad.any(), name
        B = getattr(model, backward_name(name), None)
        assert B is None or B.shape == getattr(model, name).shape
        assert B is None or not B.requires_grad or B.grad is not None
    other: Any = RECURRENT[kind](I, H, num_layers=2, bidirectional=True, batch_first=True).double()
    untied.untie_(other, rule.text)
    other.load_state_dict(model.state_dict())
    untied.tie_(model)
    assert list(model.state_dict()) == before and model.__dict__.keys() == own.keys()
    assert type(model) in (nn.GRU, nn.LSTM)


class Reader(nn.Module):
    """A recurrent layer over packed sequences with a readout of all states, or a cell with one of the last."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.is_cell = kind in CELLS
        more: dict[str, Any] = dict(num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.layer = CELLS[kind](I, H) if self.is_cell else RECURRENT[kind](I, H, **more)
        width = H if self.is_cell else 2 * (getattr(self.layer, "proj_size", 0) or H)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_cell:
            packed = pack_padded_sequence(x, torch.tensor([5, 3, 1]), batch_first=True)
            h, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
            return self.out(h.sum(1))  # type: ignore[no-any-return]
        h = None
        for at in x.unbind(1):
            h = self.layer(at, h)
        return self.out(h[0] if isinstance(h, tuple) else h)  # type: ignore[no-any-return]


@by_every_rule
@pytest.mark.parametrize("kind", [*RECURRENT, *CELLS])
def test_every_rule_trains_every_layer_and_cell(kind: str, rule: RuleCase) -> None:
    """Packed, of two layers and directions, with dropout: every kernel gets a gradient, and so does B."""
    model = Reader(kind).double()
    x, targets = torch.randn(N, T, I, dtype=torch.float64), torch.randn(N, 2, dtype=torch.float64)
    plain = copy.deepcopy(model).eval()(x)
    untied.untie_(model, rule.text)
    torch.testing.assert_close(model.eval()(x), plain)
    model.train()
    with untied.record(model, progress=0.5, step=0, targets=targets) as tape:
        loss = nn.functional.mse_loss(model(x), targets)
    (loss + tape.penalty()).backward()
    layer: Any = model.layer
    assert all(getattr(layer, w).grad.any() for w in layer.own_weights())
    for B in layer.backward_parameters():
        assert not B.requires_grad or B.grad is not None or layer.rule.moves_itself
    untied.tie_(model)
    torch.testing.assert_close(model.eval()(x), plain)


def test_a_sequence_that_has_ended_adds_nothing() -> None:
    """R of a packed batch is the mean over it of each sequence's own."""
    torch.manual_seed(0)
    layer: Any = nn.GRU(I, H, batch_first=True).double()
    untied.untie_(layer, "align(amp=1, null=0.5, sparse=0.25)")
    x, lengths = torch.randn(N, T, I, dtype=torch.float64), [5, 3, 1]
    with untied.record(layer) as tape:
        layer(pack_padded_sequence(x, torch.tensor(lengths), True))
    whole, alone = tape.penalty(), []
    for i, length in enumerate(lengths):
        with untied.record(layer) as tape:
            layer(x[i : i + 1, :length])
        alone.append(tape.penalty())
    torch.testing.assert_close(whole, torch.stack(alone).mean())


@pytest.mark.parametrize("kind", RECURRENT)
def test_autocast_is_close_and_gives_the_lower_type(kind: str) -> None:
    torch.manual_seed(0)
    model: Any = RECURRENT[kind](I, H, num_layers=2, batch_first=True)
    untied.untie_(model, "aa")
    twin = copy.deepcopy(model)
    R = step(model)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = twin.eval()(torch.randn(N, T, I))
    twin.train()
    assert low.dtype == torch.bfloat16

    def cast(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return twin(x)

    assert step(twin, cast).item() == pytest.approx(R.item(), rel=0.1, abs=0.05)
    for name, g in gradients(twin).items():
        wanted = model.get_parameter(name).grad
        assert g is not None and g.dtype == torch.float32 and (g - wanted).norm() <= 0.1 * wanted.norm() + 1e-2, name


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm projected"])
def test_a_compiled_step_is_the_eager_one(kind: str) -> None:
    """PyTorch breaks the graph at every recurrent layer unless ``allow_rnn`` is set."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager: Any = RECURRENT[kind](I, H, batch_first=True).double()
    untied.untie_(eager, "aa")
    model = copy.deepcopy(eager)
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.testing.assert_close(step(model, torch.compile(model, backend="aot_eager", fullgraph=True)), step(eager))
    assert_same(gradients(model), gradients(eager))
    torch._dynamo.reset()


def test_input_that_does_not_fit_is_an_error() -> None:
    layer: Any = nn.LSTM(I, H)
    untied.untie_(layer, "fa")
    with pytest.raises(UntiedError, match="LSTM takes input of 2 or 3 dimensions"):
        layer(torch.zeros(I))
    with pytest.raises(UntiedError, match="hidden state has 2 dimensions"):
        layer(torch.zeros(T, I), (torch.zeros(1, 1, H), torch.zeros(1, 1, H)))
    cell: Any = nn.GRUCell(I, H)
    untied.untie_(cell, "fa")
    with pytest.raises(UntiedError, match="1 or 2 dimensions"):
        cell(torch.zeros(2, 2, I))
