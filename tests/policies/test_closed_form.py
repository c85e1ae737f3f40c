"""What is counted equals what the formulas say, to the last operation and the last byte, for every family."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import support
import torch
import transformers as t
from closed_form import Costs, costs, ffn_flops
from tiers import sample

from families import CASES, FAMILIES, GROUPED, WITH_IMAGES, Family, batch_of, built, forget
from skipsearch import Policy, apply_policy
from skipsearch.evaluators.flops import count, flop_counter, metered
from skipsearch.evaluators.prompts import generate
from skipsearch.policies.caches.cache import kv_cache_bytes
from skipsearch.policies.families.layers import decoder_layers

SKIP_BOTH = {"attention": "skip", "ffn": "skip"}
# Each gives the four layers different choices, so that few requests meet all of them.
TEXT: dict[str, dict[int, dict[str, Any]]] = {
    "skips": {0: {"ffn": "skip"}, 1: {"attention": "skip"}, 2: SKIP_BOTH, 3: {"wiring": "parallel", "norm": "shared"}},
    "phases": {
        0: {"attention": "skip", "phase": "decode"},
        1: {"ffn": "skip", "phase": "prefill"},
        2: {**SKIP_BOTH, "phase": "decode"},
        3: {"attention": "skip", "phase": "prefill"},
    },
    "roles": {
        0: {"attention": "keys_only", "phase": "prefill"},
        1: {"attention": "queries_only", "phase": "decode"},
        2: {"attention": "keys_only", "phase": "decode"},
        3: {"attention": "queries_only"},
    },
}
TEXT["widths"] = {
    0: {"ffn_ratio": 0.5},
    1: {"ffn_ratio": 0.3, "phase": "decode"},
    2: {"ffn_ratio": 0.9, "attention": "skip"},
    3: {"ffn_ratio": 0.01, "phase": "prefill"},
}
TEXT["heads"] = {
    0: {"head_ratio": 0.5},
    1: {"head_ratio": 0.5, "phase": "decode"},
    2: {"head_ratio": 0.75, "ffn": "skip"},
    3: {"head_ratio": 0.5, "phase": "prefill"},
}
IMAGES: dict[str, dict[int, dict[str, Any]]] = {
    "ratios": {
        0: {"token_ratio": 0.5},
        1: {"token_ratio": 0.5, "ffn": "skip"},
        2: {"token_ratio": 0.5, "attention": "skip"},
        3: {"token_ratio": 0.0},
    },
    "image": {
        0: {"ffn": "skip", "tokens": "image"},
        1: {"attention": "skip", "tokens": "image"},
        2: {"token_ratio": 0.75, "ffn": "skip", "tokens": "image"},
        3: {**SKIP_BOTH, "tokens": "text"},
    },
    "image in prefill": {
        0: {"token_ratio": 0.5, "phase": "prefill"},
        1: {**SKIP_BOTH, "tokens": "image", "phase": "prefill"},
        2: {"token_ratio": 0.5, "wiring": "parallel", "phase": "prefill"},
        3: {"attention": "skip", "tokens": "text", "phase": "prefill"},
    },
    "roles of images": {
        0: {"attention": "keys_only", "ffn": "skip", "tokens": "image"},
        1: {"attention": "queries_only", "tokens": "image"},
        2: {"token_ratio": 0.5, "rest": "keys_only"},
        3: {"token_ratio": 0.5, "rest": "attention", "evict": True},
    },
    "rests": {
        0: {"token_ratio": 0.25, "rest": "ffn"},
        1: {"token_ratio": 0.5, "phase": "decode"},
        2: {"token_ratio": 0.75, "rest": "keys_only", "attention": "queries_only", "tokens": "image"},
        3: {"attention": "keys_only", "tokens": "text"},
    },
    "widths of images": {
        0: {"ffn_ratio": 0.5, "tokens": "image"},
        1: {"ffn_ratio": 0.3, "tokens": "text"},
        2: {"ffn_ratio": 0.9, "token_ratio": 0.5, "rest": "ffn"},
        3: {"ffn_ratio": 0.7, "token_ratio": 0.5},
    },
    "heads of images": {
        0: {"head_ratio": 0.5, "tokens": "image"},
        1: {"head_ratio": 0.5, "tokens": "text"},
        2: {"head_ratio": 0.5, "token_ratio": 0.5, "rest": "attention"},
        3: {"head_ratio": 0.5, "token_ratio": 0.25, "tokens": "image", "ffn_ratio": 0.5},
    },
}
# For families whose grid of image tokens is known.
WINDOWS: dict[str, dict[int, dict[str, Any]]] = {
    "windows": {
        0: {"window": 0},
        1: {"window": 1, "ffn": "skip", "tokens": "image"},
        2: {"window": 2, "wiring": "pair"},
        3: {"token_ratio": 0.5},
    }
}
ONCE = {"once": {1: {"token_ratio": 0.75}, 2: {"ffn": "skip"}, 3: {"token_ratio": 0.25}}}
LABELS = [*(TEXT | IMAGES | ONCE | WINDOWS)]


def requests() -> list[Any]:
    cases = []
    for name, attention in CASES:
        labels = [*TEXT, *(IMAGES | ONCE if name in WITH_IMAGES else {}), *(WINDOWS if FAMILIES[name].grids else {})]
        # Counts do not depend on the attention implementation: each label takes one of a family's.
        kinds = [kind for other, kind in CASES if other == name]
        labels = [label for label in labels if kinds[LABELS.index(label) % len(kinds)] == attention]
        cases += [(name, attention, label) for label in labels]
    return sample(cases, 2)


def policy_of(label: str, family: Family) -> Policy:
    layers = dict((TEXT | IMAGES | ONCE | WINDOWS)[label])
    layers = {number: dict(choice) for number, choice in layers.items()}
    for number in {*family.linear, *family.cross} & set(layers):
        # Such a layer takes choices for all tokens in both phases.
        limits = ("phase", "tokens", "token_ratio", "rest", "evict")
        layers[number] = {key: value for key, value in layers[number].items() if key not in limits}
        if number in family.cross and layers[number].get("attention") == "skip":
            layers[number] = SKIP_BOTH
    return with_selection(support.taken(family.name, layers), label)


def with_selection(layers: dict[int, dict[str, Any]], label: str) -> Policy:
    selection = {"score": "uniform", "reselect": "once" if label in ONCE else "each_layer"}
    width = {"ranking": "first"}
    return Policy.model_validate({"layers": layers, "token_selection": selection, "width_selection": width})


@contextmanager
def prefilled(model: Any) -> Iterator[list[int]]:
    """The bytes in the cache after each call of the decoder."""
    sizes: list[int] = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_hook(lambda *call: sizes.append(kv_cache_bytes(call[-1].past_key_values)))
    try:
        yield sizes
    finally:
        hook.remove()


@cache
def mixers_of(name: str, attention: str) -> dict[int, Costs]:
    """What recurrences, convolutions and attention to the image cost in the dense model."""
    model, inputs = built(name, attention), batch_of(name, "middle").alone(0)
    counter, numbers = flop_counter(), (*FAMILIES[name].linear, *FAMILIES[name].cross)
    calls: dict[int, list[int]] = {number: [] for number in numbers}
    with ExitStack() as stack:
        for number, flops in calls.items():
            stack.enter_context(metered(decoder_layers(model)[number].sublayers.attention, counter, flops))
        stack.enter_context(counter)
        generate(model, inputs, new_tokens=2)
    stored = generate(model, inputs, new_tokens=1).past_key_values.layers
    return {n: Costs(*flops, kv_cache_bytes(SimpleNamespace(layers=[stored[n]]))) for n, flops in calls.items()}


@pytest.mark.parametrize(("name", "attention", "label"), requests())
def test_counted_flops_and_bytes_equal_their_closed_forms(name, attention, label):
    model, batch, policy = built(name, attention), batch_of(name, "middle"), policy_of(label, FAMILIES[name])
    mixers = mixers_of(name, attention) if FAMILIES[name].linear or FAMILIES[name].cross else {}
    expected = costs(model, FAMILIES[name], policy, batch.ids[0], mixers)
    forget(model)
    with apply_policy(model, policy), prefilled(model) as sizes:
        _, decoder, _ = count(model, batch.alone(0))
    assert decoder == [expected.prefill, expected.decode]
    assert sizes[0] == expected.cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ranking_by_attention_costs_one_row_of_it(attention):
    model, batch = built("llava", attention), batch_of("llava", "middle")
    layers = {1: {"token_ratio": 0.5}, 3: {"token_ratio": 0.5}}
    counted = {}
    for score in ("uniform", "attention"):
        policy = Policy.model_validate({"layers": layers, "token_selection": {"score": score}})
        with apply_policy(model, policy):
            counted[score] = count(model, batch.alone(0))[1]
    keys, width = len(batch.ids[0]), model.config.text_config.hidden_size
    # The layers 0 and 2 score, the prompt's last query against all keys; a decode step does not.
    assert counted["attention"] == [counted["uniform"][0] + 2 * 2 * width * keys, counted["uniform"][1]]


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_experts_are_counted_however_they_run(experts):
    config = t.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    model = t.AutoModelForCausalLM.from_config(config, experts_implementation=experts).eval()
    ids = list(range(3, 12))
    expected = costs(model, FAMILIES["llama"], Policy(), ids)
    one_token = 2 * (32 * 4 + 2 * 3 * 32 * 48)
    assert ffn_flops(model.model.layers[0]) == one_token
    _, decoder, _ = count(model, {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, 9).long()})
    assert decoder == [expected.prefill, expected.decode]


def test_experts_are_counted_where_torch_has_no_kernel_for_them():
    rows, matrices, ends = torch.randn(5, 4), torch.randn(2, 4, 3), torch.tensor([2, 5], dtype=torch.int32)
    with flop_counter() as counter:
        torch.ops.transformers.grouped_mm_fallback(rows, matrices, ends)
    assert counter.get_total_flops() == 5 * 2 * 4 * 3
