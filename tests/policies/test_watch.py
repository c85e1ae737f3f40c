"""Recording a layer's attention touches that layer of that model alone."""

from __future__ import annotations

import copy
import functools
import threading

import torch
from contract import HALF, policy_of
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention

from families import batch_of, built, run
from skipsearch import apply_policy
from skipsearch.policies.runtime.watch import recorded_attention

RANKING = policy_of({1: HALF})  # Layer 1 ranks by the attention of layer 0.


def test_while_one_thread_records_nothing_of_transformers_is_replaced_for_another():
    recording, plain = copy.deepcopy(built("llava", "sdpa")), built("llava", "sdpa")
    inputs, text = batch_of("llava").padded(), batch_of("llava", "text").padded()
    dense, functions = run(plain, text).logits, dict(ALL_ATTENTION_FUNCTIONS)
    inside, done = threading.Event(), threading.Event()

    def stop_inside(*_: object) -> None:
        inside.set()
        assert done.wait(60)

    with apply_policy(recording, RANKING):
        expected = run(recording, inputs).logits
        first = recording.get_decoder().layers[0].self_attn
        # The first attention is between its attention function and its output.
        stop = first.o_proj.register_forward_pre_hook(stop_inside)
        found = []
        thread = threading.Thread(target=lambda: found.append(run(recording, inputs).logits))
        thread.start()
        try:
            assert inside.wait(60)
            assert vars(first).keys() - vars(plain.get_decoder().layers[0].self_attn).keys() == {"forward"}
            assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
            assert dict(ALL_ATTENTION_FUNCTIONS) == functions
            assert ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None) is sdpa_attention_forward
            with recorded_attention(plain.get_decoder().layers[0].self_attn) as calls:
                assert torch.equal(run(plain, text).logits, dense)
            assert len(calls) == 1
            assert torch.equal(run(plain, text).logits, dense)
        finally:
            done.set()
            thread.join()
            stop.remove()
    assert torch.equal(found[0], expected)


def test_the_attention_of_a_decorated_forward_is_read(monkeypatch):
    inputs = batch_of("llava").padded()
    with apply_policy(built("llava", "sdpa"), RANKING):
        expected = run(built("llava", "sdpa"), inputs).logits
    forward = LlamaAttention.forward

    @functools.wraps(forward)
    def decorated(self, *args, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", decorated)
    model = copy.deepcopy(built("llava", "sdpa"))
    with apply_policy(model, RANKING):
        assert torch.equal(run(model, inputs).logits, expected)


def test_a_layer_that_records_takes_the_attention_that_the_model_is_set_to_later():
    model, inputs = copy.deepcopy(built("llava", "sdpa")), batch_of("llava").padded()
    real = inputs["attention_mask"].bool()
    with apply_policy(built("llava", "eager"), RANKING):
        expected = run(built("llava", "eager"), inputs).logits
    with apply_policy(model, RANKING):
        model.set_attn_implementation("eager")
        assert torch.equal(run(model, inputs).logits[real], expected[real])
