"""Plain checkpoints: what is in a folder, and what is refused."""

import json

import pytest
import transformers as t
from configurations import GROUPED

from families import FAMILIES, LAYERS, batch_of, built
from skipsearch import Policy
from skipsearch.exports.checkpoint.hf import PlainCheckpoint
from skipsearch.exports.export import export
from skipsearch.exports.target import Options, Source
from skipsearch.policies.errors import ExportError, PolicyMismatch, ProofError, UsageError

LAYER, ATTENTION, FFN = {"attention": "skip", "ffn": "skip"}, {"attention": "skip"}, {"ffn": "skip"}
DEEPSTACK = "qwen3-vl"


def policy(layers, **model) -> Policy:
    return Policy.model_validate({"layers": layers, "model": model})


def source(name: str) -> Source:
    kind = "sdpa" if name not in ("gemma2", "gpt-oss", "gptj") else "eager"
    return Source(built(name, kind), prompts=[batch_of(name).padded()])


def skipping(name: str):
    """A layer, an attention and an FFN, of which the layer is one that the family can do without."""
    alone = next(index for index in (0, 2) if index not in FAMILIES[name].cross)
    layer = LAYERS - 1 if name == DEEPSTACK else 1
    return policy({layer: LAYER, alone: ATTENTION, 2: FFN} if alone != 2 else {layer: LAYER, 2: ATTENTION})


def test_in_a_fresh_process_with_a_card(tmp_path):
    given = source("llama")
    done = export(skipping("llama"), given, PlainCheckpoint(), tmp_path / "out")
    assert done.difference == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == LAYERS - 1 and config["architectures"] == ["LlamaForCausalLM"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in card and "skip_attention" in card
    assert given.model.config.num_hidden_layers == LAYERS


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", {1: {"wiring": "parallel"}}, "no parallel in layer 1"),
        ("llama", {2: {"ffn": "skip", "phase": "decode"}}, "no skip_ffn (decode) in layer 2"),
        ("llava", {0: {"token_ratio": 0.5}, 3: {"token_ratio": 0.5}}, "no token_ratio 0.5 in layer 0, 3"),
        (DEEPSTACK, {0: LAYER}, "image features are added after layers 0 to 1"),
        ("llama", dict.fromkeys(range(LAYERS), LAYER), "no layer is left"),
    ],
)
def test_refused_by_name(name, change, said, tmp_path):
    with pytest.raises(ExportError, match="hf cannot represent") as error:
        export(policy(change), source(name), PlainCheckpoint(), tmp_path / "out")
    assert said in str(error.value)
    assert [*tmp_path.iterdir()] == []


def test_zeros_can_be_forbidden():
    target = PlainCheckpoint(Options(zero=False))
    assert target.can(policy({1: LAYER}), source("llama")) == []
    (reason,) = target.can(policy({1: LAYER, 2: FFN}), source("llama"))
    assert "skip_ffn in layer 2" in reason and "--no-zero" in reason


def test_layers_that_know_their_number():
    config = t.GPT2Config(n_layer=3, n_embd=32, n_head=2, vocab_size=99, scale_attn_by_inverse_layer_idx=True)
    model = t.GPT2LMHeadModel(config).eval()
    assert "layer's number" in PlainCheckpoint().can(policy({1: LAYER}), Source(model))[0]
    assert PlainCheckpoint().can(policy({1: FFN}), Source(model)) == []


def test_experts_in_every_second_layer(tmp_path):
    config = t.Qwen3MoeConfig(
        **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8, decoder_sparse_step=2
    )
    model = t.Qwen3MoeForCausalLM(config).eval()
    done = export(policy({0: LAYER}), Source(model), PlainCheckpoint(), tmp_path / "out")
    assert done.difference <= 1e-6


class Wrong(PlainCheckpoint):
    """Forgets to leave anything out."""

    def write(self, policy, source, folder):
        return super().write(policy.model_copy(update={"layers": {}}), source, folder)


def test_a_failed_proof_leaves_nothing(tmp_path):
    with pytest.raises(ProofError, match="something else"):
        export(policy({1: FFN}), source("llama"), Wrong(), tmp_path / "out")
    with pytest.raises(ExportError, match="the interpreter of --python does not run"):
        export(policy({}), source("llama"), PlainCheckpoint(Options(python=tmp_path / "none")), tmp_path / "out")
    assert [*tmp_path.iterdir()] == []


def test_folder_and_policy_must_fit(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="exists"):
        export(policy({}), source("llama"), PlainCheckpoint(), tmp_path)
    with pytest.raises(PolicyMismatch):
        export(policy({}, num_layers=LAYERS + 1), source("llama"), PlainCheckpoint(), tmp_path / "new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
