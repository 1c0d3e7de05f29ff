"""A rule is a route times a motion: how B carries the error, and what moves B. This is what every rule answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..coefficients.coefficient import Coefficient
from ..errors import UntiedError
from ..geometry import DENSE, Geometry
from ..primitives.primitive import Combination, Primitive
from ..routes.route import THROUGH, Place, Route, Use

__all__ = ["Place", "Rule", "Visit"]


@dataclass(frozen=True)
class Visit:
    """One backward kernel that a rule may move by itself.

    Attributes:
        W: the forward weight. beside: what stands beside it, by the rule's ``keeps``.
        geometry: how the layer uses W. name: of the layer, for errors.
        step: number of the training step, or None. align: whether it is measured too in this pass.

    >>> import torch
    >>> W = torch.randn(3, 4)
    >>> Visit(W, {"backward_weight": 2 * W}, DENSE, "fc", step=10).step
    10
    """

    W: Tensor
    beside: Mapping[str, Any]
    geometry: Geometry
    name: str
    step: int | None = None
    align: bool = True


class Rule:
    """How a layer gets its backward weight, and what errors do with it. Rules are values: nothing changes one.

    Attributes:
        name: short name, or "align" for a free combination. title: the long name.
        source: who published it. broken: what it gives up of backpropagation or of locality, in a word or two.
        route: how the error at a layer's output becomes the error at its input.
        motion: what moves B: "transport" (a function of W), "alignment" (R), "estimate" (measurements of W).
        local: whether the rule meets both of the paper's locality criteria (section 3.1).
        combination: of primitives, that moves B; empty where none does.
        combines: whether the combination is all that moves B, so that `untied.dynamics` covers the rule.
        alone: why it cannot be added to another rule, and what to write instead; empty where rules add.
        aligns: whether there is an R to descend, so that `untied.record` is needed in training.
        needs_data: whether R sees activity.
        copies: how much of W's pseudogradient goes to B's gradient too (`copy`, Kolen-Pollack).
        fraction, every: on which share of a batch, and at which steps, R is evaluated.
        moves_itself: whether it moves B, or what stands beside it, when a recording begins (`visit`).
        exact: whether errors go through W itself, so that PyTorch's own backward pass is this rule's.
        mirrors: whether its measurements are a noise mirror's, which `untied.mirror_` goes on with.
        needs_record: whether training needs `untied.record`.

    >>> import untied
    >>> rule = untied.rules.parse("dkp")
    >>> rule.title, rule.motion, rule.route, rule.local
    ('direct Kolen-Pollack', 'alignment', broadcast, True)
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    source: ClassVar[str] = ""
    motion: ClassVar[str]
    local: bool
    route: Route = THROUGH
    combination: Combination = Combination({})
    combines: ClassVar[bool] = False
    alone: ClassVar[str] = "has no coefficients: write one of the two, or a sum of alignment rules and primitives"
    aligns: bool = False
    copies: float = 0.0
    fraction: float = 1.0
    every: int = 1
    moves_itself: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    mirrors: ClassVar[bool] = False

    @classmethod
    def possible(cls) -> list[str]:
        """What can be written in the brackets after its short name."""
        return []

    @classmethod
    def called(cls, name: str, **options: Any) -> Rule:
        """The one with this short name, where a class has several; with these options, which `possible` names."""
        make: Callable[..., Rule] = cls
        return make(**options)

    @property
    def keeps(self) -> tuple[str, ...]:
        """The names of what it keeps beside a weight."""
        return self.route.keeps

    @property
    def primitives(self) -> tuple[Primitive, ...]:
        """What R is made of."""
        return ()

    @property
    def needs_data(self) -> bool:
        """Whether R sees activity."""
        return False

    @property
    def options(self) -> dict[str, Any]:
        """Every option that is not at its default."""
        return {}

    @property
    def copies_gradient(self) -> bool:
        """Whether B's gradient takes W's pseudogradient."""
        return self.copies != 0

    @property
    def aligns_alone(self) -> bool:
        """Whether B can align in steps that leave the task out; a B that copies W's steps cannot."""
        return self.aligns and not self.copies_gradient

    @property
    def takes_init(self) -> bool:
        """Whether B has a first value, which ``untie_(init=...)`` gives."""
        return self.route.takes_init

    @property
    def needs_record(self) -> bool:
        return self.aligns or self.route.broadcasts

    @property
    def forward_decay(self) -> Coefficient | None:
        """The weight decay that W needs in its optimizer, a number or a course of training, where B copies W and
        decays; else None."""
        return None

    @property
    def follows(self) -> bool:
        """Whether B does nothing but share W's motion, so that it has to stand still where W does: alone it would go
        astray, by gradients that W leaves.
        """
        return self.route.like_weight and self.forward_decay is not None

    @property
    def cost(self) -> float:
        """Multiplications of one training step over backpropagation's, for a layer whose input needs a gradient."""
        return self.route.cost

    def beside(self, at: Place) -> dict[str, Tensor | None]:
        """What stands beside W from the conversion on, by the names in ``keeps``: only parameters learn."""
        moves = at.moves or not self.follows
        return self.route.beside(at, learns=moves and (self.aligns or self.copies_gradient))

    def kernel(self, W: Tensor, beside: Mapping[str, Any], geometry: Geometry = DENSE) -> Tensor:
        """B for this pass, from what stands beside W; in W's layout, unless the route broadcasts."""
        return self.route.made(W, beside, geometry)

    def compared(self, W: Tensor, beside: Mapping[str, Any]) -> Tensor:
        """What R sees in W's place: W itself, or an estimate of it."""
        return W

    def send(self, use: Use) -> Tensor:
        """The layer's output, whose graph carries errors along the route."""
        return self.route.send(use, self.copies)

    def evaluate(self, visit: Visit) -> None:
        """Measure W once by noise and move B by it, where the rule ``mirrors``."""
        raise NotImplementedError(f"{type(self).__name__}.evaluate")

    def rest(self, beside: Mapping[str, Any]) -> None:
        """Go to where the rule has measured enough, as it is for most of a run: a step's cost is taken there."""

    def on(self, fraction: float) -> Rule:
        """The same rule, evaluated on another share of each batch."""
        other = copy.copy(self)
        other.fraction = fraction
        return other

    def of_blocks(self, model: Any, example: Callable[[], Tensor]) -> Any:
        """The network of blocks that it trains; None of a rule of layers, which `untied.untie_` converts.

        Args:
            model: as PyTorch has it. example: gives a few inputs [n, ...].
        """
        return None

    def check(self) -> None:
        """Called before a layer gets the rule.

        Raises:
            UntiedError: an option would change nothing.
        """

    def visit(self, visit: Visit) -> None:
        """A forward pass is about to be recorded: what moves B outside every optimizer does so now."""

    def settle(self, visit: Visit) -> None:
        """B is about to be looked at: what follows from W alone is brought up to date."""

    def __mul__(self, factor: Any) -> Rule:
        """The rule whose coefficients are multiplied, where there are any.

        Raises:
            UntiedError: there are none.
        """
        raise UntiedError(f"{self} has no coefficients, so it cannot be multiplied: leave the factor out")

    def __add__(self, other: Any) -> Rule:
        """The rule whose coefficients are the sums of both, where both have some.

        Raises:
            UntiedError: this rule stands alone.
        """
        raise UntiedError(f"cannot add {self} and {other}: {self.name} {self.alone}")

    def __radd__(self, other: Any) -> Rule:
        """What is added is not a rule, but a combination.

        Raises:
            UntiedError: this rule stands alone.
        """
        raise UntiedError(f"cannot add {other} and {self}: {self.name} {self.alone}")

    def __repr__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), str(self)))


def whole(name: str, v: object, low: int = 1) -> int:
    """A whole number from ``low`` on.

    Raises:
        UntiedError: it is none.
    """
    if isinstance(v, bool) or not isinstance(v, int) or v < low:
        raise UntiedError(f"{name}={v!r} is not possible: give a whole number, {low} or more")
    return v
