"""A model that calls itself ends several calls in one pass: who looks at a pass waits for the outermost."""

from __future__ import annotations

import sys

from torch import nn

__all__ = ["is_outermost"]


def is_outermost(model: nn.Module) -> bool:
    """Whether a hook of a model is called for a call that is no part of another call of that model.

    Python's own stack says so: whoever counts calls is wrong after a Ctrl-C, and in threads.

    >>> import torch
    >>> model = nn.Linear(4, 3)
    >>> handle = model.register_forward_hook(lambda model, inputs, output: print(is_outermost(model)))
    >>> _ = model(torch.randn(5, 4))
    True
    """
    calls, frame = 0, sys._getframe()
    while frame is not None and calls < 2:
        calls += frame.f_code is nn.Module._call_impl.__code__ and frame.f_locals["self"] is model
        frame = frame.f_back  # type: ignore[assignment]
    return calls < 2
