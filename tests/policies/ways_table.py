"""All ways, by name, with the options that each uses; and the options that are no way of their own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import transformers as t
from holding import (
    checkpointed,
    continuous,
    copied,
    past_the_head,
    pickled,
    saved,
    threads,
    wrapped,
)
from special import encoded, guided, healed, packed, positions, single, whole_mask
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerationMixin
from ways import (
    ANSWER,
    Case,
    Favour,
    Found,
    Never,
    Silent,
    Way,
    answers,
    assisted,
    beams,
    by_hand,
    by_hand_in_pieces,
    embeddings,
    from_embeddings,
    next_turn,
    one_forward,
    scored,
    tokenizer,
    with_options,
)

from families import Batch


@dataclass(frozen=True)
class Entry:
    """A way and the options that it uses; `fresh` where it takes a model that ran nothing yet."""

    run: Way
    covers: frozenset[str]
    fresh: bool = False


def way(run: Way, *covers: str, fresh: bool = False) -> Entry:
    return Entry(run, frozenset(covers), fresh)


def said(options: Mapping[str, Any]) -> frozenset[str]:
    """The options as they are listed: of a configuration, or of `generate` itself."""
    fields, named = vars(t.GenerationConfig()), inspect.signature(GenerationMixin.generate).parameters
    of_config = {f"config: {name}" for name in options if name in fields}
    return frozenset(of_config | {f"generate: {name}" for name in options if name in named})


def generating(alone: bool = False, per_row: int = 1, **options: Any) -> Entry:
    return Entry(with_options(alone, per_row, **options), said({**options, "max_new_tokens": 1}))


def searching(**options: Any) -> Entry:
    return Entry(beams(**options), said({**options, "num_beams": 2, "length_penalty": 0.0}))


def caching(name: str, **options: Any) -> Entry:
    entry = generating(cache_implementation=name, **options)
    return Entry(entry.run, entry.covers | {f"cache: {name}"})


def positional(case: Case) -> list[Found]:
    """The prompt as the first argument, and a GenerationConfig instead of options."""
    settings = t.GenerationConfig(max_new_tokens=ANSWER, do_sample=False, eos_token_id=4, bos_token_id=1)
    settings.update(return_dict_in_generate=True, output_logits=True, pad_token_id=0)
    inputs = dict(case.inputs)
    out = case.model.generate(inputs.pop("input_ids"), settings, **inputs)
    return answers(case, out.sequences[:, case.inputs["input_ids"].shape[1] :], out.logits)


def forward_from_embeddings(case: Case) -> list[Found]:
    """Embeddings instead of ids; of text, as pictures need the ids."""
    case = replace(case, batch=Batch.of(case.batch.family, [(9,), (6,)]))
    return one_forward(input_ids=None, inputs_embeds=embeddings)(case)


FILTERS = {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "epsilon_cutoff": 0.001, "eta_cutoff": 0.001}
PENALTIES = {
    "repetition_penalty": 1.3,
    "encoder_repetition_penalty": 1.1,
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 3,
    "exponential_decay_length_penalty": (1, 1.1),
    "sequence_bias": {(9,): 1.0},
    "renormalize_logits": True,
    "remove_invalid_values": True,
}
BANS = {
    "bad_words_ids": [[8]],
    "suppress_tokens": [99, 7],
    "begin_suppress_tokens": [6],
    "eos_token_id": 4,
    "forced_eos_token_id": 4,
    "forced_bos_token_id": 5,
}
OWN = {
    "logits_processor": LogitsProcessorList([Favour()]),
    "stopping_criteria": StoppingCriteriaList([Never()]),
    "prefix_allowed_tokens_fn": lambda batch, ids: list(range(90)),
    "streamer": Silent(),
}
GREEDY = {
    "greedy": generating(output_logits=True, return_dict_in_generate=True, do_sample=False),
    "positional input, configuration object": way(
        positional, "generate: inputs", "generate: generation_config", "config: bos_token_id", "config: pad_token_id"
    ),
    "other limits": generating(max_length=40, min_new_tokens=2, min_length=2, max_time=60.0, output_scores=True),
    "stop strings": generating(stop_strings=["t5"], tokenizer=tokenizer()),
    "sampling": generating(per_row=2, do_sample=True, num_return_sequences=2, temperature=1.3, **FILTERS),
    "top-h sampling": generating(do_sample=True, top_h=0.5),
    "penalties and biases": generating(eos_token_id=4, **PENALTIES),
    "bans and forced tokens": generating(**BANS),
    "watermark": generating(watermarking_config=t.WatermarkingConfig()),
    "own processors, stopping criteria, streamer": generating(alone=True, **OWN),
    "own decoding method": generating(
        custom_generate=lambda model, *args, **kw: type(model)._sample(model, *args, **kw)
    ),
    "guidance": way(
        guided(), "config: guidance_scale", "generate: negative_prompt_ids", "generate: negative_prompt_attention_mask"
    ),
    "guidance without a cache": way(guided(use_cache=False)),
    "healed tokens": way(healed, "config: token_healing"),
    "from embeddings": way(from_embeddings),
    "a next turn with the cache": way(next_turn),
}
SEARCHES = {
    "beam search": searching(early_stopping=True),
    "beam sampling": searching(do_sample=True),
    "prompt lookup": generating(alone=True, prompt_lookup_num_tokens=2, max_matching_ngram_size=1),
    "assisted": way(
        assisted(assistant_confidence_threshold=0.0),
        "generate: assistant_model",
        "config: num_assistant_tokens",
        "config: num_assistant_tokens_schedule",
        "config: assistant_confidence_threshold",
        "config: is_assistant",
    ),
    "assisted sampling": way(
        assisted(do_sample=True, assistant_ensemble_weight=0.9), "config: assistant_ensemble_weight"
    ),
    "assisted by its own first layers": generating(alone=True, assistant_early_exit=2),
    "multi-token prediction": generating(alone=True, use_mtp=True),
    "contrastive search": generating(penalty_alpha=0.6, top_k=4, low_memory=True),
    "DoLa": generating(dola_layers="high"),
    "diverse beams": searching(num_beam_groups=2, diversity_penalty=0.5),
    "constrained beams": searching(force_words_ids=[[5]], constraints=None),
    "synchronised devices": generating(synced_gpus=True),
}
CACHES = {
    "no cache": Entry(with_options(use_cache=False), frozenset({"config: use_cache", "forward: use_cache"})),
    "dynamic cache": caching("dynamic"),
    "static cache": caching("static", disable_compile=True, max_cache_len=64),
    "offloaded cache": caching("offloaded"),
    "offloaded_static cache": caching("offloaded_static", disable_compile=True),
    "offloaded_hybrid cache": caching("offloaded_hybrid", disable_compile=True),
    "offloaded_hybrid_chunked cache": caching("offloaded_hybrid_chunked", disable_compile=True),
    "sliding_window cache": caching("sliding_window", disable_compile=True),
    "hybrid cache": caching("hybrid", disable_compile=True),
    "hybrid_chunked cache": caching("hybrid_chunked", disable_compile=True),
    "prefill in chunks": generating(prefill_chunk_size=4),
    "prefill in chunks, the last of one token": generating(alone=True, prefill_chunk_size=8),
    "continuous batching": way(continuous, "config: continuous_batching_config", "cache: paged"),
}
FORWARDS = {
    "forward, padded on the left": way(
        one_forward(),
        "forward: input_ids",
        "forward: attention_mask",
        "forward: pixel_values",
        "forward: image_grid_thw",
        "forward: mm_token_type_ids",
    ),
    "forward, padded on the right": way(one_forward("right")),
    "forward with a mask of four dimensions": way(single(one_forward(attention_mask=whole_mask))),
    "forward with positions": way(one_forward(position_ids=positions), "forward: position_ids"),
    "forward from embeddings": way(forward_from_embeddings, "forward: inputs_embeds"),
    "forward with labels": way(
        one_forward(labels=lambda case: case.inputs["input_ids"], num_items_in_batch=7),
        "forward: labels",
        "forward: num_items_in_batch",
    ),
    "forward, last logits only": way(one_forward(logits_to_keep=2), "forward: logits_to_keep"),
    "forward, eager, with attentions": way(
        one_forward(output_attentions=True), "forward: output_attentions", "config: output_attentions"
    ),
    "forward with hidden states": way(
        one_forward(output_hidden_states=True, output_router_logits=False),
        "forward: output_hidden_states",
        "config: output_hidden_states",
        "forward: output_router_logits",
    ),
    "forward with encoded images": way(encoded, "forward: mm_encoder_outputs"),
    "forwards of a prompt and an answer": way(scored),
    "a loop by hand": way(by_hand, "forward: past_key_values"),
    "a prompt in two forwards by hand": way(by_hand_in_pieces),
    "packed rows": way(packed(lengths=False)),
    "packed rows with lengths": way(
        packed(lengths=True),
        "forward: cu_seq_lens_q",
        "forward: cu_seq_lens_k",
        "forward: max_length_q",
        "forward: max_length_k",
    ),
}

HOLDING = {
    "threads": way(threads),
    "a deep copy": way(copied),
    "a pickle": way(pickled, fresh=True),
    "torch.save": way(saved, fresh=True),
    "generate of torch.compile's result": way(wrapped),
    "called past its head": way(past_the_head),
    "training with gradient checkpoints": way(checkpointed),
}

WAYS: dict[str, Entry] = {**GREEDY, **SEARCHES, **CACHES, **FORWARDS, **HOLDING}

# Options that no way of running a decoder has, each with the reason.
DECIDED: dict[str, str] = {
    "config: transformers_version": "says who saved the configuration",
    "config: compile_config": "tests/policies/test_cache.py holds compiled decoding against uncompiled",
    "config: cache_config": "of quantised caches, which tests/policies/test_cache.py holds against a smaller model",
    "cache: quantized": "rounds keys and values; tests/policies/test_cache.py holds it against a smaller model",
    "forward: is_causal": "a decoder that looks ahead has no formulas; test_calls.py shows that it is refused",
    "config: decoder_start_token_id": "of models with an encoder",
    "config: assistant_lookbehind": "of assistants with another tokenizer, whose guesses are of the same kind",
    "config: target_lookbehind": "of assistants with another tokenizer, whose guesses are of the same kind",
    "config: speculation_type": "names how guesses are made, and not how they are run",
    "forward: seq_idx": "of packed rows in recurrent layers; refused like their lengths",
    "forward: kwargs": "holds the options of TransformersKwargs, which are listed",
    "forward: vision_feature_layer": "of the vision tower, which no policy touches",
    "forward: vision_feature_select_strategy": "of the vision tower, which no policy touches",
    "forward: image_sizes": "of the vision tower, which no policy touches",
    "forward: pixel_values_videos": "frames stand for tokens as images do",
    "forward: video_grid_thw": "frames stand for tokens as images do",
    "forward: second_per_grid_ts": "frames stand for tokens as images do",
}
