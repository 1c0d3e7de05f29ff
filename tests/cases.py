"""The two tables that the tests are parametrised over: a new layer or a new rule joins every battery with a row.

Helpers below the tables make a row into tensors. Everything is drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untied
from untied.geometry import Geometry
from untied.operations import Operations, Signals
from untied.rules.call import Call


@dataclass(frozen=True)
class LayerCase:
    """One way of using one layer type.

    Attributes:
        make: builds the plain layer. input: its input's shape, with a batch of `n` in front unless ``batched``
            is False. call: further arguments of its forward.
    """

    name: str
    make: Callable[[], nn.Module]
    input: tuple[int, ...]
    batched: bool = True
    call: dict[str, Any] = field(default_factory=dict)


LAYERS = [
    # dense, by the number of leading dimensions
    LayerCase("linear-0d", lambda: nn.Linear(4, 3), (4,), batched=False),
    LayerCase("linear-1d", lambda: nn.Linear(4, 3), (5, 4)),
    LayerCase("linear-2d", lambda: nn.Linear(4, 3), (3, 2, 4)),
    LayerCase("linear-3d", lambda: nn.Linear(4, 3), (3, 2, 2, 4)),
    LayerCase("linear-no-bias", lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    # convolution
    LayerCase("conv1d", lambda: nn.Conv1d(2, 3, 3), (3, 2, 7)),
    LayerCase("conv1d-no-bias", lambda: nn.Conv1d(2, 3, 3, bias=False), (3, 2, 7)),
    LayerCase("conv1d-unbatched", lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 7), batched=False),
    LayerCase("conv1d-same-even", lambda: nn.Conv1d(2, 3, 4, padding="same"), (3, 2, 7)),
    LayerCase("conv1d-same-even-unbatched", lambda: nn.Conv1d(2, 3, 4, padding="same"), (2, 7), batched=False),
    LayerCase("conv1d-same-even-dilated", lambda: nn.Conv1d(2, 3, 2, padding="same", dilation=3), (3, 2, 7)),
    LayerCase("conv1d-reflect", lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), (3, 2, 7)),
    LayerCase("conv1d-replicate", lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="replicate"), (3, 2, 7)),
    LayerCase("conv1d-circular", lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="circular"), (3, 2, 7)),
    LayerCase("conv2d", lambda: nn.Conv2d(2, 3, 3), (3, 2, 6, 5)),
    LayerCase("conv2d-1x1", lambda: nn.Conv2d(2, 3, 1, bias=False), (3, 2, 4, 4)),
    LayerCase("conv2d-padding", lambda: nn.Conv2d(2, 3, 3, padding=(2, 1)), (3, 2, 4, 5)),
    LayerCase("conv2d-valid", lambda: nn.Conv2d(2, 3, (2, 3), padding="valid"), (3, 2, 4, 5)),
    LayerCase("conv2d-same", lambda: nn.Conv2d(2, 3, 3, padding="same"), (3, 2, 4, 5)),
    LayerCase("conv2d-same-uneven", lambda: nn.Conv2d(2, 3, (3, 4), padding="same", dilation=(2, 1)), (3, 2, 6, 5)),
    LayerCase("conv2d-same-reflect", lambda: nn.Conv2d(2, 3, (3, 2), padding="same", padding_mode="reflect"),
              (3, 2, 4, 5)),
    LayerCase("conv2d-stride", lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (3, 2, 7, 7)),
    LayerCase("conv2d-stride-leaves-a-rest", lambda: nn.Conv2d(2, 3, 3, stride=(3, 2), padding=1), (3, 2, 9, 8)),
    LayerCase("conv2d-stride-beyond-kernel", lambda: nn.Conv2d(2, 3, 2, stride=4), (3, 2, 9, 8)),
    LayerCase("conv2d-dilation", lambda: nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=1), (3, 2, 6, 5)),
    LayerCase("conv2d-groups", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (3, 4, 4, 5)),
    LayerCase("conv2d-depthwise", lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (3, 4, 4, 5)),
    LayerCase("conv2d-depthwise-multiplied", lambda: nn.Conv2d(3, 6, 3, groups=3, stride=2), (3, 3, 6, 5)),
    LayerCase("conv2d-reflect", lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (3, 2, 4, 5)),
    LayerCase("conv2d-replicate-stride", lambda: nn.Conv2d(2, 3, 3, 2, 1, padding_mode="replicate"), (3, 2, 6, 5)),
    LayerCase("conv2d-circular-groups", lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="circular"),
              (3, 2, 4, 5)),
    LayerCase("conv2d-circular-unbatched", lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
              (2, 4, 5), batched=False),
    LayerCase("conv2d-unbatched", lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5), batched=False),
    LayerCase("conv3d", lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 2, 2, 4, 3)),
    LayerCase("conv3d-same-replicate", lambda: nn.Conv3d(1, 2, 2, padding="same", padding_mode="replicate"),
              (2, 1, 2, 3, 3)),
    LayerCase("conv3d-circular", lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"), (2, 1, 2, 3, 3)),
    LayerCase("conv3d-reflect", lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="reflect"), (2, 1, 2, 3, 3)),
    LayerCase("conv3d-depthwise", lambda: nn.Conv3d(2, 2, 2, groups=2, dilation=(1, 2, 1)), (2, 2, 2, 4, 3)),
    # transposed convolution
    LayerCase("transposed1d", lambda: nn.ConvTranspose1d(2, 3, 3), (3, 2, 5)),
    LayerCase("transposed1d-unbatched", lambda: nn.ConvTranspose1d(2, 3, 3, 2, 1, 1), (2, 5), batched=False),
    LayerCase("transposed2d", lambda: nn.ConvTranspose2d(2, 3, 3, bias=False), (3, 2, 4, 3)),
    LayerCase("transposed2d-stride", lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (3, 2, 4, 3)),
    LayerCase("transposed2d-output-padding", lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1, output_padding=(1, 0)),
              (3, 2, 4, 3)),
    LayerCase("transposed2d-output-size", lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1),
              (3, 2, 4, 3), call={"output_size": [8, 5]}),
    LayerCase("transposed2d-groups-dilation", lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2), (3, 4, 4, 3)),
    LayerCase("transposed2d-depthwise", lambda: nn.ConvTranspose2d(3, 3, 3, 2, groups=3, output_padding=1),
              (3, 3, 3, 3)),
    LayerCase("transposed3d", lambda: nn.ConvTranspose3d(2, 2, (1, 2, 3), (1, 2, 2), (0, 1, 1), (0, 1, 0)),
              (2, 2, 2, 3, 2)),
]  # fmt: skip


RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "rnn": nn.RNN,
    "rnn relu": partial(nn.RNN, nonlinearity="relu"),
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "lstm projected": partial(nn.LSTM, proj_size=2),
}
"""Recurrent layers, to be made with features and width. Their battery is test_recurrent.py."""

CELLS: dict[str, Callable[..., nn.Module]] = {
    "rnn cell": nn.RNNCell,
    "rnn cell relu": partial(nn.RNNCell, nonlinearity="relu"),
    "gru cell": nn.GRUCell,
    "lstm cell": nn.LSTMCell,
}
"""Likewise, for one step."""


@dataclass(frozen=True)
class RuleCase:
    """One rule in its text form, and what is said of it.

    Attributes:
        local: by the paper's two criteria. products: layer products over backprop's three, for a layer whose input
            needs a gradient; None where autograd does it and nothing is promised. random: whether two steps from
            different seeds differ. over_batch: whether an example's share depends on its neighbours, as in batch
            normalisation, so that two half batches are not one whole. scales: whether its gradients follow a loss
            scale, which signs, targets and Oja's rule do not, so that float16 is refused.
    """

    text: str
    local: bool
    products: float | None = 0.0
    random: bool = False
    over_batch: bool = False
    scales: bool = True


RULES = [
    # transport
    RuleCase("bp", local=False),
    RuleCase("usf", local=False),
    RuleCase("frsf", local=False),
    RuleCase("brsf", local=False, random=True),
    # alignment: the named rules
    RuleCase("fa", local=True),
    RuleCase("kp", local=True),
    RuleCase("copy + 0.5*self + decay", local=False),
    RuleCase("0.5*copy + amp + decay", local=True, products=1),
    RuleCase("mkp", local=True),
    RuleCase("mkp(noise=lattice)", local=True),
    RuleCase("sa", local=False),
    RuleCase("wm", local=True, products=1),
    RuleCase("aa", local=False, products=2),
    RuleCase("ia", local=True, products=2),
    # transported by a function
    RuleCase("transport(sign)", local=False),
    RuleCase("transport(quantise(bits=4))", local=False),
    RuleCase("transport(noise(0.1))", local=False, random=True),
    # any combination
    RuleCase("null", local=True, products=2),
    RuleCase("sparse + self", local=False, products=2),
    RuleCase("amp + 0.5*decay + 0.25*null + 2*sparse + self", local=False, products=4),
    # with operations that keep the closed form
    RuleCase("wm(noise=normal, noise_std=0.5)", local=True, products=2, random=True),
    RuleCase("aa(noise=uniform)", local=False, products=3, random=True),
    RuleCase("ia(noise=normal, centre_input=true)", local=True, products=3, random=True),
    RuleCase("wm(normalise_input=true, centre_forward_output=true, forward_bias=true)", local=True, products=2),
    RuleCase("aa(forward_activation=relu, normalise_forward_output=true)", local=False, products=2),
    RuleCase("aa(batch_centre_backward_input=true)", local=False, products=2, over_batch=True),
    RuleCase("wm(batch_centre_forward_output=true)", local=True, products=1, over_batch=True),
    # with a decay that is measured, and with shares divided by activity
    RuleCase("wm(decay=balanced)", local=True, products=1),
    RuleCase("wm(amp=2, decay=-0.5*mean_power, positions=mean)", local=True, products=1),
    RuleCase("wm(decay=balanced, noise=normal, positions=mean)", local=True, products=2, random=True),
    RuleCase("wm(decay=balanced, noise=codes, positions=mean)", local=True, products=2, random=True),
    RuleCase(
        "wm(amp=linear(1, 2), decay=balanced, batch_centre_backward_input=true)",
        local=True,
        products=1,
        over_batch=True,
    ),
    RuleCase("ia(normalised=true)", local=True, products=2),
    RuleCase("aa(normalised=true, noise=uniform)", local=False, products=3, random=True),
    RuleCase("ia(decay=balanced, normalised=true, centre_input=true)", local=True, products=3),
    RuleCase("ia(decay=balanced, reverse=true)", local=False, products=None),
    RuleCase("wm(decay=mean_power, update_forward=true)", local=False, products=None),
    RuleCase("ia(normalised=true, amp_on_reconstruction=true, update_forward=true)", local=False, products=None),
    # with operations on what B has produced: by autograd
    RuleCase("ia(backward_bias=true, backward_activation=tanh)", local=False, products=None),
    RuleCase("aa(normalise_forward_output=true, normalise_backward_output=true)", local=False, products=None),
    RuleCase("ia(normalise_forward_output=true)", local=True, products=None),
    RuleCase("ia(reverse=true)", local=False, products=None),
    RuleCase("ia(amp_on_reconstruction=true, centre_backward_output=true)", local=True, products=None),
    RuleCase("ia(noise=normal, reverse=true)", local=False, products=None, random=True),
    RuleCase("sa(update_forward=true)", local=False),
    RuleCase("aa(update_forward=true)", local=False, products=None),
    # evaluated in part
    RuleCase("ia(fraction=0.5)", local=True, products=1, random=True, over_batch=True),
    RuleCase("wm(fraction=0.25, noise=normal)", local=True, products=0.5, random=True, over_batch=True),
    RuleCase("aa(every=2)", local=False, products=1),
    RuleCase("wm(positions=mean)", local=True, products=1),
]

ROUTED = [
    # errors broadcast from the output, or through a product of two kernels
    RuleCase("dfa(kernel=dense)", local=True, products=-1),
    RuleCase("sdfa(kernel=position)", local=True, products=-1, scales=False),
    RuleCase("drtp(kernel=position)", local=True, products=-1, scales=False),
    RuleCase("dkp(kernel=position)", local=True, products=-1),
    RuleCase("dkp(kernel=dense)", local=True, products=-1),
    RuleCase("pfa", local=True),
    RuleCase("pfa(density=0.5, expand=2)", local=True),
    RuleCase("ldfa(rank=1)", local=True, scales=False),
]
"""Rules on other routes than `Through`. Most batteries are for them too, `by_any_rule`. Not those of which it is not
true: that B is like W, that a lone layer's input gets its error through it, or that a step costs what a count per layer
says. test_broadcast.py and test_product.py are theirs alone."""

ESTIMATED = [
    RuleCase("rdd", local=True),
    RuleCase("rdd(decay=0.5, windows=1000, period=1, average=4)", local=True),
]
"""Rules whose R sees an estimate in W's place, so that its readable penalty is not of W. Their battery is
test_spiking.py."""

ONE_OF_EACH_KIND = (
    "linear-0d", "linear-1d", "linear-3d", "conv1d-same-even", "conv2d-stride-leaves-a-rest", "conv2d-reflect",
    "conv2d-groups", "conv2d-unbatched", "conv3d", "transposed2d-output-padding",
)  # fmt: skip
"""For batteries that would be too long over the whole table."""

by_layer = pytest.mark.parametrize("case", LAYERS, ids=[c.name for c in LAYERS])
by_kind_of_layer = pytest.mark.parametrize(
    "case",
    [c for c in LAYERS if c.name in ONE_OF_EACH_KIND],
    ids=[c.name for c in LAYERS if c.name in ONE_OF_EACH_KIND],
)
by_any_rule = pytest.mark.parametrize("rule", [*RULES, *ROUTED], ids=[c.text for c in [*RULES, *ROUTED]])
by_every_rule = pytest.mark.parametrize(
    "rule", [*RULES, *ROUTED, *ESTIMATED], ids=[c.text for c in [*RULES, *ROUTED, *ESTIMATED]]
)
by_rule = pytest.mark.parametrize("rule", RULES, ids=[c.text for c in RULES])


def aligning(rules: list[RuleCase] = RULES) -> list[RuleCase]:
    """The rows whose rule has an R."""
    return [r for r in rules if untied.rules.parse(r.text).aligns]


by_aligning_rule = pytest.mark.parametrize("rule", aligning(), ids=[c.text for c in aligning()])


def build(case: LayerCase, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A row's plain layer and an input that needs a gradient."""
    torch.manual_seed(0)
    layer = case.make().to(dtype)
    return layer, torch.randn(case.input, dtype=dtype, requires_grad=True)


