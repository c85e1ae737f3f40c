"""Prompts with given answers after them, in one batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def with_answers(prompts: Mapping[str, Tensor], fed: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Append token ids to each prompt of a batch, and pad on the right.

    Args:
        prompts: A padded batch; every tensor with the shape of its mask, (batch, tokens), has an entry for each token.
        fed: Token ids by row.
        pad_id: The token to pad with.
    """
    mask = prompts["attention_mask"].bool()
    inputs = dict(prompts)
    for key, value in prompts.items():
        if value.shape != mask.shape:
            continue
        rows = []
        for row, real, ids in zip(value, mask, fed, strict=True):
            more = list(ids) if key == "input_ids" else [int(key == "attention_mask")] * len(ids)
            rows.append(torch.cat([row[real], torch.tensor(more, dtype=row.dtype, device=row.device)]))
        filler = pad_id if key == "input_ids" else 0
        inputs[key] = pad_sequence(rows, batch_first=True, padding_value=filler)
    return inputs
