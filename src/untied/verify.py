"""`verify` says by numbers, knowing no class, what a network's errors go through and what moves each B.

Legend: g the gradient of the task loss under the untied network; "plain" the same network under backpropagation;
"oracle" the same by the constructions of `untied.layers.oracle`, in plain operations.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import UntiedError
from .layers.layer import Untied, backward_name, untied_layers
from .layers.oracle import Sent, connecting, plainly
from .layers.products import Products, unwatch
from .parametrized import leaves
from .recording import listening, record, visit
from .rules.call import Call

__all__ = ["Finding", "Verification", "verify"]

Closure = Callable[[nn.Module], Tensor]
Gradients = dict[str, Tensor | None]
VANISHING = 1e-4  # share of the largest gradient, below which a difference is measured against that one
ROUNDING = 1e-8  # share of the largest gradient that float64 may leave of a zero, such as a bias's below batch norm


@dataclass(frozen=True)
class Finding:
    """What one parameter shows.

    Attributes:
        name: of the parameter. layer: of the module that owns it.
        gradient: "backprop's", "zero" (both to rounding), "none", or "its own"; "B" for a backward weight, "B, unused"
            where the batch did not pass its layer; "B, idle" where no error comes, under backpropagation neither.
        notes: what is wrong with it; empty where nothing is.

    >>> Finding("fc.backward_weight", "fc", "B", ("is frozen, though its rule moves it",)).gradient
    'B'
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

    >>> Verification((), ("fc.backward_weight is in no optimizer",)).verdict
    'not verified: fc.backward_weight is in no optimizer'
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
    targets: Tensor | None = None,
    dtype: torch.dtype | None = torch.float64,
) -> Verification:
    """Look at one batch, by number: does each B carry errors, does anything move it, is the gradient the right one?

    It works on a deep copy in float64, in training mode, without dropout; the model, its gradients, buffers and all
    random numbers stay as they were. It costs six passes, eight where a rule broadcasts, and the memory of the copy and
    of six gradients.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "sa")
    >>> x, labels = torch.randn(16, 4), torch.randint(3, (16,))
    >>> print(untied.verify(model, lambda m: torch.nn.functional.cross_entropy(m(x), labels)).verdict)
    verified: errors go through B alone, and what should move B does

    Args:
        model: converted.
        closure: gets a copy of the model, runs it on a batch, and returns the task loss, 0-dim. Inputs [n, ...] may
            be float32; they are widened. Where the copy cannot work in float64, it works in the model's own type.
        optimizer: what trains the model; then each B that learns has to be in it, and it has to suit R.
        strict: raise where something is wrong.
        rtol: the relative distance at which two gradients differ; by default 1e-8 in float64, 5e-2 else.
        targets: for rules that send them, as `untied.record` takes them.
        dtype: the copy's type; None leaves it as it is, which is faster for large networks.

    Raises:
        UntiedError: nothing is converted; the loss does not depend on the model; it takes gradients of gradients under
            a rule that broadcasts; or, with ``strict``, the verdict.
    """
    if not untied_layers(model):
        raise UntiedError("nothing in this model is converted: call untied.untie_(model, rule) first")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            twin = _copied(model)
            probe = _Probe(twin if dtype is None else twin.to(dtype), closure, targets)
            own = probe.own()
        except RuntimeError as error:  # what takes float32 inputs refuses float64 weights
            if "dtype" not in str(error) and "type" not in str(error):
                raise
            probe = _Probe(_copied(model), closure, targets)
            own = probe.own()
        found = probe.look(own, rtol)
    if optimizer is not None:
        inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
        learns = {n for n, p in model.named_parameters() if n in probe.should_move and id(p) not in inside}
        found = [_with(f, "in no optimizer") if f.name in learns else f for f in found]
    problems = tuple(f"{f.name} {note}" for f in found for note in f.notes)
    if isinstance(optimizer, torch.optim.LBFGS) and any(layer.rule.aligns for layer in probe.layers.values()):
        problems += ("optimizer LBFGS minimises one loss by line search, and R has no lower bound",)
    report = Verification(tuple(found), problems)
    if strict and problems:
        raise UntiedError(f"{report.verdict}; print(untied.verify(...)) shows every parameter")
    return report


