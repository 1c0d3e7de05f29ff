"""Multilayer perceptrons of any widths."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from untied.errors import UntiedError

__all__ = ["ACTIVATIONS", "WIDTHS", "mlp"]

WIDTHS = (256, 256)

# activation, and the gain that keeps the size of the activity from layer to layer (torch.nn.init.calculate_gain;
# those it does not know are close to ReLU)
ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {
    "relu": (nn.ReLU, math.sqrt(2)),
    "gelu": (nn.GELU, math.sqrt(2)),
    "silu": (nn.SiLU, math.sqrt(2)),
    "selu": (nn.SELU, 3 / 4),
    "tanh": (nn.Tanh, 5 / 3),
    "sigmoid": (nn.Sigmoid, 1.0),
    "identity": (nn.Identity, 1.0),
}


def mlp(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    widths: Sequence[int] = WIDTHS,
    activation: str = "relu",
) -> nn.Sequential:
    """Linear layers ``fc1``, ``fc2``, ... with an activation between them, on flattened inputs of any shape.

    Hidden weights are drawn as in He et al. (2015), normal of variance gain² / inputs; biases start at zero.

    Args:
        input_shape: of an input, such as channels, height, width.
        classes: number of outputs.
        widths: units of each hidden layer; none gives a linear classifier.
        activation: a key of ``ACTIVATIONS``.

    Raises:
        UntiedError: the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise UntiedError(f"unknown activation {activation!r}: possible are {', '.join(ACTIVATIONS)}")
    kind, gain = ACTIVATIONS[activation]
    sizes = (math.prod(input_shape), *widths, classes)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        layers[f"fc{number}"] = linear = nn.Linear(inputs, outputs)
        last = number == len(sizes) - 1
        nn.init.normal_(linear.weight, std=(1.0 if last else gain) / math.sqrt(inputs))
        nn.init.zeros_(linear.bias)
        if not last:
            layers[f"{activation}{number}"] = kind()
    return nn.Sequential(layers)
