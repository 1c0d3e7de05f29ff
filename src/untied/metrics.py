"""How well the backward weights stand in for the forward ones: angles in degrees and norm ratios, per layer.

Legend, as in geometry.py: g is the error at a layer's output, as the backward weights above it delivered it.

    weight angle           between W and B
    reached angle          the same, of the weights alone that activity reaches on this batch: the taps of a 3 × 3
                           kernel that see padding alone, or the weights of a pixel that is always 0, change nothing
    projection angle       between T_W x and T_B x
    local gradient angle   between T_W* g and T_B* g: what this layer's B does to the error it is given
    gradient angle         between W's pseudogradient and its gradient under backpropagation, on the same batch
    norm ratio             ‖B‖ / ‖W‖
    gradient norm          of W's gradient under backpropagation: beside a vanishing one the angle means nothing, and
                           is NaN
    growth                 the norm of a layer's input over that of the layer called before it; above 50 it is sick

Weight, projection and local gradient angle are the reference code's; the gradient angle of the whole network is what
training depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from .errors import UntiedError
from .layers.layer import Untied, untied_layers
from .parametrized import leaves
from .recording import listening
from .rules.broadcast import broadcasting
from .rules.call import Call, Listener
from .rules.rule import Visit
from .rules.transport import Backpropagation

__all__ = [
    "AlignmentTable", "LayerAlignment", "angle", "gradient_angle", "measure", "norm_ratios",
    "reached_angles", "weight_angles",
]  # fmt: skip

Seen = tuple[Call, Tensor]
"""One call of a layer, and the error g at its output."""


VANISHING = 1e-7
"""The norm of backpropagation's gradient below which an angle to it is none."""


@dataclass
class Reach:
    """Listens, and keeps which weights of each kernel are multiplied by something other than 0.

    Attributes:
        seen: truth values in W's layout, by the kernel's id.
    """

    seen: dict[int, Tensor] = field(default_factory=dict)

    def note(self, call: Call) -> None:
        """A layer was called."""
        W = call.kernels[0]
        with torch.no_grad():
            reached = (call.geometry.per_weight(call.x.detach().square(), call.y.detach()) != 0).expand(call.W.shape)
            whole = self.seen.setdefault(id(W), torch.zeros(W.shape, dtype=torch.bool, device=W.device))
            (whole if call.part is None else whole[call.part]).logical_or_(reached)


@dataclass
class Inputs:
    """Listens, and keeps the norm of each layer's first input [n, ...], by the layer's id, in the order of calls."""

    norms: dict[int, float] = field(default_factory=dict)

    def note(self, call: Call) -> None:
        """A layer was called."""
        self.norms.setdefault(id(call.layer), float(call.x.detach().float().norm()))

    def growth(self) -> dict[int, float]:
        """By the layer's id: its input's norm over that of the layer called before."""
        norms = list(self.norms.items())
        return {layer: norm / before if before else math.nan for (_, before), (layer, norm) in pairwise(norms)}


@dataclass
class Errors:
    """Listens, and keeps each call with the error g [n, ...] that comes back to its output; by the id of the layer."""

    seen: dict[int, list[Seen]] = field(default_factory=dict)

    def note(self, call: Call) -> None:
        """A layer was called."""
        if not call.y.requires_grad:
            return
        calls = self.seen.setdefault(id(call.layer), [])
        B = call.B.detach()
        kept = replace(call, x=call.x.detach(), y=call.y.detach(), W=call.W.detach(), made=lambda: B)
        # A hook sees the error at y itself, also where an in-place activation overwrites y later.
        call.y.register_hook(lambda g: calls.append((kept, g.detach())))


def angle(a: Tensor, b: Tensor) -> float:
    """The angle between two tensors [...] of one size as vectors, in degrees, 0 to 180; NaN where one of them is zero.

    From the chord between the unit vectors, which stays exact at small angles where arccos of the cosine
    does not.

    >>> import torch
    >>> round(angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])))
    45
    """
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    norms = a.norm(), b.norm()
    if not (norms[0] > 0 and norms[1] > 0):  # NaN too
        return math.nan
    a, b = a / norms[0], b / norms[1]
    return math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm())))


