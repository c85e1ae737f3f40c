"""What a model predicts at the places of an answer, and how far two predictions are from each other."""

import inspect
from collections.abc import Hashable

import torch
from torch import Tensor

from ..policies.apply import PolicyHandle
from .accuracy.model import TextModel, with_answers
from .answers import Row, encoded


def predicted(rows: list[Row], model: TextModel, batch: Hashable) -> Tensor:
    """Log-probabilities of all tokens at every place that is compared, row by row, in one forward.

    Prompts and answers are told apart, so a policy treats both as it does in a request.

    Args:
        rows: The rows.
        model: The model, under its policy.
        batch: Names the rows.

    Returns:
        Shape (places, vocabulary), float32.
    """
    prompts = encoded([row.prompt for row in rows], model)
    ends = prompts["attention_mask"].sum(dim=1)
    inputs = with_answers(prompts, [row.fed for row in rows], model.tokenizer.pad_token_id)
    places = [
        (number, place)
        for number, (row, end) in enumerate(zip(rows, ends.tolist(), strict=True))
        for place in range(end - row.back, end + len(row.fed))
    ]
    columns = sorted({place for _, place in places})
    partly = "logits_to_keep" in inspect.signature(model.model.forward).parameters
    # A whole row of logits is megabytes a token in large vocabularies, and most of a prompt's are not looked at.
    kept = {"logits_to_keep": torch.tensor(columns, device=model.device)} if partly else {}
    with torch.no_grad(), model.timed(), model.scoring(batch, ends):
        logits = model.model(**inputs, use_cache=False, **kept).logits
    column = {place: index for index, place in enumerate(columns)} if partly else {place: place for place in columns}
    index = torch.tensor([(number, column[place]) for number, place in places], device=logits.device)
    return logits[index[:, 0], index[:, 1]].float().log_softmax(dim=-1)


def dense_predictions(
    handle: PolicyHandle, rows: list[Row], model: TextModel, batch: Hashable, top_k: int
) -> tuple[Tensor | None, Tensor]:
    """Which tokens are told apart at each place of some rows, and what the dense model predicts there.

    Args:
        handle: The policy, which is lifted for the forward.
        rows: The rows.
        model: The model.
        batch: Names the rows.
        top_k: So many of the likeliest tokens are told apart.

    Returns:
        As `likeliest`, and as `merged`.
    """
    with handle.dense():
        found = predicted(rows, model, batch)
    tokens = likeliest(found, top_k)
    return tokens, merged(found, tokens)


def likeliest(log_probabilities: Tensor, count: int) -> Tensor | None:
    """The token ids of the likeliest at each place, shape (places, count); None where that would be all."""
    return None if count >= log_probabilities.shape[1] else log_probabilities.topk(count, dim=1).indices


def merged(log_probabilities: Tensor, tokens: Tensor | None) -> Tensor:
    """Log-probabilities of some tokens at each place and, last, of all others together; of all apart, given None."""
    if tokens is None:
        return log_probabilities
    others = log_probabilities.scatter(1, tokens, float("-inf")).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_probabilities.gather(1, tokens), others], dim=1)


def divergence(dense: Tensor, other: Tensor) -> Tensor:
    """KL(dense || other) at each place.

    Args:
        dense: Log-probabilities, shape (places, outcomes).
        other: The same of the other model.

    Returns:
        Nats, shape (places,), float64; exactly 0 for equal predictions.
    """
    dense, other = dense.double(), other.double()
    terms = torch.where(dense.isneginf(), 0.0, dense.exp() * (dense - other))
    # Rounding may leave a hair less than 0.
    return terms.sum(dim=1).clamp_min(0.0)