def build_untied(case: LayerCase, rule: str = "fa") -> tuple[Any, Tensor]:
    """The same layer untied, and an input."""
    layer, x = build(case)
    untied.untie_(layer, rule)
    return layer, x


def geometry_of(layer: Any, x: Tensor, **call: Any) -> Geometry:
    """The geometry that an untied layer uses for this input."""
    seen: list[Geometry] = []

    class Listening:
        def note(self, call: Call) -> None:
            seen.append(call.geometry)

    layer.listeners = (Listening(),)
    layer(x, **call)
    layer.listeners = ()
    return seen[0]


def signals(case: LayerCase, **operations: Any) -> Signals:
    """What a rule sees of a row, W, B and x as plain float64 tensors; one batch dimension even if unbatched."""
    layer, x = build_untied(case)
    geometry = geometry_of(layer, x, **case.call)
    x = x.detach() if case.batched else x.detach().unsqueeze(0)
    bias = None if layer.bias is None else layer.bias.detach()
    W, B = layer.weight.detach(), layer.backward_weight.detach()
    return Signals(x, W, B, geometry, Operations(**operations), bias)


def with_kernels(s: Signals, W: Tensor | None = None, B: Tensor | None = None) -> Signals:
    """The same signals from other kernels."""
    W, B = s.W if W is None else W, s.B if B is None else B
    return Signals(s.x, W, B, s.geometry, s.operations, s.bias)


