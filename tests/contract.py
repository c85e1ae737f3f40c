"""What every family is held against: the choices, the policies they are put into, and the oracles of one policy."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from reference import reference
from torch import Tensor

from families import LAYERS, Batch, forget, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.scores import table

Choice = dict[str, Any]
ANSWER, BEAMS = 4, 3

NAMED: dict[str, Choice] = {
    "skip_ffn": {"ffn": "skip"},
    "skip_attention": {"attention": "skip"},
    "skip_layer": {"attention": "skip", "ffn": "skip"},
    "parallel": {"wiring": "parallel"},
}
PLAIN = [*NAMED.values(), {"wiring": "parallel", "norm": "shared"}]
PHASES = [{**choice, "phase": phase} for choice in PLAIN for phase in ("prefill", "decode")]
TOKENS = [{**choice, "tokens": tokens} for choice in PLAIN for tokens in ("image", "text")]
HALF = {"token_ratio": 0.5}
RATIOS = [
    HALF,
    {"token_ratio": 0.0},
    *({**HALF, **choice} for choice in PLAIN if choice != NAMED["skip_layer"]),
    *({**HALF, **choice, "tokens": "image"} for choice in PLAIN if choice != NAMED["skip_layer"]),
    {**HALF, **NAMED["skip_ffn"], "phase": "prefill"},
]
FREEZE_IMAGE = {"attention": "keys_only", "ffn": "skip", "tokens": "image"}
ROLE_PHASES = {
    "keys_only": [
        {"attention": "keys_only", "phase": "prefill"},
        {"attention": "keys_only", "phase": "decode"},
        {"attention": "keys_only", "ffn": "skip", "phase": "prefill"},
    ],
    "queries_only": [
        {"attention": "queries_only"},
        {"attention": "queries_only", "phase": "prefill"},
        {"attention": "queries_only", "ffn": "skip", "phase": "decode"},
    ],
}
SKIP_VISION = {**HALF, "rest": "attention", "evict": True}
ROLE_TOKENS: dict[str, list[Choice]] = {
    "roles: tokens": [
        FREEZE_IMAGE,
        {"attention": "keys_only", "tokens": "image"},
        {"attention": "keys_only", "tokens": "text"},
        {"attention": "queries_only", "tokens": "image"},
        {"attention": "queries_only", "tokens": "text"},
        {"attention": "queries_only", "tokens": "text", "phase": "decode"},
    ],
    "rest": [
        *({**HALF, "rest": rest} for rest in ("keys_only", "attention", "ffn")),
        {**HALF, "rest": "ffn", "wiring": "parallel", "norm": "shared"},
        {**HALF, "rest": "keys_only", "attention": "queries_only", "tokens": "image"},
    ],
    "evict": [{**HALF, "phase": "decode"}, SKIP_VISION, {**HALF, "rest": "keys_only", "evict": True}],
}
# An FFN with a share of its channels, for all tokens and for some.
WIDTHS: list[Choice] = [
    {"ffn_ratio": 0.5},
    {"ffn_ratio": 0.3, "phase": "prefill"},
    {"ffn_ratio": 0.7, "wiring": "parallel", "norm": "shared"},
    {"ffn_ratio": 0.5, "phase": "decode"},
    {"ffn_ratio": 0.9, "attention": "skip"},
    {"ffn_ratio": 0.01},
]
WIDTH_TOKENS: list[Choice] = [
    {"ffn_ratio": 0.5, "tokens": "image"},
    {"ffn_ratio": 0.3, "tokens": "text", "wiring": "parallel"},
    {**HALF, "ffn_ratio": 0.5, "rest": "ffn"},
    {**HALF, "ffn_ratio": 0.7},
    {"ffn_ratio": 0.5, "tokens": "text", "phase": "prefill"},
    {**HALF, "ffn_ratio": 0.5, "attention": "skip", "tokens": "image", "rest": "ffn"},
]
# Image tokens that see their neighbours in the picture.
WINDOWS: list[Choice] = [
    {"window": 1},
    {"window": 0, "ffn": "skip", "tokens": "image"},
    {"window": 1, "wiring": "parallel", "phase": "prefill"},
    {"window": 2, "ffn_ratio": 0.5, "norm": "shared"},
]
WINDOWED: list[dict[int, Choice]] = [
    {0: {"window": 1}, 1: {"window": 0, "ffn": "skip", "tokens": "image"}, 2: HALF, 3: {"window": 1, "ffn_ratio": 0.5}},
    {
        0: {"window": 0},
        1: {"window": 1, "wiring": "pair"},
        2: {"window": 1, "head_ratio": 0.5, "ffn": "skip"},
        3: {"window": 1, "wiring": "parallel", "phase": "prefill"},
    },
]
# Layers that read what enters the layer before them.
PAIR = {"wiring": "pair"}
PAIRS: list[Choice] = [PAIR, {**PAIR, "ffn": "skip"}, {**PAIR, "phase": "prefill"}, {**PAIR, "phase": "decode"}]
PAIRED: list[dict[int, Choice]] = [
    {0: PAIR, 2: {**PAIR, "attention": "skip"}, 3: {"wiring": "parallel"}},
    {0: {**PAIR, "phase": "prefill"}, 1: {"ffn": "skip", "phase": "decode"}, 2: {**PAIR, "phase": "decode"}},
    {1: {**PAIR, "ffn": "skip"}, 2: {"attention": "skip", "phase": "decode"}},
]
PAIRED_IMAGES: list[dict[int, Choice]] = [
    {0: {**PAIR, **HALF}, 1: {"token_ratio": 0.3, "rest": "keys_only"}, 2: {**PAIR, "tokens": "image"}, 3: HALF},
    {0: HALF, 1: {**PAIR, "tokens": "text", "attention": "queries_only"}, 2: {**HALF, "phase": "decode"}},
    {0: {"token_ratio": 0.8}, 1: {**PAIR, "token_ratio": 0.6}, 2: {"token_ratio": 0.3, "rest": "attention"}},
]
# An attention with a share of its heads, for all tokens and for some.
HEADS: list[Choice] = [
    {"head_ratio": 0.5},
    {"head_ratio": 0.5, "phase": "prefill"},
    {"head_ratio": 0.75, "ffn": "skip"},
    {"head_ratio": 0.5, "phase": "decode", "wiring": "parallel"},
]
HEAD_TOKENS: list[Choice] = [
    {"head_ratio": 0.5, "tokens": "image"},
    {"head_ratio": 0.5, "tokens": "text", "wiring": "parallel"},
    {**HALF, "head_ratio": 0.5},
    {**HALF, "head_ratio": 0.75, "rest": "attention"},
    {**HALF, "head_ratio": 0.5, "tokens": "image", "rest": "ffn"},
    {"head_ratio": 0.5, "tokens": "text", "phase": "prefill"},
]
RANKINGS = ["weights", "first"]
# Every score, and a mixture of relevance and diversity.
SCORES = [*table.SCORES, "relevance 0.4"]
# What becomes of removed tokens, in turn.
DROPPED = ["discard", "merge"]
CHOICES: dict[str, list[Choice]] = {
    **{name: [choice] for name, choice in NAMED.items()},
    "norm: shared": [PLAIN[-1]],
    "phase": PHASES,
    "tokens": TOKENS,
    "token_ratio": RATIOS,
    "reselect: once": [HALF],
    **ROLE_PHASES,
    **ROLE_TOKENS,
    "ffn_ratio": WIDTHS,
    "ffn_ratio: tokens": WIDTH_TOKENS,
    "head_ratio": HEADS,
    "head_ratio: tokens": HEAD_TOKENS,
    "pair": PAIRS,
    "window": WINDOWS,
}
# A first layer that leaves tokens out, keep after it, and a second that leaves out more, beside other choices.
FALLING: list[dict[int, Choice]] = [
    {0: HALF},
    {1: {"token_ratio": 0.7}, 2: {"token_ratio": 0.3}},
    {0: {"token_ratio": 0.8}, 1: {**HALF, **NAMED["parallel"]}, 3: {**HALF, **NAMED["skip_ffn"], "tokens": "image"}},
    {
        1: {**HALF, **NAMED["skip_attention"]},
        2: {**NAMED["skip_attention"], "tokens": "image"},
        3: {"token_ratio": 0.3},
    },
    {0: {**NAMED["skip_layer"], "phase": "decode"}, 1: {"token_ratio": 0.4}, 2: {"token_ratio": 0.6}, 3: PHASES[0]},
    {
        0: {"token_ratio": 0.8, "rest": "keys_only"},
        1: {"token_ratio": 0.4, "phase": "decode"},
        2: {**SKIP_VISION, "ffn": "skip", "tokens": "image"},
        3: {"token_ratio": 0.3, "rest": "ffn"},
    },
]

# Layers that do not read the image, or a part of it, before layers that rank its tokens by attention.
READING: list[dict[int, Choice]] = [
    {1: {**NAMED["skip_attention"], "tokens": "image"}, 2: HALF, 3: {"token_ratio": 0.3}},
    {0: NAMED["skip_attention"], 1: HALF, 2: {"token_ratio": 0.0}, 3: HALF},
    {1: HALF, 2: {**NAMED["skip_attention"], "phase": "prefill"}, 3: {**HALF, **NAMED["skip_ffn"], "tokens": "image"}},
    {0: {**NAMED["skip_attention"], "tokens": "text"}, 1: HALF, 2: {**NAMED["skip_layer"], "phase": "decode"}, 3: HALF},
    {0: FREEZE_IMAGE, 1: {**HALF, "rest": "keys_only"}, 2: {**HALF, "phase": "decode"}, 3: HALF},
]


def policy_of(
    layers: dict[int, Choice],
    score: str = "attention",
    reselect: str = "each_layer",
    dropped: str = "discard",
    ranking: str = "weights",
) -> Policy:
    name, _, diversity = score.partition(" ")
    selection = {"score": name, "diversity": float(diversity or 0), "reselect": reselect, "dropped": dropped}
    width = {"ranking": ranking}
    return Policy.model_validate({"layers": layers, "token_selection": selection, "width_selection": width})


def rotated(choices: list[Choice], seed: str) -> list[list[Choice]]:
    """One choice a layer; together they put every choice into every layer, among neighbours that the seed draws."""
    order = list(choices)
    random.Random(seed).shuffle(order)
    return [(order[start:] + order[:start])[:LAYERS] for start in range(len(order))]


def close(actual: Tensor, expected: Tensor, within: float = 1e-5) -> None:
    """Equal within some share of the largest number, or of one."""
    scale = expected.abs().max().clamp_min(1.0)
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0.0, atol=within)


def answer(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    forget(model)
    return model.generate(**inputs, **{"max_new_tokens": ANSWER, "do_sample": False, **kwargs})


def told(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    """An answer with all that led to it."""
    return answer(model, inputs, return_dict_in_generate=True, output_logits=True, output_scores=True, **kwargs)


def answered(batch: Batch, tokens: Tensor) -> Batch:
    """The same rows with an answer after each prompt."""
    return replace(batch, ids=[ids + more for ids, more in zip(batch.ids, tokens.tolist(), strict=True)])


def scored(model: Any, handle: Any, batch: Batch, side: str) -> Tensor:
    """The logits of prompts and answers in one forward that knows where the prompts end."""
    lengths = [len(ids) for ids in batch.ids]
    ends = [(max(lengths) if side == "left" else length) - ANSWER for length in lengths]
    handle.prompt_ends = torch.tensor(ends)
    try:
        return run(model, batch.padded(side), use_cache=False).logits
    finally:
        handle.prompt_ends = None


def check(model: Any, batch: Batch, policy: Policy, routers: Any = None, adapters: Any = None) -> None:
    """Hold one policy against its formulas: forward, padded on both sides, cached, and with beams."""
    try:
        check_forward_and_cached(model, batch, policy, routers, adapters)
    except AssertionError as error:
        error.add_note(f"{batch.family.name} under\n{policy.to_yaml()}")
        raise


def check_forward_and_cached(model: Any, batch: Batch, policy: Policy, routers: Any, adapters: Any) -> None:
    inputs = batch.padded("left")
    length = inputs["input_ids"].shape[1]
    with apply_policy(model, policy, routers, adapters) as handle:
        prompts = run(model, batch.padded("right")).logits
        greedy = told(model, inputs)
        beams = told(model, inputs, num_beams=BEAMS, length_penalty=0.0)
        longer = answered(batch, greedy.sequences[:, length:])
        whole = {side: scored(model, handle, longer, side) for side in ("left", "right")}
        found = answered(batch, beams.sequences[:, length:])
        rescored = scored(model, handle, found, "left")
    # transformers computes a recurrence in chunks for a prompt, and step by step in decode: two roundings.
    within = 3e-5 if batch.family.linear else 1e-5
    for row, ids in enumerate(batch.ids):
        trained = {"routers": routers, "adapters": adapters}
        expected = reference(model, batch.family, policy, longer.alone(row), len(ids), **trained)
        close(batch.real(prompts, row, "right"), expected[: len(ids)], within)
        close(longer.real(whole["left"], row, "left"), expected, within)
        close(longer.real(whole["right"], row, "right"), expected, within)
        close(torch.stack([logits[row] for logits in greedy.logits]), expected[len(ids) - 1 : -1], within)
    for number, layer in enumerate(greedy.past_key_values.layers):
        if number not in batch.family.linear + batch.family.cross:
            assert layer.get_seq_length() == length + ANSWER - 1
    chances = rescored[:, -ANSWER - 1 : -1].log_softmax(-1)
    close(beams.sequences_scores, chances.gather(2, beams.sequences[:, length:, None])[..., 0].sum(1), within)
