"""What a network makes of pictures, layer by layer, without ever holding all layers in memory.

Layers are taken in groups that fit into a memory budget, and the pictures are run through the network once for each
group, as far as the group's last layer. A layer wider than ``width`` is projected, batch by batch, onto that many
random orthogonal directions (random signs, Fourier transform, a random choice of frequencies): inner products, and so
the fits, stay what they were up to an error that the tests bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from untied.lab.neural.layers import Layer, hooks
from untied.lab.neural.preprocess import Prepared

__all__ = ["Projection", "features", "grouped"]


class _Enough(Exception):
    """The last layer that is wanted has been seen."""


@dataclass(frozen=True)
class Projection:
    """Onto ``width`` random orthonormal directions of a space of ``inputs``, scaled to keep lengths on average.

    Raises:
        ValueError: width is odd, or not below inputs - 1.
    """

    signs: Tensor
    frequencies: Tensor
    scale: float

    @classmethod
    def draw(cls, inputs: int, width: int, seed: int = 0) -> Projection:
        """A projection that is a function of its arguments."""
        possible = (inputs - 1) // 2  # of frequency 0 and, of an even number, the highest, only the real part is free
        if width % 2 or width // 2 > possible:
            raise ValueError(f"a projection of {inputs} onto {width}: width must be even and below inputs - 1")
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (inputs,), generator=generator) * 2.0 - 1
        frequencies = 1 + torch.randperm(possible, generator=generator)[: width // 2]
        return cls(signs, frequencies, (2 * inputs / width) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, width)."""
        spectrum = torch.fft.rfft(x * self.signs.to(x), norm="ortho")[:, self.frequencies.to(x.device)]
        return torch.view_as_real(spectrum).flatten(1) * self.scale


def grouped(layers: Sequence[Layer], images: int, width: int, memory: int) -> list[list[Layer]]:
    """Layers in groups whose features take at most ``memory`` bytes, one layer at least."""
    groups: list[list[Layer]] = []
    room = 0
    for layer in layers:
        size = 4 * images * min(layer.width, width)
        if not groups or size > room:
            groups.append([])
            room = memory
        groups[-1].append(layer)
        room -= size
    return groups


def features(
    model: nn.Module, pictures: Prepared, layers: Sequence[Layer], *, width: int, memory: int, centre: bool = False
) -> Iterator[tuple[Layer, Tensor]]:
    """The features of each layer, (n, width or less), float32 on the CPU; yielded one by one.

    Args:
        model: in evaluation mode, on the device where it computes. pictures: n of them, as it was trained on them.
        layers: in the order of the forward pass. width: wider layers are projected onto so many directions.
        memory: bytes that features may take. centre: subtract the mean over a picture's features before projecting.
    """
    for group in grouped(layers, len(pictures), width, memory):
        held = collected(model, pictures, group, width, centre)
        for layer in group:
            yield layer, held.pop(layer.name)


def collected(
    model: nn.Module, pictures: Prepared, group: Sequence[Layer], width: int, centre: bool
) -> dict[str, Tensor]:
    """The features of some layers, in one run through the pictures."""
    out = {layer.name: torch.empty(len(pictures), min(layer.width, width)) for layer in group}
    projections = {layer.name: Projection.draw(layer.width, width) for layer in group if layer.width > width}
    missing: set[str] = set()
    calls: dict[str, int] = {}
    start = 0

    def keep(layer: Layer, tensor: Any) -> None:
        x = tensor.detach().flatten(1).float()
        if centre:
            x = x - x.mean(1, keepdim=True)
        if layer.name in projections:
            x = projections[layer.name](x)
        out[layer.name][start : start + len(x)] = x  # a copy: a module in place may overwrite what it was given
        missing.discard(layer.name)
        if not missing:
            raise _Enough

    def before(name: str, inputs: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        for layer in group:
            if layer.module == name and layer.of_input and layer.call == calls[name]:
                keep(layer, inputs[0])

    def after(name: str, output: Any) -> None:
        for layer in group:
            if layer.module == name and not layer.of_input and layer.call == calls[name]:
                keep(layer, output)

    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with hooks(model, before, after, [layer.module for layer in group]), torch.no_grad():
        for batch in pictures.batches(device):
            missing.update(out)
            calls.clear()
            with contextlib.suppress(_Enough):
                model(batch)
            start += len(batch)
    return out
