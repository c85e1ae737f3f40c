"""The ranking `energy`: the energies against a slow formula, their file beside a policy, and what they keep."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import safetensors.torch
import slow_heads
import torch
import transformers as t
from slow_widths import energies, lowest, silenced
from tiers import sample

from families import FAMILIES, REFUSED, batch_of, layer_list, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.errors import ModelError, PolicyError, PolicyMismatch
from skipsearch.policies.rankings.energy import find_energies, why_not_ranked
from skipsearch.policies.rankings.files import digest
from skipsearch.policies.rankings.scores import Scores, ranking_file, read_scores, remember

# Gates and values apart, in one, biases and transposed weights, no module of its own, experts with a shared one that
# has a gate and one that has none, an attention in some layers only, images.
BUILDS = ("llama", "phi3", "gpt2", "opt", "mixtral", "qwen2-moe", "deepseek-v3", "granite-moe", "qwen3-next", "llava")
FILE = "energy.safetensors"


def policy_of(layers: dict[int, dict[str, Any]], sha256: str, file: str = FILE) -> Policy:
    selection = {"ranking": "energy", "file": file, "sha256": sha256}
    return Policy.model_validate({"schema": "skipsearch/policy/v1", "layers": layers, "width_selection": selection})


def calibrated(model: Any, name: str, channels: Any = range(4), **options: Any) -> Any:
    batch = batch_of(name)
    inputs = [batch.alone(row) for row in range(len(batch.ids))]
    if hasattr(model.base_model, "rope_deltas"):
        model.base_model.rope_deltas = None
    doubled = [{key: v.double() if v.is_floating_point() else v for key, v in one.items()} for one in inputs]
    return find_energies(model, doubled if model.dtype == torch.float64 else inputs, channels, **options)


@pytest.mark.parametrize("name", BUILDS)
def test_the_energy_of_a_channel_is_what_it_adds_to_the_output(name):
    """Of each token the squared distance between the FFN's output with and without the channel."""
    model = FAMILIES[name].build("sdpa").double()
    model.set_experts_implementation("eager")  # the others have no float64
    found = calibrated(model, name, alpha=0.5)
    batch = batch_of(name)
    assert found.examples == len(batch.ids) and found.tokens == sum(map(len, batch.ids))
    assert {index: scores.dtype for index, scores in found.scores.channels.items()} == dict.fromkeys(
        range(4), torch.float32
    )
    layer = layer_list(model)[2]
    with torch.no_grad():
        wanted = energies(model, layer, lambda: calibrated(model, name, ()), alpha=0.5)
    assert torch.allclose(found.scores.channels[2].double(), wanted, rtol=1e-4, atol=1e-9 * float(wanted.max()))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "qwen2-moe"])
def test_the_channels_of_least_energy_do_not_run(name):
    model, inputs = FAMILIES[name].build("sdpa"), batch_of(name).padded()
    scores = calibrated(model, name).scores
    policy = policy_of({2: {"ffn_ratio": 0.3}}, remember(ranking_file(scores, {})))
    layer = layer_list(model)[2]
    with silenced(layer, lowest(layer, scores.channels[2], 0.3)):
        wanted = run(model, inputs).logits
    dense = run(model, inputs).logits
    with apply_policy(model, policy):
        found = run(model, inputs).logits
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, dense, atol=1e-3)
    assert torch.equal(run(model, inputs).logits, dense)


