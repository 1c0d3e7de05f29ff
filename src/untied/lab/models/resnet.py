"""Residual networks, v1 (He et al., "Deep residual learning", 2016) and v2 ("Identity mappings", 2016).

One definition for every depth, stem and width. Names are torchvision's, so that v1 at the ImageNet stem and width
64 exchanges state dicts with ``torchvision.models.resnet18`` and the others.

Strides sit in the 3x3 convolution of a bottleneck. Shortcuts that change shape are 1x1 convolutions, in the CIFAR
family too, where He et al. pad with zeros.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from untied.errors import UntiedError

__all__ = ["CIFAR_DEPTHS", "DEPTHS", "ResNet", "Stem", "initialise", "resnet"]

Stem = Literal["imagenet", "cifar"]

# blocks in each of the four stages; from depth 50 on, blocks are bottlenecks
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# the CIFAR family has three stages, of width 16, 32 and 64
CIFAR_DEPTHS = {depth: ((depth - 2) // 6,) * 3 for depth in (20, 32, 44, 56, 110)}
SMALL = 64  # images with a shorter side get the CIFAR stem unless told otherwise


def initialise(model: nn.Module) -> None:
    """Convolutions as in He et al. (2015), normal with variance 2 / (outputs × kernel size); scales 1, shifts 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class Block(nn.Module):
    """What is added to the shortcut: ``conv1``, ``conv2`` (and ``conv3``), each with its batch normalisation.

    Args:
        inputs: channels that come in.
        width: channels of the 3x3 convolution; a bottleneck gives out four times as many.
        stride: of the block.
        bottleneck: 1x1, 3x3, 1x1 rather than 3x3, 3x3.
    """

    preactivation: bool

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        outputs = (width, width, 4 * width) if bottleneck else (width, width)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        self.depth = len(kernels)
        before = inputs
        for number, (kernel, after, step) in enumerate(zip(kernels, outputs, strides, strict=True), start=1):
            conv = nn.Conv2d(before, after, kernel, step, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(before if self.preactivation else after))
            before = after
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != before:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, before, 1, stride, bias=False))
            if not self.preactivation:
                self.downsample.append(nn.BatchNorm2d(before))

    def step(self, number: int) -> tuple[nn.Module, nn.Module]:
        """Convolution and batch normalisation of a number, from 1."""
        return getattr(self, f"conv{number}"), getattr(self, f"bn{number}")


class BlockV1(Block):
    """Convolution, normalisation, ReLU; the last ReLU after the sum. (n, c, h, w) to (n, c', h', w')."""

    preactivation = False

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for number in range(1, self.depth + 1):
            conv, bn = self.step(number)
            x = bn(conv(x))
            if number < self.depth:
                x = F.relu(x)
        return F.relu(x + shortcut)


class BlockV2(Block):
    """Normalisation, ReLU, convolution; the sum stays as it is. (n, c, h, w) to (n, c', h', w')."""

    preactivation = True

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for number in range(1, self.depth + 1):
            conv, bn = self.step(number)
            x = F.relu(bn(x))
            if number == 1 and self.downsample is not None:
                shortcut = self.downsample(x)  # a projection sees what the first convolution sees
            x = conv(x)
        return x + shortcut


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over positions, and one dense layer.

    Stages are ``layer1`` and so on; each but the first halves the resolution and doubles the width. v2 has no
    normalisation in its stem and one, ``bn``, after its last block.

    Args:
        stages: number of blocks in each.
        version: 1 or 2.
        bottleneck: whether blocks are bottlenecks.
        channels: of the images.
        classes: number of outputs.
        width: of the first stage.
        stem: "imagenet" (7x7 of stride 2, max-pooling) or "cifar" (3x3).
        zero_init: start the last scale of each v1 block at zero, so that blocks begin as the identity (Goyal et al.,
            2017). v2 has no such scale: after its last normalisation come a ReLU and a convolution, and from a zero
            scale neither would ever get a gradient.
    """

    def __init__(
        self,
        stages: tuple[int, ...],
        version: int,
        bottleneck: bool,
        channels: int,
        classes: int,
        width: int,
        stem: Stem,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        block: type[Block] = BlockV1 if version == 1 else BlockV2
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width) if version == 1 else None
        self.pool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages: list[str] = []
        inputs = width
        for number, count in enumerate(stages, start=1):
            stage = nn.Sequential()
            for i in range(count):
                stride = 2 if number > 1 and i == 0 else 1
                stage.append(block(inputs, width, stride, bottleneck))
                inputs = 4 * width if bottleneck else width
            self.add_module(f"layer{number}", stage)
            self.stages.append(f"layer{number}")
            width *= 2
        self.bn = nn.BatchNorm2d(inputs) if version == 2 else None
        self.fc = nn.Linear(inputs, classes)
        initialise(self)
        if zero_init and version == 1:
            for module in self.modules():
                if isinstance(module, Block):
                    nn.init.zeros_(module.step(module.depth)[1].get_parameter("weight"))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) to (n, classes)."""
        x = self.conv1(x)
        if self.bn1 is not None:
            x = F.relu(self.bn1(x))
        x = self.pool(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        if self.bn is not None:
            x = F.relu(self.bn(x))
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits

    def in_blocks(self) -> list[nn.Module]:
        """Stem, residual blocks and head, which share this network's modules: one after the other they are it."""
        start = [m for m in (self.conv1, self.bn1, None if self.bn1 is None else nn.ReLU(), self.pool) if m is not None]
        end = [] if self.bn is None else [self.bn, nn.ReLU()]
        blocks = [block for stage in self.stages for block in getattr(self, stage)]
        head = nn.Sequential(*end, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.fc)
        return [nn.Sequential(*start), *blocks, head]


def resnet(
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    depth: int = 18,
    version: int = 1,
    width: int | None = None,
    stem: Stem | None = None,
    zero_init: bool = True,
) -> ResNet:
    """A ResNet of a depth that has a name: 18, 34, 50, 101, 152, 200, or 20, 32, 44, 56, 110 of the CIFAR family.

    Args:
        input_shape: channels, height, width of the images; sides below 64 pixels choose the CIFAR stem.
        classes: number of outputs.
        depth: layers with weights.
        version: 1, or 2 with pre-activation.
        width: channels of the first stage, instead of 64 (CIFAR family: 16).
        stem: "imagenet" or "cifar", instead of by size. The CIFAR family has the CIFAR stem at any size.
        zero_init: see ``ResNet``.

    Raises:
        UntiedError: no such depth, version or stem.
    """
    if depth not in DEPTHS | CIFAR_DEPTHS:
        known = ", ".join(map(str, sorted(DEPTHS | CIFAR_DEPTHS)))
        raise UntiedError(f"no ResNet of depth {depth}: possible are {known}")
    if version not in (1, 2):
        raise UntiedError(f"no ResNet of version {version}: possible are 1, and 2 (pre-activation)")
    if stem not in (None, "imagenet", "cifar"):
        raise UntiedError(f"unknown stem {stem!r}: possible are imagenet and cifar")
    channels, height, side = input_shape
    family = depth in CIFAR_DEPTHS
    return ResNet(
        CIFAR_DEPTHS[depth] if family else DEPTHS[depth],
        version,
        bottleneck=not family and depth >= 50,
        channels=channels,
        classes=classes,
        width=width or (16 if family else 64),
        stem=stem or ("cifar" if family or min(height, side) < SMALL else "imagenet"),
        zero_init=zero_init,
    )