@dataclass(frozen=True)
class LayerAlignment:
    """One layer's alignment. Angles in degrees; NaN where a vector is zero or the layer was not reached.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa", init="copy")
    >>> row = measure(model, lambda: model(torch.randn(5, 4)).square().mean()).layers[""]
    >>> row.weight_angle, row.norm_ratio
    (0.0, 1.0)
    """

    weight_angle: float
    projection_angle: float
    local_gradient_angle: float
    gradient_angle: float
    norm_ratio: float
    reached_angle: float
    gradient_norm: float
    growth: float


@dataclass(frozen=True)
class AlignmentTable:
    """`LayerAlignment` by layer name, and the gradient angle over all parameters of the network. Print it.

    >>> table = AlignmentTable({"fc": LayerAlignment(30.0, 31.0, 29.0, 12.0, 1.0, 30.0, 0.5, 1.1)}, 12.0)
    >>> table.as_dict()["fc"]["weight_angle"]
    30.0
    """

    layers: dict[str, LayerAlignment]
    gradient_angle: float

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Plain numbers, by layer and quantity."""
        return {name: asdict(layer) for name, layer in self.layers.items()}

    def __str__(self) -> str:
        heads = (
            "weight °", "projection °", "local gradient °", "gradient °", "‖B‖/‖W‖",
            "reached °", "‖gradient‖", "growth",
        )  # fmt: skip
        width = max([len(n) for n in self.layers] + [len("whole network")])
        lines = [" ".join([f"{'layer':<{width}}", *(f"{h:>16}" for h in heads)])]
        for name, row in self.layers.items():
            shown = (_shown(v, ".2e" if key == "gradient_norm" else ".2f") for key, v in asdict(row).items())
            lines.append(" ".join([f"{name:<{width}}", *(f"{v:>16}" for v in shown)]))
        return "\n".join([*lines, f"{'whole network':<{width}} {_shown(self.gradient_angle, '.2f'):>{17 * 4 - 1}}"])


def _shown(v: float, form: str) -> str:
    return "–" if math.isnan(v) else f"{v:{form}}"


def weight_angles(model: nn.Module) -> dict[str, float]:
    """The angle between W and B of every untied layer, in degrees. Needs no data.

    Raises:
        UntiedError: nothing is converted.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa", init="angle(30)")
    >>> round(weight_angles(model)[""])
    30
    """
    with _same_random_numbers():
        return {name: angle(*_kernels(layer)) for name, layer in _layers(model).items()}


def reached_angles(model: nn.Module, closure: Callable[[], object]) -> dict[str, float]:
    """The angle between W and B of every untied layer, in degrees, of the weights that activity reaches.

    Args:
        model: a converted model.
        closure: runs a forward pass on a batch; called once, without gradients, and leaves no trace in random numbers.

    Raises:
        UntiedError: nothing is converted.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa", init="copy")
    >>> reached_angles(model, lambda: model(torch.randn(5, 4)))
    {'': 0.0}
    """
    layers, reach = _layers(model), Reach()
    buffers = {b: b.clone() for b in model.buffers()}
    with _same_random_numbers(), torch.no_grad(), listening(layers, reach, alone=True):
        closure()
        for buffer, before in buffers.items():
            buffer.copy_(before)
    with _same_random_numbers():
        return {name: angle(*_reached(layer, reach)) for name, layer in layers.items()}


def norm_ratios(model: nn.Module) -> dict[str, float]:
    """‖B‖ / ‖W‖ of every untied layer.

    Raises:
        UntiedError: nothing is converted.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "fa", init="copy")
    >>> norm_ratios(model)
    {'': 1.0}
    """
    with _same_random_numbers():
        return {name: _ratio(*_kernels(layer)) for name, layer in _layers(model).items()}


def measure(model: nn.Module, closure: Callable[[], Tensor], targets: Tensor | None = None) -> AlignmentTable:
    """Every metric on one batch, leaving the model, its gradients and all random numbers as they were.

    Args:
        model: a converted model.
        closure: runs a forward pass of the model on a batch and returns the task loss, 0-dim; called twice, with
            the same random numbers.
        targets: [n, C] or classes [n], for rules that send them, as `untied.record` takes them.

    Raises:
        UntiedError: nothing is converted, or the loss does not depend on the model.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "fa", init="copy")
    >>> x = torch.randn(5, 4)
    >>> table = measure(model, lambda: model(x).square().mean())
    >>> round(table.gradient_angle, 2), round(table.layers["0"].weight_angle, 2)
    (0.0, 0.0)
    """
    layers = _layers(model)
    errors, reach, inputs = Errors(), Reach(), Inputs()
    pseudo, exact = _both_gradients(model, closure, _All(errors, reach, inputs), targets)
    growth = inputs.growth()
    with _same_random_numbers():
        rows = {
            name: _row(layer, errors.seen.get(id(layer), []), pseudo, exact, reach, growth.get(id(layer), math.nan))
            for name, layer in layers.items()
        }
    return AlignmentTable(rows, _whole(pseudo, exact))


def gradient_angle(model: nn.Module, closure: Callable[[], Tensor], targets: Tensor | None = None) -> float:
    """The gradient angle of the whole network alone, in degrees: `measure` without the layers, at half its cost.

    Args:
        model, closure, targets: as `measure` has them: the closure's loss is 0-dim, targets are [n, C] or classes [n].

    Raises:
        UntiedError: nothing is converted, or the loss does not depend on the model.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "bp")
    >>> x = torch.randn(5, 4)
    >>> round(gradient_angle(model, lambda: model(x).square().mean()), 2)
    0.0
    """
    return _whole(*_both_gradients(model, closure, None, targets))


def _whole(pseudo: dict[int, Tensor], exact: dict[int, Tensor]) -> float:
    both = [k for k in exact if k in pseudo]
    return _unless_vanishing(_cat(pseudo, both), _cat(exact, both))


def _unless_vanishing(pseudo: Tensor, exact: Tensor) -> float:
    """The angle to backpropagation's gradient; NaN where that vanishes."""
    return angle(pseudo, exact) if float(exact.norm()) >= VANISHING else math.nan


