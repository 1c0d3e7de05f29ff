"""`untie_` gives a model's layers backward weights of their own, `tie_` takes them away again."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from .errors import UntiedError, shown
from .geometry import DENSE, Geometry
from .initial import Init, angle_of, initial, like_weight
from .layers import attention as _attention  # noqa: F401 (it registers its layers)
from .layers import foreign, offers
from .layers.layer import LAYERS, OF_A_RECORDING, Untied, beside_name, check_model, untied_layers
from .layers.products import Allow, allowed, unwatch, watch
from .parametrized import identity, leaves, made_kernel, plain_type, rebase, remove_backward
from .primitives.primitive import Combination, Primitive
from .routes.route import Place
from .rules import as_rule
from .rules.rule import Rule

__all__ = ["Report", "like_weight", "tie_", "untie_"]

Filter = str | type | tuple[type, ...] | Callable[[str, nn.Module], bool] | None

# Linear maps whose errors go back through weights that a class exchange cannot reach.
_UNREACHABLE = {
    nn.Bilinear: "it is not linear in one input, so B would need two layouts",
}
_KNOWN_HARMLESS = {
    nn.Embedding: "its input is an index, no error goes through it",
    nn.EmbeddingBag: "its input is an index, no error goes through it",
    nn.LayerNorm: "it scales element by element",
    nn.RMSNorm: "it scales element by element",
}
# Words in the names of parameters that are added, looked up or multiplied element by element. A name proves nothing:
# the report says so, and `untied.verify` looks at the numbers.
_ADDED = ("embed", "pos", "token", "table", "bias", "mask", "scale", "gamma", "beta", "query", "latent")


@dataclass(frozen=True)
class Report:
    """What `untie_` did. Print it.

    Attributes:
        converted: layer name -> "plain class, rule".
        left: name of each other module that owns parameters -> why it was left alone.
        source: the layer whose output's error is broadcast; "" where the rule sends errors through the layers.

    >>> import torch, untied
    >>> report = untied.untie_(torch.nn.Linear(4, 3), "sa")
    >>> report.converted
    {'': 'Linear, rule sa'}
    """

    converted: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    source: str = ""

    def __str__(self) -> str:
        lines = [f"converted {len(self.converted)} layers"]
        lines += [f"  {name or '(the model)'}: {what}" for name, what in self.converted.items()]
        lines += [f"errors are broadcast from the output of {self.source}"] if self.source else []
        reasons: dict[str, list[str]] = {}
        for name, why in self.left.items():
            reasons.setdefault(why, []).append(name or "(the model)")
        lines += ["left alone"] if reasons else []
        lines += [f"  {why}: {', '.join(names)}" for why, names in reasons.items()]
        return "\n".join(lines)


def untie_(
    model: nn.Module,
    rule: Rule | Combination | Primitive | str,
    filter: Filter = None,
    init: Init = "like",
    allow: Allow = (),
) -> Report:
    """Untie the backward from the forward weights of a model's layers, in place. Outputs stay bit-identical.

    B is a new parameter: make optimizers, and wrap the model for several devices, afterwards.
    Call it again with another ``filter`` for layers that shall have another rule; layers already untied are
    left as they are.

    Args:
        model: any model of linear, convolution, recurrent and multi-head attention layers, and
            registered types.
        rule: for these layers: a rule, a combination of primitives, or a text such as ``"sa"`` or ``"amp +
            0.5*decay + null"``.
        filter: which layers: a name pattern (``"layer1.*"``), a type or tuple of types, or a function of
            name and module. Default: all.
        init: B's initial value. "like" draws it with W's own standard deviation (`like_weight`); "copy" starts at W;
            "angle(30)" is a random B of W's norm, at 30° to W; a `torch.Generator` draws as "like" does, from that
            generator; a function gets W and returns B.
        allow: parameters that look like kernels, belong to no known layer, and shall knowingly keep
            backpropagation's errors: a name or pattern (``"W_rec"``, ``"cell.*"``), several, or True for all.

    Returns:
        What was converted, and what was left alone and why.

    Raises:
        UntiedError: the model is no module; nothing matched; a matching layer cannot be untied (nn.Bilinear,
            unregistered subclasses, uninitialised lazy layers, weights without values); matrix-shaped parameters
            outside known layers that ``allow`` does not name; an unknown rule or init; an option of the rule would
            change nothing. Later, at the model's first training pass: errors go through a matrix outside of the untied
            layers, such as that of a layer put in afterwards.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> print(untied.untie_(model, "sa"))
    converted 2 layers
      0: Linear, rule sa
      2: Linear, rule sa
    """
    rule = as_rule(rule)
    rule.check()
    check_model(model)
    foreign.register()
    offers.layers(model)
    matches, given = _matcher(filter), f"filter={shown(filter)}" if filter is not None else "no filter"
    if not (
        init in ("like", "copy") or isinstance(init, torch.Generator) or callable(init) or angle_of(init) is not None
    ):
        raise UntiedError(
            f"init={shown(init)} is not possible: give 'like', 'copy', 'angle(30)' (0 to 180 degrees from W), a "
            "torch.Generator, or a function of the weight"
        )
    chosen: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    unknown: list[str] = []
    knowingly: list[str] = []
    may_stay = partial(allowed, allow)
    may_stay("")
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        parent = modules.get(name.rpartition(".")[0]) if name else None
        # An attention's output projection is a part of it: whoever chooses the one chooses the other.
        chosen_as = (name.rpartition(".")[0], parent) if isinstance(parent, nn.MultiheadAttention) else (name, module)
        if isinstance(module, Untied):
            left[name] = f"untied already, rule {module.rule}"
        elif not matches(*chosen_as):
            left[name] = f"{type(module).__name__}, not in {given}"
            knowingly.append(name)
        elif plain_type(module) in LAYERS:
            chosen[name] = module
            unknown += [f"{n} {s}" for n, s in _unknown_kernels(name, module, may_stay)]
        elif isinstance(module, ParametrizationList):
            left[name] = "what a parametrized kernel is made of"
        else:
            left[name] = _why_left(name, module, may_stay)
            unknown += [f"{n} {s}" for n, s in _unknown_kernels(name, module, may_stay)]
    if not chosen:
        possible = sorted(t.__name__ for t in LAYERS if t is not NonDynamicallyQuantizableLinear)
        present = (
            ", ".join(f"{n or '(the model)'} ({why})" for n, why in list(left.items())[:5])
            or "no module with parameters"
        )
        raise UntiedError(
            f"nothing to untie with {given}: the model has {present}; possible layer types are {', '.join(possible)}"
            + ("; to give it another rule, untied.tie_(model) first" if untied_layers(model) else "")
        )
    if unknown:
        raise UntiedError(
            f"backprop's errors would go through parameters of no known layer: {', '.join(unknown)}. Write them as "
            "nn.Linear, register their module with @untied.register_layer, or keep backprop there knowingly with "
            f"untie_(..., allow={[u.partition(' ')[0] for u in unknown]})"
        )
    for name, module in chosen.items():
        _check_kernels(name, module)
    _check_shared(modules, chosen)
    # Everything that can fail comes first: an error leaves the model as it was.
    _check_source(modules, chosen)
    source, outputs = _source(modules, chosen, rule)
    if init != "like" and not rule.takes_init:
        raise UntiedError(
            f"init={shown(init)} would change nothing under rule {rule}, whose errors pass no B of W's layout with a "
            f"first value: leave it out{', or write draw=... in the rule' if source else ''}"
        )
    kernels = _kernels_by_id(model)
    for name, module in chosen.items():
        for weight in _own_weights(module):
            key = identity(module, weight)
            W = made_kernel(module, weight, LAYERS[plain_type(module)])
            if key not in kernels:  # one weight in two modules has one backward weight in both
                geometry = _geometry_of(module, weight) if rule.route.whole else DENSE
                moves = not (of := leaves(module, weight)) or any(p.requires_grad for p in of)
                at = Place(W, partial(initial, W, init), geometry, name, outputs, moves)
                kernels[key] = (rule, _laid_like(W, rule.beside(at)))
            elif kernels[key][0] != rule:
                raise UntiedError(
                    f"{name} shares its weight with a layer under rule {kernels[key][0]}: give both the same rule"
                )
    converted: dict[str, str] = {}
    for name, module in chosen.items():
        converted[name] = f"{type(module).__name__}, rule {rule}"
        _exchange(module, rule, kernels)
    foreign.attend(model)
    watch(model, allow, knowingly)
    return Report(converted, left, source)


Kernels = dict[int | tuple[int, str], tuple[Rule, dict[str, Tensor | None]]]
"""By the identity of each weight: its rule, and what that keeps beside it."""


def _kernels_by_id(model: nn.Module) -> Kernels:
    """What the model's layers have already."""
    found: Kernels = {}
    for layer in untied_layers(model).values():
        for weight in layer.own_weights():
            found[identity(layer, weight)] = (layer.rule, layer.beside(weight))  # type: ignore[arg-type]
    return found


