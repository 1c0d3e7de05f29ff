"""The one exception that a user's mistake raises."""

__all__ = ["UntiedError"]


class UntiedError(ValueError):
    """A mistake of the caller's. The message is one line: what was given, what was possible, the way out.

    >>> import torch, untied
    >>> try:
    ...     untied.untie_(torch.nn.Linear(4, 3), "sb")
    ... except untied.UntiedError as error:
    ...     print(str(error)[:27])
    cannot read rule at 'sb', c
    """
