"""Models of torchvision and timm, by name, with fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from untied.errors import UntiedError

__all__ = ["ZOOS", "build", "names"]


def names(zoo: str) -> list[str]:
    """Names of the image classifiers of a zoo, without its prefix.

    Raises:
        UntiedError: timm is not installed.
    """
    return _torchvision_names() if zoo == "torchvision" else _timm().list_models()


def build(zoo: str, name: str, input_shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    """A model with fresh weights, tried out (on no data) with images of the given shape.

    Args:
        zoo: "torchvision" or "timm".
        name: as in ``names(zoo)``.
        input_shape: channels, height, width.
        classes: number of outputs.
        options: handed on, such as ``image_size`` for torchvision's vision transformers.

    Raises:
        UntiedError: an option is not the model's, or the model does not take such images or gives no plain logits.
    """
    full_name = f"{zoo}:{name}"
    model: nn.Module = _in_one_line(full_name, lambda: ZOOS[zoo](name, input_shape, classes, **options))
    logits = _in_one_line(f"{full_name} for images of {input_shape}", lambda: _try_out(model, input_shape))
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UntiedError(
            f"{full_name} gives {given} in training where logits for {classes} classes are needed: "
            "choose another, or see its options (aux_logits=False, say)"
        )
    return model


def _try_out(model: nn.Module, input_shape: tuple[int, int, int]) -> Any:
    """What the model gives for two images, on the meta device: shapes alone, and the model stays as it is.

    In training mode, where some models also give auxiliary outputs; two images, as batch normalisation needs.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return torch.func.functional_call(model.train(), shapes, torch.empty(2, *input_shape, device="meta"))


def _in_one_line(what: str, call: Callable[[], Any]) -> Any:
    """Turn whatever another library raises into our error: those models report mistakes in every kind of exception."""
    try:
        return call()
    except UntiedError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UntiedError(f"cannot build {what}: {reason[:300]}") from error


def _torchvision_names() -> list[str]:
    import torchvision  # here, as it is slow to import and our own networks do not need it

    found: list[str] = torchvision.models.list_models(module=torchvision.models)
    return found


def _torchvision(name: str, input_shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    if input_shape[0] != 3:
        raise UntiedError(
            f"torchvision:{name} takes images of 3 channels, not {input_shape[0]}: choose a model of ours"
        )
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return model


def _timm() -> Any:
    try:
        import timm  # not a requirement of the lab
    except ImportError as error:
        raise UntiedError("timm is not installed: run  pip install timm,  or choose another model") from error
    return timm


def _build_timm(name: str, input_shape: tuple[int, int, int], classes: int, **options: Any) -> nn.Module:
    make = _timm().create_model
    model: nn.Module = make(name, pretrained=False, in_chans=input_shape[0], num_classes=classes, **options)
    return model


ZOOS: dict[str, Callable[..., nn.Module]] = {"torchvision": _torchvision, "timm": _build_timm}
