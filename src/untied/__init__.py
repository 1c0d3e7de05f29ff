"""untied: train any PyTorch network without weight symmetry.

Every layer keeps its forward weight W for the forward pass and a separate backward weight B for sending
errors back; a learning rule moves B (Kunin, Nayebi et al., "Two Routes to Scalable Credit Assignment without
Weight Symmetry", ICML 2020).
"""

from . import early  # noqa: F401, I001 (before all that takes time)
from .layers import attention as _attention  # noqa: F401 (it registers its layers)
from . import dynamics, geometry, metrics, operations, primitives, rules, schedules, spiking, statistics, targets
from .layers import recurrent
from .calibrate import mirror_
from .rules.call import Call
from .convert import Report, tie_, untie_
from .errors import UntiedError
from .geometry import Geometry
from .layers.groups import parameter_groups
from .layers.layer import Untied, register_layer
from .rules.naming import register_rule, unregister_rule
from .primitives.primitive import register_primitive, unregister_primitive
from .recording import record
from .tape.tape import Tape
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
    "register_primitive",
    "register_rule",
    "rules",
    "schedules",
    "spiking",
    "statistics",
    "targets",
    "tie_",
    "unregister_primitive",
    "unregister_rule",
    "untie_",
    "verify",
]
