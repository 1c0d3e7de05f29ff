"""Transported feedback: B is a function of W at every step, and nothing is trained.

Backpropagation and sign symmetry are such rules; so is the feedback of hardware that reads W with few bits, with noise,
or in part. `Transport.of` makes a rule of one's own function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import UntiedError, shown
from ..geometry import DENSE, Geometry
from ..routes.route import Place, Use
from .rule import Rule

__all__ = ["FEEDBACK", "Backpropagation", "Feedback", "SignSymmetry", "Transport", "Transported"]


class Transport(Rule):
    """B is computed from W whenever it is needed, in W's layout; nothing is trained. Not local: it reads W.

    >>> class Halved(Transport):
    ...     name = "halved"
    ...     def backward_weight(self, W, magnitude):
    ...         return W / 2
    >>> Halved()
    halved
    >>> Transport.of(lambda W: W.sign()).local
    False
    """

    motion, local, takes_init = "transport", False, False
    alone = "makes its B of W at each pass, so that no R could move it: write one of the two"

    @property
    def keeps(self) -> tuple[str, ...]:
        return ("backward_magnitude",)

    @staticmethod
    def of(function: Callable[[Tensor], Tensor]) -> Transported:
        """The rule whose B is this function of W.

        Args:
            function: gets W, detached, in its own layout, and returns a tensor of its shape. It is called in every
                forward pass, so it may draw random numbers.

        Raises:
            UntiedError: ``function`` is not callable; later, it returns another shape.

        >>> import torch, untied
        >>> rule = untied.rules.Transport.of(lambda W: W.clamp(-0.1, 0.1))
        >>> model = torch.nn.Linear(3, 2)
        >>> print(untied.untie_(model, rule).converted)
        {'': 'Linear, rule transport(<lambda>)'}
        """
        if not callable(function):
            raise UntiedError(f"Transport.of({shown(function)}) is not possible: give a function of W that returns B")
        return Transported(function)

    def beside(self, at: Place) -> dict[str, Tensor | None]:
        return {"backward_magnitude": self.magnitude(at.W)}

    def kernel(self, W: Tensor, beside: Mapping[str, Any], geometry: Geometry = DENSE) -> Tensor:
        with torch.no_grad():
            return self.backward_weight(W, beside["backward_magnitude"]).detach()

    def magnitude(self, W: Tensor) -> Tensor | None:
        """What has to be remembered from the moment of conversion: a buffer, 0-dim or in W's layout; or None."""
        return None

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        """B for this step, in W's layout, of W and of what `magnitude` gave."""
        raise NotImplementedError(f"{type(self).__name__}.backward_weight")

    def __str__(self) -> str:
        return getattr(self, "name", type(self).__name__)


class Backpropagation(Transport):
    """B = W, the same tensor: instantaneous weight transport, the reference for every other rule. It is PyTorch's own
    backward pass, gradients of gradients included.

    >>> Backpropagation()
    bp
    """

    name, title, source, exact = "bp", "backpropagation", "Rumelhart et al. 1986", True

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        return W

    def send(self, use: Use) -> Tensor:
        return use.geometry.forward(use.geometry.prepare(use.x), use.W, use.bias)


class SignSymmetry(Transport):
    """B = sign(W) * magnitude (Liao et al. 2016; Moskovitz et al. 2018; Xiao et al. 2019).

    Args:
        magnitude: "uniform" (uSF), one number for a layer, kept 0-dim; "fixed" (frSF), |N(0, s²)| in W's layout, drawn
            once; "redrawn" (brSF), |N(0, s²)| in W's layout, drawn anew at every forward pass. The scale s, kept 0-dim,
            and uSF's number, is the standard deviation of W when the layer was converted.

    Raises:
        UntiedError: another magnitude.

    >>> SignSymmetry("fixed")
    frsf
    """

    source = "Liao et al. 2016"
    MAGNITUDES: ClassVar[dict[str, str]] = {"uniform": "usf", "fixed": "frsf", "redrawn": "brsf"}

    def __init__(self, magnitude: str = "uniform") -> None:
        if magnitude not in self.MAGNITUDES:
            raise UntiedError(f"magnitude={magnitude!r} is not possible: choose one of {', '.join(self.MAGNITUDES)}")
        self.kind = magnitude

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.MAGNITUDES[self.kind]

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"sign symmetry, {'fixed random' if self.kind == 'fixed' else self.kind}"

    @classmethod
    def called(cls, name: str, **options: Any) -> SignSymmetry:
        return cls({short: kind for kind, short in cls.MAGNITUDES.items()}[name])

    def magnitude(self, W: Tensor) -> Tensor:
        std = W.detach().std(correction=0)
        return torch.randn_like(W.detach()).abs() * std if self.kind == "fixed" else std

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        assert magnitude is not None
        if self.kind == "redrawn":
            magnitude = torch.randn_like(W).abs() * magnitude
        return W.sign() * magnitude


@dataclass(frozen=True)
class Feedback:
    """A common function of W, with its one number: what `transport(...)` says in text. It gives B of W's shape.

    Attributes:
        name: in the text form. parameter: what its number is called, or "" for none. value: the number.

    >>> import torch
    >>> Feedback("sign")(torch.tensor([[1.0, -3.0]]))
    tensor([[ 2., -2.]])
    """

    name: str
    value: float | None = None

    def __call__(self, W: Tensor) -> Tensor:
        return FEEDBACK[self.name].apply(W, self.value)

    def __str__(self) -> str:
        kind = FEEDBACK[self.name]
        return self.name if not kind.parameter else f"{self.name}({kind.parameter}={self.value:g})"


