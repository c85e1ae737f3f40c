"""GGUF files: what is in them, that they compute what the policy computes, and what is refused."""

import sys

import numpy as np
import pytest
import torch
import transformers as t
from gguf import GGUFReader
from gguf_models import (
    ATTENTION,
    FFN,
    INNER,
    LAYER,
    LAYERS,
    LLAMA3,
    WIDTH,
    WORDS,
    YARN,
    build,
    field,
    in_llama,
    policy,
    real,
)

import tiny
from skipsearch import Policy, apply_policy
from skipsearch.exports.export import export
from skipsearch.exports.gguf import blocks, proof, tensors, write
from skipsearch.exports.gguf.read_back import load
from skipsearch.exports.gguf.target import FILE, Gguf
from skipsearch.exports.reference import Reference
from skipsearch.exports.target import Options, Source
from skipsearch.policies.errors import ExportError, ProofError


def written(folder, made, model, **options):
    """Write a policy, and read the file."""
    target = Gguf(Options(**options))
    assert target.can(made, Source(model)) == []
    notes = target.write(made, Source(model), folder)
    return GGUFReader(folder / FILE), notes


def difference(folder, made, model):
    """The largest difference of logits between the file, read back, and the model under the policy."""
    ids = torch.randint(3, WORDS - 1, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), apply_policy(model, made):
        expected = model(input_ids=ids, use_cache=False).logits
    found = load(str(folder / FILE), model.dtype, "sdpa")
    with torch.no_grad():
        return float((found(input_ids=ids, use_cache=False).logits - expected).abs().max())


MIXED = {"l1": LAYER, "l2": ATTENTION, "l3": FFN}
FILES = {
    "llama": ("deci", {}, MIXED),
    "llama, layers alone": ("llama", {}, {"l1": LAYER, "l5": LAYER}),
    "llama, first attention": ("llama", {}, {"l0": ATTENTION}),
    "llama, first of those left": ("deci", {}, {"l0": LAYER, "l1": ATTENTION, "l5": FFN}),
    "llama, biases": ("deci", {"attention_bias": True, "mlp_bias": True}, MIXED),
    "llama, tied and wide heads": ("deci", {"tie_word_embeddings": True, "head_dim": 24}, MIXED),
    "llama, as wide as its FFN": ("deci", {"intermediate_size": WIDTH}, MIXED),
    "llama, narrower FFN than the dummy": ("deci", {"intermediate_size": 24}, MIXED),
    "llama, half precision": ("deci", {"dtype": torch.bfloat16}, MIXED),
    "llama, llama3": ("llama", {"rope_parameters": LLAMA3}, {"l1": LAYER}),
    "mistral": ("deci", {"sliding_window": None}, MIXED),
    "qwen2": ("qwen2", {}, {"l1": LAYER, "l4": LAYER}),
    "qwen2, sublayers": ("deci", {}, MIXED),
    "qwen2, yarn": ("deci", {"rope_parameters": YARN}, {"l1": LAYER}),
    "qwen3": ("qwen3", {"head_dim": 24}, {"l0": LAYER}),
    "olmo2, tied": ("olmo2", {"tie_word_embeddings": True}, {"l0": ATTENTION, "l4": LAYER}),
    "olmo3": ("olmo2", {"sliding_window": 8}, {"l0": LAYER, "l1": LAYER}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_computes_what_the_policy_computes(name, tmp_path):
    architecture, sizes, layers = FILES[name]
    model, made = build(name.split(",")[0], **sizes), policy(**layers)
    reader, notes = written(tmp_path, made, model)
    assert field(reader, "general.architecture") == architecture
    left = LAYERS - sum(choice is LAYER for choice in layers.values())
    assert field(reader, f"{architecture}.block_count") == left
    assert f"layers: 6 -> {left}" in notes[0]
    assert difference(tmp_path, made, model) < 1e-5
    assert difference(tmp_path, Policy(), model) > 1e-2


def test_absent_sublayers_take_no_bytes_and_an_absent_ffn_is_32_columns_of_zeros(tmp_path):
    made = policy(l0=ATTENTION, l2=ATTENTION, l3=FFN, l4=ATTENTION, l5=LAYER)
    reader, notes = written(tmp_path, made, build())
    assert field(reader, "deci.attention.head_count") == [4, 4, 0, 4, 0]
    assert field(reader, "deci.attention.head_count_kv") == [2, 2, 0, 2, 0]
    assert field(reader, "deci.feed_forward_length") == [96, 96, 96, 32, 96]
    sizes = [0] * 5
    for tensor in reader.tensors:
        if tensor.name.startswith("blk."):
            sizes[int(tensor.name.split(".")[1])] += int(tensor.n_bytes)
    attention, ffn = WIDTH * (2 * WIDTH + 2 * 32 + 1), WIDTH * (3 * INNER + 1)
    narrow = WIDTH * (3 * 32 + 1)
    assert sizes == [4 * size for size in (attention + ffn, attention + ffn, ffn, attention + narrow, ffn)]
    data = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert all(not data[f"blk.3.ffn_{part}.weight"].any() for part in ("gate", "up", "down"))
    assert not data["blk.0.attn_output.weight"].any() and data["blk.1.attn_output.weight"].any()
    assert notes[1:3] == ["skip_ffn in layer 3: 32 columns of zeros", "skip_attention in layer 0, the first: zeros"]


def test_the_layers_that_are_left_keep_their_windows(tmp_path):
    reader, _ = written(tmp_path, policy(l0=LAYER, l4=LAYER), build("olmo3", sliding_window=8))
    assert field(reader, "olmo2.attention.sliding_window") == 8
    # Of the model's own pattern, three layers with a window and one without, the first and the fifth are gone.
    assert field(reader, "olmo2.attention.sliding_window_pattern") == [True, True, False, True]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_transformers_own_reader_finds_the_same_model(kind, tmp_path):
    model, made = build(kind), policy(l1=LAYER, l4=LAYER)
    written(tmp_path, made, model)
    found = t.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=FILE, dtype=torch.float32)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad(), apply_policy(model, made):
        torch.testing.assert_close(found(ids).logits, model(ids, use_cache=False).logits, atol=1e-5, rtol=0)


def test_the_language_model_of_a_vision_model(tmp_path):
    model = t.LlavaForConditionalGeneration.from_pretrained(tiny.tiny_llava(tmp_path)).eval()
    made = policy(l1=LAYER, l2=ATTENTION)
    folder = tmp_path / "written"
    folder.mkdir()
    _, notes = written(folder, made, model)
    assert any("--mmproj" in note for note in notes)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), apply_policy(model, made):
        expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(load(str(folder / FILE), model.dtype, "")(ids).logits, expected, atol=1e-5, rtol=0)


