"""The input itself as the target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from untied.errors import UntiedError
from untied.lab.tasks.regression import Regression
from untied.lab.tasks.trees import shapes

if TYPE_CHECKING:
    from untied.lab.data import Dataset

__all__ = ["Autoencoding"]


class Autoencoding(Regression):
    """Outputs (n, ...) are to be the inputs. It is judged as regression is; the data's own targets are left aside.

    Args:
        input_shape: of an example.
    """

    name = "autoencoding"

    def __init__(self, input_shape: Any) -> None:
        self.shape = input_shape
        plain = isinstance(input_shape, tuple) and all(isinstance(side, int) for side in input_shape)
        super().__init__(math.prod(input_shape) if plain else 0)

    def outputs(self, data: Dataset) -> int:
        return self.d

    def batch(self, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        return batch[0], batch[0]

    def expect(self, targets: Any, data: Dataset) -> None:
        if not isinstance(targets, Tensor) or not targets.is_floating_point():
            raise UntiedError(
                f"task {self.name} needs inputs of floating point, one tensor a batch, and those of {data.name} are "
                f"{shapes(targets)}: choose another --task"
            )
