"""Recurrent layers, untied: input-to-hidden, hidden-to-hidden and projection kernels, each with a B of its own.

The plain layers run in one fused kernel that sends errors back through W. Here a layer is made of `connect` calls: one
for the input of all time steps, and one for each time step's hidden state. Alignment terms add up over the steps, as
they do for any module that is called several times.

What that costs beside the fused kernel, for T steps, counted: the products are the same ones; the input's are one call
in both. The hidden state's are T calls (2 T with a projection) in both, but here each is an operation of Python with a
node of its own in the graph, and so are the gates: some 4 (RNN) to 12 (LSTM) small kernels for each step. cuDNN fuses
those, and runs the directions and layers side by side. Autograd keeps the gates' activity of every step, which cuDNN
keeps too, in its reserve. Sequences of unequal length (`PackedSequence`) are padded for the products, so that R's mean
is over the whole batch: N T rows instead of the sum of the lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import UntiedError
from ..geometry import DENSE, Geometry
from ..routes.autograd import cast_for_autocast
from .layer import OF_A_RECORDING, Untied, register_layer

__all__: list[str] = []

State = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM; each [n, features]."""

Gates = Callable[[Tensor, Tensor, State], State]
"""From what the input and the hidden state send, both [n, gates], and the state: the next state."""


def _simple(activation: Callable[[Tensor], Tensor]) -> Gates:
    return lambda from_input, from_hidden, state: (activation(from_input + from_hidden),)


