"""`verify` says by numbers, knowing no class, what a network's errors go through and what moves each B.

Legend: g the gradient of the task loss under the untied network; "plain" the same network under backpropagation.

    oracle   y = T_B x + (T_W x - T_B x) with x detached in the bracket: forward T_W x, errors through B, in plain
             operations that share nothing with `untied.autograd` but the geometry's ``project``
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UntiedError
from .geometry import Geometry
from .layers import Untied, untied_layers
from .tape import record

__all__ = ["Finding", "Verification", "verify"]

Closure = Callable[[nn.Module], Tensor]
Gradients = dict[str, Tensor | None]
VANISHING = 1e-4  # share of the largest gradient, below which a difference is measured against that one


@dataclass(frozen=True)
class Finding:
    """What one parameter shows.

    Attributes:
        name: of the parameter. layer: of the module that owns it.
        gradient: "backprop's", "zero" (both to rounding), "none", or "its own"; "B" for a backward weight.
        notes: what is wrong with it; empty where nothing is.
    """

    name: str
    layer: str
    gradient: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What `verify` found. Print it.

    Attributes:
        findings: a row for each parameter.
        problems: what makes the verdict; empty where all is well.
    """

    findings: tuple[Finding, ...]
    problems: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """One line."""
        if self.verified:
            return "verified: errors go through B alone, and what should move B does"
        shown = "; ".join(self.problems[:5])
        more = f"; and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
        return f"not verified: {shown}{more}"

    def __str__(self) -> str:
        width = max([len(f.name) for f in self.findings] + [len("parameter")])
        lines = [f"{'parameter':<{width}}  {'gradient':<10}  notes"]
        lines += [f"{f.name:<{width}}  {f.gradient:<10}  {'; '.join(f.notes)}".rstrip() for f in self.findings]
        return "\n".join([*lines, self.verdict])


def verify(
    model: nn.Module,
    closure: Closure,
    optimizer: torch.optim.Optimizer | None = None,
    strict: bool = False,
    rtol: float | None = None,
) -> Verification:
    """Look at one batch, by number: does each B carry errors, does anything move it, is the gradient the right one?

    It works on a deep copy in float64, in training mode, without dropout; the model, its gradients, buffers and all
    random numbers stay as they were. A batch costs a few passes, and one more for each B.

    ::

        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        untied.untie_(model, "sa")
        x, labels = torch.randn(16, 4), torch.randint(3, (16,))
        print(untied.verify(model, lambda m: nn.functional.cross_entropy(m(x), labels)))

    Args:
        model: converted.
        closure: gets a copy of the model, runs it on a batch, and returns the task loss, 0-dim. Inputs [n, ...] may
            be float32; they are widened. Where the copy cannot work in float64, it works in the model's own type.
        optimizer: what trains the model; then each B that learns has to be in it.
        strict: raise where something is wrong.
        rtol: the relative distance at which two gradients differ; by default 1e-8 in float64, 1e-4 else.

    Raises:
        UntiedError: nothing is converted; the loss does not depend on the model; or, with ``strict``, the verdict.
    """
    if not untied_layers(model):
        raise UntiedError("nothing in this model is converted: call untied.untie_(model, rule) first")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            probe = _Probe(copy.deepcopy(model).double(), closure)
            untied_gradients = probe.gradients()
        except RuntimeError as error:  # what takes float32 inputs refuses float64 weights
            if "dtype" not in str(error) and "type" not in str(error):
                raise
            probe = _Probe(copy.deepcopy(model), closure)
            untied_gradients = probe.gradients()
        found = probe.look(untied_gradients, rtol)
    if optimizer is not None:
        inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
        learns = {n for n, p in model.named_parameters() if n in probe.should_move and id(p) not in inside}
        found = [_with(f, "in no optimizer") if f.name in learns else f for f in found]
    problems = tuple(f"{f.name} {note}" for f in found for note in f.notes)
    report = Verification(tuple(found), problems)
    if strict and problems:
        raise UntiedError(f"{report.verdict}; print(untied.verify(...)) shows every parameter")
    return report


