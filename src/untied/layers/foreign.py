"""Layers of other packages: registered where their package is imported, so that this one needs none of them.

`FOREIGN` has a row for each: what makes its untied class. A plain forward that uses weights directly, as in
``F.linear(x, self.weight)``, is kept, and each such product is sent through the layer's own `connect`. Attention of
torchvision and timm does so with its children's weights (`ATTENTION`), routers with their own, and experts with a slice
of a kernel for each expert.

Adapters of peft are made of plain layers beside the layer that they adapt; nothing of theirs needs a class. What is
added after `untie_` is plain, though, and that is said (`adapters`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..geometry import DENSE, Convolution, Geometry
from ..parametrized import plain_type
from .layer import LAYERS, Untied, register_layer

__all__ = ["ATTENTION", "FOREIGN", "Expert", "TransposedDense", "adapters", "attend", "register", "release"]


@dataclass(frozen=True)
class TransposedDense(Geometry):
    """y [n, ..., o] = x [n, ..., i] K over the last dimension: K is [i, o].

    >>> import torch
    >>> TransposedDense().project(torch.ones(2, 4), torch.ones(4, 3)).shape
    torch.Size([2, 3])
    """

    def sizes(self, K: Tensor) -> tuple[int, int]:
        return K.shape[0], K.shape[1]

    def rows(self, K: Tensor) -> Tensor:
        return K.T.unsqueeze(0)

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        return rows[0].T

    def project(self, x: Tensor, K: Tensor) -> Tensor:
        return x @ K

    def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
        return y @ K.T

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).T @ y.reshape(-1, y.shape[-1])

    def patch(self, K: Tensor) -> tuple[Geometry, tuple[int, ...], int]:
        return self, (K.shape[0],), K.shape[0]

    def forward(self, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return self.project(x, W)
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), W).view(*x.shape[:-1], W.shape[1])


@dataclass(frozen=True)
class Expert(Geometry):
    """y [n, ..., o] = x [n, ..., i] Kᵀ over the last dimension, for one of several experts: K is [1, o, i], of a kernel
    [experts, o, i].

    >>> import torch
    >>> Expert().project(torch.ones(2, 4), torch.ones(1, 3, 4)).shape
    torch.Size([2, 3])
    """

    def sizes(self, K: Tensor) -> tuple[int, int]:
        return K.shape[2], K.shape[1]

    def rows(self, K: Tensor) -> Tensor:
        return K

    def from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        return rows

    def project(self, x: Tensor, K: Tensor) -> Tensor:
        return F.linear(x, K[0])

    def reconstruct(self, y: Tensor, K: Tensor, like: Tensor | None = None) -> Tensor:
        return y @ K[0]

    def correlate(self, x: Tensor, y: Tensor) -> Tensor:
        return DENSE.correlate(x, y).unsqueeze(0)


def _dense(kind: Any) -> type:
    """`nn.Linear`, written in another way: ``backward_weight`` [o, i]."""

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        def geometry(self) -> Geometry:
            return DENSE

    return Made


def _transposed(kind: Any) -> type:
    """A dense layer with W in the other order: ``backward_weight`` [i, o]."""

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        def geometry(self) -> Geometry:
            return TransposedDense()

    return Made


def _convolution(kind: Any) -> type:
    """A convolution with other defaults: ``backward_weight`` in W's layout."""

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        def geometry(self) -> Geometry:
            return Convolution.of(self)

    return Made


def _padded(kind: Any) -> type:
    """A convolution that pads each input as TensorFlow does: ``backward_weight`` in W's layout."""

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        def geometry(self) -> Geometry:
            return Convolution.of(self)

        def forward(self, x: Tensor) -> Tensor:
            return self.connect(_pad_same(self, x), self.geometry())

    return Made


def _standardised(kind: Any) -> type:
    """A convolution whose kernel is W, standardised for each output (Qiao et al. 2019), and scaled where it has a gain.

    ``standard_weight`` is that kernel, and B stands beside it: ``standard_backward_weight``, in W's layout.
    """

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        weights = ("standard_weight",)

        @property
        def standard_weight(self) -> Tensor:
            """[o, i/groups, k, k]: what is applied."""
            gain = (self.gain * self.scale).view(-1) if hasattr(self, "gain") else None
            rows = F.batch_norm(
                self.weight.reshape(1, self.out_channels, -1), None, None, gain, training=True, momentum=0, eps=self.eps
            )
            return rows.reshape_as(self.weight)

        def geometry(self) -> Geometry:
            return Convolution.of(self)

        def forward(self, x: Tensor) -> Tensor:
            x = _pad_same(self, x) if getattr(self, "same_pad", False) else x
            return self.connect(x, self.geometry(), "standard_weight")

    return Made


