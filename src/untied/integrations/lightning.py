"""Lightning: a mixin that gives a LightningModule L = J + R, and a callback with phases and angles.

The phase is a function of the epoch, and B is in the state dict, so a run that goes on needs no state of ours.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from untied.layers.groups import parameter_groups
from untied.layers.layer import untied_layers
from untied.tape.tape import Tape

from .. import metrics
from ..errors import UntiedError
from ..recording import record

__all__ = ["UntiedCallback", "UntiedMixin"]


class UntiedMixin:
    """Stands in front of LightningModule: ``class Mine(UntiedMixin, LightningModule)``.

    Call `untied.untie_` in ``__init__``, before Lightning loads a checkpoint. ``training_step`` runs its forward
    pass inside ``with self.recorded() as tape`` and returns ``task + tape.penalty()``. Validation stays as it is,
    so its loss is free of R. Lightning divides the returned loss under accumulation, and R with it.
    """

    untied_aligns: bool = True
    """Whether rules are evaluated. `UntiedCallback` sets it."""

    def recorded(self) -> AbstractContextManager[Tape]:
        """`untied.record` of this module, with the progress and the step of its trainer."""
        module: LightningModule = self  # type: ignore[assignment]
        total = float(module.trainer.estimated_stepping_batches)
        known = math.isfinite(total) and total > 0
        progress = min(module.global_step / total, 1.0) if known else None
        return record(module, progress=progress, step=module.global_step, align=self.untied_aligns)

    def untied_groups(self, weight_decay: float = 0.0, **backward: Any) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: weight decay reaches W alone; ``backward`` are options of B's group."""
        forward, moved = parameter_groups(self)  # type: ignore[arg-type]
        groups: list[dict[str, Any]] = [{"params": forward, "weight_decay": weight_decay}]
        return groups + ([{"params": moved, **backward, "weight_decay": 0.0}] if moved else [])

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip W's gradients by their own norm. B's neither shrink W's nor are shrunk."""
        if not gradient_clip_val:
            return
        B = {id(p) for p in parameter_groups(self)[1]}  # type: ignore[arg-type]
        forward = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in B]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(forward, gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(forward, gradient_clip_val)


class UntiedCallback(Callback):
    """Phases and angles.

    Args:
        mirror_epochs, engaged_epochs: so many epochs move B alone, then so many move W alone, and so on. With both
            at 0, the default, every step moves both.
        delay: epochs that move B alone before all that.
        angles: whether each epoch ends by logging ``weight_angle/LAYER`` in degrees.
    """

    def __init__(self, mirror_epochs: int = 0, engaged_epochs: int = 0, delay: int = 0, angles: bool = True) -> None:
        if (mirror_epochs > 0) != (engaged_epochs > 0) or min(mirror_epochs, engaged_epochs, delay) < 0:
            raise UntiedError(
                f"mirror_epochs={mirror_epochs}, engaged_epochs={engaged_epochs}, delay={delay} is not possible: "
                "give the first two together, and none below 0"
            )
        self.mirror_epochs, self.engaged_epochs, self.delay, self.angles = mirror_epochs, engaged_epochs, delay, angles

    def phase(self, epoch: int) -> str:
        """What an epoch moves: "mirror" moves B alone, "engaged" W alone, "both" both."""
        if epoch < self.delay:
            return "mirror"
        if not self.mirror_epochs:
            return "both"
        at = (epoch - self.delay) % (self.mirror_epochs + self.engaged_epochs)
        return "mirror" if at < self.mirror_epochs else "engaged"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that the callback would do nothing for."""
        if not isinstance(pl_module, UntiedMixin):
            name = type(pl_module).__name__
            raise UntiedError(f"{name} has no UntiedMixin: declare it as 'class {name}(UntiedMixin, LightningModule)'")
        if not untied_layers(pl_module):
            raise UntiedError(f"nothing in {type(pl_module).__name__} is untied: call untied.untie_ in its __init__")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In an engaged epoch rules rest."""
        module: UntiedMixin = pl_module  # type: ignore[assignment]
        module.untied_aligns = self.phase(trainer.current_epoch) != "engaged"

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients of what rests, since with zeros an optimizer would go on by momentum and decay."""
        phase = self.phase(trainer.current_epoch)
        forward, backward = parameter_groups(pl_module)
        resting: dict[str, list[torch.nn.Parameter]] = {"both": [], "mirror": forward, "engaged": backward}
        for p in resting[phase]:
            p.grad = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the angles between W and B."""
        if self.angles:
            found: dict[str, Tensor | float] = dict(metrics.weight_angles(pl_module))
            pl_module.log_dict({f"weight_angle/{name}": angle for name, angle in found.items()})
