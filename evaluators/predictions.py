"""The predictions of a model at the positions of an answer, and the divergence between two predictions."""

import inspect
from collections.abc import Hashable

import torch
from torch import Tensor

from ..policies.apply import PolicyHandle
from ..policies.runtime.answers import with_answers
from .accuracy.text_model import TextModel, refuse_whole_texts
from .answers import Row
from .engine.prompt import encode


def predict(rows: list[Row], model: TextModel, batch: Hashable) -> Tensor:
    """Predict all tokens at every compared position, row by row, in one forward.

    The policy is told where prompts end, so it treats prompt and answer as in a request.

    Args:
        rows: The rows.
        model: The model, under its policy.
        batch: Identifies the rows.

    Returns:
        Log-probabilities, shape (positions, vocabulary), float32.

    Raises:
        EvaluatorError: see `refuse_whole_texts`.
    """
    if any(row.back > 1 for row in rows):
        refuse_whole_texts(model.handle)
    prompts = encode([row.prompt for row in rows], model)
    ends = prompts["attention_mask"].sum(dim=1)
    inputs = with_answers(prompts, [row.fed for row in rows], model.tokenizer.pad_token_id)
    places = [
        (number, place)
        for number, (row, end) in enumerate(zip(rows, ends.tolist(), strict=True))
        for place in range(end - row.back, end + len(row.fed))
    ]
    columns = sorted({place for _, place in places})
    keeps_some = "logits_to_keep" in inspect.signature(model.model.forward).parameters
    # With a large vocabulary the logits of one token take a megabyte, and most of a prompt's are not compared.
    kept = {"logits_to_keep": torch.tensor(columns, device=model.device)} if keeps_some else {}
    with torch.no_grad(), model.timed(), model.scoring(batch, ends):
        logits = model.model(**inputs, use_cache=False, **kept).logits
    column = (
        {place: index for index, place in enumerate(columns)} if keeps_some else {place: place for place in columns}
    )
    index = torch.tensor([(number, column[place]) for number, place in places], device=logits.device)
    return logits[index[:, 0], index[:, 1]].float().log_softmax(dim=-1)


def dense_predictions(
    handle: PolicyHandle, rows: list[Row], model: TextModel, batch: Hashable, top_k: int
) -> tuple[Tensor | None, Tensor]:
    """The dense model's likeliest tokens at each position of some rows, and its predictions for them.

    Args:
        handle: The policy, which is lifted for the forward.
        rows: The rows.
        model: The model.
        batch: Identifies the rows.
        top_k: How many of the likeliest tokens are compared one by one.

    Returns:
        The results of `top_tokens` and of `merge_others`.
    """
    with handle.dense():
        predictions = predict(rows, model, batch)
    tokens = top_tokens(predictions, top_k)
    return tokens, merge_others(predictions, tokens)


def top_tokens(log_probabilities: Tensor, count: int) -> Tensor | None:
    """The ids of the likeliest tokens, shape (positions, count); None where that would be the whole vocabulary."""
    return None if count >= log_probabilities.shape[1] else log_probabilities.topk(count, dim=1).indices


def merge_others(log_probabilities: Tensor, tokens: Tensor | None) -> Tensor:
    """Log-probabilities of some tokens and, in the last column, of all others together; None keeps all tokens apart."""
    if tokens is None:
        return log_probabilities
    others = log_probabilities.scatter(1, tokens, float("-inf")).logsumexp(dim=1, keepdim=True)
    return torch.cat([log_probabilities.gather(1, tokens), others], dim=1)


def divergence(dense: Tensor, other: Tensor) -> Tensor:
    """KL(dense || other) at each position.

    Args:
        dense: Log-probabilities, shape (positions, outcomes).
        other: Log-probabilities of the other model, in the same shape.

    Returns:
        Nats, shape (positions,), float64; exactly 0 for equal predictions.
    """
    dense, other = dense.double(), other.double()
    terms = torch.where(dense.isneginf(), 0.0, dense.exp() * (dense - other))
    # Rounding may leave a sum slightly below 0.
    return terms.sum(dim=1).clamp_min(0.0)
