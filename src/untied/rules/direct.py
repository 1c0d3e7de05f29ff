"""Rules whose errors come straight from the network's output: DFA and its kin. broadcast.py has the route."""

from __future__ import annotations

from typing import Any, ClassVar

from ..coefficients.coefficient import Coefficient
from ..routes.route import word
from .algebra import Alignment
from .broadcast import Broadcast
from .checks import text_of

__all__ = ["DirectFeedback", "DirectKolenPollack", "DirectTargets", "SignDirectFeedback"]


class _Direct(Alignment):
    """B is as it was drawn, or learns by the coefficients; options are those of `Broadcast`."""

    signal: ClassVar[str] = "error"
    ROUTE: ClassVar[tuple[str, ...]] = ("kernel", "source", "draw", "shared", "scale")

    def __init__(self, coefficients: dict[str, Coefficient], options: dict[str, Any]) -> None:
        super().__init__(coefficients, route=Broadcast(signal=self.signal, **options))

    @classmethod
    def possible(cls) -> list[str]:
        return [*cls.defaults, *cls.ROUTE]

    @property
    def local(self) -> bool:  # type: ignore[override]
        return True

    def __str__(self) -> str:
        given = {p.name: c for p, c in self.combination.items()}
        words = [f"{n}={text_of(given.get(n, 0.0))}" for n, v in self.defaults.items() if given.get(n, 0.0) != v]
        route, plain = self.route, Broadcast()
        words += [f"{n}={word(v)}" for n in self.ROUTE if (v := getattr(route, n)) != getattr(plain, n)]
        return f"{self.name}({', '.join(words)})" if words else self.name


class DirectFeedback(_Direct):
    """The error of the network's output goes to every layer through a random B (Nøkland 2016).

    Args:
        **options: ``kernel`` ("dense" or "position", for convolutions), ``source``, ``draw``, ``shared`` and ``scale``,
            as `untied.rules.broadcast.Broadcast` has them.

    Raises:
        UntiedError: an impossible value.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> print(untied.untie_(model, "dfa").source)
    2
    >>> with untied.record(model) as tape:
    ...     loss = model(torch.randn(5, 4)).square().mean()
    >>> (loss + tape.penalty()).backward()
    """

    name, title, source = "dfa", "direct feedback alignment", "Nøkland 2016"

    def __init__(self, **options: Any) -> None:
        super().__init__({}, options)


class SignDirectFeedback(_Direct):
    """The sign of the output's error goes to every layer (Frenkel et al. 2021). It does not shrink with the error, nor
    with a loss that is a mean: ``scale`` sets its size.

    >>> SignDirectFeedback(kernel="dense")
    sdfa(kernel=dense)
    """

    name, title, source, signal = "sdfa", "sign direct feedback alignment", "Frenkel et al. 2021", "sign"

    def __init__(self, **options: Any) -> None:
        super().__init__({}, options)


class DirectTargets(_Direct):
    """The target itself goes to every layer, so that nothing of the output is needed (Frenkel et al. 2021). Give it as
    `untied.record(model, targets=...)`.

    >>> import torch, untied
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> _ = untied.untie_(model, "drtp(scale=0.1)")
    >>> x, labels = torch.randn(5, 4), torch.randint(3, (5,))
    >>> with untied.record(model, targets=labels) as tape:
    ...     loss = torch.nn.functional.cross_entropy(model(x), labels)
    >>> (loss + tape.penalty()).backward()
    """

    name, title, source, signal = "drtp", "direct random target projection", "Frenkel et al. 2021", "target"

    def __init__(self, **options: Any) -> None:
        super().__init__({}, options)


class DirectKolenPollack(_Direct):
    """DFA whose B learns: the outer product of the output's error and the layer's activity, and both decay
    (Webster et al. 2021). Give W the same weight decay.

    >>> DirectKolenPollack(decay=0.01)
    dkp(decay=0.01)
    """

    name, title, source = "dkp", "direct Kolen-Pollack", "Webster et al. 2021"
    defaults: ClassVar[dict[str, float]] = {"copy": 1.0, "decay": 1e-3}

    def __init__(self, copy: Coefficient = 1.0, decay: Coefficient = 1e-3, **options: Any) -> None:
        super().__init__({"copy": copy, "decay": decay}, options)
