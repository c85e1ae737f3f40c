"""What is read off the dense model's layers equals a computation by hand, and leaves the model alone."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from families import FAMILIES, batch_of
from skipsearch.evaluators.statistics import layer_statistics

PROMPT = {"input_ids": torch.arange(5, 25)[None]}
# The modules that put out what the sublayers add, and whether both read the layer's input.
BY_HAND = {
    "llama": ("self_attn", "mlp", False),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm", False),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm", False),
    "phi": ("self_attn", "mlp", True),
    "neox": ("attention", "mlp", True),
    "qwen3-moe": ("self_attn", "mlp", False),
}


def cosine(before, after):
    before, after = before[0].double().numpy(), after[0].double().numpy()
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return float(((before * after).sum(axis=1) / norms).mean())


def by_hand(model, names, inputs):
    """Of each layer 1 - cosine, and the cosines of its sublayers, from what its modules were seen to put out."""
    attention_name, ffn_name, parallel = names
    found, hooks = [], []
    for layer in model.get_decoder().layers:
        seen = {}
        found.append(seen)
        for name, module in (("attention", getattr(layer, attention_name)), ("ffn", getattr(layer, ffn_name))):
            hooks.append(module.register_forward_hook(keeping(seen, name)))
        hooks.append(layer.register_forward_hook(keeping(seen, "layer"), with_kwargs=False))
        hooks.append(
            layer.register_forward_pre_hook(
                lambda _, args, kw, seen=seen: seen.update(x=whole(args, kw)), with_kwargs=True
            )
        )
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    result = []
    for seen in found:
        x, a, f = seen["x"], seen["attention"], seen["ffn"]
        middle = x if parallel else x + a
        result.append((1 - cosine(x, x + a + f), cosine(x, x + a), cosine(middle, middle + f)))
    return result


def keeping(seen, name):
    def keep(module, args, output):
        seen[name] = (output[0] if isinstance(output, tuple) else output).clone()

    return keep


def whole(args, kwargs):
    return (args[0] if args else kwargs["hidden_states"]).clone()


@pytest.mark.parametrize("name", BY_HAND)
def test_cosines_equal_a_computation_by_hand(name):
    model = FAMILIES[name].build("eager")
    inputs = batch_of(name, "text").alone(0)
    found = layer_statistics(model, [inputs], ranks=False)
    expected = by_hand(model, BY_HAND[name], inputs)
    ours = [(layer.block_influence, layer.attention_cosine, layer.ffn_cosine) for layer in found]
    assert np.array(ours) == pytest.approx(np.array(expected), abs=1e-5)
    assert all(layer.attention_rank is None for layer in found)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_ranks_equal_those_of_the_maps_that_the_model_gives_out(tmp_path, attention):
    path = tiny.tiny_llama(tmp_path)
    model, eager = (
        AutoModelForCausalLM.from_pretrained(path, attn_implementation=kind) for kind in (attention, "eager")
    )
    for layer in (*model.model.layers, *eager.model.layers):
        # Sharper attention looks at fewer tokens, which lowers the rank.
        layer.self_attn.q_proj.weight.data *= 30
    prompts = [PROMPT, {"input_ids": torch.arange(30, 39)[None]}]
    expected = []
    with torch.no_grad():
        for prompt in prompts:
            maps = eager(**prompt, output_attentions=True).attentions
            expected.append([np.linalg.matrix_rank(np.tril(layer[0].numpy(), -1)).mean() for layer in maps])
    found = [layer.attention_rank for layer in layer_statistics(model, prompts)]
    assert found == pytest.approx(np.mean(expected, axis=0))
    assert max(found) < 13


def test_several_prompts_give_the_mean_over_their_tokens():
    model = FAMILIES["llama"].build("sdpa")
    short, long = {"input_ids": torch.arange(3, 7)[None]}, {"input_ids": torch.arange(10, 22)[None]}
    one, other, both = (layer_statistics(model, prompts) for prompts in ([short], [long], [short, long]))
    for a, b, mean in zip(one, other, both, strict=True):
        assert mean.block_influence == pytest.approx((4 * a.block_influence + 12 * b.block_influence) / 16)
        assert mean.attention_rank == (a.attention_rank + b.attention_rank) / 2


@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "mllama", "qwen3-next", "gpt2", "gptj", "falcon", "gpt-oss"])
def test_reads_families_of_other_builds_and_leaves_them_alone(name):
    family = FAMILIES[name]
    model = family.build("eager")
    inputs = batch_of(name, "middle").alone(0)
    with torch.no_grad():
        before = model(**inputs).logits
    state = {(key, entry) for key, module in model.named_modules() for entry in vars(module)}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    found = layer_statistics(model, [inputs])
    assert {(key, entry) for key, module in model.named_modules() for entry in vars(module)} == state
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, before)
    tokens = inputs["input_ids"].shape[1]
    for index, layer in enumerate(found):
        assert 0 < layer.block_influence < 2
        assert -1 < min(layer.attention_cosine, layer.ffn_cosine) <= max(layer.attention_cosine, layer.ffn_cosine) < 1
        if index in (*family.linear, *family.cross) or name == "falcon":
            assert layer.attention_rank is None
        elif name != "gptj" or layer.attention_rank is not None:  # GPT-J shows its attention from transformers 5.24 on.
            assert 1 <= layer.attention_rank < tokens


def test_an_error_leaves_no_hooks():
    model = FAMILIES["llama"].build("sdpa")
    layer_statistics(model, [PROMPT])
    with pytest.raises(IndexError):
        layer_statistics(model, [{"input_ids": torch.full((1, 3), 10**6)}])
    assert not any(module._forward_hooks for module in model.modules())