class _Probe:
    """A copy of the model that may be changed, and what is measured on it."""

    def __init__(self, model: nn.Module, closure: Closure) -> None:
        self.model, self.closure = model.train(), closure
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        if all(p.dtype == torch.float64 for p in model.parameters()):
            model.register_forward_pre_hook(_in_float64, with_kwargs=True)
        self.layers = untied_layers(model)
        self.names = {id(p): n for n, p in model.named_parameters()}
        self.start = {n: b.clone() for n, b in model.named_buffers()}
        self.learns = {n for n, p in model.named_parameters() if p.requires_grad}
        self.backward: dict[str, Untied] = {
            self.names[id(B)]: layer for layer in self.layers.values() for B in layer.backward_parameters()
        }
        self.should_move = {n for n, layer in self.backward.items() if layer.rule.aligns or layer.rule.copies_gradient}
        for parameter in model.parameters():  # a frozen one still shows which way errors go
            parameter.requires_grad_(True)

    def gradients(self) -> Gradients:
        """Of the task in every parameter, with the same random numbers and buffers each time."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.start[name])
        torch.manual_seed(0)
        with torch.enable_grad(), record(self.model, progress=0.5, step=0, align=False):
            loss = self.closure(self.model)
        if not loss.requires_grad:
            raise UntiedError("the closure's loss depends on no parameter: return the task loss of a forward pass")
        named = dict(self.model.named_parameters())
        found: Gradients = dict(
            zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True)
        )
        if all(g is None for g in found.values()):
            raise UntiedError("the closure's loss depends on another model: run the one that the closure is given")
        return found

    def look(self, own: Gradients, rtol: float | None) -> list[Finding]:
        """A row for each parameter."""
        wide = all(p.dtype == torch.float64 for p in self.model.parameters())
        tolerance = rtol if rtol is not None else (1e-8 if wide else 1e-4)
        scale = _norm(own)
        called: set[int] = set()
        with _connecting(self.layers, _oracle(called)):
            oracle = self.gradients()
        with _connecting(self.layers, _plainly):
            plain = self.gradients()
        carriers = self._carriers()
        moves, from_R = self._moves(own, tolerance, scale), self._gradients_of_R()
        rows = []
        for name, g in own.items():
            notes: list[str] = []
            layer = name.rpartition(".")[0]
            if name in self.backward:
                if id(self.backward[name]) not in called:
                    notes.append("is never used: its layer is not called, so errors pass it by")
                elif name not in moves:
                    notes.append("moves nothing: no gradient depends on it")
                if name in self.should_move and name not in self.learns:
                    notes.append("is frozen, though its rule moves it")
                elif name in self.should_move and self.backward[name].rule.aligns and from_R.get(name) is None:
                    notes.append("gets no gradient from R")
                rows.append(Finding(name, layer, "B", tuple(notes)))
                continue
            if not _same(g, oracle[name], tolerance, scale):
                notes.append("differs from the straight-through gradient")
            if name in carriers:
                notes.append("carries backprop's errors outside the untied operation")
            rows.append(Finding(name, layer, _kind(g, plain[name], tolerance, scale), tuple(notes)))
        return rows

    def _moves(self, own: Gradients, tolerance: float, scale: float) -> set[str]:
        """Each B whose change changes the gradient of some forward parameter. The first layer's cannot: nothing lies
        below it, which its input shows by needing no gradient."""
        found = set(self._nothing_below())
        for name in self.backward:
            if name in found:
                continue
            with self._changed(name):
                other = self.gradients()
            if any(not _same(own[n], other[n], tolerance, scale) for n in own if n not in self.backward):
                found.add(name)
        return found

    def _nothing_below(self) -> set[str]:
        below: dict[int, bool] = {}

        def see(layer: Untied, x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
            below[id(layer)] = below.get(id(layer), False) or x.requires_grad
            return _plainly(layer, x, W, B, bias, geometry)

        with _connecting(self.layers, see):
            self.gradients()
        return {n for n, layer in self.backward.items() if not below.get(id(layer), True)}

    @contextmanager
    def _changed(self, name: str) -> Iterator[None]:
        parameter = self.model.get_parameter(name)
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * (before.std(correction=0) + 1e-3))
        try:
            yield
        finally:
            with torch.no_grad():
                parameter.copy_(before)

    def _gradients_of_R(self) -> Gradients:
        """Of R in each B. Noise may be drawn; only whether there is a gradient counts."""
        with torch.enable_grad(), record(self.model, progress=0.5, step=0) as tape:
            self.closure(self.model)
        for layer in self.layers.values():
            layer.was_called = True  # who was passed by is said above
        R = tape.penalty()
        targets = [self.model.get_parameter(n) for n in self.backward]
        if not R.requires_grad or not targets:
            return {}
        return dict(zip(self.backward, torch.autograd.grad(R, targets, allow_unused=True), strict=True))

    def _carriers(self) -> set[str]:
        """Each parameter through which some product outside the untied operation sends errors back."""
        products = _Products(self.model)
        with products:
            self.gradients()
        return products.carriers


class _Products(torch.overrides.TorchFunctionMode):
    """Sees each product of what is made of parameters alone with what is activity and needs an error.

    The untied operation is not seen: what happens within an autograd function is without autograd.
    """

    NAMES = frozenset({
        "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv",
        "dot", "einsum", "tensordot", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
        "conv_transpose3d", "bilinear", "multi_head_attention_forward", "rnn_tanh", "rnn_relu", "lstm", "gru",
        "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell", "inner", "convolution", "chain_matmul", "multi_dot",
    })  # fmt: skip

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made_of: dict[int, tuple[Tensor, frozenset[str]]] = {
            id(p): (p, frozenset({n})) for n, p in model.named_parameters()
        }
        self.constant = {id(b) for b in model.buffers()}
        self.carriers: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not torch.is_grad_enabled():
            return result
        given = [t for t in _tensors((args, kwargs)) if id(t) not in self.constant]
        weights = [self.made_of[id(t)] for t in given if id(t) in self.made_of]
        activity = [t for t in given if id(t) not in self.made_of]
        if getattr(func, "__name__", "") in self.NAMES and any(t.requires_grad for t in activity):
            self.carriers |= {n for w, names in weights if w.dim() > 1 for n in names}
        if weights and not activity:  # a view, a transpose, a mask: still a kernel
            names = frozenset().union(*(names for _, names in weights))
            for t in _tensors(result):
                self.made_of.setdefault(id(t), (t, names))
        return result


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for part in given:
            yield from _tensors(part)
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))


Apply = Callable[[Untied, Tensor, Tensor, Tensor, Tensor | None, Geometry], Tensor]


@contextmanager
def _connecting(layers: dict[str, Untied], apply: Apply) -> Iterator[None]:
    """Let every layer of one model connect by another operation for a while."""

    def connect_of(layer: Untied) -> Callable[..., Tensor]:
        def connect(
            x: Tensor,
            geometry: Geometry,
            weight: str = "weight",
            bias: str | None = "bias",
            part: slice | None = None,
        ) -> Tensor:
            W, b = getattr(layer, weight), None if bias is None else getattr(layer, bias)
            B = layer.backward_kernel(weight, W)
            if part is not None:
                W, B, b = W[part], B[part], None if b is None else b[part]
            return apply(layer, x, W, B, b, geometry)

        return connect

    for layer in layers.values():
        layer.__dict__["connect"] = connect_of(layer)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.__dict__["connect"]


def _oracle(called: set[int]) -> Apply:
    """The straight-through construction of the legend; notes which layers are called."""

    def apply(layer: Untied, x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        called.add(id(layer))
        fixed = x.detach()
        y = geometry.project(x, B.detach())
        y = y + (geometry.project(fixed, W) - geometry.project(fixed, B.detach()))
        return y if bias is None else geometry.add_bias(y, bias)

    return apply


def _plainly(layer: Untied, x: Tensor, W: Tensor, B: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    y = geometry.project(x, W)
    return y if bias is None else geometry.add_bias(y, bias)


def _in_float64(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    def wide(given: Any) -> Any:
        return given.double() if isinstance(given, Tensor) and given.is_floating_point() else given

    return tuple(map(wide, args)), {name: wide(given) for name, given in kwargs.items()}


def _same(a: Tensor | None, b: Tensor | None, tolerance: float, scale: float) -> bool:
    """Whether two gradients agree. ``scale``: the whole gradient's norm, beside which rounding leaves no true zeros."""
    a, b = (torch.zeros(()) if t is None else t for t in (a, b))
    return float((a - b).norm()) <= tolerance * max(float(a.norm()), float(b.norm()), VANISHING * scale)


def _kind(g: Tensor | None, plain: Tensor | None, tolerance: float, scale: float) -> str:
    if g is None:
        return "none"
    if float(g.norm()) <= tolerance * VANISHING * scale:
        return "zero"
    return "backprop's" if plain is not None and _same(g, plain, tolerance, scale) else "its own"


def _norm(gradients: Gradients) -> float:
    return max((float(g.norm()) for g in gradients.values() if g is not None), default=0.0)


def _with(row: Finding, note: str) -> Finding:
    return Finding(row.name, row.layer, row.gradient, (*row.notes, note))