def _pad_same(layer: Any, x: Tensor) -> Tensor:
    from timm.layers.padding import pad_same

    return pad_same(x, layer.kernel_size, layer.stride, layer.dilation)  # type: ignore[no-any-return]


def _own_product(kind: Any) -> type:
    """A module with more to do than its product with its own weight: ``backward_weight`` [o, i]."""

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        def geometry(self) -> Geometry:
            return DENSE

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            with _Through([self]):
                return super(Untied, self).forward(*args, **kwargs)

    return Made


def _experts(kind: Any) -> type:
    """A mixture's experts, each called with its own tokens: a kernel [experts, o, i], and B of that shape beside it."""

    class Made(Untied, kind):  # type: ignore[misc, valid-type, unused-ignore]
        weights = ("gate_up_proj", "down_proj")

        def geometry(self) -> Geometry:
            return Expert()

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """As the plain module's own loop over experts, whatever faster implementation the config asks for."""
            loop = getattr(kind.forward, "__wrapped__", kind.forward)
            with _Slices(self):
                return loop(self, *args, **kwargs)

    return Made


MIXTURES = {
    "mixtral": "Mixtral", "qwen2_moe": "Qwen2Moe", "qwen3_moe": "Qwen3Moe", "olmoe": "Olmoe", "minimax": "MiniMax",
}  # fmt: skip
"""Folder of transformers' models, and what begins the names of its router's and experts' classes."""

FOREIGN: dict[tuple[str, str], Callable[[Any], type]] = {
    ("transformers.pytorch_utils", "Conv1D"): _transposed,
    ("transformers.models.falcon.modeling_falcon", "FalconLinear"): _dense,
    ("transformers.models.esm.modeling_esmfold", "EsmFoldLinear"): _dense,
    ("transformers.models.efficientnet.modeling_efficientnet", "EfficientNetDepthwiseConv2d"): _convolution,
    ("timm.layers.linear", "Linear"): _dense,
    ("timm.layers.conv2d_same", "Conv2dSame"): _padded,
    ("timm.layers.std_conv", "StdConv2d"): _standardised,
    ("timm.layers.std_conv", "StdConv2dSame"): _standardised,
    ("timm.layers.std_conv", "ScaledStdConv2d"): _standardised,
    ("timm.layers.std_conv", "ScaledStdConv2dSame"): _standardised,
    ("torchvision.models.video.resnet", "Conv3DSimple"): _convolution,
    ("torchvision.models.video.resnet", "Conv3DNoTemporal"): _convolution,
    **{(f"transformers.models.{at}.modeling_{at}", f"{n}TopKRouter"): _own_product for at, n in MIXTURES.items()},
    **{(f"transformers.models.{at}.modeling_{at}", f"{n}Experts"): _experts for at, n in MIXTURES.items()},
}
"""Module and class of a layer: what makes its untied class."""


def _always(*names: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda module: names


def _with_a_bias_of_its_own(module: Any) -> tuple[str, ...]:
    """BEiT's way: queries and values have a bias and keys none, so qkv is used without being called."""
    own = getattr(module, "q_bias", None) is not None and not getattr(module, "qkv_bias_separate", False)
    return ("qkv",) if own and getattr(module, "qkv", None) is not None else ()


ATTENTION: dict[tuple[str, str], Callable[[Any], tuple[str, ...]]] = {
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): _always("qkv", "proj"),
    ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2"): _always("qkv", "proj"),
    ("timm.models.beit", "Attention"): _with_a_bias_of_its_own,
    ("timm.models.eva", "EvaAttention"): _with_a_bias_of_its_own,
    ("timm.models.swin_transformer_v2", "WindowAttention"): _with_a_bias_of_its_own,
}
"""Module and class of attention that uses weights directly: the names of the children whose weights those are."""

_wrapped: dict[type, type] = {}


def register() -> None:
    """Make known what the packages that are imported by now have. `untied.untie_` calls it.

    >>> register()
    """
    for (where, name), make in FOREIGN.items():
        kind = getattr(sys.modules.get(where), name, None)
        if kind is not None and kind not in LAYERS:
            made = _public(register_layer(kind)(make(kind)), f"Untied{name}")
            made.__doc__ = f"{name} of {where.partition('.')[0]}. {make.__doc__}"


