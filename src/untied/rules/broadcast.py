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
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from ..errors import UntiedError
from ..geometry import Geometry
from ..routes.autograd import untied_operation
from ..routes.ports import Mark, Port, Source, example_of
from ..routes.route import ROUTES, Place, Route, Use
from .call import Layer

__all__ = ["Broadcast", "Collector", "broadcasting", "hand_out"]

KERNELS, DRAWS, SIGNALS = ("dense", "position"), ("normal", "uniform", "normalised"), ("error", "sign", "target")


class Awaited(UninitializedParameter):
    """A B whose size the first input will tell. It can be frozen before that, as `requires_grad_` of a model does.

    >>> Awaited(requires_grad=True).requires_grad_(False).requires_grad
    False
    """

    _allowed_methods: ClassVar[list[Any]] = [*UninitializedParameter._allowed_methods, Tensor.requires_grad_]  # type: ignore[attr-defined]


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
            lazy: Any = Awaited
            return {"backward_weight": lazy(learns, at.W.device, at.W.dtype), "backward_outputs": outputs}
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
        example = example_of(x.shape, geometry)
        with torch.no_grad():
            B.materialize((int(beside["backward_outputs"]), *example))
            B.copy_(self.drawn(tuple(B.shape), B))

    def send(self, use: Use, copies: float) -> Tensor:
        """The layer's output y [n, ...]. Its input waits for e in the layer's collector.

        Raises:
            UntiedError: it trains outside of `untied.record`; or as `Collector.take`.
        """
        x, collector = use.x, use.layer.collector
        if not torch.is_grad_enabled():
            return untied_operation(x, use.W, use.W.detach(), use.bias, use.geometry)
        if collector is None or _recomputed():
            return untied_operation(_unheard(use), use.W, use.W.detach(), use.bias, use.geometry)
        learns = copies != 0 and use.B.requires_grad
        waits = x.requires_grad or learns
        mark = Mark.apply(x) if waits else None
        x = x.detach()
        y = untied_operation(x, use.W, use.W.detach(), use.bias, use.geometry)
        if waits:
            collector.take(self, use, mark, x if learns else None, y.shape, copies)
        return y


def _unheard(use: Use) -> Tensor:
    """Outside `record` nobody hands out errors: training is refused at once, anything else in its backward pass."""
    if not _recomputed() and getattr(use.layer, "training", False):
        raise UntiedError(_OUTSIDE.format(rule=use.layer.rule))
    return use.x if not use.x.requires_grad else _Unheard.apply(use.x, str(use.layer.rule))


def hand_out(layer: Any, y: Tensor, geometry: Geometry) -> Tensor:
    """A layer's output y [n, ...]. If it is the source, whatever its own rule, the error of y goes to all that waits.

    Raises:
        UntiedError: the source is recomputed by activation checkpointing; or as `Collector.hand_out`.

    >>> import torch, untied
    >>> layer = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(layer, "fa")
    >>> y = torch.ones(5, 3)
    >>> hand_out(layer, y, layer.geometry()) is y  # it is no source
    True
    """
    if not layer.is_source or not torch.is_grad_enabled():
        return y
    if _recomputed():
        raise UntiedError(
            "errors are sent from the last layer's output, and that layer is recomputed by activation checkpointing, "
            "when its error is gone: leave the last layer out of checkpoint(...)"
        )
    return y if layer.collector is None else layer.collector.hand_out(y, geometry)


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


@dataclass
class Collector:
    """Gathers the inputs that wait for e, until the source layer is called and hands it out.

    Attributes:
        source: the layer whose output's error is sent; name: its name. names: of all layers, by id.
        targets: [n, C], or classes [n], for rules that send them.
        second: the name of a module with ``batch_first=False``, if there is one.
        sent: whether layers before the source have had an error.

    >>> source = nn.Linear(8, 3)
    >>> Collector(source, "fc", {id(source): "fc"}).waiting
    []
    """

    source: Layer
    name: str
    names: Mapping[int, str]
    targets: Tensor | None = None
    second: str | None = None
    sent: bool = False
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
        batch_first = bool(getattr(use.layer, "sees_batch_first", False))
        port = Port(route.kernel, route.signal, use.geometry, name, use.x.shape, y, copies, x is not None, batch_first)
        self.waiting.append((port, mark, use.B, x))

    def hand_out(self, y: Tensor, geometry: Geometry) -> Tensor:
        """The source's output y [n, ..., C], whose error goes to all that waits.

        Raises:
            UntiedError: nobody has come to wait since the source's last call, whose error alone went out; it
                cannot be sent to a layer, or targets are missing or of another shape.
        """
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return y
        if all(port.name == self.name for port, *_ in waiting):
            if self.sent:
                raise UntiedError(
                    f"{self.name} was called twice for one pass of the layers before it, and they take the error of "
                    "one output: call it once, on all examples together, or name another layer as source=NAME"
                )
        else:
            self.sent = True
        ports = tuple(w[0] for w in waiting)
        for port, _, B, _ in waiting:
            port.check(y.shape, B, self.name, geometry, self.second)
        targets = self._targets(y, geometry) if any(port.signal == "target" for port in ports) else None
        marks, kernels, inputs = (tuple(w[i] for w in waiting) for i in (1, 2, 3))
        return Source.apply(y, targets, ports, geometry, *marks, *kernels, *inputs)  # type: ignore[no-any-return]

    def _targets(self, y: Tensor, geometry: Geometry) -> Tensor:
        """The targets in the output's shape; classes become one-hot."""
        t, at = self.targets, geometry.features % y.dim() if y.dim() > 1 else 0
        labels = (*y.shape[:at], *y.shape[at + 1 :])
        if t is not None and not isinstance(t, Tensor):
            raise UntiedError(f"targets are {type(t).__name__}: give a tensor, as torch.as_tensor(targets) is")
        if t is not None and not (t.is_floating_point() or t.is_complex()) and t.shape == labels:
            C, low, high = y.shape[at], *((int(t.min()), int(t.max())) if t.numel() else (0, 0))
            if low < 0 or high >= C:
                raise UntiedError(
                    f"targets are classes from {low} to {high}, and {self.name} has {C} outputs: a rule that sends "
                    "targets needs a class for every example; give one-hot rows, of zeros where there is none"
                )
            t = torch.nn.functional.one_hot(t.long(), C).movedim(-1, at)
        if t is None or t.shape != y.shape:
            given = "none were given" if t is None else f"those given are {tuple(t.shape)}, {t.dtype}"
            raise UntiedError(
                f"a rule that sends targets needs them in the shape of {self.name}'s output, {tuple(y.shape)}, or as "
                f"whole numbers, its classes, {labels}, and {given}: use untied.record(model, targets=...)"
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
def broadcasting(
    layers: Mapping[str, Layer], targets: Tensor | None = None, second: str | None = None
) -> Iterator[None]:
    """Let the error of the source's output reach every layer whose route broadcasts, for one forward pass or several.

    Args:
        layers: by name. targets: for rules that send them. second: a module with ``batch_first=False``, if any.

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
    collector = Collector(layers[name], name, {id(layer): n for n, layer in layers.items()}, targets, second)
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
