"""Freezing adapters once they are trained."""

from typing import Final

import torch

from ..policies.apply import PolicyHandle
from ..policies.trained.adapters import Adapters
from .batches import EncodedExamples

# Training examples whose prompts a frozen adapter's constants are averages of, and how many run together.
FREEZING: Final = 512
TOGETHER: Final = 8


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
