"""A GPU computes what the CPU does: no tensor is left on the wrong device, and no stream overtakes the other."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from contract import FREEZE_IMAGE, HALF, NAMED, PHASES, PLAIN, SCORES, TOKENS, close, policy_of, told
from support import taken
from transformers import StaticCache

from families import CASES, LAYERS, WITH_IMAGES, batch_of, built, run
from skipsearch import Policy, apply_policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """By default cuDNN rounds the inputs of convolutions, those of image patches too, to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(inputs):
    return {name: tensor.cuda() for name, tensor in inputs.items()}


def policies(name):
    """Each kind of choice somewhere, with every score where there are images."""
    yield Policy()
    for choices in (PLAIN[:LAYERS], [PLAIN[-1], *PHASES[1:LAYERS]], [PLAIN[-1], *PHASES[-LAYERS:-1]]):
        yield policy_of(taken(name, dict(enumerate(choices))))
    if name in WITH_IMAGES:
        halved = [HALF, {**HALF, **NAMED["parallel"]}, {**HALF, **NAMED["skip_ffn"], "tokens": "image"}, TOKENS[0]]
        for score in SCORES:
            yield policy_of(taken(name, dict(enumerate(halved))), score)
            yield policy_of(taken(name, dict(enumerate(halved))), score, "once")


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_gpu_computes_what_the_cpu_does(name, attention):
    model, inputs = built(name, attention), batch_of(name).padded()
    twin = copy.deepcopy(model).cuda()
    real = inputs["attention_mask"].bool()
    for policy in policies(name):
        with apply_policy(model, policy):
            expected, answered = run(model, inputs).logits[real], told(model, inputs)
        with apply_policy(twin, policy):
            close(run(twin, on_gpu(inputs)).logits.cpu()[real], expected, 1e-4)
            found = told(twin, on_gpu(inputs))
        close(torch.stack(found.logits).cpu(), torch.stack(answered.logits), 1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "llava"])
def test_a_static_cache_answers_as_a_growing_one_does_in_a_cuda_graph(name):
    model, inputs = copy.deepcopy(built(name, "sdpa")).cuda(), on_gpu(batch_of(name, "text").padded())
    phases = [{**NAMED["skip_ffn"], "phase": phase} for phase in ("prefill", "decode")]
    for choices in (PLAIN[:LAYERS], [PLAIN[-1], *phases]):
        with apply_policy(model, policy_of(taken(name, dict(enumerate(choices))))):
            expected = told(model, inputs, max_new_tokens=8).logits
            torch._dynamo.reset()
            found = told(model, inputs, max_new_tokens=8, cache_implementation="static").logits
        close(torch.stack(found), torch.stack(expected), 1e-4)


def captured_equals_uncaptured(model, inputs, policy):
    """Replay the step after a prompt as a CUDA graph, and compare each with the step as it is."""

    def begun():
        """The step after the prompt, at each call one token further."""
        cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=64)
        model(**inputs, past_key_values=cache)
        return partial(model, input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)

    with torch.inference_mode(), apply_policy(model, policy):
        step, captured = begun(), begun()
        expected = [step().logits for _ in range(8)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = captured().logits
        for logits in expected:
            graph.replay()
            close(found, logits)


# Not where windows slide: there transformers counts a static cache's tokens in Python too, which a graph cannot replay.
@pytest.mark.parametrize("name", ["llama", "llava"])
def test_parallel_layers_in_a_captured_step_wait_for_each_other(name):
    model, inputs = copy.deepcopy(built(name, "sdpa")).cuda(), on_gpu(batch_of(name, "text").padded())
    captured_equals_uncaptured(model, inputs, policy_of(dict.fromkeys(range(LAYERS), NAMED["parallel"])))


@pytest.mark.parametrize("reselect", ["each_layer", "once"])
def test_a_step_over_a_shorter_static_cache_is_captured(reselect):
    model, inputs = copy.deepcopy(built("llava", "sdpa")).cuda(), on_gpu(batch_of("llava", "middle").padded())
    captured_equals_uncaptured(model, inputs, policy_of({1: HALF, 2: {"token_ratio": 0.3}}, reselect=reselect))


CAPTURED = {
    "ratios": {1: HALF, 2: {"token_ratio": 0.3}},
    "seen": {0: FREEZE_IMAGE, 1: {**HALF, "rest": "keys_only"}},
}


@pytest.mark.parametrize("reselect", ["each_layer", "once"])
@pytest.mark.parametrize("layers", CAPTURED.values(), ids=CAPTURED)
def test_a_prefill_whose_image_tokens_are_told_is_captured(layers, reselect):
    model, inputs = copy.deepcopy(built("llava", "sdpa")).cuda(), on_gpu(batch_of("llava", "middle").padded())
    del inputs["attention_mask"]
    with torch.inference_mode(), apply_policy(model, policy_of(layers, "norm", reselect)) as handle:
        handle.image_tokens = 9
        expected = run(model, inputs, use_cache=False).logits
        beside = torch.cuda.Stream()
        with torch.cuda.stream(beside):
            run(model, inputs, use_cache=False)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run(model, inputs, use_cache=False).logits
        found.zero_()
        graph.replay()
        close(found, expected)
