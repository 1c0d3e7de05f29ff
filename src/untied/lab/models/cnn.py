"""A small convolutional network, for images of any size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from untied.lab.models.resnet import initialise

__all__ = ["CHANNELS", "cnn"]

CHANNELS = (32, 64, 128)


def cnn(input_shape: tuple[int, int, int], classes: int, *, channels: Sequence[int] = CHANNELS) -> nn.Sequential:
    """3x3 convolutions with batch normalisation and ReLU, the mean over positions, and one dense layer.

    Every convolution but the first halves the resolution. Layers are named ``conv1``, ``bn1``, ..., ``fc``.

    Args:
        input_shape: channels, height, width of the images.
        classes: number of outputs.
        channels: outputs of each convolution.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = input_shape[0]
    for number, outputs in enumerate(channels, start=1):
        stride = 1 if number == 1 else 2
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        inputs = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    model = nn.Sequential(layers)
    initialise(model)
    return model
