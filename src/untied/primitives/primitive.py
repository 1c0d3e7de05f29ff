"""Table 1 of the paper: the five primitives, penalty and gradient side by side, and their linear
combinations.

Legend, as in geometry.py and operations.py
    x  layer input    y  forward projection T_W x    p  backward projection T_B x    T_B* y  reconstruction
    B is in W's layout: the paper's B_l is its transpose.

Penalties are summed over the batch, positions and channels; the rule divides by the batch size (paper: per
example). A gradient is a tensor in B's layout, or a `Correlation`, so that terms which share a side can be
merged before the costly product is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from ..coefficients.coefficient import Coefficient, Statistic, add, coefficient_text, multiply
from ..errors import UntiedError
from ..geometry import inner
from ..operations.signals import Signals

__all__ = [
    "KNOWN",
    "LEAKS",
    "PRIMITIVES",
    "Coefficient",
    "Combination",
    "Correlation",
    "Multiple",
    "Number",
    "Primitive",
    "amp",
    "copy",
    "decay",
    "null",
    "register_primitive",
    "self_",
    "sparse",
    "total",
    "unregister_primitive",
]


Number = float | Tensor
"""A coefficient's value now: a 0-dim tensor where it changes in training, so that a compiled step stays compiled."""


@dataclass(frozen=True)
class Correlation:
    """The gradient ``factor * correlate(left, right)``, not yet computed: left [n, ..., i], right [n, ..., o].

    >>> import torch
    >>> Correlation(-1.0, torch.ones(5, 4), torch.ones(5, 3)).factor
    -1.0
    """

    factor: float | Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Multiple:
    """The gradient ``factor * tensor``, not yet multiplied: it adds to others in one pass.

    >>> import torch
    >>> Multiple(-1.0, torch.ones(3, 4)).tensor.shape
    torch.Size([3, 4])
    """

    factor: float
    tensor: Tensor


