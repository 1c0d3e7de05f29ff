"""Say how well trained networks predict neurons' responses (Fig. 6 of the paper); neural convert: their file."""

from __future__ import annotations

from pathlib import Path

from untied.lab.arguments import read_config
from untied.lab.settings.neural import ConvertConfig, NeuralConfig


def run(words: list[str]) -> int:
    """Fit networks to recordings, or make a recording."""
    if words[:1] == ["convert"]:
        source = read_config(ConvertConfig, words[1:], "untied neural convert")
        from untied.lab.neural.convert import convert

        return convert(source)
    config = read_config(NeuralConfig, words, "untied neural RUN [RUN ...] --recording FILE [FILE ...]")
    from untied.lab.neural.command import neural

    return neural(config)


def again(path: Path) -> int:
    """Write a folder's tables, figures and page again."""
    from untied.lab.neural.command import again as write

    return write(path)
