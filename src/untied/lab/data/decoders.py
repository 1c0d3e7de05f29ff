"""From the bytes of an image file to its pixels: which library decodes it."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from untied.errors import UntiedError
from untied.lab.data.config import Decoder
from untied.lab.data.pixels import rgb

__all__ = ["Decode", "decoder"]

Decode = Callable[[bytes], "Image.Image | Tensor"]
"""An RGB picture: Pillow's, or a uint8 tensor (3, height, width)."""


def decoder(name: Decoder) -> Decode:
    """The function that decodes.

    Raises:
        UntiedError: its library is not installed.
    """
    if name == "simplejpeg":
        try:
            import simplejpeg  # noqa: F401
        except ImportError:
            raise UntiedError(
                "decoder is simplejpeg, which is not installed: pip install torch-untied[images], or use pillow"
            ) from None
        return turbo
    return pillow


def pillow(content: bytes) -> Image.Image:
    """By Pillow, which knows every format."""
    with Image.open(io.BytesIO(content)) as opened:
        return rgb(opened)  # reads all of it, and so finds what is cut short


def turbo(content: bytes) -> Image.Image | Tensor:
    """JPEG by libjpeg-turbo, into a tensor that torchvision resizes faster than Pillow resizes its picture.

    What it refuses goes to Pillow: other formats, four inks, pictures too large to be honest, and damage, which Pillow
    describes.
    """
    from simplejpeg import decode_jpeg, decode_jpeg_header

    try:
        height, width, colours, _ = decode_jpeg_header(content)
        honest = height * width <= (Image.MAX_IMAGE_PIXELS or height * width)
        if honest and colours in ("YCbCr", "RGB", "Gray"):
            # The slow transform and upsampling are those that Pillow asks for: the pixels are the same.
            pixels = decode_jpeg(content, "RGB", fastdct=False, fastupsample=False, strict=True)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    except ValueError:
        pass
    return pillow(content)
