"""Hugging Face: a mixin that makes transformers' Trainer minimise L = J + R.

Weight decay never reaches B, W is clipped by its own norm, R counts once under accumulation, and ``eval_loss`` is J.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn

from untied.layers.groups import parameter_groups
from untied.layers.layer import beside_name, untied_layers

from ..errors import UntiedError
from ..recording import record

__all__ = ["UntiedTrainerMixin"]

_Above: Any = object  # Trainer stands behind the mixin; to inherit from it here would put it in front
_NEEDED = ("_clip_grad_norm", "compute_loss", "get_decay_parameter_names", "_save", "save_model")


class UntiedTrainerMixin(_Above):  # type: ignore[misc]
    """Stands in front of Trainer: ``class Mine(UntiedTrainerMixin, Trainer)``. Its model has been untied before.

    Args:
        save_backward: whether ``save_model`` keeps B. Checkpoints keep it always, since a run that goes on needs it.

    Raises:
        UntiedError: a model without untied layers; a version of transformers that lacks what the mixin
            overrides; FSDP or DeepSpeed, under which a layer's W and B are not whole.
    """

    def __init__(self, *args: Any, save_backward: bool = True, **kwargs: Any) -> None:
        trainer = super()
        missing = [name for name in _NEEDED if not hasattr(trainer, name)]
        if missing:
            raise UntiedError(
                f"transformers {transformers.__version__} has no Trainer.{missing[0]}: the mixin was tested with 5.24; "
                "put it in front of Trainer, and install transformers>=5.24"
            )
        super().__init__(*args, **kwargs)
        self.save_backward, self._saving_plain = save_backward, False
        if not untied_layers(self.model):
            raise UntiedError("nothing in the Trainer's model is untied: call untied.untie_(model, rule) before it")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UntiedError("the mixin cannot train under FSDP or DeepSpeed: use DDP, or untied train")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """J + R in training, J alone in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        state = self.state
        progress = min(state.global_step / state.max_steps, 1.0) if state.max_steps > 0 else None
        with record(self.accelerator.unwrap_model(model), progress=progress, step=state.global_step) as tape:
            task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = task + tape.penalty() * self._share(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _share(self, num_items_in_batch: Tensor | int | None) -> float:
        """Of R, in one part of an accumulated batch. Where J is a sum over the whole, Trainer divides nothing."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            summed = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = summed or self.compute_loss_func is not None
        return 1.0 / self.current_gradient_accumulation_steps if scaled else 1.0

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Without B, which has its rule's own decay."""
        B = {id(p) for p in parameter_groups(model)[1]}
        names = {name for name, p in model.named_parameters() if id(p) in B}
        return [name for name in super().get_decay_parameter_names(model) if name not in names]

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """W by its own norm. B's gradients neither shrink W's nor are shrunk."""
        forward, _ = parameter_groups(self.accelerator.unwrap_model(model))
        return self.accelerator.clip_grad_norm_(forward, self.args.max_grad_norm)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, with B or without, as ``save_backward`` says."""
        self._saving_plain = not self.save_backward and not _internal_call
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self._saving_plain = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self._saving_plain:
            bare = self.accelerator.unwrap_model(self.model)
            ours = {
                f"{name}.{beside_name(weight, key)}".lstrip(".")
                for name, layer in untied_layers(bare).items()
                for weight in layer.own_weights()
                for key in layer.rule.keeps
            }
            whole = bare.state_dict() if state_dict is None else state_dict
            state_dict = {name: value for name, value in whole.items() if name not in ours}
        super()._save(output_dir, state_dict=state_dict)