class _All:
    """Several listeners as one."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def note(self, call: Call) -> None:
        for listener in self.listeners:
            listener.note(call)


def _both_gradients(
    model: nn.Module, closure: Callable[[], Tensor], errors: Listener | None, targets: Tensor | None
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """(pseudogradients, gradients) of one batch."""
    pseudo = _gradients(model, closure, errors, targets)
    with _backpropagating(_layers(model)):
        return pseudo, _gradients(model, closure, None, None)


def _row(
    layer: Untied,
    calls: list[Seen],
    pseudo: dict[int, Tensor],
    exact: dict[int, Tensor],
    reach: Reach,
    growth: float,
) -> LayerAlignment:
    projections: tuple[list[Tensor], list[Tensor]] = ([], [])
    errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    calls = calls if layer.rule.route.like_weight else []
    with torch.no_grad():
        for call, g in calls:
            for side, K in enumerate((call.W, call.B)):
                projections[side].append(call.geometry.project(call.x, K).flatten())
                errors[side].append(call.geometry.reconstruct(g, K, like=call.x).flatten())
    weights = [id(p) for w in layer.own_weights() for p in leaves(layer, w)]  # type: ignore[arg-type]
    weights = [w for w in weights if w in pseudo and w in exact]
    W, B = _kernels(layer)
    return LayerAlignment(
        weight_angle=angle(W, B),
        projection_angle=angle(*map(torch.cat, projections)) if calls else math.nan,
        local_gradient_angle=angle(*map(torch.cat, errors)) if calls else math.nan,
        gradient_angle=_unless_vanishing(_cat(pseudo, weights), _cat(exact, weights)) if weights else math.nan,
        norm_ratio=_ratio(W, B),
        reached_angle=angle(*_reached(layer, reach)),
        gradient_norm=float(_cat(exact, weights).norm()) if weights else math.nan,
        growth=growth,
    )


def _gradients(
    model: nn.Module, closure: Callable[[], Tensor], errors: Listener | None, targets: Tensor | None
) -> dict[int, Tensor]:
    """Gradient of the loss in every forward parameter, by id, with nothing of the model changed by the
    pass."""
    layers = _layers(model)
    backward = {id(B) for layer in layers.values() for B in layer.backward_parameters()}
    parameters = {id(p): p for p in model.parameters() if p.requires_grad and id(p) not in backward}
    buffers = {b: b.clone() for b in model.buffers()}

    try:
        listener = Errors() if errors is None else errors
        with (
            _same_random_numbers(),
            torch.enable_grad(),
            broadcasting(layers, targets),
            listening(layers, listener, alone=True),
        ):
            loss = closure()
        if not loss.requires_grad:
            raise UntiedError(
                "the closure's loss needs no gradient of any parameter: return the task loss of a forward pass"
            )
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
    return {i: g for i, g in zip(parameters, gradients, strict=True) if g is not None}


def _same_random_numbers() -> AbstractContextManager[None]:
    """Leave every device's random numbers as they were; a redrawn magnitude (brSF) takes some."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