def test_models_whose_channels_cannot_be_ranked_are_refused_by_name():
    gates = FAMILIES["gpt-oss"].build("eager")
    assert {*why_not_ranked(gates)} == {0, 1, 2, 3}
    with pytest.raises(ModelError, match="channels of GptOssForCausalLM cannot be ranked by energy") as error:
        calibrated(gates, "gpt-oss")
    assert "layer 0 (GptOssDecoderLayer): its mixture of experts has a part of another build" in str(error.value)
    strange = FAMILIES["qwen2-moe"].build("sdpa")
    block = layer_list(strange)[1].mlp
    block.expert_gate = block.shared_expert_gate
    del block.shared_expert_gate
    block.__class__ = type("Renamed", (type(block),), {"shared_expert_gate": property(lambda self: self.expert_gate)})
    assert [*why_not_ranked(strange)] == [1] and "with the factors that its modules show" in why_not_ranked(strange)[1]
    model = FAMILIES["llama"].build("sdpa")
    with apply_policy(model, Policy()), pytest.raises(PolicyError, match="are ranked in the dense model"):
        calibrated(model, "llama")
    with pytest.raises(PolicyError, match="no examples to rank on"):
        find_energies(model, [])
    model.get_input_embeddings().weight.data[:] = math.nan
    with pytest.raises(ModelError, match="energies of channels are not finite"):
        calibrated(model, "llama")
    with pytest.raises(ModelError, match="energies of heads are not finite"):
        calibrated(model, "llama", (), heads=[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_energy_of_a_group_of_heads_is_what_it_adds_to_the_output(name):
    """Of each token the squared distance between the attention's output with and without the group."""
    model = FAMILIES[name].build("eager" if (name, "sdpa") in REFUSED else "sdpa").double()
    model.set_experts_implementation("eager")  # the others have no float64
    refused = why_not_ranked(model, "heads")
    ranked = [index for index in range(4) if index not in refused]
    for index, reason in refused.items():
        document = {"schema": "skipsearch/policy/v1", "layers": {index: {"head_ratio": 0.99}}}
        with pytest.raises(PolicyMismatch) as error:
            apply_policy(model, Policy.model_validate(document))
        assert reason in str(error.value)
    if not ranked:
        return
    found = calibrated(model, name, (), heads=ranked, alpha=0.5).scores
    layer = layer_list(model)[ranked[-1]]
    with torch.no_grad():
        wanted = slow_heads.energies(layer, lambda: calibrated(model, name, ()), alpha=0.5)
    assert {*found.heads} == {*ranked} and not found.channels
    assert torch.allclose(found.heads[ranked[-1]].double(), wanted, rtol=1e-4, atol=1e-9 * float(wanted.max()))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "neox", "falcon", "deepseek-v3", "llava"])
def test_the_heads_of_least_energy_do_not_run(name):
    model, inputs = FAMILIES[name].build("sdpa"), batch_of(name).padded()
    scores = calibrated(model, name, [1], heads=[2]).scores
    policy = policy_of({2: {"head_ratio": 0.5}}, remember(ranking_file(scores, {})))
    attention = slow_heads.attention_of(layer_list(model)[2])
    shape, columns = slow_heads.shape_of(attention), slow_heads.matrix(slow_heads.output_of(attention))
    gone = scores.heads[2].argsort(descending=True)[shape.groups // 2 :].tolist()
    dense, before = run(model, inputs).logits, columns.clone()
    columns[:, slow_heads.columns_of(gone, shape)] = 0.0
    wanted = run(model, inputs).logits
    columns.copy_(before)
    with apply_policy(model, policy):
        found = run(model, inputs).logits
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, dense, atol=1e-3)
    assert torch.equal(run(model, inputs).logits, dense)


def test_one_file_ranks_channels_and_heads():
    model, inputs = FAMILIES["llama"].build("sdpa"), batch_of("llama").padded()
    scores = calibrated(model, "llama", [1, 3], heads=[1, 2]).scores
    content = ranking_file(scores, {})
    assert {*safetensors.torch.load(content)} == {
        f"layers.{one}" for one in ("1.attention", "1.ffn", "2.attention", "3.ffn")
    }
    read = read_scores(content, "")
    for found, wanted in ((read.channels, scores.channels), (read.heads, scores.heads)):
        assert {*found} == {*wanted} and all(torch.equal(found[index], wanted[index]) for index in wanted)
    both = policy_of({1: {"ffn_ratio": 0.5, "head_ratio": 0.5}}, remember(content))
    swapped = Scores(scores.channels, {1: -scores.heads[1]})
    other = policy_of({1: {"ffn_ratio": 0.5, "head_ratio": 0.5}}, remember(ranking_file(swapped, {})))
    outputs = []
    for policy in (both, other):
        with apply_policy(model, policy):
            outputs.append(run(model, inputs).logits)
    assert not torch.allclose(*outputs, atol=1e-3)
    with pytest.raises(PolicyMismatch, match="layer 3: found no scores of groups of heads, expected 2"):
        apply_policy(model, policy_of({3: {"head_ratio": 0.5}}, remember(content)))


@pytest.fixture
def ranked(tmp_path):
    """A model, and a policy in a folder with its ranking."""
    model = FAMILIES["llama"].build("sdpa")
    content = ranking_file(calibrated(model, "llama").scores, {"alpha": 0.9})
    (tmp_path / FILE).write_bytes(content)
    policy_of({1: {"ffn_ratio": 0.5}, 3: {"ffn_ratio": 0.25}}, digest(content)).save(tmp_path / "policy.yaml")
    return model, tmp_path


