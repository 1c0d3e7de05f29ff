"""The broadcast route: the error of the network's output goes straight to every layer (direct feedback alignment).

Legend: e ∂J/∂(output of the source layer), [n, C] or [n, ..., C]; x a layer's input; M [C, *one example of x], made
of B.

How e gets there, without hooks and without a backward pass inside a backward pass. A layer gives its input to a
`Collector` and works on a detached copy, so that no error is computed that nobody uses. The source layer, the last one,
sends its output through an operation that takes all those inputs beside it, and whose backward pass hands M e to each.
So all errors are there as soon as e is. Autograd then walks the layers one after the other, each needing only its own:
nothing in the graph makes one layer's update wait for another's but the queue of the engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from .autograd import no_view, untied_operation
from .call import Layer
from .errors import UntiedError
from .geometry import Geometry
from .routes import ROUTES, Place, Route, Use

__all__ = ["Broadcast", "Collector", "broadcasting"]

KERNELS, DRAWS, SIGNALS = ("dense", "position"), ("normal", "uniform", "normalised"), ("error", "sign", "target")


@dataclass(frozen=True, repr=False)
class Broadcast(Route):
    """M e: errors come from the network's output (Nøkland 2016).

    Args:
        kernel: how B reaches a convolution's input, which the field does in two ways. "dense": B [C, i, *space], one
            number for each output and each input of the layer. "position": B [C, i, *k], a kernel of W's size, and e is
            repeated at every position of the output. Linear layers need no choice.
        source: the name of the layer whose output's error is sent; "" is the last untied layer.
        signal: what is sent: "error" e, "sign" sign(e), or "target" the target t (`untied.record(targets=...)`).
        draw: "normal", N(0, 1/inputs); "uniform", U[−1, 1)/√inputs; "normalised", normal with rows of norm 1.
            inputs counts what one row of B reaches.
        shared: a seed; all layers then take the columns of one matrix, as many as they need. None: each its own.
        scale: B is multiplied by it when it is drawn. Signs and targets do not shrink with the loss, as e does.

    Raises:
        UntiedError: an impossible value; later, no ``kernel`` for a convolution.

    >>> Broadcast(kernel="dense", signal="sign")
    broadcast(kernel=dense, signal=sign)
    """

    name = "broadcast"
    keeps = ("backward_weight", "backward_outputs")
    broadcasts, like_weight, whole = True, False, True
    cost = 2 / 3

    kernel: str | None = None
    source: str = ""
    signal: str = "error"
    draw: str = "normal"
    shared: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        choices = (
            ("kernel", self.kernel, (None, *KERNELS)),
            ("draw", self.draw, DRAWS),
            ("signal", self.signal, SIGNALS),
        )
        object.__setattr__(self, "source", str(self.source))  # a text has a number for "2"
        for what, given, possible in choices:
            if given not in possible:
                raise UntiedError(f"{what}={given!r} is not possible: choose {' or '.join(filter(None, possible))}")
        if self.shared is not None and (isinstance(self.shared, bool) or not isinstance(self.shared, int)):
            raise UntiedError(f"shared={self.shared!r} is not possible: give a seed, from which all layers draw")
        if not isinstance(self.scale, int | float) or not 0 < self.scale < math.inf:
            raise UntiedError(f"scale={self.scale!r} is not possible: give a finite number above 0")

    @property
    def sends(self) -> str:  # type: ignore[override]
        """What is sent to every layer: e, sign(e) or t."""
        return {"error": "e, broadcast", "sign": "sign(e), broadcast", "target": "t, broadcast"}[self.signal]

    def beside(self, at: Place, learns: bool) -> dict[str, Tensor | None]:
        """B [C, i], [C, i, *k], or, where it is dense and for a convolution, of a size that the first input says.

        Raises:
            UntiedError: the layer is a convolution, and no ``kernel`` is chosen.
        """
        assert at.outputs is not None
        inputs, _ = at.geometry.sizes(at.W)
        if at.geometry.positional and self.kernel is None:
            raise UntiedError(
                f"layer {at.name or '(the model)'} is a convolution, and errors can be sent to it in two ways: write "
                "kernel=dense (a number for each output and input) or kernel=position (a kernel at every position), as "
                "in dfa(kernel=dense)"
            )
        if at.geometry.positional and self.kernel == "dense":  # the first input will say how large
            outputs = torch.tensor(at.outputs, device=at.W.device)
            lazy: Any = UninitializedParameter
            lazy = lazy(learns, at.W.device, at.W.dtype)
            return {"backward_weight": lazy, "backward_outputs": outputs}
        shape = (at.outputs, inputs, *(at.W.shape[2:] if at.geometry.positional else ()))
        return {"backward_weight": nn.Parameter(self.drawn(shape, at.W), requires_grad=learns)}

    def drawn(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A new B [C, ...]."""
        inputs = max(math.prod(shape[1:]), 1)
        generator = None if self.shared is None else torch.Generator().manual_seed(self.shared)
        columns = torch.empty(inputs, shape[0], dtype=torch.float64)  # so that a smaller layer gets the first of them
        if self.draw == "uniform":
            columns.uniform_(-1, 1, generator=generator)
        else:
            columns.normal_(generator=generator)
        norms = columns.norm(dim=0) if self.draw == "normalised" else math.sqrt(inputs)
        return (self.scale * columns / norms).T.reshape(shape).to(like).contiguous()

    def prepare(self, beside: Mapping[str, Any], x: Tensor, geometry: Geometry) -> None:
        """Draw a dense B when the first input x is seen. A compiled model needs one pass before it is compiled."""
        B = beside["backward_weight"]
        if torch.compiler.is_compiling() or not is_lazy(B):
            return
        example = x.shape if geometry.batch_size(x) is None else x.shape[1:]
        with torch.no_grad():
            B.materialize((int(beside["backward_outputs"]), *example))
            B.copy_(self.drawn(tuple(B.shape), B))

    def send(self, use: Use, copies: float) -> Tensor:
        """The layer's output y [n, ...]. Its input waits for e in the layer's collector.

        Raises:
            UntiedError: it trains outside of `untied.record`; the source layer is recomputed; or as `Collector` says.
        """
        x, collector = use.x, use.layer.collector
        if not torch.is_grad_enabled():
            return untied_operation(x, use.W, use.W.detach(), use.bias, use.geometry)
        if collector is None or _recomputed():
            return untied_operation(_unheard(use), use.W, use.W.detach(), use.bias, use.geometry)
        learns = copies != 0 and use.B.requires_grad
        waits = x.requires_grad or learns
        mark = _Mark.apply(x) if waits else None
        x = x.detach()
        y = untied_operation(x, use.W, use.W.detach(), use.bias, use.geometry)
        if waits:
            collector.take(self, use, mark, x if learns else None, y.shape, copies)
        return collector.hand_out(y) if collector.source is use.layer else y


