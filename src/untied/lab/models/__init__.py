"""Networks by name. They know nothing of learning rules: ``untied.untie_`` adds one to any of them.

mlp                     hidden layers of 256 and 256 units; mlp-512-128-tanh: of 512 and 128, with tanh
cnn                     convolutions of 32, 64 and 128 channels; cnn-16-32: of 16 and 32
resnet18 ... resnet200  v1; resnet50v2: pre-activation; resnet18-w16: width 16 instead of 64;
                        resnet18-cifar, resnet18-imagenet: that stem, whatever the size of the images
resnet20 ... resnet110  the CIFAR family; v2 and width as above
torchvision:NAME        any classifier of torchvision
timm:NAME               any of timm, if it is installed
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from untied.errors import UntiedError
from untied.lab.models import zoo
from untied.lab.models.cnn import cnn
from untied.lab.models.mlp import ACTIVATIONS, mlp
from untied.lab.models.resnet import CIFAR_DEPTHS, DEPTHS, ResNet, resnet

__all__ = ["ResNet", "build", "cnn", "mlp", "names", "resnet"]

FAMILIES: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet": resnet}

MLP = re.compile(rf"mlp(?P<widths>(-\d+)*)(-(?P<activation>{'|'.join(ACTIVATIONS)}))?")
CNN = re.compile(r"cnn(?P<channels>(-\d+)*)")
RESNET = re.compile(r"resnet(?P<depth>\d+)(v(?P<version>[12]))?(-w(?P<width>\d+))?(-(?P<stem>imagenet|cifar))?")


def names(source: str | None = None) -> list[str]:
    """What ``build`` knows by name: our own networks, or those of "torchvision" or "timm".

    Raises:
        UntiedError: no such source, or timm is not installed.
    """
    if source is None:
        depths = [f"resnet{depth}" for depth in (*DEPTHS, *CIFAR_DEPTHS)]
        return ["mlp", "cnn", *depths, *(f"{depth}v2" for depth in depths)]
    if source not in zoo.ZOOS:
        raise UntiedError(f"no models from {source!r}: possible are {' and '.join(zoo.ZOOS)}")
    return [f"{source}:{name}" for name in zoo.names(source)]


def build(name: str, *, input_shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """A network with fresh weights, drawn from the global random state.

    Args:
        name: see above; options in the name and ``options`` say the same things, and must not say one twice.
        input_shape: channels, height, width of the images.
        classes: number of outputs.
        options: of the family (``mlp``: widths, activation; ``cnn``: channels; ``resnet``: width, stem, zero_init),
            or of the torchvision or timm model.

    Returns:
        A module from (n, channels, height, width) to logits (n, classes).

    Raises:
        UntiedError: the name or an option is unknown, or the network does not fit the images.
    """
    if len(input_shape) != 3 or min(*input_shape, classes) < 1:
        raise UntiedError(
            f"a model for images of {tuple(input_shape)} and {classes} classes is impossible: "
            "input_shape is (channels, height, width), and all are at least 1"
        )
    source, colon, rest = name.partition(":")
    if colon:
        known = names(source)
        if name not in known:
            raise _unknown(name, known)
        return zoo.build(source, rest, input_shape, classes, **options)
    family, parsed = _parse(name)
    if twice := sorted(parsed.keys() & options.keys()):
        raise UntiedError(f"{name!r} already says its {twice[0]}: leave out {twice[0]}={options[twice[0]]!r}")
    possible = [key for key in inspect.signature(FAMILIES[family]).parameters if key not in ("input_shape", "classes")]
    if wrong := [key for key in options if key not in possible]:
        raise UntiedError(f"{family} has no option {wrong[0]!r}: possible are {', '.join(possible)}")
    return FAMILIES[family](input_shape, classes, **parsed, **options)


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """The family and the options that a name spells: "resnet18-w16" is ("resnet", {"depth": 18, "width": 16})."""
    if match := MLP.fullmatch(name):
        parsed = {"widths": _numbers(name, match["widths"]), "activation": match["activation"]}
        return "mlp", {key: value for key, value in parsed.items() if value}
    if match := CNN.fullmatch(name):
        channels = _numbers(name, match["channels"])
        return "cnn", {"channels": channels} if channels else {}
    if (match := RESNET.fullmatch(name)) and int(match["depth"]) in DEPTHS | CIFAR_DEPTHS:
        fields = match.groupdict()
        parsed = {key: int(fields[key]) for key in ("depth", "version", "width") if fields[key]}
        if parsed.get("width") == 0:
            raise UntiedError(f"{name!r} has width 0: it must be at least 1")
        return "resnet", parsed | ({"stem": fields["stem"]} if fields["stem"] else {})
    raise _unknown(name, names())


def _numbers(name: str, text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split("-")[1:]))
    if 0 in numbers:
        raise UntiedError(f"{name!r} has a layer of width 0: it must be at least 1")
    return numbers


def _unknown(name: str, known: list[str]) -> UntiedError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return UntiedError(
        f"unknown model {name!r}{hint}; possible are mlp[-WIDTH...][-ACTIVATION], cnn[-CHANNELS...], "
        "resnetDEPTH[v2][-wWIDTH][-STEM], torchvision:NAME and timm:NAME"
    )
