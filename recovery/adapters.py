"""Adapters in place of skipped attentions: giving them to a policy, and freezing them once they are trained."""

from typing import Final

import torch
from pydantic import ValidationError

from ..policies.apply import PolicyHandle
from ..policies.choice import LayerChoice
from ..policies.errors import UsageError
from ..policies.policy import Policy
from ..policies.trained.adapters import Adapters, adapted_layers
from .batches import EncodedExamples

# Training examples whose prompts a frozen adapter's constants are averages of, and how many run together.
FREEZING: Final = 512
TOGETHER: Final = 8


def with_adapters(policy: Policy) -> Policy:
    """The policy with an adapter in place of each attention that it skips for all tokens in both phases.

    Raises:
        UsageError: there is none.
    """
    layers = {index: adapted(choice) for index, choice in policy.canonical().layers.items()}
    try:
        changed = Policy.model_validate({**policy.model_dump(by_alias=True), "layers": layers})
    except ValidationError as cause:
        reasons = [one["msg"].removeprefix("Value error, ") for one in cause.errors()]
        hint = "train with --method lora or full, which leave the attentions out"
        raise UsageError("adapters cannot take the place of attentions in this policy", reasons, hint) from None
    if not adapted_layers(changed):
        reason = "no layer of it skips its attention, and its attention alone, for all tokens in both phases"
        raise UsageError("the policy leaves no place to adapters", [reason], "train with --method lora or full")
    return changed


def adapted(choice: LayerChoice) -> LayerChoice:
    """A choice with an adapter in place of an attention that it skips; the choice itself where it has none to skip."""
    given = choice.model_dump(exclude_defaults=True, exclude={"ffn_ratio"})
    return choice.model_copy(update={"attention": "adapter"}) if given == {"attention": "skip"} else choice


@torch.no_grad()
def freeze(handle: PolicyHandle, adapters: Adapters, examples: EncodedExamples) -> None:
    """Replace the mean and the gate of each adapter by their averages over the prompts of training examples.

    Args:
        handle: The policy, which is applied with these adapters.
        adapters: The adapters.
        examples: The training examples, of which the first `FREEZING` count.
    """
    model, count = handle.model, min(len(examples), FREEZING)
    model.eval()
    sums = {index: torch.zeros(1, device=model.device) for index, _ in adapters.each}
    for start in range(0, count, TOGETHER):
        batch = examples.collate([examples[place] for place in range(start, min(start + TOGETHER, count))])
        ends = batch.pop("prompt_ends").to(model.device)
        inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        handle.prompt_ends = ends
        try:
            cache = model(**inputs, use_cache=True).past_key_values
        finally:
            handle.prompt_ends = None
        for index in sums:
            pooled = cache.layers[handle.layers[index].slot].prompt
            sums[index] = sums[index] + pooled.sum(dim=0).to(model.device)
    for index, adapter in adapters.each:
        adapter.frozen = (sums[index] / count).to(adapter.up_bias)
