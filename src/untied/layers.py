"""Untied layers: each is its plain PyTorch class with a backward weight beside the weight.

A plain module becomes untied by exchange of its class (`untied.untie_`), so optimizers, hooks and shared
references to it stay valid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from .algebra import Rule
from .autograd import cast_for_autocast, untied_operation
from .call import Call, Listener
from .errors import UntiedError
from .geometry import DENSE, Convolution, Geometry
from .parametrized import leaves, read_kernel
from .tape import Tape

__all__ = ["LAYERS", "Untied", "backward_name", "register_layer", "untied_layers"]


def backward_name(weight: str) -> str:
    """The name of the backward weight that belongs to a weight: ``weight`` -> ``backward_weight``, ``weight_hh_l0`` ->
    ``backward_weight_hh_l0``."""
    return beside_name(weight, "backward_weight")


def beside_name(weight: str, key: str) -> str:
    """The name of what a rule keeps beside a weight: ``in_proj_weight``, ``backward_weight`` ->
    ``in_proj_backward_weight``; ``weight_hh_l0`` -> ``backward_weight_hh_l0``."""
    if weight.endswith("weight"):
        return weight.removesuffix("weight") + key
    if weight.startswith("weight_"):
        return f"{key}_{weight.removeprefix('weight_')}"
    return f"backward_{weight}" if key == "backward_weight" else f"{key}_{weight}"


class Untied:
    """Mixed into a plain layer class, in front of it: ``class UntiedLinear(Untied, nn.Linear)``.

    A subclass gives `geometry`, or its own ``forward`` made of `connect` calls if it has several kernels.

    Attributes:
        weights: the names of the kernels this layer type may have.
        rule: the learning rule of this layer.
    """

    weights: ClassVar[tuple[str, ...]] = ("weight",)
    rule: Rule
    plain_class: type[nn.Module]
    listeners: tuple[Listener, ...] = ()  # set by record(), metrics.measure() and others for the time of a forward pass
    was_called: bool = False
    visited: Mapping[str, tuple[int, int]] = MappingProxyType({})  # which W, in which version, the rule has visited
    patches: Mapping[str, int] = MappingProxyType({})  # of each weight: how often the task used it in a step

    def geometry(self) -> Geometry:
        """How this layer uses its kernel."""
        raise NotImplementedError(f"{type(self).__name__}.geometry")

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output, bit for bit; errors go back through B."""
        return self.connect(x, self.geometry())

    def connect(
        self,
        x: Tensor,
        geometry: Geometry,
        weight: str = "weight",
        bias: str | None = "bias",
        part: slice | None = None,
    ) -> Tensor:
        """Send x forward through one kernel of this layer, untied.

        Args:
            x: the layer's input.
            weight, bias: names of the parameters. part: their rows to use, all by default.
        """
        W = getattr(self, weight)
        b = None if bias is None else getattr(self, bias)
        B = self.backward_kernel(weight, W)
        kernels = self._targets(weight, W, B)
        if part is not None:
            W, B, b = W[part], B[part], None if b is None else b[part]
        x_, W_, B_, b_ = cast_for_autocast(x, W, B, b)
        y = untied_operation(x_, W_, B_, b_, geometry, self.rule.copies)
        if self.listeners:
            call = Call(self, x_, y, W_, B_, b_, geometry, kernels, part)
            for listener in self.listeners:
                listener.note(call)
        elif self.rule.needs_record and torch.is_grad_enabled() and getattr(self, "training", False):
            self._warn_unrecorded()
        return y

    def _targets(self, weight: str, W: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """What R's gradients go to. A parametrized kernel is made anew at each call; its first one stands for all."""
        name = backward_name(weight)
        module: Any = self
        tape = self.tape
        if tape is None or not (is_parametrized(module, weight) or is_parametrized(module, name)):
            return W, B
        if (self, weight) not in tape.made:
            if not torch.is_grad_enabled():  # a mirror phase: errors of R go on to what the kernels are made of
                with torch.enable_grad():
                    W, B = read_kernel(module, weight), self.backward_kernel(weight, W)
            tape.made[self, weight] = W, B
        return tape.made[self, weight]

    def backward_kernel(self, weight: str, W: Tensor) -> Tensor:
        """B in W's layout: the parameter, or what a transport rule makes of W now."""
        return self.rule.kernel(W, self.beside(weight))

    def beside(self, weight: str) -> dict[str, Any]:
        """What its rule keeps beside a weight, by the rule's own names."""
        return {key: getattr(self, beside_name(weight, key), None) for key in self.rule.keeps}

    @property
    def tape(self) -> Tape | None:
        """The recording that is going on, if any."""
        return next((listener for listener in self.listeners if isinstance(listener, Tape)), None)

    def geometry_of(self, weight: str) -> Geometry:
        """How this layer uses one of its kernels, up to sizes that its input decides."""
        return self.geometry()

    def backward_parameters(self) -> list[nn.Parameter]:
        """Its backward weights; none under a transport rule."""
        return [B for w in self.own_weights() for B in leaves(self, backward_name(w))]  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy: nobody listens to a copy that is made inside record()."""
        return {name: value for name, value in self.__dict__.items() if name not in ("listeners", "visited")}

    def own_weights(self) -> list[str]:
        """The names of the kernels that this layer has."""
        return self.kernel_names(self)  # type: ignore[arg-type]

    @classmethod
    def kernel_names(cls, module: nn.Module) -> list[str]:
        """The names of the kernels that a layer of this type has, be it untied yet or plain."""
        return [w for w in cls.weights if is_parametrized(module, w) or getattr(module, w, None) is not None]

    @property
    def weight_device(self) -> torch.device:
        """Where its kernels are."""
        device: torch.device = getattr(self, self.own_weights()[0]).device
        return device

    def _warn_unrecorded(self) -> None:
        # A recomputation inside backward (activation checkpointing) is not a forward pass of its own.
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() != -1:
            return
        warnings.warn(
            f"a training forward pass of rule {self.rule} outside untied.record(): its backward weights get no "
            "gradient and do not align; use 'with untied.record(model) as tape', or model.eval() to evaluate",
            stacklevel=4,
        )

    def extra_repr(self) -> str:
        """The plain layer's, and the rule."""
        return f"{super().extra_repr()}, rule={self.rule}"  # type: ignore[misc]


class UntiedLinear(Untied, nn.Linear):
    """`nn.Linear` with ``backward_weight`` [o, i]."""

    def geometry(self) -> Geometry:
        return DENSE


class _UntiedConvolution(Untied):
    def geometry(self) -> Geometry:
        return Convolution.of(self)  # type: ignore[arg-type]


class UntiedConv1d(_UntiedConvolution, nn.Conv1d):
    """`nn.Conv1d` with ``backward_weight`` [o, i/groups, k]."""


class UntiedConv2d(_UntiedConvolution, nn.Conv2d):
    """`nn.Conv2d` with ``backward_weight`` [o, i/groups, k, k]."""


class UntiedConv3d(_UntiedConvolution, nn.Conv3d):
    """`nn.Conv3d` with ``backward_weight`` [o, i/groups, k, k, k]."""


class _UntiedTransposed(_UntiedConvolution):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the plain layer's, ``output_size`` included."""
        layer: Any = self
        padding = layer._output_padding(
            x,
            output_size,
            layer.stride,
            layer.padding,
            layer.kernel_size,
            len(layer.kernel_size),
            layer.dilation,
        )
        return self.connect(x, Convolution.of(layer, list(padding)))


class UntiedConvTranspose1d(_UntiedTransposed, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` with ``backward_weight`` [i, o/groups, k]."""


class UntiedConvTranspose2d(_UntiedTransposed, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` with ``backward_weight`` [i, o/groups, k, k]."""


class UntiedConvTranspose3d(_UntiedTransposed, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with ``backward_weight`` [i, o/groups, k, k, k]."""


class UntiedOutputProjection(Untied, NonDynamicallyQuantizableLinear):
    """The output projection inside `nn.MultiheadAttention`."""

    def geometry(self) -> Geometry:
        return DENSE


class UntiedMultiheadAttention(Untied, nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose projections are untied: ``in_proj_backward_weight``, or one for q, k and
    v each, and ``out_proj.backward_weight``. The products of queries, keys and values are activity, not
    weights, and stay as they are.
    """

    weights = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")

    def geometry(self) -> Geometry:
        return DENSE

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As the plain layer's, arguments and results."""
        if is_causal and attn_mask is None:
            raise UntiedError("is_causal=True needs attn_mask too, as in nn.MultiheadAttention: give the causal mask")
        batched, same = query.dim() == 3, query is key and key is value
        q_in, k_in, v_in = (self._batch_first(t, batched) for t in (query, key, value))
        q, k, v = self._project(q_in, k_in, v_in, same)
        n, _, E = q.shape
        key_padding_mask = _additive(key_padding_mask, q.dtype)
        attn_mask = _additive(attn_mask, q.dtype)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.reshape(n, 1, 1, -1)
        if attn_mask is not None:
            attn_mask = attn_mask.reshape(
                -1 if attn_mask.dim() == 3 else 1,
                self.num_heads if attn_mask.dim() == 3 else 1,
                *attn_mask.shape[-2:],
            )
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(n, 1, E).to(k.dtype)], 1)
            v = torch.cat([v, self.bias_v.expand(n, 1, E).to(v.dtype)], 1)
        if self.add_zero_attn:
            k, v = (torch.cat([t, t.new_zeros(n, 1, E)], 1) for t in (k, v))
        extra = (self.bias_k is not None) + self.add_zero_attn
        if extra:
            key_padding_mask, attn_mask = (
                None if m is None else F.pad(m, (0, extra)) for m in (key_padding_mask, attn_mask)
            )
        mask = (
            attn_mask
            if key_padding_mask is None
            else key_padding_mask
            if attn_mask is None
            else attn_mask + key_padding_mask
        )
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v)
        )  # [n, heads, length, E / heads]
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * (q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout)
            z = weights @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(z.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

    def _project(self, q: Tensor, k: Tensor, v: Tensor, same: bool) -> tuple[Tensor, ...]:
        bias = None if self.in_proj_bias is None else "in_proj_bias"
        if not self._qkv_same_embed_dim:
            E, names = self.embed_dim, ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            return tuple(
                self._add_bias(self.connect(x, DENSE, name, None), slice(i * E, (i + 1) * E))
                for i, (x, name) in enumerate(zip((q, k, v), names, strict=True))
            )
        if same:
            return self.connect(q, DENSE, "in_proj_weight", bias).chunk(3, dim=-1)
        E = self.embed_dim
        return tuple(
            self.connect(x, DENSE, "in_proj_weight", bias, slice(i * E, (i + 1) * E)) for i, x in enumerate((q, k, v))
        )

    def _add_bias(self, y: Tensor, rows: slice) -> Tensor:
        return y if self.in_proj_bias is None else y + self.in_proj_bias[rows].to(y.dtype)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A boolean mask (True: leave out) as one that is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: UntiedLinear,
    nn.Conv1d: UntiedConv1d,
    nn.Conv2d: UntiedConv2d,
    nn.Conv3d: UntiedConv3d,
    nn.ConvTranspose1d: UntiedConvTranspose1d,
    nn.ConvTranspose2d: UntiedConvTranspose2d,
    nn.ConvTranspose3d: UntiedConvTranspose3d,
    NonDynamicallyQuantizableLinear: UntiedOutputProjection,
    nn.MultiheadAttention: UntiedMultiheadAttention,
}
"""Each plain layer class, by exact type, and its untied class."""


def register_layer(plain: type[nn.Module]) -> Callable[[type], type]:
    """Class decorator: make one's own layer type known to `untie_`.

    ::

        @untied.register_layer(Conv1D)
        class UntiedConv1D(untied.Untied, Conv1D):
            def geometry(self):
                return MyGeometry()

    Raises:
        UntiedError: the decorated class is not ``class X(untied.Untied, plain)``.
    """

    def register(untied_class: type) -> type:
        if not (issubclass(untied_class, Untied) and issubclass(untied_class, plain)):
            raise UntiedError(
                f"{untied_class.__name__} cannot stand for {plain.__name__}: declare it as "
                f"'class {untied_class.__name__}(untied.Untied, {plain.__name__})'"
            )
        LAYERS[plain] = untied_class
        return untied_class

    return register


def untied_layers(model: nn.Module) -> dict[str, Untied]:
    """Every converted layer of a model by name; a module that appears twice is listed once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Untied)}
