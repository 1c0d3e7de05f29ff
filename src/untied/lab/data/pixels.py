"""A decoded picture in RGB, eight bits a channel, by the range its numbers have."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["rgb"]

WHITE = 65535  # of sixteen bits


def rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB. Sixteen bits are scaled from 0 to 65,535; Pillow itself would cut them off at 255.

    Raises:
        ValueError: its numbers have no range that the file states: floats, and integers of 32 bits.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if sixteen:
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0 or values.max(initial=0) > WHITE:
            raise ValueError(f"its values leave 0 to {WHITE}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, whose black and white nobody states: save it with 8 or 16 bits")
    return image.convert("RGB")