def adapters(model: nn.Module, layers: Mapping[str, Untied]) -> None:
    """Say which layers of an adapter, beside the untied layer that it adapts, are plain.

    peft's adapters hold the layer that they adapt as ``base_layer``. `get_peft_model` after `untie_` adds plain ones.

    >>> import untied, warnings
    >>> adapter = nn.ModuleDict({"base_layer": nn.Linear(4, 3), "lora_A": nn.Linear(4, 2)})
    >>> model = nn.ModuleDict({"fc": adapter})
    >>> _ = untied.untie_(model, "fa", filter="fc.base_layer")
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     adapters(model, untied.layers.untied_layers(model))
    >>> "fc.lora_A" in str(said[0].message)
    True
    """
    for name in layers:
        around, _, last = name.rpartition(".")
        if last != "base_layer":
            continue
        plain = [n for n, m in model.get_submodule(around).named_modules(prefix=around) if plain_type(m) in LAYERS]
        if plain:
            warnings.warn(
                f"an adapter was added to an untied layer, and its own layers are plain, so that errors through them "
                f"are backprop's ({', '.join(plain)}): call untied.untie_(model, rule) once more, which unties what is "
                "new, with rule bp where backpropagation is meant there",
                stacklevel=4,
            )
            return


def attend(model: nn.Module) -> None:
    """Let attention that uses the weights of untied children send such products through them. `untied.untie_` calls it.

    >>> import torch, untied
    >>> class Attention(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.qkv = torch.nn.Linear(4, 12)
    ...     def forward(self, x):
    ...         return torch.nn.functional.linear(x, self.qkv.weight, self.qkv.bias)
    >>> key = Attention.__module__, Attention.__qualname__
    >>> ATTENTION[key] = lambda module: ("qkv",)
    >>> model = Attention()
    >>> _ = untied.untie_(model, "fa")
    >>> type(model).__name__  # its product is qkv's own call now
    'UntiedAttention'
    >>> _ = untied.tie_(model)
    >>> del ATTENTION[key]
    """
    for module in model.modules():
        names_of = ATTENTION.get((type(module).__module__, type(module).__qualname__))
        if names_of is None:
            continue
        if any(isinstance(getattr(module, name), Untied) for name in names_of(module)):
            module.__class__ = _attending(type(module), names_of)


def release(model: nn.Module) -> None:
    """Undo `attend` where no child is untied any more. `untied.tie_` calls it.

    >>> import torch
    >>> release(torch.nn.Linear(4, 3))
    """
    plain = {wrapped: kind for kind, wrapped in _wrapped.items()}
    for module in model.modules():
        if type(module) in plain and not any(isinstance(child, Untied) for child in module.children()):
            module.__class__ = plain[type(module)]


def _attending(kind: type, names_of: Callable[[Any], tuple[str, ...]]) -> type:
    if kind not in _wrapped:

        class Attending(kind):  # type: ignore[misc, valid-type, unused-ignore]
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                with _Through([child for name in names_of(self) if isinstance(child := getattr(self, name), Untied)]):
                    return super().forward(*args, **kwargs)

        _wrapped[kind] = _public(Attending, f"Untied{kind.__name__}")
    return _wrapped[kind]


def _public(kind: type, name: str) -> type:
    """Let pickle find a class that is made here."""
    kind.__name__ = kind.__qualname__ = name
    kind.__module__ = __name__
    globals()[name] = kind
    return kind


class _Through(TorchFunctionMode):
    """Sends each `F.linear` with the weight of one of these layers through the layer."""

    def __init__(self, layers: list[Untied]) -> None:
        super().__init__()
        self.layers = {id(layer.weight): layer for layer in layers}  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear:
            return func(*args, **kwargs)
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        layer: Any = self.layers.get(id(given["weight"]))
        if layer is None:
            return func(*args, **kwargs)
        bias = given.get("bias")
        if bias is None or bias is getattr(layer, "bias", None):
            return layer.connect(given["input"], layer.geometry(), bias=None if bias is None else "bias")
        return layer.connect(given["input"], layer.geometry(), bias=None) + bias


class _Slices(TorchFunctionMode):
    """Sends each `F.linear` with a slice of one of a layer's kernels [experts, o, i] through the layer."""

    def __init__(self, layer: Untied) -> None:
        super().__init__()
        self.layer = layer
        self.kernels = {id(getattr(layer, name)): name for name in layer.weights}
        self.slices: dict[int, tuple[Tensor, str, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) > 1 and id(args[1]) in self.slices:
            _, name, at = self.slices[id(args[1])]
            return self.layer.connect(args[0], Expert(), name, None, slice(at, at + 1))
        result = func(*args, **kwargs)
        if func is Tensor.__getitem__ and id(args[0]) in self.kernels and result.dim() == 2:
            self.slices[id(result)] = result, self.kernels[id(args[0])], int(args[1])
        return result
