"""The one exception that a user's mistake raises."""


class UntiedError(ValueError):
    """A mistake of the caller's. The message is one line: what was given, what was possible, the way out."""
