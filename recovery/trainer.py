"""transformers' Trainer for a model under a policy."""

import inspect
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..policies.apply import PolicyHandle
from ..policies.errors import RunError
from .batches import IGNORED, EncodedExamples
from .settings import RecoverySettings
from .trained_parts import TrainedParts

LOGS: Final = 100  # entries of the loss curve


class PolicyTrainer(Trainer):
    """Trains parts of a model under a policy, on the answers of examples or on the dense model's predictions there.

    A prompt is prefill and its answer is decode, as when the model generates: so a choice with a phase, and the
    selection of image tokens by the prompt alone, hold in training as they do later.

    Args:
        handle: The policy, which is applied to the model.
        parts: What is trained.
        examples: The training examples.
        settings: The settings.
        arguments: transformers' arguments.
    """

    # The loss is a sum over tokens, divided by their number in all forwards of the step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        handle: PolicyHandle,
        parts: TrainedParts,
        examples: EncodedExamples,
        settings: RecoverySettings,
        arguments: TrainingArguments,
    ) -> None:
        super().__init__(
            model=parts.model, args=arguments, train_dataset=examples, data_collator=examples.collate,
            callbacks=[LossBar()] if arguments.should_log else [],
        )  # fmt: skip
        self.remove_callback(PrinterCallback)  # it prints on standard output
        self.model_accepts_loss_kwargs = True
        self._handle, self._parts, self._distils = handle, parts, settings.distil == "kl"
        self._routing_weight = settings.router_loss
        self._keeps_some = "logits_to_keep" in inspect.signature(handle.model.forward).parameters
        self._started = time.monotonic()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a forward: the mean over the answers' tokens, of all forwards of the step where it is told.

        Args:
            model: The model, perhaps in the wrapper of a distributed run.
            inputs: What `EncodedExamples.collate` made.
            return_outputs: Must be False.
            num_items_in_batch: The number of answers' tokens in all forwards of the step, on all devices.
        """
        labels, ends = inputs.pop("labels"), inputs.pop("prompt_ends")
        # The first answer token is predicted at the last token of the prompt.
        first = int(ends.min()) - 1
        inputs |= {"use_cache": False}
        if self._keeps_some:
            inputs["logits_to_keep"] = labels.shape[1] - first
        right = labels[:, first + 1 :]
        learned = right != IGNORED
        teacher = self._dense_predictions(inputs, learned) if self._distils else None
        self._handle.prompt_ends = ends
        routing = [] if self._parts.routers is None else self._parts.routers.losses
        routing.clear()
        try:
            logits = model(**inputs).logits
        finally:
            self._handle.prompt_ends = None
        found = self._learned(logits, learned)
        loss = (
            cross_entropy(found, right[learned], reduction="sum")
            if teacher is None
            else kl_div(found.log_softmax(-1), teacher, reduction="sum", log_target=True)
        )
        count = learned.sum() if num_items_in_batch is None else num_items_in_batch
        # Gradients of several devices are averaged, and `count` is of all of them.
        loss = loss / count * (self.accelerator.num_processes if num_items_in_batch is not None else 1)
        if not self._routing_weight or not routing:
            return loss
        # A mean over the forwards of the step, as far as the trainer does not divide by their number itself.
        forwards = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        return loss + self._routing_weight * torch.stack(routing).sum() / forwards

    @torch.no_grad()
    def _dense_predictions(self, inputs: Mapping[str, Any], learned: Tensor) -> Tensor:
        """The dense model's log-probabilities at the answers' tokens, float32, shape (positions, vocabulary)."""
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        try:
            with self._handle.dense():
                logits = self._parts.dense_logits(model, inputs)
        finally:
            model.train()
        return self._learned(logits, learned).log_softmax(-1)

    def _learned(self, logits: Tensor, learned: Tensor) -> Tensor:
        """The logits that predict the answers' tokens, float32, shape (positions, vocabulary)."""
        return logits[:, -learned.shape[1] - 1 : -1][learned].float()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the seconds of training so far, those before an interruption included.

        Raises:
            RunError: the loss is infinite or NaN.
        """
        if not math.isfinite(logs.get("loss", 0.0)):
            found = f"found a loss of {logs['loss']} at step {self.state.global_step}"
            raise RunError("the training diverged", [found], "lower the learning rate")
        now = time.monotonic()
        before = self.state.log_history[-1]["seconds"] if self.state.log_history else 0.0
        logs["seconds"], self._started = before + now - self._started, now
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the trained parts alone."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        with self._handle.dense():  # a share of channels or heads is first in its weights under the policy
            self._parts.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the trained parts of a checkpoint."""
        with self._handle.dense():
            self._parts.load(Path(resume_from_checkpoint))


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


class LossBar(TrainerCallback):
    """A progress bar on standard error, with the loss and the time left."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        form = "{desc} {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
        self._bar = tqdm(desc="training", total=state.max_steps, initial=state.global_step, bar_format=form)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        """Show the loss."""
        if logs and "loss" in logs:
            self._bar.set_postfix_str(f"loss {logs['loss']:.4f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the bar as it is."""
        self._bar.close()