class Combination(Mapping["Primitive", Coefficient]):
    """R: a linear combination of primitives. ``1e-3 * amp + 1e-3 * decay`` makes one.

    >>> from untied.primitives import amp, decay
    >>> 2 * amp + decay
    2*amp + decay
    """

    def __init__(self, coefficients: Mapping[Primitive, Coefficient]) -> None:
        self._coefficients = {p: c for p, c in coefficients.items() if callable(c) or c != 0}

    def __getitem__(self, primitive: Primitive) -> Coefficient:
        return self._coefficients[primitive]

    def __iter__(self) -> Iterator[Primitive]:
        return iter(self._coefficients)

    def __len__(self) -> int:
        return len(self._coefficients)

    def __hash__(self) -> int:
        return hash(frozenset(self._coefficients.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Combination) and self._coefficients == other._coefficients

    def __add__(self, other: Combination | Primitive) -> Combination:
        if isinstance(other, Primitive):
            other = Combination({other: 1.0})
        if not isinstance(other, Combination):
            return NotImplemented
        merged = dict(self)
        for primitive, c in other.items():
            merged[primitive] = add(merged[primitive], c) if primitive in merged else c
        return Combination(merged)

    def __mul__(self, factor: Coefficient) -> Combination:
        if not (callable(factor) or isinstance(factor, int | float | Statistic)):
            return NotImplemented
        return Combination({p: multiply(factor, c) for p, c in self.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Combination:
        return self * -1.0

    def __sub__(self, other: Combination | Primitive) -> Combination:
        return self + -1.0 * other

    def __repr__(self) -> str:
        return " + ".join(p.name if c == 1 else f"{coefficient_text(c)}*{p.name}" for p, c in self.items()) or "0"


def total(x: Tensor) -> Tensor:
    """The sum, a 0-dim tensor, in float32 at least.

    >>> total(torch.ones(3, dtype=torch.bfloat16))
    tensor(3.)
    """
    return x.sum(dtype=torch.promote_types(x.dtype, torch.float32))


def energy(x: Tensor) -> Tensor:
    """The sum of squares, in float32 at least."""
    return inner(x, x)


class Primitive:
    """A penalty of one layer and its gradient in B. Subclass it to add one; an instance multiplies and adds
    into rules.

    Attributes:
        name: as written in rules. formula, gradient_formula: for people, in this file's legend.
        degree: in B; the penalty is homogeneous, so <B, gradient> = degree * penalty.
        needs_data: whether it sees activity; if not, it is a function of W and B alone.
        needs_error: whether it sees the error at the layer's output, which only the backward pass knows.
        signal: what B makes of the activity that it uses: "projection" (T_B x), "reconstruction" (T_B* y), or None.
        local_computation: synaptic weights act only on their own inputs (paper, section 3.1, criterion 1).
        local_plasticity: the update depends on pre- and postsynaptic activity only (criterion 2).

    >>> from untied.primitives import amp
    >>> amp.name, amp.local, amp.needs_data
    ('amp', True, True)
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    gradient_formula: ClassVar[str]
    degree: ClassVar[int]
    needs_data: ClassVar[bool]
    needs_error: ClassVar[bool] = False
    signal: ClassVar[str | None] = None
    local_computation: ClassVar[bool] = True
    local_plasticity: ClassVar[bool] = True

    def penalty(self, s: Signals) -> Tensor:
        """P, the readable definition: 0-dim, differentiable in everything it is made of."""
        raise NotImplementedError

    def gradient(self, s: Signals) -> Tensor | Multiple | Correlation:
        """The closed form of dP/dB, where no operation acts on what B produced. Without one, autograd of P serves."""
        raise NotImplementedError(f"{type(self).__name__}.gradient")

    @property
    def has_gradient(self) -> bool:
        """Whether there is a closed form."""
        return type(self).gradient is not Primitive.gradient

    @property
    def local(self) -> bool:
        """Whether it satisfies both criteria."""
        return self.local_computation and self.local_plasticity

    def __mul__(self, factor: Coefficient) -> Combination:
        return Combination({self: 1.0}) * factor

    __rmul__ = __mul__

    def __add__(self, other: Combination | Primitive) -> Combination:
        return Combination({self: 1.0}) + other

    def __sub__(self, other: Combination | Primitive) -> Combination:
        return Combination({self: 1.0}) - other

    def __neg__(self) -> Combination:
        return -1.0 * self

    def __repr__(self) -> str:
        return self.name

    # Primitives have no state: one is as good as another, also after deepcopy.
    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class Decay(Primitive):
    """Energy efficiency: the norm of the backward weights."""

    name, degree, needs_data = "decay", 2, False
    formula, gradient_formula = "½‖B‖²", "B"

    def penalty(self, s: Signals) -> Tensor:
        P = energy(s.B) / 2
        return P + energy(s.W) / 2 if s.operations.update_forward else P

    def gradient(self, s: Signals) -> Tensor:
        return s.B


class Amp(Primitive):
    """Alignment of the layer's input with its reconstruction, a Hebbian term."""

    name, degree, needs_data = "amp", 1, True
    formula, gradient_formula = "−⟨T_B x, y⟩", "−correlate(x, y)"

    def penalty(self, s: Signals) -> Tensor:
        if s.operations.amp_on_reconstruction:
            return -inner(s.over_input(s.x), s.reconstruction)
        return -inner(s.over_input(s.p), s.y)

    def gradient(self, s: Signals) -> Correlation:
        return Correlation(-1.0, s.x_correlated, s.y)


class Null(Primitive):
    """Sparsity of the reconstruction."""

    name, degree, needs_data, signal = "null", 2, True, "reconstruction"
    formula, gradient_formula = "½‖T_B* y‖²", "correlate(T_B* y, y)"

    def penalty(self, s: Signals) -> Tensor:
        return inner(s.over_output(s.reconstruction), s.reconstruction) / 2

    def gradient(self, s: Signals) -> Correlation:
        return Correlation(1.0, s.over_output(s.reconstruction), s.y)


class Sparse(Primitive):
    """Energy efficiency of the backward projection. B acts on x, which is not its input: not local
    computation."""

    name, degree, needs_data, signal = "sparse", 2, True, "projection"
    formula, gradient_formula = "½‖T_B x‖²", "correlate(x, T_B x)"
    local_computation = False

    def penalty(self, s: Signals) -> Tensor:
        P = inner(s.over_input(s.p), s.p) / 2
        return P + inner(s.over_input(s.y), s.y) / 2 if s.operations.update_forward else P

    def gradient(self, s: Signals) -> Correlation:
        return Correlation(1.0, s.x_correlated, s.p)


class Self(Primitive):
    """Alignment of the weights themselves. The update reads W's strength: not local plasticity."""

    name, degree, needs_data = "self", 1, False
    formula, gradient_formula = "−⟨B, W⟩", "−W"
    local_plasticity = False

    def penalty(self, s: Signals) -> Tensor:
        return -inner(s.B, s.W)

    def gradient(self, s: Signals) -> Multiple:
        return Multiple(-1.0, s.W)


class Copy(Primitive):
    """W's own pseudogradient, given to B too, as Kolen and Pollack (1994) do (paper, sections 3.2 and D.3: a primitive
    of pseudogradients). It costs nothing, since W's pseudogradient is computed anyway.

    The task's loss is a mean over the batch already, so nothing divides it. It is not a term of the loss: the
    operation's backward pass hands it to B (`untied.routes.autograd`).
    """

    name, degree, needs_data, needs_error = "copy", 1, False, True
    formula, gradient_formula = "⟨T_B x, g⟩", "correlate(x, g)"

    def penalty(self, s: Signals) -> Tensor:
        assert s.error is not None
        return inner(s.geometry.project(s.x, s.B), s.error)

    def gradient(self, s: Signals) -> Correlation:
        assert s.error is not None
        return Correlation(1.0, s.x, s.error)


class Leak(Primitive):
    """What decay becomes with the coefficient `untied.statistics.power`: each weight decays with the power of its own
    input. It is the part of `sparse` in which a weight meets itself, and so it is local.
    """

    name, degree, needs_data = "power*decay", 2, True
    formula, gradient_formula = "½⟨power(x), B∘B⟩", "power(x) ∘ B"

    def power(self, s: Signals) -> Tensor:
        """Sum over the batch and positions, in B's layout up to broadcasting."""
        return s.power

    def penalty(self, s: Signals) -> Tensor:
        P = total(self.power(s) * s.B.square()) / 2
        return P + total(self.power(s) * s.W.square()) / 2 if s.operations.update_forward else P

    def gradient(self, s: Signals) -> Tensor:
        return self.power(s) * s.B


class EvenLeak(Leak):
    """The same with `untied.statistics.mean_power`: every weight of a layer decays alike."""

    name = "mean_power*decay"
    formula, gradient_formula = "½ mean(power(x)) ‖B‖²", "mean(power(x)) B"

    def power(self, s: Signals) -> Tensor:
        return s.power.mean()


decay, amp, null, sparse, self_, copy = Decay(), Amp(), Null(), Sparse(), Self(), Copy()

PRIMITIVES: Mapping[str, Primitive] = MappingProxyType({p.name: p for p in (decay, amp, null, sparse, self_)})
"""Table 1 of the paper, in its order, by name. It does not change."""

KNOWN: dict[str, Primitive] = {**PRIMITIVES, copy.name: copy}
"""Every primitive that the text form knows, by name: Table 1, `copy`, and what was registered."""


def register_primitive(primitive: Primitive) -> Primitive:
    """Make one's own primitive known to the text form and to rules by name. Returns it.

    >>> import untied
    >>> class Sparsity(untied.primitives.Primitive):
    ...     name, degree, needs_data = "sparsity", 1, False
    ...     formula, gradient_formula = "‖B‖₁", "sign(B)"
    ...     def penalty(self, s):
    ...         return s.B.abs().sum()
    >>> sparsity = untied.primitives.register_primitive(Sparsity())
    >>> untied.rules.parse("sa(decay=1) + 0.1*sparsity")
    self + decay + 0.1*sparsity
    >>> untied.primitives.unregister_primitive("sparsity")

    Raises:
        UntiedError: the name is taken by another primitive.
    """
    if KNOWN.get(primitive.name, primitive) != primitive:
        raise UntiedError(
            f"a primitive {primitive.name!r} is known already: choose another name, or unregister that one"
        )
    KNOWN[primitive.name] = primitive
    return primitive


def unregister_primitive(name: str) -> None:
    """Take back `register_primitive`.

    Raises:
        UntiedError: nothing was registered under this name.

    >>> import untied
    >>> try:
    ...     untied.unregister_primitive("amp")
    ... except untied.UntiedError:
    ...     print("it is one of Table 1")
    it is one of Table 1
    """
    if name in PRIMITIVES or name == copy.name or name not in KNOWN:
        raise UntiedError(f"{name!r} was not registered: only registered primitives can be taken back")
    del KNOWN[name]


LEAKS: dict[str, Primitive] = {"power": Leak(), "mean_power": EvenLeak()}
"""What decay is with each statistic for its coefficient."""