def _unheard(use: Use) -> Tensor:
    """Outside `record` nobody hands out errors: training is refused at once, anything else in its backward pass."""
    if _recomputed():
        if use.layer.is_source:
            raise UntiedError(
                f"rule {use.layer.rule} sends the error of the last layer's output, and that layer is recomputed by "
                "activation checkpointing, when its error is gone: leave the last layer out of checkpoint(...)"
            )
    elif getattr(use.layer, "training", False):
        raise UntiedError(_OUTSIDE.format(rule=use.layer.rule))
    return use.x if not use.x.requires_grad else _Unheard.apply(use.x, str(use.layer.rule))


def _recomputed() -> bool:
    """Whether this pass is within a backward pass, as activation checkpointing's second one is."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


_OUTSIDE = (
    "rule {rule} takes its errors from the network's output, which it gets only under untied.record(): write "
    "'with untied.record(model) as tape:' around the forward pass, or evaluate with model.eval() and torch.no_grad(). "
    "Under activation checkpointing give use_reentrant=False"
)


class _Unheard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: str) -> Tensor:
        ctx.rule = rule
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        raise UntiedError(_OUTSIDE.format(rule=ctx.rule))


class _Mark(torch.autograd.Function):
    """A place in the graph at which an error may enter: of x's shape, and without memory."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@dataclass(frozen=True)