@contextmanager
def _backpropagating(layers: dict[str, Untied]) -> Iterator[None]:
    """Every layer sends errors back through W for a while: the gradient that the pseudogradient stands in
    for."""
    rules = {name: layer.rule for name, layer in layers.items()}
    for layer in layers.values():
        layer.rule = Backpropagation()
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.rule = rules[name]


def _layers(model: nn.Module) -> dict[str, Untied]:
    layers = untied_layers(model)
    if not layers:
        raise UntiedError(
            "nothing in this model is converted: call untied.untie_(model, rule) first ('bp' for a baseline)"
        )
    for name, layer in layers.items():
        for weight in layer.own_weights() if layer.rule.moves_itself else ():
            layer.rule.settle(Visit(getattr(layer, weight), layer.beside(weight), layer.geometry_of(weight), name))
    return layers


def _kernels(layer: Untied) -> tuple[Tensor, Tensor]:
    """W and B as vectors; B is NaN where it has another layout, so that no angle is a number."""
    if not layer.rule.route.like_weight:
        W = torch.cat([getattr(layer, w).detach().flatten() for w in layer.own_weights()])
        return W, torch.full_like(W, math.nan)
    pairs = [(W := getattr(layer, w), layer.backward_kernel(w, W)) for w in layer.own_weights()]
    return torch.cat([W.detach().flatten() for W, _ in pairs]), torch.cat([B.detach().flatten() for _, B in pairs])


def _reached(layer: Untied, reach: Reach) -> tuple[Tensor, Tensor]:
    """W and B as vectors, without the weights that no activity reaches; whole where the layer was not called."""
    W, B = _kernels(layer)
    own: list[Tensor] = [getattr(layer, w) for w in layer.own_weights()]
    seen = [reach.seen.get(id(w)) for w in own]
    if all(s is None for s in seen):
        return W, B
    masks = [torch.ones_like(w, dtype=torch.bool) if s is None else s for w, s in zip(own, seen, strict=True)]
    mask = torch.cat([m.flatten() for m in masks])
    return W[mask], B[mask]


def _ratio(W: Tensor, B: Tensor) -> float:
    return float(B.double().norm() / W.double().norm()) if bool(W.any()) else math.nan


def _cat(gradients: dict[int, Tensor], keys: list[int]) -> Tensor:
    return torch.cat([gradients[k].double().flatten().cpu() for k in keys]) if keys else torch.zeros(0)
