"""`Tape` collects each layer's R during a forward pass; `Tape.penalty` hands it over as a term of the loss.

What a layer leaves on the tape is of a weight's size: R's gradient in B is computed in the forward pass,
from the closed form, while the activity is there anyway. Rules with noise input need no activity at all,
only its shape; theirs is drawn later, in `penalty`, so that it never disturbs the random numbers of dropout
under activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..errors import UntiedError
from ..geometry import Geometry
from ..operations.signals import Signals
from ..primitives.primitive import Number, Primitive
from ..routes.autograd import LossTerm
from ..rules.algebra import Alignment
from ..rules.call import Call, Layer
from . import audit

__all__ = ["Tape"]

Terms = tuple[Tensor, Tensor, Tensor | None]
"""R, its gradient in B, and in W where R moves that too."""

Key = tuple[int, int | None]
"""Which backward parameter, by id, and the first row of its part; None for the whole."""

Pending = tuple[Tensor, Tensor, Tensor, Tensor | None, Geometry, float]
"""A call whose noise is yet to be drawn: the input's shape (on the meta device), W, B, bias, geometry,
scale."""


@dataclass
class Connection:
    """One backward kernel and what its layer's calls have left for it.

    Attributes:
        kernels: W and B, whole; B in W's layout but on the routes that give it another. part: the rows of them in use.
        calls: (R, 0-dim; dR/dB, B's shape; dR/dW, W's shape, or None) of each call.
    """

    layer: Layer
    rule: Alignment
    kernels: tuple[Tensor, Tensor]
    part: slice | None
    carries: bool = False  # errors, to something below
    calls: list[Terms] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)

    def targets(self) -> tuple[Tensor, Tensor]:
        """W and B in W's layout, or rows of both. Cut out where R is asked for: forward passes may have no autograd."""
        W, B = self.kernels
        return (W, B) if self.part is None else (W[self.part], B[self.part])