class Port:
    """A layer that waits for e. x and y are its input and output.

    Attributes:
        route, geometry, name: of the layer. copies: how much of its pseudogradient B takes.
        x, y: their shapes. learns: whether B takes any.
    """

    route: Broadcast
    geometry: Geometry
    name: str
    x: torch.Size
    y: torch.Size
    copies: float
    learns: bool

    def check(self, e: torch.Size, B: Tensor, source: str) -> None:
        """Refuse before the backward pass what cannot be sent. ``e`` and ``source``: shape and name of the output that
        errors come from; B [C, ...].

        Raises:
            UntiedError: B has another number of outputs than e, or e's positions are not those of the layer.
        """
        C = B.shape[0]
        spatial = self.geometry.positional and len(e) > 2
        outputs = e[1] if spatial else e[-1] if len(e) else None
        fits = len(e) == 1 or (len(e) > 1 and e[0] == self.x[0])
        if fits and spatial and self.route.kernel == "position":
            fits = e[2:] == self.y[2:]
        elif fits and not self.geometry.positional and min(len(e), len(self.x)) > 2:
            fits = e[:-1] == self.x[:-1]
        if outputs != C or not fits:
            raise UntiedError(
                f"layer {self.name}: B is for {C} outputs and an input of shape {tuple(self.x)}, and the output of "
                f"{source} is {tuple(e)}, which cannot be sent there: name the last layer as source=NAME when you call "
                "untie_, or leave the layer out with filter=..."
            )

    def error(self, e: Tensor, B: Tensor) -> Tensor:
        """M e, in x's shape."""
        if not self.geometry.positional:
            if e.dim() > len(self.x):
                e = e.flatten(1, -2).sum(1)
            sent = e @ B
            if sent.dim() < len(self.x):  # one error for all of an example's tokens
                sent = sent.view(self.x[0], *(1,) * (len(self.x) - 2), -1)
            return sent.expand(self.x)
        if e.dim() > 2 and self.route.kernel == "position":
            return self._at_each().reconstruct(e, self._laid_out(B), like=e.new_empty(self.x))
        M = B if self.route.kernel == "dense" else self._spread(B)
        return (self._one(e) @ M.flatten(1)).view(self.x)

    def gradient(self, e: Tensor, x: Tensor, B: Tensor) -> Tensor:
        """The outer product of e and the layer's activity: d<e, M x> / dB."""
        if not self.geometry.positional:
            if e.dim() > x.dim():
                e = e.flatten(1, -2).sum(1)
            elif 1 < e.dim() < x.dim():
                x = x.flatten(1, -2).sum(1)
            return e.reshape(-1, e.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        if e.dim() > 2 and self.route.kernel == "position":
            G = self._at_each().correlate(x, e)
            return G.transpose(0, 1) if self.geometry.transposed else G  # type: ignore[attr-defined]
        G = self._one(e).reshape(-1, B.shape[0]).T @ x.reshape(-1, math.prod(self._example()))
        if self.route.kernel == "dense":
            return G.view(B.shape)
        return (G.view(*B.shape[:2], -1) @ self._taps(x).flatten(1).T).view(B.shape)

    def _one(self, e: Tensor) -> Tensor:
        """The error of an example: of all positions together."""
        return e.flatten(2).sum(2) if e.dim() > 2 else e

    def _example(self) -> torch.Size:
        return self.x[-1 - self.geometry.dims :]  # type: ignore[attr-defined]

    def _at_each(self) -> Geometry:
        return replace(self.geometry, groups=1)  # type: ignore[type-var]

    def _laid_out(self, B: Tensor) -> Tensor:
        return B.transpose(0, 1) if self.geometry.transposed else B  # type: ignore[attr-defined]

    def _taps(self, like: Tensor) -> Tensor:
        """[taps, *space]: 1 where the tap of a kernel, applied at every position, reaches this place of the input."""
        geometry: Any = self._at_each()
        count = math.prod(geometry.kernel_size)
        eye = torch.eye(count, dtype=like.dtype, device=like.device)
        K = eye.view(*((count, 1) if geometry.transposed else (1, count)), *geometry.kernel_size)
        space = self._example()[1:]
        ones = like.new_ones(1, 1, *self.y[-len(space) :])
        return geometry.reconstruct(ones, K, like=like.new_empty(1, count, *space))[0]  # type: ignore[no-any-return]

    def _spread(self, B: Tensor) -> Tensor:
        """M [C, i, *space] of a kernel that is applied at every position: what e, repeated there, makes of it."""
        taps = self._taps(B)
        return (B.flatten(2) @ taps.flatten(1)).view(*B.shape[:2], *taps.shape[1:])


class _Source(torch.autograd.Function):
    """The identity on the source's output, whose backward pass sends e to every port.

    tensors: the marks, the kernels, and the inputs where B learns (None elsewhere), in the ports' order.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, targets: Tensor | None, ports: tuple[Port, ...], *tensors: Tensor | None) -> Tensor:
        return no_view(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, targets, ctx.ports, *tensors = inputs
        ctx.save_for_backward(targets, *tensors[len(ctx.ports) :])

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor | None, ...]:
        targets, *saved = ctx.saved_tensors
        count = len(ctx.ports)
        errors: list[Tensor | None] = []
        gradients: list[Tensor | None] = []
        for at, port in enumerate(ctx.ports):
            B, x = saved[at].detach(), saved[count + at]
            x = None if x is None else x.detach()
            sent = e.sign() if port.route.signal == "sign" else targets if port.route.signal == "target" else e
            sent = sent.to(B.dtype)
            errors.append(port.error(sent, B) if ctx.needs_input_grad[3 + at] else None)
            gradients.append((port.copies * port.gradient(sent, x, B)).contiguous() if port.learns else None)
        return e, None, None, *errors, *gradients, *(None,) * count


@dataclass
class Collector:
    """Gathers the inputs that wait for e, until the source layer is called and hands it out.

    Attributes:
        source: the layer whose output's error is sent; name: its name. names: of all layers, by id.
        targets: [n, C], or classes [n], for rules that send them.

    >>> source = nn.Linear(8, 3)
    >>> Collector(source, "fc", {id(source): "fc"}).waiting
    []
    """

    source: Layer
    name: str
    names: Mapping[int, str]
    targets: Tensor | None = None
    waiting: list[tuple[Port, Tensor, Tensor, Tensor | None]] = field(default_factory=list)

    def take(self, route: Broadcast, use: Use, mark: Tensor, x: Tensor | None, y: torch.Size, copies: float) -> None:
        """A layer's input waits. ``x``: the input itself, [n, ...], where B learns from it.

        Raises:
            UntiedError: signs or targets are sent in float16.
        """
        name = self.names[id(use.layer)]
        if route.signal != "error" and use.x.dtype == torch.float16:
            raise UntiedError(
                f"layer {name}: rule {use.layer.rule} sends a {route.signal}, which does not follow a loss scale: use "
                "bfloat16 or float32 in place of float16"
            )
        port = Port(route, use.geometry, name, use.x.shape, y, copies, x is not None)
        self.waiting.append((port, mark, use.B, x))

    def hand_out(self, y: Tensor) -> Tensor:
        """The source's output y [n, ..., C], whose error goes to all that waits.

        Raises:
            UntiedError: it cannot be sent to a layer, or targets are missing or of another shape.
        """
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return y
        ports = tuple(w[0] for w in waiting)
        for port, _, B, _ in waiting:
            port.check(y.shape, B, self.name)
        targets = self._targets(y) if any(port.route.signal == "target" for port in ports) else None
        marks, kernels, inputs = (tuple(w[i] for w in waiting) for i in (1, 2, 3))
        return _Source.apply(y, targets, ports, *marks, *kernels, *inputs)  # type: ignore[no-any-return]

    def _targets(self, y: Tensor) -> Tensor:
        """The targets in the output's shape; classes become one-hot."""
        t = self.targets
        if t is not None and not t.is_floating_point() and t.shape == (*y.shape[:-1],):
            t = torch.nn.functional.one_hot(t.long(), y.shape[-1])
        if t is None or t.shape != y.shape:
            given = "none were given" if t is None else f"those given are {tuple(t.shape)}"
            raise UntiedError(
                f"a rule that sends targets needs them in the shape of {self.name}'s output, {tuple(y.shape)}, or as "
                f"classes {tuple(y.shape[:-1])}, and {given}: use untied.record(model, targets=...)"
            )
        return t.detach().to(y.device, y.dtype)

    def close(self) -> None:
        """The recording ends, and nobody may wait still.

        Raises:
            UntiedError: a layer does.
        """
        if self.waiting:
            raise UntiedError(
                f"layer {self.waiting[0][0].name} waits for the error of {self.name}'s output, and {self.name} was not "
                "called after it: name the layer that is called last, as in dfa(source=NAME)"
            )


@contextmanager
def broadcasting(layers: Mapping[str, Layer], targets: Tensor | None = None) -> Iterator[None]:
    """Let the error of the source's output reach every layer whose route broadcasts, for one forward pass or several.

    Raises:
        UntiedError: layers name two sources, or one that is not untied; a layer still waits at the end.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "dfa")
    >>> with broadcasting({"0": model[0], "2": model[2]}):  # as `untied.record` does
    ...     loss = model.eval()(torch.randn(5, 4)).square().mean()
    >>> loss.backward()
    """
    routes: list[Any] = [r for layer in layers.values() if (r := layer.rule.route).broadcasts]
    if not routes:
        yield
        return
    named = {r.source or list(layers)[-1] for r in routes}
    if len(named) > 1:
        raise UntiedError(f"errors have one source, and the layers name {', '.join(sorted(named))}: give all the same")
    (name,) = named
    if name not in layers:
        raise UntiedError(f"source={name} is no untied layer: possible are {', '.join(layers)}; 'bp' unties it too")
    collector = Collector(layers[name], name, {id(layer): n for n, layer in layers.items()}, targets)
    before = {n: layer.collector for n, layer in layers.items()}
    for n, layer in layers.items():
        layer.collector, layer.is_source = collector, n == name
    try:
        yield
        collector.close()
    finally:
        for n, layer in layers.items():
            layer.collector = before[n]


ROUTES["broadcast"] = Broadcast
