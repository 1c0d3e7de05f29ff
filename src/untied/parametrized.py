"""Layers whose kernel is made of other parameters by `torch.nn.utils.parametrize`: weight norm, masks, signs.

`parametrize` gives such a module a class of its own, whose kernel is a property. Conversion exchanges what stands below
that class, so the property stays, whether it came before `untie_` or after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

__all__ = ["identity", "leaves", "made_kernel", "plain_type", "read_kernel", "rebase", "remove_backward"]

plain_type = type_before_parametrizations


def rebase(module: nn.Module, base: type[nn.Module]) -> None:
    """Make a module one of class ``base``, with its parametrizations.

    Copies of a module share its parametrized class, so a new one is made rather than this one changed.

    >>> class Mine(nn.Linear):
    ...     pass
    >>> module = nn.Linear(4, 3)
    >>> rebase(module, Mine)
    >>> type(module).__name__
    'Mine'
    """
    if is_parametrized(module):
        kept = {n: v for n, v in vars(type(module)).items() if n not in ("__dict__", "__weakref__", "__doc__")}
        base = type(f"Parametrized{base.__name__}", (base,), kept)
    module.__class__ = base


def identity(module: nn.Module, weight: str) -> int | tuple[int, str]:
    """What tells a kernel from others: a parameter's id, which modules may share; else whose kernel it is.

    >>> one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    >>> other.weight = one.weight
    >>> identity(one, "weight") == identity(other, "weight")
    True
    """
    own = module._parameters.get(weight)
    return (id(module), weight) if own is None else id(own)


def leaves(module: nn.Module, weight: str) -> list[nn.Parameter]:
    """The parameters that a kernel is made of; itself, as a rule.

    >>> module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    >>> [tuple(p.shape) for p in leaves(module, "weight")]
    [(3, 1), (3, 4)]
    """
    if is_parametrized(module, weight):
        return list(module.parametrizations[weight].parameters())  # type: ignore[index, union-attr]
    own = module._parameters.get(weight)
    return [] if own is None else [own]


def read_kernel(module: nn.Module, weight: str) -> Tensor:
    """A kernel as it is now, in W's layout, without a step of what its parametrization estimates in training (spectral
    norm).

    >>> module = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    >>> bool((read_kernel(module, "weight") == read_kernel(module, "weight")).all())
    True
    """
    with _resting(module):
        return getattr(module, weight)  # type: ignore[no-any-return]


def made_kernel(module: nn.Module, weight: str, untied: type) -> Tensor:
    """`read_kernel` of a plain module, also where its untied class makes the kernel of what the module has.

    >>> class Doubled:
    ...     weight = property(lambda self: 2 * self.half)
    >>> module = nn.Module()
    >>> module.half = 1.5
    >>> made_kernel(module, "weight", Doubled)
    3.0
    """
    made = getattr(untied, weight, None)
    return made.fget(module) if isinstance(made, property) else read_kernel(module, weight)  # type: ignore[misc]


@contextmanager
def _resting(module: nn.Module) -> Iterator[None]:
    parts = list(module.parametrizations.modules()) if is_parametrized(module) else []  # type: ignore[union-attr]
    training = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, before in zip(parts, training, strict=True):
            part.training = before


def remove_backward(module: nn.Module, name: str) -> None:
    """Take a backward weight or magnitude away, parametrized or not.

    >>> import untied
    >>> module = nn.Linear(4, 3)
    >>> _ = untied.untie_(module, "fa")
    >>> remove_backward(module, "backward_weight")
    >>> [name for name, _ in module.named_parameters()]
    ['weight', 'bias']
    """
    if not is_parametrized(module, name):
        if name in module._parameters or name in module._buffers:
            delattr(module, name)
        return
    below = plain_type(module)
    rebase(module, below)  # a class of its own, for its copies keep the property
    delattr(type(module), name)
    del module.parametrizations[name]  # type: ignore[operator, union-attr]
    if not is_parametrized(module):
        delattr(module, "parametrizations")
        module.__class__ = below
