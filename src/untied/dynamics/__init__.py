"""Why a rule is stable or not: the flow of the weights under R (paper, section 4, equation 1; section 5).

Two views, both derived from the primitives' own penalties and gradients, for any rule of the algebra:

    scalar(rule, x)       one weight w, one backward weight b, one input x, under the symmetrised gradient flow:
                          R moves b, and moves w by the same law with the two exchanged
    layer(rule, W, C)     a linear layer whose W is held fixed and whose input has the second moment C: how fast B
                          moves in each direction, and where it comes to rest

Time is flow time: one unit is 1 / (learning rate) steps of gradient descent. `time_constant` converts.

The paper's appendix with the details of equation 1 was not at hand: docs/theory.md says which statements are its own.
"""

from __future__ import annotations

from .flow import REGIMES, FixedPoint, ScalarDynamics, scalar
from .linear import LayerDynamics, layer
from .rates import time_constant

__all__ = ["REGIMES", "FixedPoint", "LayerDynamics", "ScalarDynamics", "layer", "scalar", "time_constant"]
