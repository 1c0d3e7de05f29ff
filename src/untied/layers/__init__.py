"""The untied class of each layer type, and how to register one's own."""

from __future__ import annotations

from .layer import LAYERS, Untied, backward_name, register_layer, untied_layers
from .layer import UntiedConv1d as UntiedConv1d
from .layer import UntiedConv2d as UntiedConv2d
from .layer import UntiedConv3d as UntiedConv3d
from .layer import UntiedConvTranspose1d as UntiedConvTranspose1d
from .layer import UntiedConvTranspose2d as UntiedConvTranspose2d
from .layer import UntiedConvTranspose3d as UntiedConvTranspose3d
from .layer import UntiedLinear as UntiedLinear

__all__ = ["LAYERS", "Untied", "backward_name", "register_layer", "untied_layers"]
