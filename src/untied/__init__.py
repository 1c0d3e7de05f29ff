"""untied: train any PyTorch network without weight symmetry.

Every layer keeps its forward weight W for the forward pass and a separate backward weight B for sending
errors back; a learning rule moves B (Kunin, Nayebi et al., "Two Routes to Scalable Credit Assignment without
Weight Symmetry", ICML 2020).
"""

from . import dynamics, geometry, metrics, operations, primitives, recurrent, rules, schedules, statistics
from .call import Call
from .convert import Report, parameter_groups, tie_, untie_
from .errors import UntiedError
from .geometry import Geometry
from .layers import Untied, register_layer
from .mirror import mirror_
from .tape import Tape, record
from .verify import Finding, Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Call",
    "Finding",
    "Geometry",
    "Report",
    "Tape",
    "Untied",
    "UntiedError",
    "Verification",
    "dynamics",
    "geometry",
    "metrics",
    "mirror_",
    "operations",
    "parameter_groups",
    "primitives",
    "record",
    "recurrent",
    "register_layer",
    "rules",
    "schedules",
    "statistics",
    "tie_",
    "untie_",
    "verify",
]
