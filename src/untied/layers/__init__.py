"""The untied class of each layer type, and how to register one's own."""

from __future__ import annotations

from .layer import LAYERS, Untied, backward_name, register_layer, untied_layers

__all__ = ["LAYERS", "Untied", "backward_name", "register_layer", "untied_layers"]
