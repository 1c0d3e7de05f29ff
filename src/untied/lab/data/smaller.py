"""How a data set of large photographs becomes one that is quick to decode."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from untied.errors import UntiedError
from untied.lab.data.pixels import rgb
from untied.lab.reading.edges import printable

__all__ = ["Smaller", "as_it_is"]


@dataclass(frozen=True)
class Smaller:
    """How large images are made smaller.

    Raises:
        UntiedError: a number is impossible.
    """

    side: int
    """The largest side that stays as it is, in pixels."""
    quality: int = 90
    """Of the JPEG files that are written, from 1 to 95."""

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 2**14:
            raise UntiedError(f"side is {self.side}: it is a number of pixels from 1 to {2**14}")
        if not 1 <= self.quality <= 95:
            raise UntiedError(f"quality is {self.quality}: JPEG has 1 to 95")

    def __call__(self, path: Path) -> tuple[str, bytes]:
        """The suffix and the content of what stands for an image file: itself, if it is small.

        Raises:
            UntiedError: a file that would be made smaller cannot be read.
        """
        content = path.read_bytes()
        try:
            with Image.open(io.BytesIO(content)) as opened:
                if max(opened.size) > self.side:
                    image = rgb(opened)
                    image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
                    written = io.BytesIO()
                    image.save(written, "JPEG", quality=self.quality, subsampling="4:2:0", optimize=True)
                    return "jpg", written.getvalue()
        except Exception as error:  # decoders raise whatever their code runs into in broken files
            raise UntiedError(
                f"cannot make {printable(str(path))} smaller ({printable(' '.join(str(error).split()))}): repair or "
                "remove it, or leave side out, and files are packed as they are"
            ) from None
        return as_it_is(path, content)


def as_it_is(path: Path, content: bytes | None = None) -> tuple[str, bytes]:
    """The suffix and the content of an image file."""
    return path.suffix[1:].lower(), path.read_bytes() if content is None else content
