"""The arguments of transformers' Trainer for a recovery."""

from pathlib import Path

from transformers import TrainingArguments

from .settings import RecoverySettings

LOGS = 100  # entries of the loss curve


def training_arguments(
    settings: RecoverySettings, checkpoints: Path, computes_bf16: bool, on_cpu: bool
) -> TrainingArguments:
    """The arguments of transformers' Trainer."""
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bf16=computes_bf16,
        use_cpu=on_cpu,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        # A batch may have no image, and then the connector gets no gradient.
        ddp_find_unused_parameters=True,
        logging_steps=max(1, settings.steps // LOGS),
        # Otherwise the trainer logs another loss in the place of one that is no number.
        logging_nan_inf_filter=False,
        save_steps=settings.save_every or max(1, settings.steps // 10),
        save_total_limit=1,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        dataloader_num_workers=0,
    )
    # One process trains on one device; several are for `accelerate launch`.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
