"""Untied layers: each is its plain PyTorch class with a backward weight beside the weight.

A plain module becomes untied by exchange of its class (`untied.untie_`), so optimizers, hooks and shared
references to it stay valid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..errors import UntiedError, shown
from ..geometry import DENSE, Convolution, Geometry
from ..parametrized import leaves, read_kernel
from ..routes.autograd import cast_for_autocast
from ..routes.route import Use
from ..rules.broadcast import Collector, hand_out
from ..rules.call import Call, Listener
from ..rules.rule import Rule
from ..tape.audit import History
from ..tape.tape import Tape

__all__ = ["LAYERS", "Untied", "backward_name", "register_layer", "untied_layers"]


def backward_name(weight: str) -> str:
    """The name of the backward weight that belongs to a weight: ``weight`` -> ``backward_weight``, ``weight_hh_l0`` ->
    ``backward_weight_hh_l0``.

    >>> backward_name("in_proj_weight")
    'in_proj_backward_weight'
    """
    return beside_name(weight, "backward_weight")


def beside_name(weight: str, key: str) -> str:
    """The name of what a rule keeps beside a weight: ``in_proj_weight``, ``backward_weight`` ->
    ``in_proj_backward_weight``; ``weight_hh_l0`` -> ``backward_weight_hh_l0``."""
    if weight.endswith("weight"):
        return weight.removesuffix("weight") + key
    if weight.startswith("weight_"):
        return f"{key}_{weight.removeprefix('weight_')}"
    return f"backward_{weight}" if key == "backward_weight" else f"{key}_{weight}"


OF_A_RECORDING = ("listeners", "visited", "collector", "is_source", "history")
"""What a layer keeps of recordings, and no copy of it has."""


class Untied:
    """Mixed into a plain layer class, in front of it: ``class UntiedLinear(Untied, nn.Linear)``.

    A subclass gives `geometry`, or its own ``forward`` made of `connect` calls if it has several kernels.

    Attributes:
        weights: the names of the kernels this layer type may have.
        rule: the learning rule of this layer.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa")
    >>> isinstance(model, Untied), isinstance(model, torch.nn.Linear), model
    (True, True, UntiedLinear(in_features=4, out_features=3, bias=True, rule=sa))
    """

    weights: ClassVar[tuple[str, ...]] = ("weight",)
    rule: Rule
    plain_class: type[nn.Module]
    collector: Collector | None = None  # under a recording, where the route broadcasts
    is_source: bool = False  # whether it is its output's error that is broadcast
    listeners: tuple[Listener, ...] = ()  # set by record(), metrics.measure() and others for the time of a forward pass
    sees_batch_first: ClassVar[bool] = False  # whether its kernels do so whatever the layer's own input is
    was_called: bool = False
    history: History | None = None  # between two recordings, see `untied.tape.audit`
    visited: Mapping[str, tuple[int, int]] = MappingProxyType({})  # which W, in which version, the rule has visited
    patches: Mapping[str, int] = MappingProxyType({})  # of each weight: how often the task used it in a step

    def geometry(self) -> Geometry:
        """How this layer uses its kernel."""
        raise NotImplementedError(f"{type(self).__name__}.geometry")

    def forward(self, x: Tensor) -> Tensor:
        """The plain layer's output, bit for bit, [n, ...] as its geometry's legend says; errors go back through B."""
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
            x: the layer's input, [n, ...] as the geometry's legend says.
            weight, bias: names of the parameters. part: their rows to use, all by default.

        Returns:
            the layer's output, [n, ...], bias included.

        Raises:
            UntiedError: it is exported or traced in training mode.
        """
        if not torch.compiler.is_compiling() and not self.was_called:  # a compiled pass would be compiled again
            self.was_called = True
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            self._check_traced()
        W = getattr(self, weight)
        b = None if bias is None else getattr(self, bias)
        beside, route = self.beside(weight), self.rule.route
        route.prepare(beside, x, geometry)
        B = None if route.factored else self.backward_kernel(weight, W)
        kernels = self._targets(weight, W, beside["backward_weight"] if B is None or route.whole else B)
        kernels = self.rule.compared(kernels[0], beside), kernels[1]
        whole = W
        if part is not None:
            W, B, b = W[part], B[part] if B is not None and route.like_weight else B, None if b is None else b[part]
        x_, W_, B_, b_ = cast_for_autocast(x, W, B, b)
        y = hand_out(self, self.rule.send(Use(x_, W_, B_, b_, geometry, beside, self, part)), geometry)
        if self.listeners:

            def made() -> Tensor:
                return B_ if B_ is not None else self._product(weight, whole, part)

            call = Call(self, x_, y, W_, made, b_, geometry, kernels, None if route.whole else part)
            for listener in self.listeners:
                listener.note(call)
        elif self.rule.needs_record and torch.is_grad_enabled() and getattr(self, "training", False):
            self._warn_unrecorded()
        return y

    def _product(self, weight: str, W: Tensor, part: slice | None) -> Tensor:
        """B where it is made of several kernels, as the operation would see it."""
        B = self.backward_kernel(weight, W)
        (cast,) = cast_for_autocast(B if part is None else B[part])
        return cast  # type: ignore[no-any-return]

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
        """B: the parameter, or what a transport rule makes of W now; in W's layout, but [C, ...] where errors are
        broadcast from C outputs."""
        if self.rule.route.whole:
            return self.rule.kernel(W, self.beside(weight), self.geometry_of(weight))
        return self.rule.kernel(W, self.beside(weight))

    def beside(self, weight: str) -> dict[str, Any]:
        """What its rule keeps beside a weight, by the rule's own names; ``backward_weight``, if it is there, is B."""
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
        names = [beside_name(w, key) for w in self.own_weights() for key in self.rule.keeps]
        return [B for name in names for B in leaves(self, name)]  # type: ignore[arg-type]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, own in self._lazy():
            if prefix + name in state and not is_lazy(state[prefix + name]):
                own.materialize(state[prefix + name].shape)
        super()._load_from_state_dict(state, prefix, *args)  # type: ignore[misc]
        beside = {prefix + beside_name(w, key) for w in self.own_weights() for key in self.rule.keeps}
        missing = args[2]  # of the keys of all layers so far
        if beside & set(missing) and not beside & set(state) and any(prefix + w in state for w in self.own_weights()):
            warnings.warn(
                "this state dict has weights and no backward weights, as that of a plain model: load it before "
                "untie_, or with strict=False, which leaves B as it is",
                stacklevel=2,
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        module, lazy = cast(nn.Module, self), self._lazy()
        for name, _ in lazy:  # it has no data to detach
            del module._parameters[name]
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name, own in lazy:
            module._parameters[name] = own
            destination[prefix + name] = own

    def _lazy(self) -> list[tuple[str, Any]]:
        own = cast(nn.Module, self)._parameters
        return [(name, p) for name, p in own.items() if p is not None and is_lazy(p)]

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy: nobody listens to a copy that is made inside record()."""
        return {name: value for name, value in self.__dict__.items() if name not in OF_A_RECORDING}

    def own_weights(self) -> list[str]:
        """The names of the kernels that this layer has."""
        return self.kernel_names(self)  # type: ignore[arg-type]

    @classmethod
    def kernel_names(cls, module: nn.Module) -> list[str]:
        """The names of the kernels that a layer of this type has, be it untied yet or plain."""
        made = {w for w in cls.weights if is_parametrized(module, w) or isinstance(getattr(cls, w, None), property)}
        return [w for w in cls.weights if w in made or getattr(module, w, None) is not None]

    @property
    def weight_device(self) -> torch.device:
        """Where its kernels are."""
        device: torch.device = getattr(self, self.own_weights()[0]).device
        return device

    def _check_traced(self) -> None:
        """What is exported is the forward pass alone: B would be lost without a word."""
        if getattr(self, "training", False) and not self.rule.exact:
            raise UntiedError(
                "torch.export and torch.jit keep the forward pass alone, so what they make would train by "
                "backpropagation: export model.eval(), or untied.tie_(copy.deepcopy(model))"
            )

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


LAYERS: dict[type[nn.Module], Any] = {
    nn.Linear: UntiedLinear,
    nn.Conv1d: UntiedConv1d,
    nn.Conv2d: UntiedConv2d,
    nn.Conv3d: UntiedConv3d,
    nn.ConvTranspose1d: UntiedConvTranspose1d,
    nn.ConvTranspose2d: UntiedConvTranspose2d,
    nn.ConvTranspose3d: UntiedConvTranspose3d,
}
"""Each plain layer class, by exact type, and its untied class."""


def register_layer(plain: type[nn.Module]) -> Callable[[type], type]:
    """Class decorator: make one's own layer type known to `untie_`.

    Raises:
        UntiedError: the decorated class is not ``class X(untied.Untied, plain)``.

    >>> import torch, untied
    >>> class Scaled(torch.nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x / 2)
    >>> @untied.register_layer(Scaled)
    ... class UntiedScaled(untied.Untied, Scaled):
    ...     def forward(self, x):
    ...         return self.connect(x / 2, untied.geometry.DENSE)
    >>> print(untied.untie_(torch.nn.Sequential(Scaled(4, 3)), "fa"))
    converted 1 layers
      0: Scaled, rule fa
    >>> del untied.layers.LAYERS[Scaled]
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
    """Every converted layer of a model by name; a module that appears twice is listed once.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "sa", filter="2")
    >>> list(untied_layers(model))
    ['2']
    """
    check_model(model)
    return {name: module for name, module in model.named_modules() if isinstance(module, Untied)}


def check_model(model: Any) -> None:
    """Refuse what is no module.

    Raises:
        UntiedError: it is not.

    >>> try:
    ...     check_model(nn.Linear)
    ... except UntiedError as error:
    ...     print(error)
    Linear is no model: give a torch.nn.Module, such as torch.nn.Linear(4, 3)
    """
    if not isinstance(model, nn.Module):
        raise UntiedError(f"{shown(model)} is no model: give a torch.nn.Module, such as torch.nn.Linear(4, 3)")
