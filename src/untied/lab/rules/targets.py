"""Target propagation under names of rules: for networks of blocks, where a layer's rule would have no say.

A rule of layers is a route times a motion; here both belong to blocks (`untied.targets`), so `untied.untie_` refuses
these and the lab makes the network of blocks itself (`learners.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from untied.errors import UntiedError
from untied.routes.route import Route
from untied.rules.naming import register_rule
from untied.rules.rule import Rule
from untied.targets.propagation import KINDS, TargetPropagation

__all__ = ["ByTargets"]


@dataclass(frozen=True, repr=False)
class Targets(Route):
    """Targets go from block to block, or from the output, through feedback networks."""

    name, keeps, like_weight = "targets", (), False
    sends = "t, through G"


class ByTargets(Rule):
    """One of the family; `untied.targets` has its formulas.

    Args:
        beta: how far the output's target lies along the negative gradient. noise: at the input of a block.
        output_noise: at its output, for ``ldrl``; like ``noise`` if left out.

    Raises:
        UntiedError: a value is no number; impossible ones are named when the network is made.
    """

    kind: ClassVar[str]
    motion, route, aligns, needs_data = "targets", Targets(), True, True
    products: ClassVar[int]
    OPTIONS: ClassVar[dict[str, Any]] = {"beta": 0.1, "noise": 0.1, "output_noise": None}

    def __init__(self, **options: Any) -> None:
        for name, given in options.items():
            if isinstance(given, bool) or not isinstance(given, int | float):
                raise UntiedError(f"{name}={given!r} is not possible: give a number")
        self.given = {**self.OPTIONS, **options}

    @classmethod
    def possible(cls) -> list[str]:
        return [name for name in cls.OPTIONS if name != "output_noise" or cls.kind == "ldrl"]

    @property
    def options(self) -> dict[str, Any]:
        return {name: v for name, v in self.given.items() if v != self.OPTIONS[name]}

    @property
    def cost(self) -> float:
        """Of a hidden layer in a block of its own, with feedback of its size: products over backpropagation's three.

        The clean pass and W's gradient are two of them; the rest carries the target and trains the feedback.
        """
        return self.products / 3

    def of_blocks(self, model: Any, example: Callable[[], Tensor]) -> TargetPropagation:
        """The network, cut, with fresh feedback.

        Raises:
            UntiedError: as `TargetPropagation`.
        """
        given = {name: v for name, v in self.given.items() if v is not None}
        return TargetPropagation(model, example(), self.kind, **given)

    def check(self) -> None:
        """Refuse to be a rule of layers.

        Raises:
            UntiedError: always.
        """
        raise UntiedError(
            f"{self.name} is a rule of a network of blocks, not of layers: use untied.targets.TargetPropagation(model, "
            f"x, {self.kind!r}) in a loop of your own, or --rule {self.name}"
        )

    def __str__(self) -> str:
        words = ", ".join(f"{name}={v:g}" for name, v in self.options.items())
        return f"{self.name}({words})" if words else self.name


@register_rule
class Plain(ByTargets):
    """Targets are what feedback gives back, its own error included."""

    name = kind = "tp"
    title, source, local, products = KINDS[kind].title, KINDS[kind].source, True, 6
    OPTIONS: ClassVar[dict[str, Any]] = {**ByTargets.OPTIONS, "beta": 1.0}  # shorter steps drown in that error


@register_rule
class Difference(ByTargets):
    """Feedback's own error is taken off; the last hidden block has a gradient step for a target."""

    name = kind = "dtp"
    title, source, local, products = KINDS[kind].title, KINDS[kind].source, False, 7


@register_rule
class Simplified(ByTargets):
    """Without that gradient step."""

    name = kind = "sdtp"
    title, source, local, products = KINDS[kind].title, KINDS[kind].source, True, 7


@register_rule
class DifferenceLoss(ByTargets):
    """Feedback learns to give noise back from the output. Its cost is the last hidden layer's: others have more."""

    name = kind = "drl"
    title, source, local, products = KINDS[kind].title, KINDS[kind].source, False, 9


@register_rule
class LocalDifferenceLoss(ByTargets):
    """Feedback learns the transposed Jacobian of its own block, and what comes through is near the gradient."""

    name = kind = "ldrl"
    title, source, local, products = KINDS[kind].title, KINDS[kind].source, True, 11


@register_rule
class Direct(ByTargets):
    """Targets come straight from the output. What noise sends there, through all blocks above, is not counted."""

    name, kind = "ddtp", "ddtp-linear"
    title, source, local, products = KINDS[kind].title, KINDS[kind].source, True, 2
