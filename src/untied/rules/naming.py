"""Rules by their short names: the built-in ones, and what users register."""

from __future__ import annotations

import importlib.metadata
import warnings
from types import MappingProxyType
from typing import Any

from ..errors import UntiedError, shown
from ..primitives.primitive import KNOWN
from .aligned import (
    ActivationAlignment,
    FeedbackAlignment,
    InformationAlignment,
    KolenPollack,
    SymmetricAlignment,
    WeightMirror,
)
from .direct import DirectFeedback, DirectKolenPollack, DirectTargets, SignDirectFeedback
from .estimated import RegressionDiscontinuity
from .mirror import MirroredKolenPollack
from .product import LowRankFeedback, ProductFeedback
from .rule import Rule
from .transport import Backpropagation, SignSymmetry

__all__ = ["BUILT_IN", "NAMED", "named", "offer", "offer_all", "options_of", "register_rule", "unregister_rule"]

BUILT_IN = MappingProxyType[str, type[Rule]](
    {
        "bp": Backpropagation,
        "fa": FeedbackAlignment,
        "wm": WeightMirror,
        "ia": InformationAlignment,
        "sa": SymmetricAlignment,
        "aa": ActivationAlignment,
        "kp": KolenPollack,
        "mkp": MirroredKolenPollack,
        "rdd": RegressionDiscontinuity,
        "usf": SignSymmetry,
        "frsf": SignSymmetry,
        "brsf": SignSymmetry,
        "dfa": DirectFeedback,
        "sdfa": SignDirectFeedback,
        "drtp": DirectTargets,
        "dkp": DirectKolenPollack,
        "pfa": ProductFeedback,
        "ldfa": LowRankFeedback,
    }
)
"""The rules of this library by short name. It does not change."""

NAMED: dict[str, type[Rule]] = dict(BUILT_IN)
"""Every rule that the text form knows: the built-in ones, and what was registered."""


def register_rule(kind: type[Rule]) -> type[Rule]:
    """Class decorator: make one's own rule known by its ``name``, to texts and to the command line.

    ``possible()`` names the options that a text may give to its constructor.

    Raises:
        UntiedError: it is no class of rules, has no name, or the name is taken.

    >>> import untied
    >>> @untied.register_rule
    ... class Halved(untied.rules.Transport):
    ...     name, title = "halved", "half of W"
    ...     def backward_weight(self, W, magnitude):
    ...         return W / 2
    >>> untied.rules.parse("halved")
    halved
    >>> untied.unregister_rule("halved")
    """
    if not (isinstance(kind, type) and issubclass(kind, Rule)):
        raise UntiedError(
            f"{shown(kind)} is no class of rules: derive it from untied.rules.Rule, Alignment or Transport"
        )
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not name.isidentifier() or name == "align":
        raise UntiedError(f"{kind.__name__} has the name {name!r}: give it name = 'a_word', as texts shall have it")
    if NAMED.get(name, kind) is not kind or name in KNOWN:
        raise UntiedError(f"a rule or primitive {name!r} is known already: choose another name, or unregister that one")
    NAMED[name] = kind
    return kind


def unregister_rule(name: str) -> None:
    """Take back `register_rule`.

    Raises:
        UntiedError: nothing was registered under this name.

    >>> try:
    ...     unregister_rule("sa")
    ... except UntiedError as error:
    ...     print(error)
    'sa' was not registered: only registered rules can be taken back
    """
    if name in BUILT_IN or name not in NAMED:
        raise UntiedError(f"{name!r} was not registered: only registered rules can be taken back")
    del NAMED[name]


def offer(name: str) -> None:
    """Register the rule that an installed package offers under this name, an entry point of the group untied.rules.

    Raises:
        UntiedError: it cannot be imported, or is no rule.
    """
    for point in importlib.metadata.entry_points(group="untied.rules", name=name) if name not in NAMED else ():
        try:
            kind = point.load()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UntiedError(f"rule {name} ({point.value}) raised {type(error).__name__}: {reason}") from error
        if register_rule(kind).name != name:
            unregister_rule(kind.name)
            raise UntiedError(f"rule {name} ({point.value}) is called {kind.name!r}: both names must be the same")


def offer_all() -> None:
    """Register every rule that installed packages offer. What cannot be is named in a warning, once, and left out.

    >>> offer_all()
    >>> set(BUILT_IN) <= set(NAMED)
    True
    """
    for point in importlib.metadata.entry_points(group="untied.rules"):
        try:
            offer(point.name)
        except UntiedError as error:
            if point.name not in _said:
                _said.add(point.name)
                warnings.warn(f"{error}; it is left out", stacklevel=2)


_said: set[str] = set()


def options_of(name: str) -> list[str]:
    """What can be written in the brackets after a rule's short name.

    >>> options_of("ldfa")
    ['copy', 'decay', 'rank', 'oja']
    """
    return NAMED[name].possible()


def named(name: str, **options: Any) -> Rule:
    """The rule with this short name.

    Raises:
        UntiedError: an unknown option.

    >>> named("ia", null=0.5)
    ia(null=0.5)
    """
    kind, possible = NAMED[name], options_of(name)
    for given in options:
        if given not in possible:
            raise UntiedError(f"{name} has no option {given!r}: possible are {', '.join(possible) or 'none'}")
    if "self" in options:
        options["self_"] = options.pop("self")
    return kind.called(name, **options)
