"""What every choice computes, written once more from the formulas: one row at a time, uncached, in plain loops.

Nothing here is fast, and nothing here uses skipsearch beyond the policy's own words.
"""

from __future__ import annotations

from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

from families import IMAGE, Family, run
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy


def reference(model: t.PreTrainedModel, family: Family, policy: Policy, row: dict[str, Tensor], end: int) -> Tensor:
    """The logits of one unpadded row, shape (tokens, vocabulary), where `end` tokens are the prompt."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    def note(layer: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> None:
        calls.append((args[0], kwargs))

    def replace(*_: Any) -> Tensor:
        ids = row["input_ids"][0].tolist()
        return decoder(model, family, policy, calls, ids, end)

    layers = model.get_decoder().layers
    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(replace))
    try:
        return run(model, row, use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


def decoder(
    model: t.PreTrainedModel, family: Family, policy: Policy, calls: list[Any], ids: list[int], end: int
) -> Tensor:
    """All layers under the policy, from what the dense model gave to each of them."""
    x, score = calls[0][0], {}
    for number, layer in enumerate(model.get_decoder().layers):
        choice, window = policy.choice(number), family.windows[number]
        tokens = list(range(len(ids)))
        if choice.token_ratio is not None:
            chosen = choose(x[0], [i for i in tokens[:end] if ids[i] == IMAGE], choice, policy, score)
            tokens = [i for i in tokens if ids[i] != IMAGE or i >= end or i in chosen]
        seen: list[Tensor] = []
        arguments = narrow(calls[number][1], tokens, window, pictures(ids) if family.two_way else None, x.dtype)
        y = one_layer(layer, choice, x[:, tokens], arguments, seen)
        x = x.clone()
        x[:, tokens] = y
        if seen:
            last = max(place for place, i in enumerate(tokens) if i < end)
            score |= dict(zip(tokens, seen[0][0].mean(0)[last].tolist(), strict=True))
    return x


def choose(x: Tensor, images: list[int], choice: LayerChoice, policy: Policy, score: dict[int, float]) -> set[int]:
    """The image tokens with the highest score, the first of equals."""
    wanted = int(Fraction(str(choice.token_ratio)) * len(images))
    kind = policy.token_selection.score
    if kind == "uniform" or (kind == "attention" and not score):
        return {i for n, i in enumerate(images) if (n + 1) * wanted // len(images) > n * wanted // len(images)}
    value = {i: float(x[i].norm()) if kind == "norm" else score.get(i, 0.0) for i in images}
    return set(sorted(images, key=lambda i: -value[i])[:wanted])


def pictures(ids: list[int]) -> list[int | None]:
    """The number of the picture that each token belongs to."""
    starts = [i for i, token in enumerate(ids) if token == IMAGE and (i == 0 or ids[i - 1] != IMAGE)]
    return [sum(start <= i for start in starts) if token == IMAGE else None for i, token in enumerate(ids)]


def narrow(
    arguments: dict[str, Any],
    tokens: list[int],
    window: int | None,
    picture: list[int | None] | None,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The layer's arguments for these tokens: their own positions, causal among themselves, within the window.

    Where `picture` is given, the tokens of one picture see each other both ways.
    """
    cut = dict(arguments)
    if cut.get("position_embeddings") is not None:
        cut["position_embeddings"] = tuple(part[..., tokens, :] for part in cut["position_embeddings"])
    if cut.get("position_ids") is not None:
        cut["position_ids"] = cut["position_ids"][..., tokens]
    mask = torch.full((1, 1, len(tokens), len(tokens)), torch.finfo(dtype).min, dtype=dtype)
    for place, query in enumerate(tokens):
        for other, key in enumerate(tokens):
            seen = key <= query and (window is None or query - key < window)
            if seen or (picture and picture[query] is not None and picture[query] == picture[key]):
                mask[0, 0, place, other] = 0.0
    cut["attention_mask"] = mask
    return cut


def one_layer(layer: Any, choice: LayerChoice, x: Tensor, arguments: dict[str, Any], seen: list[Tensor]) -> Tensor:
    """The table of choices; `seen` takes the attention weights."""

    def a(x: Tensor) -> Tensor:
        if hasattr(layer, "self_attn_layer_norm"):
            normed, attention = layer.self_attn_layer_norm(x), layer.self_attn
        else:
            normed, attention = layer.input_layernorm(x), getattr(layer, "self_attn", None) or layer.attention
        with eager(attention):
            out, weights = attention(normed, **arguments)
        seen.append(weights)
        return layer.post_attention_layernorm(out) if hasattr(layer, "pre_feedforward_layernorm") else out

    def f(x: Tensor) -> Tensor:
        if hasattr(layer, "fc1"):
            return layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x))))
        if hasattr(layer, "pre_feedforward_layernorm"):
            return layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(x)))
        return layer.mlp(layer.post_attention_layernorm(x))

    if choice.attention == choice.ffn == "skip":
        return x
    if choice.ffn == "skip":
        return x + a(x)
    if choice.attention == "skip":
        return x + f(x)
    if choice.wiring == "parallel" or getattr(layer, "use_parallel_residual", False):
        return x + a(x) + f(x)
    x = x + a(x)
    return x + f(x)


@contextmanager
def eager(attention: Any) -> Any:
    """Let an attention sublayer give its weights."""
    before = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        yield
    finally:
        attention.config._attn_implementation = before
