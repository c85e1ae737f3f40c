"""The layers of every family taken apart, against each family's own formulas; and which models are refused."""

from __future__ import annotations

import layer_formulas as formulas
import pytest
import torch
import transformers as t
from configurations import ALTERNATING, GROUPED, LAYERS, VOCABULARY

from families import FAMILIES, batch_of, built, layer_list, run
from skipsearch.policies.errors import ModelError
from skipsearch.policies.families.layers import decoder_layers


def calls_of(model, inputs):
    """What each layer was called with and returned in one forward: (arguments, output), `hidden_states` among them."""
    calls, layers = [], decoder_layers(model)

    def note(layer):
        def hook(module, args, kwargs, output):
            calls.append((layer, dict(zip(layer.parameters, args, strict=False)) | kwargs, output))

        return hook

    hooks = [layer.module.register_forward_hook(note(layer), with_kwargs=True) for layer in layers]
    try:
        run(model, inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def compose(parts, x, arguments):
    attended = x + parts.norm_and_attend(x, arguments)
    return attended + parts.run_ffn(parts.ffn_norm(x if parts.parallel else attended), arguments)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_sublayer_is_what_the_formulas_of_its_family_say(name):
    model = built(name, "eager")
    calls = calls_of(model, batch_of(name).alone(0))
    assert len(calls) == LAYERS
    for layer, arguments, output in calls:
        x, parts = arguments.pop("hidden_states"), layer.sublayers
        with torch.no_grad():
            added, _ = formulas.a(layer.module, x, arguments)
            close(parts.norm_and_attend(x, arguments), added)
            for normed in (formulas.n1(layer.module, x), formulas.n2(layer.module, x)):
                close(parts.run_ffn(normed, arguments), formulas.f(layer.module, normed, arguments))
            assert torch.equal(parts.attention_norm(x), formulas.n1(layer.module, x))
            assert torch.equal(parts.ffn_norm(x), formulas.n2(layer.module, x))
            assert parts.parallel == formulas.parallel(layer.module)
            y = parts.as_layer_output(compose(parts, x, arguments))
        assert type(y) is type(output) and (not isinstance(y, tuple) or len(y) == len(output))
        close(*(value[0] if isinstance(value, tuple) else value for value in (y, output)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_is_of_the_kind_of_its_mixer(name):
    family, layers = FAMILIES[name], decoder_layers(built(name, "eager"))
    kinds = ["linear" if i in family.linear else "cross" if i in family.cross else "attention" for i in range(LAYERS)]
    assert [layer.kind for layer in layers] == kinds
    assert [layer.module for layer in layers] == list(layer_list(built(name, "eager")))


def test_tokens_that_see_no_image_get_no_ffn_from_a_layer_that_attends_to_it():
    model, inputs = built("mllama", "eager"), batch_of("mllama").padded()
    inputs["cross_attention_mask"][:, :4] = 0
    layer, arguments, output = next(call for call in calls_of(model, inputs) if call[0].kind == "cross")
    x, parts = arguments.pop("hidden_states"), layer.sublayers
    with torch.no_grad():
        close(compose(parts, x, arguments), output)
        added = parts.run_ffn(parts.ffn_norm(x), arguments)
    assert not added[:, :4].any() and added[:, 4:].any()


TINY = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCABULARY}
GEMMA4 = {**GROUPED, "layer_types": ALTERNATING, "head_dim": 8, "vocab_size_per_layer_input": VOCABULARY}
REFUSED = {
    "layers under another name": (
        lambda: t.MptConfig(d_model=32, n_heads=4, n_layers=LAYERS, vocab_size=VOCABULARY),
        "no decoder layers found in MptForCausalLM",
    ),
    "keys and values of other layers": (
        lambda: t.Gemma4TextConfig(**GEMMA4, num_kv_shared_layers=2, hidden_size_per_layer_input=0),
        "layers of Gemma4ForCausalLM share keys and values",
    ),
    "a factor on the whole stream": (
        lambda: t.Gemma4TextConfig(**GEMMA4, hidden_size_per_layer_input=0),
        "layers of Gemma4ForCausalLM cannot be taken apart",
    ),
    "attention to an encoder": (
        lambda: t.GPT2Config(**TINY, add_cross_attention=True),
        "layers of GPT2LMHeadModel cannot be taken apart",
    ),
    "a residual inside the attention": (
        lambda: t.BloomConfig(hidden_size=32, n_layer=LAYERS, n_head=4, vocab_size=VOCABULARY),
        "layers of BloomForCausalLM cannot be checked",
    ),
    "norms of the stream itself": (
        lambda: t.OPTConfig(
            hidden_size=32,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            vocab_size=VOCABULARY,
            ffn_dim=48,
            word_embed_proj_dim=32,
            do_layer_norm_before=False,
        ),
        "layers of OPTForCausalLM compute something that their sublayers do not show",
    ),
    "no attention at all": (
        lambda: t.MambaConfig(hidden_size=32, num_hidden_layers=LAYERS, vocab_size=VOCABULARY),
        "layers of MambaForCausalLM cannot be taken apart",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_cannot_be_taken_apart_is_refused_by_name(case):
    make, message = REFUSED[case]
    model = t.AutoModelForCausalLM.from_config(make()).eval()
    with pytest.raises(ModelError, match=message) as error:
        decoder_layers(model)
    assert error.value.details and error.value.hint