class SmallNet(nn.Module):
    """Convolution, batch-free normalisation, grouped convolution, dense: every kind of layer once, quickly."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.grouped(torch.relu(self.norm(self.conv(x)))))

    def head(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(torch.tanh(self.hidden(x.mean((-2, -1))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def small_net(rule: str | None = None, dtype: torch.dtype = torch.float64, **options: Any) -> SmallNet:
    """A `SmallNet`, the same each time; untied if a rule is given."""
    torch.manual_seed(0)
    model = SmallNet(**options).to(dtype)
    if rule is not None:
        untied.untie_(model, rule)
    return model


def small_batch(n: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images and labels for `SmallNet`."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 6, 6, dtype=dtype, generator=g), torch.randint(3, (n,), generator=g)


def step(
    model: nn.Module, x: Tensor, labels: Tensor, *, scale: float = 1.0, seed: int = 2, **record: Any
) -> tuple[Tensor, Tensor]:
    """One forward and backward pass of L = J + R, times ``scale``. Returns J and R; gradients add up in the model."""
    torch.manual_seed(seed)
    with untied.record(model, **{"progress": 0.5, "step": 0, "targets": labels, **record}) as tape:
        task = nn.functional.cross_entropy(model(x), labels)
    R = tape.penalty()
    ((task + R) * scale).backward()
    return task.detach(), R.detach()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """Every parameter's gradient by name."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(a: dict[str, Any], b: dict[str, Any], **tolerance: float) -> None:
    """Two sets of named gradients agree, including in which of them there are none."""
    assert a.keys() == b.keys()
    for name in a:
        if a[name] is None or b[name] is None:
            assert a[name] is None and b[name] is None, name
        else:
            torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)
