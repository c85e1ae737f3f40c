"""What belongs to one call of a model stays with that call, and what cannot be known of one is refused."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import pytest
import torch
import transformers as t
from torch import nn

from families import FAMILIES, Batch, batch_of, built, run
from skipsearch import LayerChoice, Policy, applied_policy, apply_policy
from skipsearch.policies.errors import ModelError, PolicyError

RATIO = {2: LayerChoice(token_ratio=0.5)}
PHASE = {0: LayerChoice(ffn="skip", phase="decode"), 1: LayerChoice(attention="skip", phase="prefill")}


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def generate(model: Any, inputs: dict[str, Any]) -> list[int]:
    return model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, -3:].tolist()


def test_threads_share_two_models_under_two_policies(switching):
    models = [FAMILIES["llava"].build("sdpa") for _ in range(2)]
    policies = [Policy(layers=RATIO), Policy(layers={1: LayerChoice(ffn="skip", tokens="image"), **RATIO, **PHASE})]
    # Made before: they are drawn from torch's one random state.
    inputs = [Batch.of(FAMILIES["llava"], [(1 + seed, "image", 3)], seed).padded() for seed in range(5)]
    with apply_policy(models[0], policies[0]), apply_policy(models[1], policies[1]):
        alone = [[generate(model, one) for one in inputs] for model in models]
        found: list[bool] = []

        def work(first: int) -> None:
            for turn in range(25):
                which, seed = (first + turn) % 2, (first + turn) % 5
                found.append(generate(models[which], inputs[seed]) == alone[which][seed])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.count(True) == 100
    assert alone[0] != alone[1]


def test_where_a_prompt_ends_is_said_in_one_thread_for_that_thread():
    with apply_policy(built("llama", "sdpa"), Policy(layers=PHASE)) as handle:
        handle.prompt_ends = torch.tensor([3])
        seen = []
        thread = threading.Thread(target=lambda: seen.append(handle.prompt_ends))
        thread.start()
        thread.join()
        assert seen == [None] and handle.prompt_ends is not None


# What cannot be known


def test_several_tokens_after_a_prompt_are_refused_until_it_is_said_what_they_are():
    model, ids = built("llama", "sdpa"), torch.tensor([[5, 9, 30, 41, 17]])
    with apply_policy(model, Policy(layers=PHASE)) as handle, torch.no_grad():
        cache = model(ids[:, :3]).past_key_values
        with pytest.raises(ModelError, match="may be of the prompt or of an answer") as error:
            model(ids[:, 3:], past_key_values=cache)
        assert "prompt_ends" in str(error.value)
        found = {}
        for end in (3, 5):
            handle.prompt_ends = torch.tensor([end])
            found[end] = model(ids[:, 3:], past_key_values=copy.deepcopy(cache)).logits
            torch.testing.assert_close(found[end], model(ids, use_cache=False).logits[:, 3:])
        handle.prompt_ends = None
        assert not torch.allclose(found[3], found[5])
    with apply_policy(model, Policy(layers={0: LayerChoice(ffn="skip")})), torch.no_grad():
        model(ids[:, 3:], past_key_values=model(ids[:, :3]).past_key_values)


REFUSED: dict[str, dict[str, Any]] = {
    "packed sequences": {"cu_seq_lens_q": torch.tensor([0, 2, 5])},
    "two-way attention": {"is_causal": False},
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_way_that_a_policy_does_not_stand_is_refused_by_its_name(way):
    model, ids = built("llama", "sdpa"), torch.tensor([[5, 9, 30, 41, 17]])
    with apply_policy(model, Policy(layers=PHASE)), pytest.raises(ModelError, match=way):
        run(model, {"input_ids": ids}, **REFUSED[way])


@pytest.mark.parametrize("options", [{"token_healing": True}, {"guidance_scale": 1.5, "use_cache": False}], ids=str)
@pytest.mark.parametrize("saved", [False, True])
def test_an_option_of_generate_that_a_policy_does_not_stand_is_refused_wherever_it_is_set(options, saved):
    model, ids = FAMILIES["llama"].build("sdpa"), torch.tensor([[5, 9, 30]])
    if saved:
        model.generation_config.update(**options)
    with apply_policy(model, Policy(layers=PHASE)), pytest.raises(ModelError, match="cannot be used under this policy"):
        model.generate(ids, max_new_tokens=2, **({} if saved else options))


# Whose layers they are


@pytest.mark.parametrize("removed", [0, 1])
def test_layers_take_one_policy_whichever_object_has_them(removed):
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    other = t.LlamaForCausalLM(model.config)
    other.model.layers = model.model.layers
    handle = apply_policy(model, Policy(layers={1: LayerChoice(ffn="skip")}))
    for holder in (model, model.model, other, torch.compile(model), nn.Sequential(model)):
        with pytest.raises(PolicyError, match="already runs"):
            apply_policy(holder, Policy(layers={3: LayerChoice(ffn="skip")}))
    with handle.dense(), pytest.raises(PolicyError, match="lifted by `dense"):
        apply_policy(model, Policy())
    assert applied_policy(other) is handle
    handle.remove()
    apply_policy(other, Policy()).remove()
    assert applied_policy(model) is None
    with apply_policy(other.model, Policy(layers={1: LayerChoice(ffn="skip")})):
        assert not torch.equal(run(model, inputs).logits, run(FAMILIES["llama"].build("sdpa"), inputs).logits)


def test_a_copy_has_the_policy_and_gives_it_back():
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    dense = run(model, inputs).logits
    with apply_policy(model, Policy(layers=PHASE)) as handle:
        twin = copy.deepcopy(model)
    mine = applied_policy(twin)
    assert mine is not None and mine is not handle and mine.model is twin
    assert not torch.equal(run(twin, inputs).logits, dense)
    mine.remove()
    assert torch.equal(run(twin, inputs).logits, dense) and applied_policy(twin) is None


@pytest.mark.parametrize("what", ["a string", nn.Linear(2, 2), nn.DataParallel(nn.Linear(2, 2))], ids=str)
def test_what_is_no_transformers_model_is_refused(what):
    with pytest.raises(ModelError, match=r"transformers model|DataParallel") as error:
        apply_policy(what, Policy())
    assert error.value.hint


# Layers that were taken out


def shortened(renumber: bool, kept: tuple[int, ...]) -> t.PreTrainedModel:
    model = FAMILIES["llama"].build("sdpa")
    model.model.layers = nn.ModuleList([model.model.layers[place] for place in kept])
    if renumber:
        for place, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = place
        model.config.num_hidden_layers = len(kept)
    return model


@pytest.mark.parametrize("choice", [PHASE[1], LayerChoice(attention="skip", ffn="skip")], ids=["phase", "skip_layer"])
def test_a_layer_stores_at_its_number_and_is_counted_by_its_place(choice):
    inputs, logits = batch_of("llama").padded(), []
    for renumber in (True, False):
        model = shortened(renumber, (0, 2, 3))
        told = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with apply_policy(model, Policy(layers={1: choice})):
            logits.append(torch.stack(model.generate(**inputs, **told).logits))
    assert torch.equal(*logits)


@pytest.mark.parametrize("kept", [(0, 1, 1), (1, 2, 3)])
def test_layers_that_do_not_fit_a_cache_are_refused(kept):
    with pytest.raises(ModelError, match="do not fit its cache"):
        apply_policy(shortened(False, kept), Policy())


# What is not a number


def test_weights_that_are_not_finite_are_named():
    model = FAMILIES["llama"].build("sdpa")
    model.model.layers[3].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ModelError, match="not finite") as error:
        apply_policy(model, Policy())
    assert "model.layers.3.mlp.down_proj.weight" in str(error.value)


def test_a_layer_that_overflows_is_named():
    model = FAMILIES["llama"].build("sdpa").half()
    model.model.layers[2].mlp.down_proj.weight.data.fill_(6e4)
    with pytest.raises(ModelError, match=r"layer 2 of LlamaForCausalLM computes numbers that are not finite"):
        apply_policy(model, Policy())


# What a model returns of its layers


def test_attentions_have_an_entry_for_each_layer_and_none_where_nothing_attended():
    model, inputs = built("llama", "eager"), batch_of("llama").padded()
    skipped = {1: LayerChoice(attention="skip", ffn="skip"), 2: PHASE[1]}
    own: dict[int, Any] = {}

    def note(place: int) -> Any:
        return lambda module, args, output: own.update({place: output[1]})

    hooks = [layer.self_attn.register_forward_hook(note(n)) for n, layer in enumerate(model.model.layers)]
    try:
        with apply_policy(model, Policy(layers=skipped)):
            given = run(model, inputs, output_attentions=True).attentions
            assert given[1] is given[2] is None
            assert all(torch.equal(given[place], own[place]) for place in (0, 3))
            with pytest.raises(ModelError, match="output_attentions"):
                model.model(**inputs, output_attentions=True, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()


def test_attentions_of_some_tokens_are_refused():
    model, inputs = built("llava", "eager"), batch_of("llava").padded()
    with apply_policy(model, Policy(layers=RATIO)), pytest.raises(ModelError, match="layers 2 attended for some"):
        run(model, inputs, output_attentions=True)


def test_gradient_checkpoints_keep_as_much_less_as_in_the_dense_model():
    x, kept = torch.randint(5, 90, (2, 64)), {}
    parallel = Policy(layers={place: LayerChoice(wiring="parallel") for place in range(4)})
    for name, policy in {"dense": Policy(), "parallel": parallel}.items():
        for checkpoints in (False, True):
            model = FAMILIES["llama"].build("sdpa").train()
            if checkpoints:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            seen: dict[int, int] = {}
            alive: list[Any] = []

            def pack(tensor: Any, seen: dict[int, int] = seen, alive: list[Any] = alive) -> Any:
                alive.append(tensor)
                seen[tensor.data_ptr()] = tensor.nbytes
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), apply_policy(model, policy):
                model(input_ids=x, labels=x, use_cache=False)
            kept[name, checkpoints] = sum(seen.values())
    dense = kept["dense", True] / kept["dense", False]
    assert kept["parallel", True] / kept["parallel", False] == pytest.approx(dense, abs=0.05)
