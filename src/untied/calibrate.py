"""`mirror_` measures every W by noise and puts the average into B: before training, or between its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from .errors import UntiedError
from .layers.layer import Untied, untied_layers
from .metrics import weight_angles
from .routes.route import Place
from .rules.mirror import MirroredKolenPollack
from .rules.rule import Rule, Visit

__all__ = ["mirror_"]


def mirror_(model: nn.Module, batches: int = 16) -> dict[str, float]:
    """Calibrate every backward weight by noise, in place, before training or between its parts. It needs no data and
    does not run the network: each layer is measured by itself.

    Every evaluation takes as many noise patches as inputs reach one output, so that B's error falls to about
    ‖E‖/‖W‖ = 1/√batches. Under `mkp` the measurements count among its own; other rules move on from here.

    Args:
        model: a converted model. batches: evaluations for each kernel, 1 or more.

    Returns:
        The weight angle of each layer afterwards, in degrees.

    Raises:
        UntiedError: nothing is converted; no layer has a B to calibrate (transport rules); ``batches`` is below 1.

    >>> import torch, untied
    >>> model = torch.nn.Linear(6, 5)
    >>> _ = untied.untie_(model, "fa")
    >>> untied.mirror_(model, batches=400)[""] < 10
    True
    """
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise UntiedError(f"batches={batches!r} is not possible: give a whole number of evaluations, 1 or more")
    found = 0
    for visit, rule in visits(untied_layers(model)):
        found += 1
        by = rule if rule.mirrors else MirroredKolenPollack()
        by.settle(visit)
        for _ in range(batches):
            by.evaluate(visit)
    if not found:
        raise UntiedError(
            "no layer of this model has a backward weight to calibrate: call untied.untie_(model, rule) first, with a "
            "rule that keeps one, such as fa or mkp"
        )
    return weight_angles(model)


def measurable(rule: Rule) -> bool:
    """Whether a layer under this rule keeps a B of W's shape, which noise can measure.

    >>> import untied
    >>> [name for name in ("bp", "fa", "mkp", "dfa") if measurable(untied.rules.parse(name))]
    ['fa', 'mkp']
    """
    return rule.takes_init and rule.route.like_weight and not rule.route.whole


def visits(layers: Mapping[str, Untied]) -> Iterator[tuple[Visit, Rule]]:
    """Each backward kernel once, with its rule; for a rule that does not measure, with a fresh state beside it."""
    seen: set[int] = set()
    for name, layer in layers.items():
        for weight in layer.own_weights():
            W, beside = getattr(layer, weight), layer.beside(weight)
            B = beside.get("backward_weight")
            if B is None or id(B) in seen or not measurable(layer.rule):
                continue
            seen.add(id(B))
            if not layer.rule.mirrors:
                beside = {**MirroredKolenPollack().beside(Place(W, W.detach)), "backward_weight": B}
            yield Visit(W, beside, layer.geometry_of(weight), name), layer.rule
