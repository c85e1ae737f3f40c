"""One recovery from start to end: a model is trained under a policy, and the weights are written beside the policy."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from ..policies.apply import PolicyHandle, apply_policy
from ..policies.errors import ModelError, RunError, UsageError
from ..policies.policy import Policy
from ..policies.quantized.kinds import NONE
from ..policies.quantized.weights import quantization_of
from ..policies.rankings.scores import ranking_content
from ..policies.scores.table import ROUTER
from ..policies.trained.routers import routed_layers
from .adapters import freeze
from .batches import EncodedExamples
from .examples import Example
from .prepared import prepared_policy
from .settings import RecoverySettings
from .subsets import SubsetTrainer, with_chosen
from .trained_parts import TrainedParts, trained_parts
from .trainer import PolicyTrainer

CHECKPOINTS: Final = "checkpoints"
RUN_FILE: Final = "run.json"
LOGS = 100  # entries of the loss curve
# Families in which a token of an answer would see the tokens after it, by the type of their model.
TWO_WAY: Final = {"paligemma": "all tokens of its prompt see each other, and an answer in training counts as prompt"}


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

    The model is as it was afterwards, bit for bit. What the policy skips is not computed, forward or backward.

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
    policy = with_asked_routers(policy, settings)
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


def refuse_quantized(model: PreTrainedModel, policy: Policy) -> None:
    """Refuse a model with quantised weights, and a policy that asks for them.

    Raises:
        UsageError: naming both.
    """
    wanted, found = policy.model.quantization, quantization_of(model)
    if wanted != NONE or found != NONE:
        reason = f"found model.quantization {wanted} in the policy, and {found} weights in the model, expected {NONE}"
        hint = "load the model unquantised, and leave `model.quantization` out of the policy"
        raise UsageError("a policy cannot be recovered on quantised weights", [reason], hint)


def with_routers(policy: Policy) -> Policy:
    """The policy with routers in place of the score that it ranks image tokens by.

    Raises:
        UsageError: it leaves out no image tokens, or it does so in a way that routers cannot.
    """
    if policy.token_selection.score == ROUTER:
        return policy
    selection = {**policy.token_selection.model_dump(include={"reselect"}), "score": ROUTER}
    try:
        routed = Policy.model_validate({**policy.model_dump(by_alias=True), "token_selection": selection})
    except ValidationError as cause:
        reasons = [one["msg"].removeprefix("Value error, ") for one in cause.errors()]
        hint = "train with --method lora or full, which keep the policy's own score"
        raise UsageError("routers cannot rank the image tokens of this policy", reasons, hint) from None
    if not routed_layers(routed):
        reason = "no layer of it has a token_ratio"
        raise UsageError("the policy leaves out no image tokens", [reason], "train with --method lora or full")
    return routed


def with_asked_routers(policy: Policy, settings: RecoverySettings) -> Policy:
    """The policy with routers where the method trains them.

    Raises:
        UsageError: routers cannot rank its image tokens, or their loss is asked for and it has none.
    """
    policy = with_routers(policy) if settings.method == "router" else policy
    if settings.router_loss and not routed_layers(policy):
        reason = "no layer of it ranks image tokens by a router"
        raise UsageError("--router-loss needs routers", [reason], "leave it out, or train with --method router")
    return policy


def write(parts: TrainedParts, policy: Policy, folder: Path) -> Policy:
    """Write the trained weights, the ranking of channels that the policy names, and the policy that names both."""
    if (ranking := policy.canonical().width_selection.file) is not None:
        (folder / ranking).write_bytes(ranking_content(policy))
    trained = policy.model_copy(update={"weights": parts.write(folder), "measured": {}})
    trained.save(folder / "policy.yaml")
    return trained.beside(folder)


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


def end_ids(model: PreTrainedModel, processor: Any) -> list[int]:
    """The ids of tokens that end an answer, the tokenizer's own first.

    Raises:
        ModelError: neither the model nor its tokenizer names one.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    listed = [given] if isinstance(given, int) else list(given or [])
    # A chat model ends its answers with the first of these; its tokenizer knows which.
    found = [*([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []), *listed]
    if not found:
        hint = "set `eos_token_id` in the model's generation_config.json"
        raise ModelError("no token ends an answer", ["neither the model nor its tokenizer names one"], hint)
    return list(dict.fromkeys(found))


def longest(model: PreTrainedModel) -> int:
    """The longest input of a model, in tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else 2**31


def computes_in_bf16(model: PreTrainedModel, settings: RecoverySettings) -> bool:
    """True where the training computes in bfloat16.

    Raises:
        ModelError: the weights of the model do not allow what was asked for.
    """
    if reason := TWO_WAY.get(model.config.model_type):
        raise ModelError(f"{type(model).__name__} cannot be trained under a policy", [reason], "take another model")
    if model.dtype not in (torch.float32, torch.bfloat16):
        hint = "load the model with dtype bfloat16 or float32, as in --set model.dtype=bfloat16"
        raise ModelError(f"weights in {model.dtype} are not trained", ["their gradients underflow"], hint)
    if settings.precision == "fp32" and model.dtype == torch.bfloat16:
        hint = "load the model with dtype float32, or train with --precision bf16"
        raise ModelError("weights in bfloat16 do not compute in float32", hint=hint)
    return settings.precision == "bf16" or model.dtype == torch.bfloat16


def prepare(checkpoints: Path, run: str, resume: bool) -> str | None:
    """Make the folder of checkpoints, and find where to go on.

    Returns:
        The last checkpoint; None where training starts anew.

    Raises:
        UsageError: the folder has another training, or one that was not to be resumed.
    """
    file = checkpoints / RUN_FILE
    if int(os.environ.get("RANK", "0")):
        # The first process of a distributed run makes the folder, and refuses what is to be refused.
        return last_checkpoint(checkpoints) if resume and checkpoints.is_dir() else None
    if file.exists():
        if not resume:
            hint = "go on with --resume, or give another folder with --out"
            raise UsageError(f"{checkpoints.parent} has a training that was interrupted", hint=hint)
        if file.read_text(encoding="utf-8") != run:
            hint = "repeat the command that it began with, and add --resume; or give another folder with --out"
            details = [f"found {file.read_text(encoding='utf-8')}", f"expected {run}"]
            raise UsageError(f"{checkpoints.parent} has the training of other settings or data", details, hint)
        return last_checkpoint(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    file.write_text(run, encoding="utf-8")
    return None


def last_checkpoint(checkpoints: Path) -> str | None:
    """The last whole checkpoint; None without one. The state of the trainer is the last file of a checkpoint."""
    found = [path for path in checkpoints.glob("checkpoint-*") if is_json(path / TRAINER_STATE_NAME)]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def is_json(file: Path) -> bool:
    """True for a whole JSON file."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


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