def test_a_policy_takes_its_ranking_along(ranked, tmp_path_factory, monkeypatch):
    model, folder = ranked
    inputs = batch_of("llama").padded()
    with apply_policy(model, folder / "policy.yaml"):
        wanted = run(model, inputs).logits
    policy = Policy.load(folder / "policy.yaml")
    other = tmp_path_factory.mktemp("other")
    policy.save_pretrained(other)
    assert (other / FILE).read_bytes() == (folder / FILE).read_bytes()
    downloaded = []

    def download(repository: str, name: str, revision: str | None = None) -> str:
        downloaded.append(name)
        shutil.copyfile(other / name, folder / "cache" / name)
        return str(folder / "cache" / name)

    (folder / "cache").mkdir()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for loaded in (Policy.from_pretrained(other), Policy.from_pretrained("user/name"), policy.canonical()):
        with apply_policy(model, loaded):
            assert torch.equal(run(model, inputs).logits, wanted)
    assert downloaded == ["policy.yaml", FILE]
    homeless = Policy.model_validate(policy.document())
    with pytest.raises(PolicyError, match="is not beside it"):
        apply_policy(model, homeless)
    with pytest.raises(PolicyError, match="is not beside it"):
        homeless.save_pretrained(tmp_path_factory.mktemp("third"))
    with apply_policy(model, homeless.beside(other)):
        assert torch.equal(run(model, inputs).logits, wanted)


def test_the_content_of_a_ranking_decides_and_not_its_name():
    one, renamed = (policy_of({1: {"ffn_ratio": 0.5}}, "a" * 64, file) for file in ("a.safetensors", "b.safetensors"))
    assert one.fingerprint == renamed.fingerprint != policy_of({1: {"ffn_ratio": 0.5}}, "b" * 64).fingerprint
    assert policy_of({1: {"ffn": "skip"}}, "a" * 64).canonical().width_selection.file is None
    # As it was before rankings had files.
    layers = {1: {"ffn_ratio": 0.5}}
    assert Policy.model_validate({"schema": "skipsearch/policy/v1", "layers": layers}).fingerprint == "e23d394fc0b7d258"


@pytest.mark.parametrize(
    ("selection", "line"),
    [
        ("{ranking: energy}", "3:19  width_selection.ranking: found no file and sha256"),
        ("{ranking: energy, file: a}", "found one of file and sha256, expected both or neither"),
        (f"{{ranking: first, file: a, sha256: {'a' * 64}}}", "found file beside ranking first"),
        (f"{{ranking: energy, file: ../a, sha256: {'a' * 64}}}", "3:36  width_selection.file: found '../a'"),
        ("{ranking: energy, file: a, sha256: b}", "width_selection.sha256"),
    ],
)
def test_what_a_policy_says_of_its_ranking_must_fit_together(selection, line, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(f"schema: skipsearch/policy/v1\nlayers: {{1: {{ffn_ratio: 0.5}}}}\nwidth_selection: {selection}\n")
    with pytest.raises(PolicyError) as error:
        Policy.load(file)
    assert line in str(error.value)


def tensors(change: str) -> bytes:
    """A file that is no ranking of a Llama with four layers of 48 channels."""
    scores = {f"layers.{index}.ffn": torch.rand(48) for index in range(4)}
    if change == "layer":
        del scores["layers.1.ffn"]
    elif change == "channels":
        scores["layers.3.ffn"] = torch.rand(64)
    elif change == "dtype":
        scores["layers.3.ffn"] = torch.rand(48, dtype=torch.float64)
    elif change == "infinite":
        scores["layers.3.ffn"][5] = math.inf
    elif change == "name":
        scores["model.weight"] = torch.rand(3)
    return safetensors.torch.save(scores if change != "empty" else {})


WRONG = {
    "layer": "layer 1: found no scores of channels, expected 48",
    "channels": "layer 3: found 64 scores of channels, the layer has 48",
    "dtype": "found layers.3.ffn float64 of shape [48]",
    "infinite": "found layers.3.ffn float32 of shape [48] with NaN or infinity",
    "name": "found model.weight float32 of shape [3]",
    "empty": "holds no ranking",
    "no safetensors": "is no safetensors file",
}


@pytest.mark.parametrize("change", WRONG)
def test_a_ranking_that_does_not_fit_is_refused(change, ranked):
    model, folder = ranked
    content = b"text" if change == "no safetensors" else tensors(change)
    (folder / FILE).write_bytes(content)
    policy = policy_of({1: {"ffn_ratio": 0.5}, 3: {"ffn_ratio": 0.25}}, digest(content)).beside(folder)
    with pytest.raises(PolicyMismatch) as error:
        apply_policy(model, policy)
    assert WRONG[change] in str(error.value) and "hint: " in str(error.value)


def test_a_file_that_is_missing_or_another_one_is_named(ranked):
    model, folder = ranked
    policy, before = Policy.load(folder / "policy.yaml"), run(model, batch_of("llama").padded()).logits
    (folder / FILE).write_bytes(tensors("none"))
    with pytest.raises(PolicyError, match="is another ranking than its policy's"):
        apply_policy(model, policy)
    with pytest.raises(PolicyError, match="is another ranking than its policy's"):
        policy.save_pretrained(folder / "new")
    (folder / FILE).unlink()
    with pytest.raises(PolicyError) as error:
        apply_policy(model, policy)
    assert f"{folder / FILE} cannot be read" in str(error.value) and "`skipsearch rank`" in str(error.value)
    assert torch.equal(run(model, batch_of("llama").padded()).logits, before)


WORDS, HALF = 24, 12
TINY = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 48,
}
TRAINED = {
    "dense": lambda: t.LlamaConfig(**TINY, intermediate_size=96),
    "mixture": lambda: t.Qwen2MoeConfig(**TINY, **EXPERTS, intermediate_size=64),
}


