"""The paper's rules, each a combination of primitives, and feedback alignment, which has none."""

from __future__ import annotations

from typing import Any

from ..coefficients.coefficient import Coefficient
from ..errors import UntiedError
from .algebra import Alignment

__all__ = [
    "ActivationAlignment", "FeedbackAlignment", "InformationAlignment", "KolenPollack", "SymmetricAlignment",
    "WeightMirror",
]  # fmt: skip


class FeedbackAlignment(Alignment):
    """R = 0: B keeps its random initial value (Lillicrap et al. 2016; paper, section 3.2).

    >>> FeedbackAlignment().aligns
    False
    """

    title, source = "feedback alignment", "Lillicrap et al. 2016"
    name = "fa"

    def __init__(self) -> None:
        super().__init__({})

    @classmethod
    def possible(cls) -> list[str]:
        return []


class WeightMirror(Alignment):
    """R = amp + decay (Akrout et al. 2019; paper, section 3.2).

    >>> WeightMirror(decay="balanced")
    wm(decay=power)
    """

    title, source = "weight mirror", "Akrout et al. 2019"
    name, defaults = "wm", {"amp": 1.0, "decay": 1.0}

    def __init__(self, amp: Coefficient = 1.0, decay: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"amp": amp, "decay": decay}, **options)


class InformationAlignment(Alignment):
    """R = amp + decay + null, the paper's local rule (section 4).

    ``sparse`` stands in place of decay in one variant of the reference code; its other two are ``reverse``
    and ``amp_on_reconstruction``.

    >>> InformationAlignment(null=0.5).combination
    amp + decay + 0.5*null
    """

    title, source = "information alignment", "Kunin et al. 2020"
    name, defaults = "ia", {"amp": 1.0, "decay": 1.0, "null": 1.0, "sparse": 0.0}

    def __init__(
        self,
        amp: Coefficient = 1.0,
        decay: Coefficient = 1.0,
        null: Coefficient = 1.0,
        sparse: Coefficient = 0.0,
        **options: Any,
    ) -> None:
        super().__init__({"amp": amp, "decay": decay, "null": null, "sparse": sparse}, **options)


class SymmetricAlignment(Alignment):
    """R = self + decay, ∝ ½‖W − B‖² in B where the coefficients agree (paper, section 5). Not local.

    >>> SymmetricAlignment(0.5, 0.5)
    sa(self=0.5, decay=0.5)
    """

    title, source = "symmetric alignment", "Kunin et al. 2020"
    name, defaults = "sa", {"self": 1.0, "decay": 1.0}

    def __init__(self, self_: Coefficient = 1.0, decay: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"self": self_, "decay": decay}, **options)


class ActivationAlignment(Alignment):
    """R = amp + sparse, ∝ ½‖T_W x − T_B x‖² in B where the coefficients agree (paper, section 5). Not
    local.

    >>> ActivationAlignment().local
    False
    """

    title, source = "activation alignment", "Kunin et al. 2020"
    name, defaults = "aa", {"amp": 1.0, "sparse": 1.0}

    def __init__(self, amp: Coefficient = 1.0, sparse: Coefficient = 1.0, **options: Any) -> None:
        super().__init__({"amp": amp, "sparse": sparse}, **options)


class KolenPollack(Alignment):
    """R = copy + decay: B takes W's pseudogradient and both decay (Kolen & Pollack 1994; Akrout et al. 2019; paper,
    section 3.2).

    W − B shrinks by the decay alone, so give W the weight decay ``decay`` in its optimizer, and both the
    same learning rate.

    Raises:
        UntiedError: as `Alignment`; or decay is a statistic, which W's optimizer could not have too.

    >>> KolenPollack().combination
    copy + 0.001*decay
    """

    title, source = "Kolen-Pollack", "Kolen & Pollack 1994"
    name, defaults = "kp", {"copy": 1.0, "decay": 1e-3}

    def __init__(self, copy: Coefficient = 1.0, decay: Coefficient = 1e-3, **options: Any) -> None:
        super().__init__({"copy": copy, "decay": decay}, **options)
        if self.needs_data:
            raise UntiedError(
                f"kp's decay is W's weight decay too, which is measured nowhere: give a number, not {decay}"
            )