REFUSED = {
    "phase": ("llama", {}, {"l1": {**FFN, "phase": "decode"}}, "GGUF has no skip_ffn (decode) in layer 1"),
    "parallel": ("llama", {}, {"l1": {"wiring": "parallel"}}, "GGUF has no parallel in layer 1"),
    "tokens": ("llama", {}, {"l2": {**LAYER, "tokens": "text"}}, "GGUF has no skip_layer (text) in layer 2"),
    "ratio": ("llama", {}, {"l2": {"token_ratio": 0.5}}, "GGUF has no token_ratio 0.5 in layer 2"),
    "all layers": ("llama", {}, {f"l{index}": LAYER for index in range(LAYERS)}, "no layer is left"),
    "norms of queries": ("qwen3", {}, {"l1": FFN}, "skip_ffn in layer 1 needs llama.cpp's architecture deci, which "
                         "has no self_attn.q_norm.weight, self_attn.k_norm.weight"),
    "rotary type": ("qwen3", {"rope_parameters": YARN}, {"l1": LAYER}, "the rotary type yarn needs llama.cpp's"),
    "biases": ("qwen3", {"attention_bias": True}, {"l1": LAYER}, "architecture qwen3 has no self_attn.q_proj.bias"),
    "window": ("mistral", {"sliding_window": 16}, {"l1": LAYER}, "a sliding window, which llama.cpp's code for"),
    "windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, {"l1": LAYER},
                "a sliding window, which llama.cpp's code for qwen2"),
    "period": ("smollm3", {}, {"l1": LAYER}, "code for smollm3 gives every 4th layer no rotary positions"),
    "type by count": ("gemma3", {}, {"l1": LAYER}, "scales the attention by the number of layers"),
    "unknown": ("phi3", {}, {"l1": LAYER}, "a language model of the type phi3, expected one of llama, mistral"),
    "activation": ("llama", {"hidden_act": "gelu"}, {"l1": LAYER}, "found the activation gelu, expected silu"),
    "length": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, {"l1": LAYER},
               "found the rotary type dynamic, expected one of default"),
    "dimensions": ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "mrope_section": [8]}},
                   {"l1": LAYER}, "rotary positions of several dimensions (mrope_section)"),
    "dtype": ("llama", {"dtype": torch.float64}, {"l1": LAYER}, "weights in torch.float64, expected float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_cannot_say_is_refused_by_name(name):
    kind, sizes, layers, reason = REFUSED[name]
    assert reason in "\n".join(Gguf().can(policy(**layers), Source(build(kind, **sizes))))


def test_zeros_are_refused_where_the_user_wants_none():
    target, source = Gguf(Options(zero=False)), Source(build())
    assert target.can(policy(l1=LAYER, l2=ATTENTION), source) == []
    assert target.can(policy(l0=ATTENTION, l3=FFN), source) == [
        "skip_ffn in layer 3: 32 columns of zeros, which --no-zero forbids",
        "skip_attention in layer 0, the first: zeros, which --no-zero forbids",
    ]


def test_the_proof_reads_the_file_back_in_a_fresh_process(tmp_path):
    made, model = policy(l1=LAYER, l2=ATTENTION, l3=FFN), build()
    done = export(made, Source(model), Gguf(), tmp_path / "out")
    assert done.difference < 1e-5 and done.notes[-1].startswith("proof: llama.cpp")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["README.md", FILE, "policy.yaml"]


def test_an_environment_without_llama_cpp_is_named(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ExportError, match="llama.cpp is not in this environment"):
        export(policy(l1=LAYER), Source(build()), Gguf(Options(python=broken)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match="GGUF files cannot be written here"):
        export(policy(l1=LAYER), Source(build()), Gguf(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# llama.cpp itself.


class TestLlama:
    pytestmark = real

    @pytest.mark.parametrize("name", FILES)
    def test_runs_every_kind_of_file(self, name, tmp_path):
        _, sizes, layers = FILES[name]
        model = build(name.split(",")[0], **sizes)
        done = export(policy(**layers), Source(model), Gguf(in_llama), tmp_path / "out")
        assert done.notes[-1] == "proof: llama.cpp ran the file"

    def test_prompts_with_padding(self, tmp_path):
        ids, mask = torch.randint(3, WORDS, (2, 20)), torch.ones(2, 20, dtype=torch.long)
        mask[1, :7] = 0
        source = Source(build(), prompts=[{"input_ids": ids, "attention_mask": mask}])
        export(policy(l2=ATTENTION), source, Gguf(in_llama), tmp_path / "out")

    def test_an_ffn_of_no_width_would_drop_the_attention_too(self, tmp_path, monkeypatch):
        """The reason for the columns of zeros; where this fails, llama.cpp has learnt to skip an FFN alone."""
        own = tensors.block_tensor

        def without_ffn(model, block, architecture, name, tensor):
            gone = block.ffn == "narrow" and name.startswith("ffn_")
            return None if gone else own(model, block, architecture, name, tensor)

        monkeypatch.setattr(tensors, "block_tensor", without_ffn)
        monkeypatch.setattr(write, "NARROW", 0)
        with pytest.raises(ProofError, match="computes something else"):
            export(policy(l3=FFN), Source(build()), Gguf(in_llama), tmp_path / "out")

    def test_a_first_layer_without_attention_would_not_load(self, tmp_path, monkeypatch):
        def absent(made, total):
            return [blocks.Block(index, "run" if index else "absent") for index in range(total)]

        monkeypatch.setattr("skipsearch.exports.gguf.target.blocks_of", absent)
        with pytest.raises(ExportError, match="does not load"):
            export(policy(l0=ATTENTION), Source(build()), Gguf(in_llama), tmp_path / "out")


def test_half_precision_that_differs_comes_with_what_helps():
    reference = Reference([], [], torch.bfloat16, "AutoModelForCausalLM", "sdpa")
    proof.check_precision(0.01, reference)
    with pytest.raises(ProofError, match="in bfloat16") as caught:
        proof.check_precision(0.2, reference)
    assert "--dtype float32" in caught.value.hint
