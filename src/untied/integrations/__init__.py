"""Small files that join `untied` to other training libraries. Each imports its own library, so import it by name:

lightning      `UntiedMixin` for a LightningModule, and the callback `UntiedCallback`
huggingface    `UntiedTrainerMixin` for transformers' Trainer
torchmetrics   `WeightAngle` and `GradientAngle`
"""