def _lstm(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    i, f, g, o = (from_input + from_hidden).chunk(4, dim=-1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(from_input: Tensor, from_hidden: Tensor, state: State) -> State:
    (r, z, n), (hr, hz, hn) = from_input.chunk(3, dim=-1), from_hidden.chunk(3, dim=-1)
    r, z = (r + hr).sigmoid(), (z + hz).sigmoid()
    n = (n + r * hn).tanh()
    return (n + z * (state[0] - n),)


GATES: dict[str, Gates] = {
    "RNN_TANH": _simple(torch.tanh),
    "RNN_RELU": _simple(torch.relu),
    "LSTM": _lstm,
    "GRU": _gru,
}
"""By the name that PyTorch gives each mode."""


@dataclass(frozen=True)
class Steps:
    """How many sequences of a batch are still there at each time step, longest first.

    Data of all steps is one tensor [sum of sizes, features], step after step, as in a `PackedSequence`.
    """

    sizes: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether all sequences are of one length."""
        return self.sizes[0] == self.sizes[-1]

    def padded(self, data: Tensor) -> Tensor:
        """[n, steps, features], zeros where a sequence has ended. The batch comes first, as R's mean wants it."""
        if self.even:
            return data.view(len(self.sizes), self.sizes[0], -1).transpose(0, 1)
        return torch.stack([self.filled(x) for x in data.split(self.sizes)], 1)

    def filled(self, x: Tensor) -> Tensor:
        """A step's rows, and zeros for the sequences that have ended."""
        missing = self.sizes[0] - x.shape[0]
        return F.pad(x, (0, 0, 0, missing)) if missing else x


class _UntiedRecurrent(Untied):
    """What RNN, LSTM and GRU share."""

    sees_batch_first = True

    def geometry(self) -> Geometry:
        return DENSE

    @classmethod
    def kernel_names(cls, module: nn.Module) -> list[str]:
        """As many as it has layers and directions."""
        names: Any = module._flat_weights_names
        return [name for name in names if name.startswith("weight")]

    @property
    def weights(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of this layer's kernels: a layer of several layers and directions has that many."""
        return tuple(self.kernel_names(self))  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        state: Any = nn.RNNBase.__getstate__(self)  # type: ignore[arg-type]
        return {name: value for name, value in state.items() if name not in OF_A_RECORDING}

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As the plain layer's, arguments and results."""
        layer: Any = self
        if isinstance(input, PackedSequence):
            data, sizes, order, back = input
            if self.collector is not None and order is not None:
                raise UntiedError(
                    f"{type(layer).__name__}: pack_padded_sequence(..., enforce_sorted=False) puts the sequences in "
                    "another order, and an error that is broadcast is in the batch's own: sort them first, or only pad"
                )
            state = self._initial(data, hx, int(sizes[0]), order, sizes)
            out, state = self._layers(data, Steps(tuple(sizes.tolist())), state)
            return PackedSequence(out, sizes, order, back), layer.permute_hidden(self._hidden(state), back)
        if input.dim() not in (2, 3):
            raise UntiedError(f"{type(layer).__name__} takes input of 2 or 3 dimensions, and this has {input.dim()}")
        batch_dim, batched = 0 if layer.batch_first else 1, input.dim() == 3
        if not batched:
            input = input.unsqueeze(batch_dim)
            hx = None if hx is None else self._hidden(tuple(self._unbatched(s) for s in self._states(hx)))
        state = self._initial(input, hx, input.shape[batch_dim], None, None)
        x = input.transpose(0, 1) if layer.batch_first else input
        steps = Steps((x.shape[1],) * x.shape[0])
        out, state = self._layers(x.reshape(-1, x.shape[-1]), steps, state)
        out = out.view(*x.shape[:2], -1)
        out = out.transpose(0, 1) if layer.batch_first else out
        if batched:
            return out, self._hidden(state)
        return out.squeeze(batch_dim), self._hidden(tuple(s.squeeze(1) for s in state))

    def _states(self, hx: Any) -> State:
        return (hx,)

    def _hidden(self, state: State) -> Any:
        return state[0]

    def _unbatched(self, state: Tensor) -> Tensor:
        if state.dim() != 2:
            raise UntiedError(f"for an input of one sequence the hidden state has 2 dimensions, and this {state.dim()}")
        return state.unsqueeze(1)

    def _initial(self, x: Tensor, hx: Any, n: int, order: Tensor | None, sizes: Tensor | None) -> State:
        layer: Any = self
        if hx is None:
            count, widths = layer.num_layers * (1 + layer.bidirectional), self._widths()
            hx = self._hidden(tuple(x.new_zeros(count, n, width) for width in widths))
        else:
            hx = layer.permute_hidden(hx, order)
        layer.check_forward_args(x, hx, sizes)
        state: State = cast_for_autocast(*self._states(hx))
        return state

    def _widths(self) -> tuple[int, ...]:
        layer: Any = self
        return (layer.proj_size or layer.hidden_size,)

    def _layers(self, data: Tensor, steps: Steps, state: State) -> tuple[Tensor, State]:
        """All layers, one upon the other: their output as `Steps` has it, and the last states [layers, n, ...]."""
        layer: Any = self
        last: list[State] = []
        directions = ("", "_reverse") if layer.bidirectional else ("",)
        for depth in range(layer.num_layers):
            if depth:
                data = F.dropout(data, layer.dropout, layer.training)
            outs = []
            for suffix in directions:
                first = tuple(s[len(last)] for s in state)
                out, end = self._scan(steps.padded(data), steps, first, f"_l{depth}{suffix}", bool(suffix))
                outs.append(out)
                last.append(end)
            data = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
        return data, tuple(torch.stack(s) for s in zip(*last, strict=True))

    def _scan(self, x: Tensor, steps: Steps, state: State, name: str, reverse: bool) -> tuple[Tensor, State]:
        """One layer in one direction. Backwards, a shorter sequence begins where it ends."""
        layer: Any = self
        gates, projects = GATES[layer.mode], layer.proj_size > 0
        biases = (f"bias_ih{name}", f"bias_hh{name}") if layer.bias else (None, None)
        from_input = self.connect(x, DENSE, f"weight_ih{name}", biases[0]).unbind(1)
        outs: list[Tensor] = []
        first, ended = state, []
        times = range(len(steps.sizes))
        state = tuple(s[: steps.sizes[-1 if reverse else 0]] for s in state)
        for t in reversed(times) if reverse else times:
            size, now = steps.sizes[t], state[0].shape[0]
            if size > now:
                state = tuple(torch.cat([s, s0[now:size]]) for s, s0 in zip(state, first, strict=True))
            elif size < now:
                ended.append(tuple(s[size:] for s in state))
                state = tuple(s[:size] for s in state)
            from_hidden = self.connect(steps.filled(state[0]), DENSE, f"weight_hh{name}", biases[1])[:size]
            h, *c = gates(from_input[t][:size], from_hidden, state)
            if projects:
                h = self.connect(steps.filled(h), DENSE, f"weight_hr{name}", None)[:size]
            state = (h, *c)
            outs.append(h)
        if ended:  # the shortest sequences come last in the batch
            state = tuple(torch.cat(s) for s in zip(state, *reversed(ended), strict=True))
        return torch.cat(outs[::-1] if reverse else outs), state


@register_layer(nn.RNN)
class UntiedRNN(_UntiedRecurrent, nn.RNN):
    """`nn.RNN` with ``backward_weight_ih_l0`` [h, i], ``backward_weight_hh_l0`` [h, h], and so on."""


@register_layer(nn.GRU)
class UntiedGRU(_UntiedRecurrent, nn.GRU):
    """`nn.GRU` with ``backward_weight_ih_l0`` [3 h, i], ``backward_weight_hh_l0`` [3 h, h], and so on."""


@register_layer(nn.LSTM)
class UntiedLSTM(_UntiedRecurrent, nn.LSTM):
    """`nn.LSTM` with ``backward_weight_ih_l0`` [4 h, i], ``backward_weight_hh_l0`` [4 h, h or p], and so on; with a
    projection ``backward_weight_hr_l0`` [p, h] too.
    """

    def _states(self, hx: Any) -> State:
        return tuple(hx)

    def _hidden(self, state: State) -> Any:
        return state

    def _widths(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)


class _UntiedCell(Untied):
    """What the cells share: one step, whose terms add up over the steps of a recording."""

    weights = ("weight_ih", "weight_hh")
    states: ClassVar[int] = 1
    mode: ClassVar[str]

    def geometry(self) -> Geometry:
        return DENSE

    def _step(self, input: Tensor, hx: State | None) -> State:
        layer: Any = self
        for x in (input, *(hx or ())):
            if x.dim() not in (1, 2):
                raise UntiedError(
                    f"{type(layer).__name__} takes input and state of 1 or 2 dimensions, and this has {x.dim()}"
                )
        if hx is None:
            hx = (input.new_zeros(*input.shape[:-1], layer.hidden_size),) * self.states
        hx = cast_for_autocast(*hx)
        biases = ("bias_ih", "bias_hh") if layer.bias else (None, None)
        from_input = self.connect(input, DENSE, "weight_ih", biases[0])
        return GATES[self._mode()](from_input, self.connect(hx[0], DENSE, "weight_hh", biases[1]), hx)

    def _mode(self) -> str:
        return self.mode


@register_layer(nn.RNNCell)
class UntiedRNNCell(_UntiedCell, nn.RNNCell):
    """`nn.RNNCell` with ``backward_weight_ih`` [h, i] and ``backward_weight_hh`` [h, h]."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """As the plain cell's."""
        return self._step(input, None if hx is None else (hx,))[0]

    def _mode(self) -> str:
        return f"RNN_{self.nonlinearity.upper()}"


@register_layer(nn.GRUCell)
class UntiedGRUCell(_UntiedCell, nn.GRUCell):
    """`nn.GRUCell` with ``backward_weight_ih`` [3 h, i] and ``backward_weight_hh`` [3 h, h]."""

    mode = "GRU"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """As the plain cell's."""
        return self._step(input, None if hx is None else (hx,))[0]


@register_layer(nn.LSTMCell)
class UntiedLSTMCell(_UntiedCell, nn.LSTMCell):
    """`nn.LSTMCell` with ``backward_weight_ih`` [4 h, i] and ``backward_weight_hh`` [4 h, h]."""

    mode = "LSTM"
    states = 2

    def forward(  # type: ignore[override]
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the plain cell's."""
        h, c = self._step(input, hx)
        return h, c
