"""What a rule sees of a layer, and the local operations that may change it before the primitives do.

This is the public door: noise is in noise.py, the switches in switches.py, and what a rule sees in signals.py.
"""

from __future__ import annotations

from .noise import NOISE, codes_like, noise_like
from .signals import Signals
from .switches import ACTIVATIONS, Operations, batch_centre, centre, normalise, over_mean_square

__all__ = [
    "ACTIVATIONS", "NOISE", "Operations", "Signals", "batch_centre", "centre", "codes_like", "noise_like", "normalise",
    "over_mean_square",
]  # fmt: skip
