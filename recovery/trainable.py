"""What a model must be to be trained under a policy, and what a training reads off it."""

from typing import Any, Final

import torch
from transformers import PreTrainedModel

from ..policies.errors import ModelError, UsageError
from ..policies.policy import Policy
from ..policies.quantized.kinds import NONE
from ..policies.quantized.weights import quantization_of
from .settings import RecoverySettings

# Families in which a token of an answer would see the tokens after it, by the type of their model.
TWO_WAY: Final = {"paligemma": "all tokens of its prompt see each other, and an answer in training counts as prompt"}


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
