"""A model's parameters by what moves them, as optimizers take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from .layer import untied_layers

__all__ = ["Groups", "parameter_groups"]


class Groups(NamedTuple):
    """A model's parameters by what moves them.

    Attributes:
        forward: all but the backward weights. backward: the backward weights; empty under `bp`.
    """

    forward: list[nn.Parameter]
    backward: list[nn.Parameter]

    def with_settings(
        self, forward: Mapping[str, Any] | None = None, backward: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """As optimizers take them, each with its "name"; a group without parameters is left out, as under `bp`.

        Args:
            forward, backward: settings of each, such as ``{"lr": 0.01}``. The backward weights have no weight decay
                unless it is given: R has its own.

        >>> import torch, untied
        >>> model = torch.nn.Linear(3, 2)
        >>> _ = untied.untie_(model, "sa")
        >>> groups = untied.parameter_groups(model).with_settings({"weight_decay": 1e-4}, {"lr": 0.01})
        >>> [g["name"] for g in torch.optim.SGD(groups, lr=0.1).param_groups]
        ['forward', 'backward']
        """
        both = (
            {"params": self.forward, "name": "forward", **(forward or {})},
            {"params": self.backward, "name": "backward", "weight_decay": 0.0, **(backward or {})},
        )
        return [group for group in both if group["params"]]


def parameter_groups(model: nn.Module) -> Groups:
    """(forward, backward): all other parameters, and the backward weights; each a list, as optimizers take it.

    ``.with_settings(...)`` makes parameter groups of them, with names. Give weight decay to the forward group only: R
    has its own decay. Feedback alignment's backward weights are frozen (``requires_grad=False``), which optimizers pass
    over; transport rules have none.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa")
    >>> forward, backward = untied.parameter_groups(model)
    >>> [tuple(p.shape) for p in backward]
    [(3, 4)]
    """
    backward = {id(B): B for layer in untied_layers(model).values() for B in layer.backward_parameters()}
    return Groups([p for p in model.parameters() if id(p) not in backward], list(backward.values()))