class _Probe:
    """A copy of the model that may be changed, and what is measured on it."""

    def __init__(self, model: nn.Module, closure: Closure, targets: Tensor | None) -> None:
        self.model, self.closure, self.targets = model.train(), closure, targets
        for module in model.modules():
            unwatch(module)  # what it would refuse is said here
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        if all(p.dtype == torch.float64 for p in model.parameters()):
            model.register_forward_pre_hook(_in_float64, with_kwargs=True)
        self.layers = untied_layers(model)
        self.broadcasts = any(layer.rule.route.broadcasts for layer in self.layers.values())
        self.names = {id(p): n for n, p in model.named_parameters()}
        visit(self.layers, 0, False)  # a kernel that is made of others is another one in float64
        self.start = {n: b.clone() for n, b in model.named_buffers()}
        self.learns = {n for n, p in model.named_parameters() if p.requires_grad}
        self.backward: dict[str, Untied] = {
            self.names[id(B)]: layer for layer in self.layers.values() for B in layer.backward_parameters()
        }
        self.should_move = {
            n
            for n, layer in self.backward.items()
            if (layer.rule.aligns or layer.rule.copies_gradient)
            and (not layer.rule.follows or self.learns & set(self._kernels(layer)))
        }
        self.errors, self.products = _Errors(), Products(model)
        for layer in self.layers.values():
            layer.was_called = True  # who is passed by is said here
        self._all_learn()

    def own(self) -> Gradients:
        """The gradients as training has them; products and errors are seen on the way."""
        if any(is_lazy(B) for B in self.model.parameters()):  # the first pass says how large a dense B is
            self.gradients()
            self._all_learn()
        with self.products, listening(self.layers, self.errors):
            return self.gradients()

    def _all_learn(self) -> None:
        for parameter in self.model.parameters():  # a frozen one still shows which way errors go
            if not is_lazy(parameter):
                parameter.requires_grad_(True)

    def loss(self) -> Tensor:
        """The task's, with the same random numbers and buffers each time."""
        with torch.no_grad():
            for name, buffer in list(self.model.named_buffers()):
                if buffer.shape == self.start[name].shape and buffer.is_leaf:
                    buffer.copy_(self.start[name])
                else:  # a state that the pass has put in its place, as spiking units do
                    owner, _, leaf = name.rpartition(".")
                    self.model.get_submodule(owner)._buffers[leaf] = self.start[name].clone()
        torch.manual_seed(0)
        with (
            torch.enable_grad(),
            record(self.model, progress=0.5, step=0, align=False, targets=self.targets),
        ):
            loss = self.closure(self.model)
        if not loss.requires_grad:
            raise UntiedError("the closure's loss depends on no parameter: return the task loss of a forward pass")
        return loss

    def gradients(self, sent: Sent | None = None) -> Gradients:
        """Of the task in every parameter, and of what an oracle adds to it."""
        loss = self.loss()
        loss = loss if sent is None else loss + sent.total
        named = {n: p for n, p in self.model.named_parameters() if not is_lazy(p) and p.requires_grad}
        found: Gradients = dict(
            zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True)
        )
        if all(g is None for g in found.values()):
            raise UntiedError("the closure's loss depends on another model: run the one that the closure is given")
        return found

    def look(self, own: Gradients, rtol: float | None) -> list[Finding]:
        """A row for each parameter."""
        wide = all(p.dtype == torch.float64 for p in self.model.parameters())
        tolerance = rtol if rtol is not None else (1e-8 if wide else 5e-2)
        scale = _norm(own)
        with connecting(self.layers, plainly):
            plain = self.gradients()
        differs = self._differing(own, tolerance, scale)
        with self._all_changed():
            differs |= self._differing(self.gradients(), tolerance, scale)
        carriers = self.products.carriers - self._rightly()
        from_R = self._gradients_of_R()
        rows = []
        for name, g in own.items():
            notes: list[str] = []
            layer = name.rpartition(".")[0]
            if name in self.backward:
                of, what = self.backward[name], "B"
                if id(of) not in self.errors.called:
                    what = "B, unused"
                    replaced = "forward" in vars(of)  # by somebody's hook, which may call another layer's
                    if replaced or any(own[w] is not None for w in self._kernels(of)):
                        notes.append("is never used: its layer is not called, so errors pass it by")
                elif id(of) in self.errors.idle and not any(_any(plain[w]) for w in self._kernels(of)):
                    what = "B, idle"
                elif id(of) in self.errors.idle:
                    notes.append("moves nothing: no error comes to it")
                if name in self.should_move and name not in self.learns:
                    notes.append("is frozen, though its rule moves it")
                elif (
                    name in self.should_move
                    and self._descends(name)
                    and from_R.get(name) is None
                    and what != "B, unused"
                ):
                    notes.append("gets no gradient from R")
                if name in differs:
                    notes.append("gets another gradient than its rule copies")
                elif self._is_alone(name) and _any(g):
                    notes.append("gets the task's gradient, which its rule does not give it")
                rows.append(Finding(name, layer, what, tuple(notes)))
                continue
            if name in differs:
                notes.append(f"differs from the {'broadcast' if self.broadcasts else 'straight-through'} gradient")
            if name in carriers:
                notes.append("carries backprop's errors outside the untied operation")
            rows.append(Finding(name, layer, _kind(g, plain[name], tolerance, scale), tuple(notes)))
        return rows

    def _differing(self, found: Gradients, tolerance: float, scale: float) -> set[str]:
        """Whose gradients the oracle does not confirm: those of the task, and of each B those that its rule copies."""
        oracle = self._oracles()
        copying = {n for n, layer in self.backward.items() if layer.rule.copies and n in self._kernels(layer, True)}
        compared = [n for n in found if n not in self.backward or n in copying]
        return {n for n in compared if not _same(found[n], oracle[n], tolerance, scale, ROUNDING)}

    def _oracles(self) -> Gradients:
        sent = Sent(self.layers, self.targets)
        if not self.broadcasts:
            with connecting(self.layers, sent):
                return self.gradients(sent)
        try:
            with connecting(self.layers, sent):  # a pass more, for the error of the output
                sent.read(self.loss())
            with connecting(self.layers, sent):
                return self.gradients(sent)
        except RuntimeError as error:
            if "not have been used in the graph" not in str(error):
                raise
            raise UntiedError(
                "the closure takes a gradient by itself, and under a rule that broadcasts there is no graph from the "
                "output to the input: give verify the task's loss alone"
            ) from None

    def _kernels(self, layer: Untied, backward: bool = False) -> list[str]:
        """The names of the parameters that a layer's kernels, or its ``backward`` ones, are made of."""
        own = [backward_name(w) if backward else w for w in layer.own_weights()]
        return [self.names[id(p)] for w in own for p in leaves(layer, w)]  # type: ignore[arg-type]

    def _descends(self, name: str) -> bool:
        """Whether R has a gradient in this backward parameter. What a route keeps beside B moves otherwise."""
        layer = self.backward[name]
        return layer.rule.aligns and name in self._kernels(layer, True)

    def _is_alone(self, name: str) -> bool:
        """Whether the task shall leave this backward parameter alone."""
        rule = self.backward[name].rule
        return not rule.copies_gradient and not rule.route.factored

    @contextmanager
    def _all_changed(self) -> Iterator[None]:
        """Every B is another one for a while: whoever does not use its B then differs from who does."""
        before = {n: self.model.get_parameter(n).detach().clone() for n in self.backward}
        with torch.no_grad():
            for name, B in before.items():
                self.model.get_parameter(name).add_(torch.randn_like(B) * (B.std(correction=0) + 1e-3))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, B in before.items():
                    self.model.get_parameter(name).copy_(B)

    def _gradients_of_R(self) -> Gradients:
        """Of R in each B. Noise may be drawn; only whether there is a gradient counts."""
        with torch.enable_grad(), record(self.model, progress=0.5, step=0, targets=self.targets) as tape:
            self.closure(self.model)
        if not tape.called:
            return {}
        with warnings.catch_warnings():  # of a frozen B, which is said below
            warnings.simplefilter("ignore")
            R = tape.penalty()
        targets = [self.model.get_parameter(n) for n in self.backward]
        if not R.requires_grad or not targets:
            return {}
        return dict(zip(self.backward, torch.autograd.grad(R, targets, allow_unused=True), strict=True))

    def _rightly(self) -> set[str]:
        """What carries backpropagation's errors because its rule is that."""
        by_rule = [layer for layer in self.layers.values() if layer.rule.exact]
        if len(by_rule) == len(self.layers):
            return set(self.names.values())
        return {self.names[id(p)] for layer in by_rule for w in layer.own_weights() for p in leaves(layer, w)}  # type: ignore[arg-type]


