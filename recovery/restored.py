"""Leaving a model as it was before a training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from .trainer import PolicyTrainer


@contextmanager
def attributes_restored(model: PreTrainedModel) -> Iterator[None]:
    """Restore what a trainer leaves on a model: `use_cache` in its configuration, and its forward as an attribute."""
    config, own_forward = dict(vars(model.config)), "forward" in vars(model)
    try:
        yield
    finally:
        vars(model.config).clear()
        vars(model.config).update(config)
        if not own_forward:
            vars(model).pop("forward", None)


def release(trainer: PolicyTrainer, model: PreTrainedModel) -> None:
    """Free the trainer's memory, and remove from the model what it put there."""
    # Mixed precision replaces `forward`, which this restores.
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trainer.accelerator.free_memory()
    trainer.optimizer = trainer.lr_scheduler = None
    if trainer.args.activation_checkpointing:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()
    model.eval()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