def texts(count: int, length: int, seed: int, both: bool = False) -> torch.Tensor:
    """Texts of a made-up language in which two words decide the next; `both` adds three of a second one for each."""
    likely = torch.stack(
        [torch.randperm(HALF, generator=torch.Generator().manual_seed(i))[:2] for i in range(WORDS**2)]
    )
    random = torch.Generator().manual_seed(seed)
    shift = (torch.arange(count) % 4 > 0).long() * HALF if both else torch.zeros(count, dtype=torch.long)
    found = torch.randint(HALF, (count, length), generator=random) + shift[:, None]
    rare = (torch.rand(count, length, generator=random) < 0.15).long()
    for place in range(2, length):
        found[:, place] = likely[found[:, place - 2] * WORDS + found[:, place - 1], rare[:, place]] + shift
    return found


@torch.no_grad()
def perplexity(model: Any) -> float:
    held_out = texts(128, 32, seed=7)
    return math.exp(float(model(input_ids=held_out, labels=held_out).loss))


def trained(kind: str, steps: int = 250, rate: float = 8e-3) -> Any:
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(TRAINED[kind]())
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        batch = texts(16, 24, seed=1000 + step, both=True)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.parametrize("kind", sample(TRAINED, len(TRAINED), 1))
def test_energy_keeps_more_of_a_trained_model_than_other_rankings(kind):
    """A model of two languages, of which one is measured; of its channels 20, 40 and 60 % are left out."""
    model = trained(kind)
    found = find_energies(model, [{"input_ids": texts(1, 32, seed=50 + number)} for number in range(32)], range(2))
    random = {
        index: torch.rand(len(scores), generator=torch.Generator().manual_seed(index))
        for index, scores in found.scores.channels.items()
    }
    files = {
        name: remember(ranking_file(scores, {}))
        for name, scores in (("energy", found.scores), ("random", Scores(random)))
    }
    dense = perplexity(model)
    assert dense < 4.5 < HALF
    for left_out in (0.2, 0.4, 0.6):
        layers = {index: {"ffn_ratio": round(1 - left_out, 1)} for index in range(2)}
        policies = {name: policy_of(layers, sha256) for name, sha256 in files.items()}
        for ranking in ("weights", "first"):
            selection = {"ranking": ranking}
            policies[ranking] = Policy.model_validate(
                {"schema": "skipsearch/policy/v1", "layers": layers, "width_selection": selection}
            )
        kept = {}
        for name, policy in policies.items():
            with apply_policy(model, policy):
                kept[name] = perplexity(model)
        assert dense < kept["energy"] < min(kept["weights"], kept["first"], kept["random"]), (left_out, dense, kept)
