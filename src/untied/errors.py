"""The one exception that a user's mistake raises, and how its message shows what was given."""

from typing import Any

__all__ = ["UntiedError", "shown"]


class UntiedError(ValueError):
    """A mistake of the caller's. The message is one line: what was given, what was possible, the way out.

    >>> import torch, untied
    >>> try:
    ...     untied.untie_(torch.nn.Linear(4, 3), "sb")
    ... except untied.UntiedError as error:
    ...     print(str(error)[:27])
    cannot read rule at 'sb', c
    """


def shown(given: Any) -> str:
    """What was given, as a message has it: a class or a function by its name, a thing of many lines by its class,
    anything else as Python writes it.

    >>> import torch
    >>> shown((torch.nn.Conv2d, torch.nn.Conv3d)), shown("layer1.*"), shown(torch.zeros(9, 9))
    ('(Conv2d, Conv3d)', "'layer1.*'", 'a Tensor')
    """
    if isinstance(given, tuple):
        return f"({', '.join(map(shown, given))})"
    text = str(getattr(given, "__name__", None) or repr(given))
    return text if "\n" not in text else f"a {type(given).__name__}"