class Tape:
    """R of one forward pass. Made by `record`; asked for with `penalty`.

    Attributes:
        progress: of training, 0 to 1, for coefficients that are functions of it; or None.
        step: number of the training step, for rules with ``every``; or None.
        align: whether rules are evaluated, or all rest.
        place: 0-dim, where in the batch a ``fraction`` begins, 0 to 1.
        values: R of each layer by name, 0-dim each, once R was asked for.

    Raises:
        UntiedError: a rule has ``every``, and no step is given.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa", init="copy")
    >>> with untied.record(model) as tape:
    ...     _ = model(torch.randn(5, 4))
    >>> tape.penalty().dim()
    0
    """

    def __init__(
        self, layers: Mapping[str, Layer], progress: float | None, step: int | None, align: bool = True
    ) -> None:
        self.layers = layers
        self.progress = progress
        self.step = step
        self.align = align
        rules = [layer.rule for layer in layers.values()]
        # Where in the batch a ``fraction`` begins, 0 to 1. Without one, no random number is taken.
        draws = align and any(rule.fraction < 1 for rule in rules)
        self.place = torch.rand(()) if draws else torch.zeros(())
        # A compiled step reads it on the layers' device: to copy it there would wait for the device, in every layer.
        device = next(iter(layers.values())).weight_device if draws else self.place.device
        self.place_there = torch.full((), float(self.place), device=device) if device.type != "cpu" else self.place
        # Settled here, once a step: inside a compiled model they would be guards.
        self.coefficients: dict[int, dict[Primitive, Number]] = {}
        self.resting: dict[int, bool] = {}
        self.called: list[Layer] = []
        self.patches: dict[int, int] = {}
        self.made: dict[tuple[Layer, str], tuple[Tensor, Tensor]] = {}  # kernels that are parametrized
        self.handed_over: Tensor | None = None
        self.values: dict[str, Tensor] = {}
        self.connections: dict[Key, Connection] = {}
        for name, layer in layers.items():
            rule = layer.rule
            if not rule.aligns or id(rule) in self.resting:
                continue
            if align and rule.every > 1 and step is None:
                raise UntiedError(
                    f"layer {name}: rule {rule} is evaluated every {rule.every} steps, and no step was given: "
                    "use untied.record(model, step=i)"
                )
            self.resting[id(rule)] = not align or (step is not None and step % rule.every != 0)
            if align:
                self.coefficients[id(rule)] = cast(Alignment, rule).coefficients(progress)

    def note(self, call: Call) -> None:
        """What a layer says of one of its calls: x [n, ...], y [n, ...], W and B in W's layout; see `Call`.

        Raises:
            UntiedError: R was asked for already, or it is ``torch.inference_mode()``.
        """
        layer, kernels, part = call.layer, call.kernels, call.part
        self.called.append(layer)
        rule = layer.rule
        if rule.moves_itself:
            B = id(kernels[1])
            n = (call.geometry.batch_size(call.x) or 1) * call.geometry.positions(call.x, call.y)
            self.patches[B] = self.patches.get(B, 0) + n
        if not rule.aligns:
            return
        rule = cast(Alignment, rule)
        if self.handed_over is not None:
            if torch._C._current_graph_task_id() != -1:
                return  # recomputed within the backward pass (activation checkpointing): counted already
            raise UntiedError("R was asked for before this forward pass: call tape.penalty() after the last one")
        key = (id(kernels[1]), None if part is None else part.start)
        connection = self.connections.setdefault(key, Connection(layer, rule, kernels, part))
        connection.carries |= call.x.requires_grad
        if not rule.needs_data or self.resting[id(rule)]:
            return
        if (
            not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        ):  # some rules take gradients of their own here
            raise UntiedError("R cannot be recorded under torch.inference_mode(): use torch.no_grad()")
        with torch.no_grad():
            s, scale = self.signals(rule, call)
            if scale == 0:
                return
            if rule.operations.noise is None:
                connection.calls.append(rule.data_terms(s, self.coefficients[id(rule)], scale))
            else:
                shape_only = torch.empty_like(s.x, device="meta")
                connection.pending.append((shape_only, s.W, s.B, s.bias, call.geometry, scale))

    def count_patches(self) -> None:
        """Tell rules that move B themselves how often the task used each kernel in this pass."""
        for layer in self.layers.values():
            for weight in layer.own_weights() if layer.rule.moves_itself else ():
                beside = layer.beside(weight)
                n = self.patches.get(id(beside["backward_weight"]), 0)
                if n and layer.patches.get(weight) != n:  # a batch's size changes rarely
                    layer.patches = {**layer.patches, weight: n}
                    if (heard := beside.get("backward_heard")) is not None:
                        heard[3] = n

    def signals(self, rule: Alignment, call: Call) -> tuple[Signals, float]:
        """What the rule sees of this call, x and y [n, ...] or a window of them, [k, ...]; and the factor that makes a
        sum over it a mean over the batch."""
        x, y, bias, geometry = call.x, call.y, call.bias, call.geometry
        n = geometry.batch_size(x)
        if n is None:
            x, y, n = x.unsqueeze(0), y.unsqueeze(0), 1
        if rule.fraction < 1 and n > 1:
            k = max(1, round(rule.fraction * n))
            x, y, n = self.window(x, n, k), self.window(y, n, k), k
        scale = rule.every / n if n else 0.0
        if rule.positions == "mean":
            scale /= max(geometry.positions(x, y), 1)
        x, W, B = x.detach(), call.W.detach(), call.B.detach()
        if rule.operations.noise is not None:
            return Signals(x, W, B, geometry, rule.operations, bias), scale
        y = y.detach() if bias is None else geometry.add_bias(y.detach(), -bias.detach())
        return Signals(x, W, B, geometry, rule.operations, bias, y), scale

    def window(self, x: Tensor, n: int, k: int) -> Tensor:
        """``k`` neighbouring examples of x [n, ...]: [k, ...]. Where k divides n, one of the n / k blocks, a view of x;
        else from any place, the first following the last."""
        blocks = n % k == 0
        if torch.compiler.is_compiling():  # the place must not be a constant of the graph
            place, rows = self.place_there.to(x.device), torch.arange(k, device=x.device)
            rows = rows + (place * (n // k)).long() * k if blocks else (rows + (place * n).long()) % n
            order = sorted(range(x.dim()), key=x.stride, reverse=True)  # the copy keeps x's layout, which kernels want
            copy = x.permute(order).index_select(order.index(0), rows)
            return copy.permute([order.index(d) for d in range(x.dim())])
        first = int(self.place * (n // k)) * k if blocks else int(self.place * n)
        return x[first : first + k] if first + k <= n else torch.cat([x[first:], x[: first + k - n]])

    def penalty(self) -> Tensor:
        """R, summed over the layers, as a term of the loss: 0-dim, its gradient in each B the closed form.

        The gradients go over to the term, so that none is held twice; asked again, it is the same term.

        It has no lower bound under some rules (`amp` pulls B along W without end, but for a decay), so it is no measure
        of progress: watch the task's loss, or the angles.

        Raises:
            UntiedError: no converted layer was called in this recording; or it is asked for under ``no_grad``, where
                it could move nothing: `penalties` has the numbers.
        """
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and self.moves_something:
            raise UntiedError(
                "tape.penalty() under torch.no_grad() has no gradient, so no B would move: ask for it outside of "
                "no_grad, or for numbers with tape.penalties()"
            )
        return self._handed_over()

    def _handed_over(self) -> Tensor:
        if self.handed_over is None:
            self.audit()
            if not torch.compiler.is_compiling():
                audit.frozen(self)
                audit.asked(self)
            self.handed_over = self._penalty()
            self.connections.clear()
        return self.handed_over

    @property
    def moves_something(self) -> bool:
        """Whether some rule has an R in this recording."""
        return any(not resting for resting in self.resting.values())

    def _penalty(self) -> Tensor:
        names = {id(layer): name for name, layer in self.layers.items()}
        terms = []
        for key, connection in self.connections.items():
            name, found = names[id(connection.layer)], self.terms(key, connection)
            terms += found
            self.values[name] = self.values[name] + found[0][0] if name in self.values else found[0][0]
        if not terms:
            device = next((layer.weight_device for layer in self.layers.values()), None)
            return torch.zeros((), device=device)
        values, targets, gradients = zip(*terms, strict=True)
        R = torch.stack([v.to(values[0].device) for v in values]).sum()
        return LossTerm.apply(R, len(targets), *targets, *gradients)  # type: ignore[no-any-return]

    def penalties(self) -> dict[str, float]:
        """R of each layer by name, as numbers, for logging. As `penalty`, it ends the recording.

        Raises:
            UntiedError: no converted layer was called in this recording.
        """
        self._handed_over()
        return {name: float(v) for name, v in self.values.items()}

    def terms(self, key: Key, connection: Connection) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(value, 0-dim; kernel; gradient, of its shape) for B, and for W where R moves it. Takes what the calls have
        left."""
        rule, (W, B) = connection.rule, connection.targets()
        with torch.no_grad():
            for x, W_, B_, bias, geometry, scale in connection.pending:
                s = Signals(torch.empty_like(x, device=W_.device), W_, B_, geometry, rule.operations, bias)
                connection.calls.append(rule.data_terms(s, self.coefficients[id(rule)], scale))
            R, dB, dW = B.new_zeros(()), None, None
            if connection.calls:
                R, dB, dW = added(connection.calls, mean=rule.positions == "mean")
            connection.pending.clear()
            connection.calls.clear()
            c = {}  # resting: a gradient of zeros rather than none, as DDP waits for every one
            # a part's weights are counted with the whole kernel where that was used too
            if not self.resting[id(rule)] and (key[1] is None or (key[0], None) not in self.connections):
                c = {p: v * rule.every for p, v in self.coefficients[id(rule)].items()}
            weights, dB, dW = rule.weight_terms(W.detach(), B.detach(), c, (dB, dW))
            R = R + weights
        R = R.to(torch.promote_types(B.dtype, torch.float32))
        zero = torch.zeros_like(R)
        return [(R, B, dB)] if dW is None else [(R, B, dB), (zero, W, dW)]

    def audit(self) -> None:
        """Refuse to go on if no converted layer was called: then there is no R. See `untied.tape.audit` for the rest.

        Raises:
            UntiedError: none was.
        """
        if self.layers and not self.called:
            shown = ", ".join(list(self.layers)[:5]) + (f" and {n} more" if (n := len(self.layers) - 5) > 0 else "")
            raise UntiedError(
                f"converted layers were not called in the recorded forward pass: {shown}. Run it inside record()"
            )


def added(calls: list[Terms], mean: bool) -> Terms:
    """The terms of several calls, (R 0-dim, dR/dB, dR/dW), as those of one: sum or mean, in place of the first."""
    R, dB, dW = calls[0]
    for value, in_B, in_W in calls[1:]:
        R, dB = R + value, dB.add_(in_B)
        dW = dW if dW is None or in_W is None else dW.add_(in_W)
    if mean and (n := len(calls)) > 1:
        R, dB, dW = R / n, dB.div_(n), None if dW is None else dW.div_(n)
    return R, dB, dW
