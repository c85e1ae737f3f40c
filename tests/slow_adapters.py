"""The adapter in place of an attention, from its formula in plain loops; nothing here uses skipsearch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def adapted(adapter: Any, tokens: list[Tensor], prompt: list[int]) -> list[Tensor]:
    """What an adapter makes of the normalised states of a row's tokens; the mean is over those of the prompt."""
    named = [*adapter.named_parameters(), *adapter.named_buffers()]
    at = {name: value.to(tokens[0].dtype) for name, value in named}
    mean = sum(tokens[i] for i in prompt) / len(prompt)
    shift = at["mean.weight"] @ mean + at["mean.bias"]
    gate = ((at["gate.weight"] @ mean + at["gate.bias"]) / 10).softmax(0)
    rank = len(shift)
    if "frozen" in at:
        shift, gate = at["frozen"][:rank], at["frozen"][rank:]
    found = []
    for u in tokens:
        z = (at["down.weight"] @ u + at["down.bias"] + shift) / 2
        update = torch.zeros_like(u)
        for expert in range(2):
            # Each half of the output reads its half of z.
            first, second = at["up"][:, :, expert * rank // 2 : (expert + 1) * rank // 2]
            read = torch.cat([first @ z[: rank // 2], second @ z[rank // 2 :]])
            update = update + gate[expert] * (read + at["up_bias"][expert])
        found.append(u + update)
    return found