class _Errors:
    """Listens: which layers are called, and to which of them no error comes though something lies below.

    Attributes:
        called: ids of layers. idle: those that have an input with a gradient, and got errors of zero alone.
    """

    def __init__(self) -> None:
        self.called: set[int] = set()
        self.below: set[int] = set()
        self.reached: set[int] = set()

    def note(self, call: Call) -> None:
        """A layer was called."""
        layer = id(call.layer)
        self.called.add(layer)
        if call.x.requires_grad and call.y.requires_grad:
            self.below.add(layer)
            call.y.register_hook(lambda g: self.reached.add(layer) if bool(g.any()) else None)

    @property
    def idle(self) -> set[int]:
        return self.below - self.reached


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where a pass has left a state that is a part of its graph, as spiking units keep theirs."""
    kept = [v for m in model.modules() for v in (*vars(m).values(), *m._buffers.values())]
    states = [t for t in kept if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in states})


def _in_float64(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    def wide(given: Any) -> Any:
        return given.double() if isinstance(given, Tensor) and given.is_floating_point() else given

    return tuple(map(wide, args)), {name: wide(given) for name, given in kwargs.items()}


def _same(a: Tensor | None, b: Tensor | None, tolerance: float, scale: float, rounding: float = 0.0) -> bool:
    """Whether two gradients agree. ``scale``: the largest one's norm, of which ``rounding`` is no difference."""
    a, b = (torch.zeros(()) if t is None else t for t in (a, b))
    size = max(float(a.norm()), float(b.norm()), VANISHING * scale)
    return float((a - b).norm()) <= max(tolerance * size, rounding * scale)


def _kind(g: Tensor | None, plain: Tensor | None, tolerance: float, scale: float) -> str:
    if g is None:
        return "none"
    if float(g.norm()) <= tolerance * VANISHING * scale:
        return "zero"
    return "backprop's" if plain is not None and _same(g, plain, tolerance, scale) else "its own"


def _any(g: Tensor | None) -> bool:
    return g is not None and bool(g.any())


def _norm(gradients: Gradients) -> float:
    return max((float(g.norm()) for g in gradients.values() if g is not None), default=0.0)


def _with(row: Finding, note: str) -> Finding:
    return Finding(row.name, row.layer, row.gradient, (*row.notes, note))
