"""FLOPs and cache bytes equal their closed forms; latency is timed in turns with the dense model."""

import gc
import statistics
from types import SimpleNamespace

import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.flops import FlopsEvaluator
from skipsearch.evaluators.latency import LatencyEvaluator, LatencyOptions, stable_timing
from skipsearch.evaluators.memory import MemoryEvaluator
from skipsearch.evaluators.prompts import PromptOptions, fixed_input, image_placeholder, picture_size, synthetic_prompt
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError
from skipsearch.policies.policy import Policy
from skipsearch.policies.scores.token_selection import TokenSelection

IMAGE_TOKENS = (tiny.IMAGE_SIZE // tiny.PATCH_SIZE) ** 2


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {"llama": tiny.tiny_llama(folder), "llava": tiny.tiny_llava(folder), **tiny.image_tasks(folder)}


@pytest.fixture(params=["sdpa", "eager"])
def attention(request):
    return request.param


def loaded(path, attention="sdpa"):
    return load_subject(ModelSpec(id=str(path), device="cpu", attn_implementation=attention))


def measure(evaluator, policy=Policy()):
    with apply_policy(evaluator._subject.model, policy) as handle:
        return evaluator.measure(handle, "search")


def values(evaluator, policy=Policy()):
    return {name: measurement.value for name, measurement in measure(evaluator, policy).items()}


def sublayer_flops(config, queries, keys):
    """Closed form of one layer's attention and FFN: mechanisms as 8nd2 + 4n2d + 6ndm, with grouped keys and values."""
    d, m = config.hidden_size, config.intermediate_size
    d_kv = d * config.num_key_value_heads // config.num_attention_heads
    attention = 4 * queries * d * d + 4 * queries * d * d_kv + 4 * queries * keys * d
    return attention, 6 * queries * d * m


@pytest.mark.parametrize("tokens", [1, 17, 64])
def test_flops_equal_the_closed_form(paths, attention, tokens):
    evaluator = FlopsEvaluator(PromptOptions(prompt_tokens=tokens), loaded(paths["llama"], attention))
    found = values(evaluator)
    config = evaluator._subject.model.config
    assert found["prefill_flops"] == tiny.LAYERS * sum(sublayer_flops(config, tokens, tokens))
    assert found["decode_flops"] == tiny.LAYERS * sum(sublayer_flops(config, 1, tokens + 1))
    assert found["vision_flops"] == 0
    detail = measure(evaluator)["prefill_flops"].detail
    assert detail["prompt_tokens"] == tokens
    assert (
        detail["lm_head_prefill_flops"] == detail["lm_head_decode_flops"] == 2 * config.hidden_size * config.vocab_size
    )


def test_flops_of_what_is_skipped_are_gone(paths, attention):
    evaluator = FlopsEvaluator(PromptOptions(prompt_tokens=20), loaded(paths["llama"], attention))
    config = evaluator._subject.model.config
    attend, feed = sublayer_flops(config, 20, 20)
    layers = {0: CHOICES["skip_ffn"], 1: CHOICES["skip_attention"], 2: CHOICES["skip_layer"], 3: CHOICES["parallel"]}
    assert values(evaluator, Policy(layers=layers))["prefill_flops"] == 2 * attend + 2 * feed
    attend, feed = sublayer_flops(config, 1, 21)
    assert values(evaluator, Policy(layers=layers))["decode_flops"] == 2 * attend + 2 * feed


def test_flops_of_a_shorter_sequence(paths, attention):
    evaluator = FlopsEvaluator(PromptOptions(prompt_tokens=10), loaded(paths["llava"], attention))
    dense = values(evaluator)
    text = evaluator._subject.model.config.text_config
    policy = Policy(layers={2: LayerChoice(token_ratio=0.5)}, token_selection=TokenSelection(score="uniform"))
    shorter = values(evaluator, policy)
    whole, kept = 10 + IMAGE_TOKENS, 10 + IMAGE_TOKENS // 2
    saved = sum(sublayer_flops(text, whole, whole)) - sum(sublayer_flops(text, kept, kept))
    assert dense["prefill_flops"] - shorter["prefill_flops"] == saved
    assert dense["decode_flops"] - shorter["decode_flops"] == 4 * (whole - kept) * text.hidden_size
    assert shorter["vision_flops"] == dense["vision_flops"]


def test_vision_flops_equal_the_closed_form(paths, attention):
    evaluator = FlopsEvaluator(PromptOptions(), loaded(paths["llava"], attention))
    config = evaluator._subject.model.config
    vision, d_text = config.vision_config, config.text_config.hidden_size
    n, d, m = IMAGE_TOKENS + 1, vision.hidden_size, vision.intermediate_size
    patches = 2 * IMAGE_TOKENS * d * 3 * vision.patch_size**2
    tower = vision.num_hidden_layers * (8 * n * d * d + 4 * n * n * d + 4 * n * d * m)
    projector = 2 * IMAGE_TOKENS * d_text * (d + d_text)
    assert values(evaluator)["vision_flops"] == patches + tower + projector


def test_flops_of_a_model_that_hides_its_phases_are_refused(paths, monkeypatch):
    evaluator = FlopsEvaluator(PromptOptions(), loaded(paths["llama"]))
    with apply_policy(evaluator._subject.model, Policy()) as handle:
        monkeypatch.setattr(type(handle.model), "get_decoder", lambda model: torch.nn.Identity())
        with pytest.raises(EvaluatorError, match="FLOPs of LlamaForCausalLM cannot be divided by phase"):
            evaluator.measure(handle, "search")


def test_flops_of_an_attention_that_is_not_seen_are_refused(paths, monkeypatch):
    evaluator = FlopsEvaluator(PromptOptions(), loaded(paths["llama"]))
    with apply_policy(evaluator._subject.model, Policy()) as handle:
        monkeypatch.setattr(handle.model.model.config, "_attn_implementation", "flex_attention")
        with pytest.raises(EvaluatorError, match="found attn_implementation flex_attention, expected sdpa or eager"):
            evaluator.measure(handle, "search")


def test_cache_bytes_equal_the_closed_form(paths):
    evaluator = MemoryEvaluator(PromptOptions(prompt_tokens=20), loaded(paths["llama"]))
    one_layer = 20 * 2 * 16 * 4
    assert values(evaluator)["kv_cache_bytes"] == tiny.LAYERS * one_layer
    skipping = Policy(layers={1: CHOICES["skip_attention"], 2: CHOICES["skip_ffn"], 3: CHOICES["skip_layer"]})
    assert values(evaluator, skipping)["kv_cache_bytes"] == 2 * one_layer


def test_cache_bytes_of_a_shorter_sequence(paths):
    evaluator = MemoryEvaluator(PromptOptions(prompt_tokens=10), loaded(paths["llava"]))
    saved = (
        values(evaluator)["kv_cache_bytes"]
        - values(evaluator, Policy(layers={2: LayerChoice(token_ratio=0.5)}))["kv_cache_bytes"]
    )
    dropped, kept = IMAGE_TOKENS - IMAGE_TOKENS // 2, 10 + IMAGE_TOKENS // 2
    positions = kept * 8
    assert saved == dropped * 2 * 16 * 4 - positions


def test_a_made_up_prompt_is_the_same_at_each_call(paths):
    subject = loaded(paths["llava"])
    first, second = synthetic_prompt(subject, 12), synthetic_prompt(subject, 12)
    assert first["input_ids"].shape == first["attention_mask"].shape == (1, 12 + IMAGE_TOKENS)
    assert all(torch.equal(first[key], second[key]) for key in first)
    batch = fixed_input(subject, batch_size=3, prompt_tokens=12)
    assert batch["pixel_values"].shape == (3, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    assert batch["input_ids"].shape == (3, 12 + IMAGE_TOKENS)


SIZES = [
    ({"height": 30, "width": 20}, (30, 20)),
    ({"shortest_edge": 336}, (336, 336)),
    ({"longest_edge": 1456}, (1456, 1456)),
    # Numbers of pixels, under the names of edges.
    ({"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, (672, 672)),
    ({"shortest_edge": 65536, "longest_edge": 16777216}, (672, 672)),
    ({"shortest_edge": 1024 * 1024, "longest_edge": 16777216}, (1024, 1024)),
    ({"shortest_edge": 16 * 16, "longest_edge": 100 * 100}, (100, 100)),
    (None, (336, 336)),
]


@pytest.mark.parametrize(("size", "expected"), SIZES, ids=str)
def test_a_made_up_picture_is_of_a_usual_size(size, expected):
    assert picture_size(SimpleNamespace(size=size)) == expected


def test_few_pixels_are_told_from_an_edge_by_the_kind_of_processor():
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 1024})
    assert picture_size(processor) == (32, 32)


SAVED = [
    {"num_beams": 4, "num_return_sequences": 2},
    {"stop_strings": ["w5"]},
    {"prefill_chunk_size": 8},
    {"prompt_lookup_num_tokens": 3},
    {"do_sample": True, "top_k": 20, "guidance_scale": 2.0, "token_healing": True},
    {"cache_implementation": "static", "use_cache": False, "max_length": 3, "repetition_penalty": 2.0},
]


@pytest.mark.parametrize("saved", SAVED, ids=str)
def test_costs_are_those_of_a_plain_generation_configuration(paths, saved):
    subject = loaded(paths["llama"])
    policy = Policy(layers={1: LayerChoice(ffn="skip", phase="decode")})
    evaluators = [kind(PromptOptions(), subject) for kind in (FlopsEvaluator, MemoryEvaluator)]
    plain = [values(evaluator, policy) for evaluator in evaluators]
    subject.model.generation_config.update(**saved)
    assert [values(evaluator, policy) for evaluator in evaluators] == plain


def test_the_prompt_is_named(paths):
    measured = measure(FlopsEvaluator(PromptOptions(prompt_tokens=12), loaded(paths["llava"])))["prefill_flops"]
    found, edge = measured.detail["prompt"], tiny.IMAGE_SIZE
    assert found == f"a synthetic prompt of {12 + IMAGE_TOKENS} tokens with one random image of {edge} x {edge} pixels"


def test_the_placeholder_of_an_image():
    def placeholder(processor, **config):
        tokenizer = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")
        model = SimpleNamespace(config=SimpleNamespace(**config))
        return image_placeholder(SimpleNamespace(processor=processor, tokenizer=tokenizer, model=model))

    assert placeholder(SimpleNamespace(image_token="<image>"), image_token_id=4) == "<image>"
    assert placeholder(SimpleNamespace(image_token="<soft>", boi_token="<start>"), image_token_id=4) == "<start>"
    assert placeholder(SimpleNamespace(), image_token_index=4) == "<4>"
    with pytest.raises(EvaluatorError, match="no text stands for an image in SimpleNamespace"):
        placeholder(SimpleNamespace())


def test_costs_are_measured_on_a_real_prompt_whichever_evaluator_is_made_first(paths):
    subject = loaded(paths["llava"])
    flops = FlopsEvaluator(PromptOptions(), subject)
    AccuracyEvaluator(AccuracyOptions(tasks=[str(paths["image_gen"])]), subject)
    expected = subject.prompts[0]["input_ids"].shape[1]
    assert measure(flops)["prefill_flops"].detail["prompt_tokens"] == expected
    assert measure(MemoryEvaluator(PromptOptions(), subject))["kv_cache_bytes"].detail["prompt_tokens"] == expected


def test_latency_is_timed_in_turns(paths, monkeypatch):
    evaluator = LatencyEvaluator(LatencyOptions(repeats=3, warmup=1, new_tokens=4), loaded(paths["llama"]))
    order, time = [], evaluator._time

    def noting(model, decoder, inputs):
        order.append("dense" if "forward" not in vars(model.model.layers[0]) else "policy")
        return time(model, decoder, inputs)

    monkeypatch.setattr(evaluator, "_time", noting)
    found = measure(evaluator, Policy(layers={0: CHOICES["skip_layer"]}))
    assert order == ["dense", "policy", "policy", "dense", "dense", "policy", "policy", "dense"]
    for measurement in found.values():
        ours, dense = measurement.detail["repeats_ms"], measurement.detail["dense_repeats_ms"]
        assert len(ours) == len(dense) == measurement.n == 3
        assert measurement.value == statistics.median(ours) > 0
        assert measurement.dense == statistics.median(dense) > 0
        assert measurement.iqr >= 0


def test_latency_generates_every_token(paths):
    subject = loaded(paths["llama"])
    # Every token ends the answer, so generation would stop at once if it were let.
    subject.model.generation_config.eos_token_id = list(range(40))
    evaluator = LatencyEvaluator(LatencyOptions(repeats=1, warmup=0, new_tokens=6, batch_size=2), subject)
    calls = []
    with apply_policy(subject.model, Policy()) as handle:
        hook = subject.model.model.register_forward_hook(lambda *_: calls.append(1))
        evaluator.measure(handle, "search")
        hook.remove()
    assert len(calls) == 2 * 6


def test_timing_leaves_threads_and_garbage_collection_as_they_were():
    threads = torch.get_num_threads()
    with pytest.raises(KeyError), stable_timing(threads + 1):
        assert torch.get_num_threads() == threads + 1
        assert not gc.isenabled()
        raise KeyError
    assert torch.get_num_threads() == threads
    assert gc.isenabled()
