"""How the error at a layer's output becomes the error at its input."""

from __future__ import annotations

from .route import ROUTES, THROUGH, Place, Product, Route, Through, Use

__all__ = ["ROUTES", "THROUGH", "Place", "Product", "Route", "Through", "Use"]