def _laid_like(W: Tensor, beside: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """What stands beside W, with channels last where W has them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = formats.get(W.dim(), torch.contiguous_format)
    if W.is_contiguous() or not W.is_contiguous(memory_format=form):
        return beside
    for kept in beside.values():
        if kept is not None and not is_lazy(kept) and kept.dim() == W.dim():
            kept.data = kept.data.contiguous(memory_format=form)
    return beside


def _own_weights(module: nn.Module) -> list[str]:
    names: list[str] = LAYERS[plain_type(module)].kernel_names(module)
    return names


def _exchange(module: nn.Module, rule: Rule, kernels: Kernels) -> None:
    """Give a plain module its untied class, its rule, and its backward weights."""
    weights, plain = _own_weights(module), plain_type(module)
    rebase(module, LAYERS[plain])
    layer: Untied = module  # type: ignore[assignment]
    layer.plain_class, layer.rule = plain, rule
    module.__dict__["__module__"] = "torch.nn"  # torch.fx asks the instance, and takes layers of torch.nn whole
    for weight in weights:
        for key, kept in kernels[identity(module, weight)][1].items():
            if isinstance(kept, nn.Parameter):
                module.register_parameter(beside_name(weight, key), kept)
            elif kept is not None:
                module.register_buffer(beside_name(weight, key), kept)


def _geometry_of(module: nn.Module, weight: str) -> Geometry:
    """How a plain module will use one of its kernels."""
    untied = copy.copy(module)
    untied.__class__ = LAYERS[plain_type(module)]
    return untied.geometry_of(weight)  # type: ignore[no-any-return, operator]


def _check_source(modules: dict[str, nn.Module], chosen: dict[str, nn.Module]) -> None:
    """Layers that broadcast already were made for the last layer of then: refuse one behind it."""
    before = {n: m for n, m in modules.items() if isinstance(m, Untied)}
    last = [n for n in modules if n in chosen or n in before][-1]
    waits = [n for n, m in before.items() if m.rule.route.broadcasts and not m.rule.route.source]  # type: ignore[attr-defined]
    if waits and last not in before:
        source = list(before)[-1]
        raise UntiedError(
            f"layer {waits[0]} was untied to take the error of {source}, the last untied layer of then, and {last} "
            f"comes after it: untie all in one call, or name the source, as in dfa(source={last})"
        )


def _source(modules: dict[str, nn.Module], chosen: dict[str, nn.Module], rule: Rule) -> tuple[str, int | None]:
    """The layer whose output's error is broadcast, and how many features that has."""
    if not rule.route.broadcasts:
        return "", None
    known = {n: m for n, m in modules.items() if n in chosen or isinstance(m, Untied) or plain_type(m) in LAYERS}
    last = [n for n in modules if n in chosen or isinstance(modules[n], Untied)][-1]
    name = rule.route.source or last  # type: ignore[attr-defined]
    if name not in known:
        raise UntiedError(f"source={name} is no layer that can be untied: possible are {', '.join(known)}")
    module = known[name]
    several = module.own_weights() if isinstance(module, Untied) else _own_weights(module)
    if len(several) > 1:
        raise UntiedError(
            f"the errors of {name or '(the model)'}'s output would be broadcast, and it is {type(module).__name__} "
            f"with {len(several)} kernels: end the network with a layer of one, such as nn.Linear, or name one as "
            "source=NAME"
        )
    weight = module.own_weights()[-1] if isinstance(module, Untied) else _own_weights(module)[-1]
    geometry = module.geometry_of(weight) if isinstance(module, Untied) else _geometry_of(module, weight)
    W = made_kernel(module, weight, LAYERS.get(plain_type(module), type(module)))
    return name or "(the model)", geometry.sizes(W)[1]


def _matcher(filter: Filter) -> Callable[[str, nn.Module], bool]:
    if filter is None:
        return lambda name, module: True
    if isinstance(filter, str):
        return lambda name, module: fnmatch.fnmatchcase(name, filter)
    if isinstance(filter, type | tuple):
        return lambda name, module: isinstance(module, filter)
    if callable(filter):
        return filter
    raise UntiedError(
        f"filter={shown(filter)} is not possible: give a name pattern, a type, a tuple of types, or a function of name "
        "and module"
    )


def _is_matrix(p: Tensor) -> bool:
    """Whether a parameter may be a kernel: two or more dimensions above 1. What begins with 1, as [1, n, d], is shared
    by the whole batch: such parameters are added."""
    return p.dim() > 1 and p.shape[0] > 1 and sum(size > 1 for size in p.shape) > 1


def _matrices(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters that may be kernels and that its untied class, if it has one, does not know."""
    known = _own_weights(module) if plain_type(module) in LAYERS else ()
    own = {n: p for n, p in module.named_parameters(recurse=False) if n not in known}
    return {
        f"{name}.{n}" if name else n: p
        for n, p in own.items()
        if not isinstance(p, UninitializedParameter) and _is_matrix(p)
    }


def _unknown_kernels(
    name: str, module: nn.Module, may_stay: Callable[[str], bool]
) -> list[tuple[str, tuple[int, ...]]]:
    """Parameters through which errors would silently be backprop's, learning or frozen: their names and shapes."""
    if any(isinstance(module, harmless) for harmless in _KNOWN_HARMLESS):
        return []
    if plain_type(module) in LAYERS and any(identity(module, w) == (id(module), w) for w in _own_weights(module)):
        return []  # a registered layer whose kernel is made of its parameters
    found = {n: p for n, p in _matrices(name, module).items() if not may_stay(n)}
    return [(n, tuple(p.shape)) for n, p in found.items() if not _is_added(n)]


def _is_added(name: str) -> bool:
    """Whether the name says that a parameter is added, looked up or multiplied element by element."""
    return any(word in name.rpartition(".")[2].lower() for word in _ADDED)


def _why_left(name: str, module: nn.Module, may_stay: Callable[[str], bool]) -> str:
    """Why a matching module without an untied class may stay; raises where errors would silently be backprop's."""
    where, kind = f"{name or '(the model)'} is {type(module).__name__}", type(module)
    leave = "leave it to backprop knowingly with filter=..."
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and any(
        isinstance(p, UninitializedParameter) for p in module.parameters()
    ):
        raise UntiedError(f"{where}, not initialised yet: run one forward pass before untie_")
    matrices = _matrices(name, module)
    if matrices and all(map(may_stay, matrices)):
        return f"{kind.__name__}: errors through {', '.join(matrices)} are backprop's, as allow= says"
    for reason_for, reason in _UNREACHABLE.items():
        if isinstance(module, reason_for):
            raise UntiedError(f"{where}: {reason}. Build it from nn.Linear, or {leave}")
    base = next((t for t in LAYERS if isinstance(module, t)), None)
    if base is not None:
        raise UntiedError(
            f"{where}, a subclass of {base.__name__} whose forward may differ: declare its untied class with "
            f"@untied.register_layer({kind.__name__}), or {leave}"
        )
    for harmless, why in _KNOWN_HARMLESS.items():
        if isinstance(module, harmless):
            return f"{kind.__name__}: {why}"
    weight = f"{name}.weight" if name else "weight"
    if weight in matrices and not may_stay(weight):
        raise UntiedError(
            f"{where} with a weight of shape {tuple(matrices[weight].shape)} and no untied class: declare one with "
            f"@untied.register_layer({kind.__name__}), or {leave}"
        )
    if matrices:
        return f"{kind.__name__}: by name or allow= {', '.join(matrices)} need no B (untied.verify checks by number)"
    return f"{kind.__name__} has no kernel to untie"


def _check_shared(modules: dict[str, nn.Module], chosen: dict[str, nn.Module]) -> None:
    """Refuse to untie one of two layers that share a weight, and leave the other to backprop."""
    owners = {identity(module, w): name for name, module in chosen.items() for w in _own_weights(module)}
    for name, module in modules.items():
        if plain_type(module) in LAYERS and name not in chosen:
            both = next((w for w in _own_weights(module) if identity(module, w) in owners), None)
            if both is not None:
                other = owners[identity(module, both)]
                raise UntiedError(
                    f"{name} shares its {both} with {other}: let the filter take both of them, or neither"
                )


def _check_kernels(name: str, module: nn.Module) -> None:
    if any(isinstance(p, UninitializedParameter) for p in module.parameters()):
        raise UntiedError(
            f"{name} is a lazy {type(module).__name__}, not initialised yet: run one forward pass before untie_"
        )
    if any(p.is_meta or isinstance(p, FakeTensor) for p in module.parameters()):
        raise UntiedError(
            f"{name or '(the model)'} has weights without values (meta or fake tensors), and B starts at the size of "
            "W: load the model's weights or initialise them, then untie_"
        )
    if any(p.is_complex() for p in module.parameters()):
        raise UntiedError(
            f"{name or '(the model)'} has complex weights, which the rules do not cover: leave it out with filter=..."
        )
    if "forward" in vars(module):
        raise UntiedError(
            f"{name or '(the model)'} has a forward of its own, put there by a hook (accelerate's, say), which would "
            "go on to call the plain layer: take it off, untie_, and put it on again"
        )


def tie_(model: nn.Module) -> nn.Module:
    """Undo `untie_`, in place: plain classes, plain state dict, W as it is now.

    A model without untied layers is left as it is.

    >>> import torch, untied
    >>> model = torch.nn.Linear(4, 3)
    >>> _ = untied.untie_(model, "sa")
    >>> list(untied.tie_(model).state_dict())
    ['weight', 'bias']
    """
    for layer in untied_layers(model).values():
        module: nn.Module = layer  # type: ignore[assignment]
        for weight in layer.own_weights():
            for key in layer.rule.keeps:
                remove_backward(module, beside_name(weight, key))
        plain = layer.plain_class
        for attribute in (
            "rule", "plain_class", "was_called", "patches", "__module__", *OF_A_RECORDING,
        ):  # fmt: skip
            module.__dict__.pop(attribute, None)
        rebase(module, plain)
    foreign.release(model)
    unwatch(model)
    return model