@dataclass(frozen=True)
class Kind:
    """A row of `FEEDBACK`: the function, from W to B of its shape, the name of its number, and what that may be."""

    apply: Callable[[Tensor, Any], Tensor]
    about: str
    parameter: str = ""
    possible: str = ""
    fits: Callable[[float], bool] = lambda v: True


def _sign(W: Tensor, _: None) -> Tensor:
    return W.sign() * W.abs().mean()


def _quantise(W: Tensor, bits: float) -> Tensor:
    levels = 2 ** (int(bits) - 1) - 1
    step = (W.abs().amax() / levels).clamp_min(torch.finfo(W.dtype).tiny)
    B: Tensor = (W / step).round() * step
    return B


def _noise(W: Tensor, std: float) -> Tensor:
    return W + std * W.square().mean().sqrt() * torch.randn_like(W)


def _mask(W: Tensor, share: float) -> Tensor:
    """The largest weights: the same ones as long as W is the same."""
    kept = max(1, round(share * W.numel()))
    return torch.where(W.abs() >= W.abs().flatten().topk(kept).values[-1], W, 0)


def _lowrank(W: Tensor, rank: float) -> Tensor:
    U, S, V = torch.linalg.svd(W.flatten(1).float(), full_matrices=False)
    k = int(rank)
    B: Tensor = (U[:, :k] * S[:k] @ V[:k]).view(W.shape)
    return B.to(W.dtype)


def _is_whole(v: float) -> bool:
    return v == int(v) and v >= 1


FEEDBACK: dict[str, Kind] = {
    "sign": Kind(_sign, "sign(W) times the mean of |W|"),
    "quantise": Kind(_quantise, "W rounded to 2**bits - 1 levels, from -max|W| to max|W|", "bits",
                     "a whole number from 2", lambda v: _is_whole(v) and v >= 2),
    "noise": Kind(_noise, "W plus normal noise of std times W's root mean square, drawn anew in every pass", "std",
                  "a number from 0", lambda v: v >= 0),
    "mask": Kind(_mask, "the share of W that is largest in size, the rest 0", "share", "above 0 and at most 1",
                 lambda v: 0 < v <= 1),
    "lowrank": Kind(_lowrank, "the best approximation of W, [o, rest], of this rank", "rank",
                    "a whole number from 1", _is_whole),
}  # fmt: skip
"""What `transport(...)` takes in text, by name."""


class Transported(Transport):
    """B = f(W), f any function that keeps W's shape: quantised, masked, low-rank or noisy feedback, as hardware has it.

    Args:
        function: see `Transport.of`; or the name of one of `FEEDBACK`. value: its number, where it has one.

    Raises:
        UntiedError: an unknown name, or an impossible number.

    >>> import untied
    >>> untied.rules.parse("transport(quantise(bits=4))")
    transport(quantise(bits=4))
    """

    name, title = "transport", "a function of W"

    def __init__(self, function: Callable[[Tensor], Tensor] | str, value: float | None = None) -> None:
        if isinstance(function, str):
            function = self._known(function, value)
        self.function = function

    @staticmethod
    def _known(name: str, value: float | None) -> Feedback:
        if name not in FEEDBACK:
            raise UntiedError(f"transport({name}) is not possible: choose one of {', '.join(FEEDBACK)}")
        kind = FEEDBACK[name]
        if not kind.parameter:
            if value is not None:
                raise UntiedError(f"transport({name}({value:g})) is not possible: {name} takes no number")
            return Feedback(name)
        if value is None or not kind.fits(value):
            given = "nothing" if value is None else f"{value:g}"
            raise UntiedError(f"{kind.parameter} of transport({name}(...)) is {given}: give {kind.possible}")
        return Feedback(name, float(value))

    def beside(self, at: Place) -> dict[str, Tensor | None]:
        """What `magnitude` gives of W: here nothing, so that no buffer of any shape stands beside it.

        Raises:
            UntiedError: a low rank that is no lower than W's.
        """
        f, most = self.function, min(at.W.shape[0], at.W[0].numel())
        if isinstance(f, Feedback) and f.name == "lowrank" and f.value is not None and f.value >= most:
            raise UntiedError(
                f"layer {at.name or '(the model)'} has a W of rank {most}, so under {self} its B would be W: give a "
                "lower rank, or another rule for this layer with untie_(..., filter=...)"
            )
        return super().beside(at)

    def backward_weight(self, W: Tensor, magnitude: Tensor | None) -> Tensor:
        """f(W), in W's layout and type.

        Raises:
            UntiedError: the function made something of another shape.
        """
        B = self.function(W.detach())
        if not isinstance(B, Tensor) or B.shape != W.shape:
            got = tuple(B.shape) if isinstance(B, Tensor) else type(B).__name__
            raise UntiedError(f"{self} made {got} of a weight of shape {tuple(W.shape)}: return a tensor of its shape")
        return B.to(W.dtype)

    def __str__(self) -> str:
        f = self.function
        return f"transport({f if isinstance(f, Feedback) else getattr(f, '__name__', type(f).__name__)})"
