"""One recovery from start to end: a model is trained under a policy, and the weights are written beside the policy."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ..policies.apply import PolicyHandle, apply_policy
from ..policies.errors import RunError
from ..policies.policy import Policy
from ..policies.rankings.scores import ranking_content
from .batches import EncodedExamples
from .checkpoints import CHECKPOINTS, prepare
from .examples import Example
from .freezing import freeze
from .prepared import prepared_policy
from .restored import attributes_restored, release
from .settings import RecoverySettings
from .subsets import SubsetTrainer, with_chosen
from .trainable import computes_in_bf16, end_ids, longest, refuse_quantized
from .trained_parts import TrainedParts, trained_parts
from .trainer import PolicyTrainer, training_arguments


@dataclass(frozen=True)
class Step:
    """One entry of a loss curve: the mean loss of the steps since the last one.

    Attributes:
        step: The number of the optimiser step.
        loss: In nats a token.
        learning_rate: The learning rate.
        seconds: The time of training until then.
    """

    step: int
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Recovered:
    """A finished recovery.

    Attributes:
        policy: The policy with its trained weights.
        curve: The loss curve.
        count: How many numbers were trained.
        examples: How many examples there were.
        is_main: True in the process that writes files; False in the others of a distributed run.
    """

    policy: Policy
    curve: list[Step]
    count: int
    examples: int
    is_main: bool

    @property
    def minutes(self) -> float:
        """The time of training."""
        return self.curve[-1].seconds / 60


def recover(
    model: PreTrainedModel,
    processor: Any,
    policy: Policy,
    examples: Sequence[Example],
    settings: RecoverySettings,
    folder: Path,
    run: str,
    resume: bool = False,
    keep: Callable[[Recovered], None] = lambda done: None,
) -> Recovered:
    """Train a model under a policy, and write the trained weights and the policy into a folder.

    Afterwards the model is restored bit for bit. What the policy skips is not computed, forward or backward.

    Args:
        model: The model, in evaluation mode.
        processor: Its processor, or the tokenizer of a model without images.
        policy: The policy, without trained weights.
        examples: The training examples.
        settings: The settings.
        folder: The folder to write.
        run: Says what is trained on what; an interrupted training goes on only with the same text.
        resume: Whether to go on from the last checkpoint in the folder, where there is one.
        keep: Called with the result in the process that writes files, before the checkpoints are removed.

    Raises:
        ModelError: the method finds nothing to train, or the model's weights have a dtype that cannot be trained.
        TrainingDataError: examples have mistakes.
        UsageError: the policy cannot be trained, or not by the method; or the folder has another training, or one that
            was not to be resumed.
        RunError: the loss or a trained weight became infinite or NaN.
    """
    refuse_quantized(model, policy)
    policy = prepared_policy(policy, settings)
    encoded = EncodedExamples(examples, processor, end_ids(model, processor), longest(model))
    computes_bf16 = computes_in_bf16(model, settings)
    checkpoints = folder / CHECKPOINTS
    start = prepare(checkpoints, run, resume)
    arguments = training_arguments(settings, checkpoints, computes_bf16, model.device.type == "cpu")
    torch.manual_seed(settings.seed)
    with (
        attributes_restored(model),
        trained_parts(model, policy, settings) as parts,
        apply_policy(model, policy, parts.routers, parts.adapters) as handle,
    ):
        trainer = trainer_of(handle, parts, encoded, settings, arguments)
        try:
            trainer.train(resume_from_checkpoint=start)
            curve = loss_curve(trainer)
            refuse_infinite(parts.model, curve)
            if isinstance(trainer, SubsetTrainer) and parts.adapters is not None:
                policy = with_chosen(policy, trainer.chosen, parts.adapters)
            if arguments.should_save and settings.freeze and parts.adapters is not None:
                freeze(handle, parts.adapters, encoded)
            if arguments.should_save:
                with handle.dense():  # the channels and heads of the weights are in their own order again
                    policy = write(parts, policy, folder)
            trainer.accelerator.wait_for_everyone()
        finally:
            release(trainer, model)
    done = Recovered(policy, curve, parts.count, len(encoded), arguments.should_save)
    if done.is_main:
        keep(done)
        shutil.rmtree(checkpoints)
    return done


def trainer_of(handle: PolicyHandle, parts: TrainedParts, examples: EncodedExamples, settings: RecoverySettings,
               arguments: TrainingArguments) -> PolicyTrainer:  # fmt: skip
    """The trainer, which also chooses attentions where it is to keep some of them skipped."""
    given = (handle, parts, examples, settings, arguments)
    return PolicyTrainer(*given) if settings.skip is None else SubsetTrainer(*given, size=settings.skip)


def write(parts: TrainedParts, policy: Policy, folder: Path) -> Policy:
    """Write the trained weights, the ranking of channels that the policy names, and the policy that names both."""
    if (ranking := policy.canonical().width_selection.file) is not None:
        (folder / ranking).write_bytes(ranking_content(policy))
    trained = policy.model_copy(update={"weights": parts.write(folder), "measured": {}})
    trained.save(folder / "policy.yaml")
    return trained.beside(folder)


def loss_curve(trainer: PolicyTrainer) -> list[Step]:
    """The loss curve of a training."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [Step(int(e["step"]), e["loss"], e["learning_rate"], e["seconds"]) for e in entries]


def refuse_infinite(model: nn.Module, curve: Sequence[Step]) -> None:
    """Refuse trained weights that are no numbers, which the last step may have made of finite ones.

    Raises:
        RunError: there are some.
    """
    wrong = [name for name, one in model.named_parameters() if one.requires_grad and not bool(one.isfinite().all())]
    if wrong:
        found = f"found infinite or NaN weights in {wrong[0]} after step {curve[-1].step}"
        raise RunError("the training diverged", [found], "lower the learning rate")
