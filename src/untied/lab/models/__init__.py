"""Networks by name. They know nothing of learning rules: ``untied.untie_`` adds one to any of them.

mlp                     hidden layers of 256 and 256 units; mlp-512-128-tanh: of 512 and 128, with tanh
cnn                     convolutions of 32, 64 and 128 channels; cnn-16-32: of 16 and 32
resnet18 ... resnet200  v1; resnet50v2: pre-activation; resnet18-w16: width 16 instead of 64;
                        resnet18-cifar, resnet18-imagenet: that stem, whatever the size of the images
resnet20 ... resnet110  the CIFAR family; v2 and width as above
torchvision:NAME        any classifier of torchvision
timm:NAME               any of timm, if it is installed
gru-64, lstm-64, rnn-64, transformer-64-2   for sequences: a recurrent layer, two causal blocks
package.module:NAME     a class or function of one's own, also as path/to/file.py:NAME; called with those of
                        input_shape, classes (or outputs, the same number) and vocabulary that it names
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
from untied.lab.models.sequence import KINDS, recurrent, transformer
from untied.lab.reading import own

__all__ = ["ResNet", "build", "cnn", "is_own", "mlp", "names", "resnet"]

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp, "cnn": cnn, "resnet": resnet, "recurrent": recurrent, "transformer": transformer,
}  # fmt: skip
GIVEN = ("input_shape", "classes", "vocabulary")  # by the data, not by options

MLP = re.compile(rf"mlp(?P<widths>(-\d+)*)(-(?P<activation>{'|'.join(ACTIVATIONS)}))?")
CNN = re.compile(r"cnn(?P<channels>(-\d+)*)")
RECURRENT = re.compile(r"(?P<kind>rnn|lstm|gru)(-(?P<width>\d+))?")
TRANSFORMER = re.compile(r"transformer(-(?P<width>\d+)(-(?P<blocks>\d+))?)?")
RESNET = re.compile(r"resnet(?P<depth>\d+)(v(?P<version>[12]))?(-w(?P<width>\d+))?(-(?P<stem>imagenet|cifar))?")


def names(source: str | None = None) -> list[str]:
    """What ``build`` knows by name: our own networks, or those of "torchvision" or "timm".

    Raises:
        UntiedError: no such source, or timm is not installed.
    """
    if source is None:
        depths = [f"resnet{depth}" for depth in (*DEPTHS, *CIFAR_DEPTHS)]
        return ["mlp", "cnn", *depths, *(f"{depth}v2" for depth in depths), *KINDS, "transformer"]
    if source not in zoo.ZOOS:
        raise UntiedError(f"no models from {source!r}: possible are {' and '.join(zoo.ZOOS)}")
    return [f"{source}:{name}" for name in zoo.names(source)]


def build(name: str, *, input_shape: Any, classes: int, vocabulary: int = 0, **options: Any) -> nn.Module:
    """A network with fresh weights, drawn from the global random state.

    Args:
        name: see above; options in the name and ``options`` say the same things, and must not say one twice.
        input_shape: channels, height, width of the images; mlp and one's own networks take any.
        classes: number of outputs. vocabulary: number of tokens, where inputs are tokens.
        options: of the family (``mlp``: widths, activation; ``cnn``: channels; ``resnet``: width, stem, zero_init),
            or of the torchvision or timm model.

    Returns:
        A module from (n, channels, height, width) to logits (n, classes).

    Raises:
        UntiedError: the name or an option is unknown, or the network does not fit the images.
    """
    if is_own(name):
        return _own(name, input_shape=input_shape, classes=classes, outputs=classes, vocabulary=vocabulary, **options)
    if not isinstance(input_shape, tuple) or not all(isinstance(side, int) for side in input_shape):
        raise UntiedError(
            f"{name} takes one tensor, and the inputs are several, {input_shape}: name a model of your own"
        )
    if vocabulary and not (RECURRENT.fullmatch(name) or TRANSFORMER.fullmatch(name)):
        raise UntiedError(
            f"{name} takes numbers, and the inputs are tokens: choose gru, transformer or one of your own"
        )
    images = not any(pattern.fullmatch(name) for pattern in (MLP, RECURRENT, TRANSFORMER))
    if (images and len(input_shape) != 3) or min(*input_shape, classes, 1) < 1:
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
    parameters = inspect.signature(FAMILIES[family]).parameters
    possible = [key for key in parameters if key not in GIVEN]
    if wrong := [key for key in options if key not in possible]:
        raise UntiedError(f"{family} has no option {wrong[0]!r}: possible are {', '.join(possible)}")
    if "vocabulary" in parameters:
        options["vocabulary"] = vocabulary
    return FAMILIES[family](input_shape, classes, **parsed, **options)


def is_own(name: str) -> bool:
    """Whether a network is the user's, or an installed package's."""
    ours = any(pattern.fullmatch(name) for pattern in (MLP, CNN, RESNET, RECURRENT, TRANSFORMER))
    return not ours and name.partition(":")[0] not in zoo.ZOOS and own.is_own("model", name)


def _own(name: str, **given: Any) -> nn.Module:
    """A network that an import path or an entry point names.

    Raises:
        UntiedError: it cannot be made, or is no network.
    """
    found = own.find("model", name)
    if isinstance(found, nn.Module):
        raise UntiedError(
            f"model {name} is a network that is made already, so every seed would begin with what the last one left: "
            "name the class, or a function that makes it"
        )
    model = own.called("model", name, **given)
    if not isinstance(model, nn.Module):
        raise UntiedError(f"model {name} gave {own.a(model)}: it must give a torch.nn.Module")
    return model


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
    if match := RECURRENT.fullmatch(name):
        return "recurrent", {"kind": match["kind"]} | ({"width": _numbers(name, f"-{match['width']}")[0]}
                                                        if match["width"] else {})  # fmt: skip
    if match := TRANSFORMER.fullmatch(name):
        sizes = {key: _numbers(name, f"-{match[key]}")[0] for key in ("width", "blocks") if match[key]}
        return "transformer", sizes
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
        "resnetDEPTH[v2][-wWIDTH][-STEM], gru[-WIDTH], transformer[-WIDTH[-BLOCKS]], torchvision:NAME, timm:NAME, "
        "and your own as package.module:NAME"
    )
