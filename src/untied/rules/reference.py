"""The letters and flags of the paper's TensorFlow code, neuroailab/Neural-Alignment, in this library's units.

Its letters are permuted against the paper's, and its squares have no ½ (docs/deviations.md).
"""

from __future__ import annotations

from typing import Any

from ..coefficients.coefficient import Schedule
from ..errors import UntiedError
from .naming import named
from .rule import Rule

__all__ = ["from_reference"]

REFERENCE_NAMES = {
    "feedback": "fa",
    "mirror": "wm",
    "information": "ia",
    "symmetric": "sa",
    "activation": "aa",
    "kolen_pollack": "kp",
    "none": "bp",
}
_REFERENCE_LETTERS = {  # letter -> (primitive, our coefficient over the reference's: it leaves the ½ out)
    "wm": {"alpha": ("decay", 2.0), "beta": ("amp", 1.0)},
    "sa": {"alpha": ("decay", 2.0), "beta": ("self", 1.0)},
    "aa": {"alpha": ("sparse", 2.0), "beta": ("amp", 1.0)},
    "ia": {"alpha": ("amp", 1.0), "beta": ("null", 2.0), "gamma": ("decay", 2.0)},
    "kp": {"alpha": ("decay", 2.0)},
}
_REFERENCE_DEFAULTS = {  # in our units
    "wm": {"amp": 1e-3, "decay": 2e-3}, "sa": {"self": 2e-3, "decay": 2e-3}, "aa": {"amp": 2e-3, "sparse": 2e-3},
    "ia": {"amp": 2e-3, "null": 2e-3, "decay": 2e-3}, "kp": {"decay": 2e-3},
}  # fmt: skip
_REFERENCE_FLAGS = {
    "input_distribution": "noise",
    "input_stddev": "noise_std",
    "use_bias_forward": "forward_bias",
    "use_bias_backward": "backward_bias",
    "activation_forward": "forward_activation",
    "activation_backward": "backward_activation",
    "batch_center_backward_input": "batch_centre_backward_input",
    "center_input": "centre_input",
    "normalize_input": "normalise_input",
    "batch_center_forward_output": "batch_centre_forward_output",
    "center_forward_output": "centre_forward_output",
    "normalize_forward_output": "normalise_forward_output",
    "center_backward_output": "centre_backward_output",
    "normalize_backward_output": "normalise_backward_output",
    "reconstruction_reversal": "reverse",
    "reconstruction_amp": "amp_on_reconstruction",
    "update_forward": "update_forward",
}


def from_reference(name: str, **flags: Any) -> Rule:
    """The rule that the paper's TensorFlow code (neuroailab/Neural-Alignment) would build, in this library's
    units.

    Args:
        name: "feedback", "mirror", "information", "symmetric", "activation", "kolen_pollack" or "none";
            short names are taken too.
        **flags: its letters ``alpha``, ``beta``, ``gamma``, numbers or `untied.schedules` (they differ from the
            paper's, and its squares have no ½; without them its defaults), and its flags by their own names
            (``input_distribution``, ``center_input``, ``reconstruction_reversal``, ``use_sparse``, ...).
            ``activation_fn_override`` names the activation that ``activation_forward`` and ``activation_backward``
            switch on.

    Raises:
        UntiedError: an unknown name, letter or flag.

    >>> from_reference("symmetric")
    sa(self=0.002, decay=0.002)
    """
    short = REFERENCE_NAMES.get(name, name)
    if short not in REFERENCE_NAMES.values():
        raise UntiedError(f"unknown reference rule {name!r}: possible are {', '.join(REFERENCE_NAMES)}")
    letters = _REFERENCE_LETTERS.get(short, {})
    coefficients: dict[str, Any] = dict(_REFERENCE_DEFAULTS.get(short, {}))
    activation, use_sparse = flags.pop("activation_fn_override", None), flags.pop("use_sparse", False)
    options: dict[str, Any] = {}
    for flag, given in flags.items():
        if flag in letters:
            primitive, factor = letters[flag]
            if not isinstance(given, int | float | Schedule) or isinstance(given, bool):
                raise UntiedError(f"{flag}={given!r} is not possible: give a number or a schedule")
            coefficients[primitive] = given * factor
        elif flag in _REFERENCE_FLAGS and short in _REFERENCE_LETTERS:
            ours = _REFERENCE_FLAGS[flag]
            if ours.endswith("_activation"):
                if given and activation is None:
                    raise UntiedError(
                        f"{flag} needs a function: give activation_fn_override='relu', or the layer's own by name"
                    )
                given = activation if given else None
            options[ours] = given
        else:
            raise UntiedError(
                f"{name} has no letter or flag {flag!r}: possible are {', '.join([*letters, *_REFERENCE_FLAGS])}"
            )
    if use_sparse:
        if short != "ia":
            raise UntiedError(f"{name} has no flag 'use_sparse': only information alignment does")
        coefficients |= {"sparse": coefficients["decay"], "decay": 0.0}
    return named(short, **coefficients, **options)
