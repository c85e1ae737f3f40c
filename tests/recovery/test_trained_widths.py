"""Training under shares of channels and heads: what learns, what it costs, and what the folder computes later."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import peft
import pytest
import torch
from contract import ANSWER, answered
from safetensors.torch import load_file, save_file
from slow_heads import attention_of, columns_of, kept_groups, output_of, shape_of
from slow_widths import dropped_channels
from test_gradients import doubled, gradients
from test_recover import batch_of, logits_of, trained
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, layer_list, run
from families import batch_of as prompts_of
from skipsearch import Policy, apply_policy
from skipsearch.policies.errors import ModelError
from skipsearch.policies.rankings.energy import find_energies
from skipsearch.policies.rankings.files import digest
from skipsearch.policies.rankings.scores import ranking_file, remember
from skipsearch.policies.trained.files import TrainedWeights
from skipsearch.recovery import recover as recovering

NARROW = Policy(layers={0: {"ffn_ratio": 0.5}, 1: {"head_ratio": 0.5, "ffn_ratio": 0.25}, 2: {"head_ratio": 0.5}})
# FFNs of which the tokens of a class have a share, and all others the whole.
OF_CLASSES = Policy(layers={1: {"ffn_ratio": 0.5, "tokens": "image"}, 2: {"ffn_ratio": 0.25, "tokens": "text"}})


def masked_channels(layer, ratio, ranking="weights"):
    """For each channel 1 where it runs, and 0 where not."""
    mask = torch.ones(layer.mlp.down_proj.in_features)
    mask[dropped_channels(layer, ratio, ranking)[0]] = 0.0
    return mask


def masked_heads(layer, ratio):
    """For each column of the output projection 1 where its head runs, and 0 where not."""
    shape, mask = shape_of(attention_of(layer)), torch.zeros(output_of(attention_of(layer)).in_features)
    mask[columns_of(kept_groups(layer, ratio, "weights"), shape)] = 1.0
    return mask


@contextmanager
def masked(model, masks):
    """The dense model, in which the channels and heads that a policy leaves out are multiplied by zero.

    Args:
        model: The model.
        masks: By layer, the masks of its channels and its heads, for all tokens or for each.
    """
    hooks = []
    for index, layer in enumerate(layer_list(model)):
        for part, mask in zip((layer.mlp.down_proj, attention_of(layer).o_proj), masks[index], strict=True):
            hooks.append(part.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask.to(args[0]),)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def masks_of(model, policy):
    choices = policy.choices(len(layer_list(model)))
    return [
        (masked_channels(layer, choice.ffn_ratio or 1.0), masked_heads(layer, choice.head_ratio or 1.0))
        for layer, choice in zip(layer_list(model), choices, strict=True)
    ]


def in_own_order(model, tensors):
    """Tensors like the model's parameters, with channels and heads in the order of the checkpoint."""
    with_these = [(parameter, parameter.data) for parameter in model.parameters()]
    for (parameter, _), tensor in zip(with_these, tensors, strict=True):
        parameter.data = tensor
    found = model.state_dict()
    for parameter, data in with_these:
        parameter.data = data
    return [found[name].clone() for name, _ in model.named_parameters()]


@pytest.mark.parametrize(("name", "policy"), [("llama", NARROW), ("llava", OF_CLASSES)])
def test_gradients_are_those_of_the_masked_model_and_of_finite_differences(name, policy):
    model, batch = FAMILIES[name].build("sdpa").double(), prompts_of(name)
    torch.manual_seed(3)
    inputs = doubled(answered(batch, torch.randint(3, 90, (len(batch.ids), ANSWER))).alone(0))
    parameters, masks = [*model.parameters()], masks_of(model, policy)
    images = inputs["input_ids"][0] == getattr(model.config, "image_token_id", -1)
    for index, choice in policy.layers.items():
        if choice.tokens != "all":
            concerned = images if choice.tokens == "image" else ~images
            masks[index] = torch.where(concerned[:, None], masks[index][0], 1.0), masks[index][1]

    def loss():
        logits = run(model, inputs, gradients=True, use_cache=False).logits[0]
        return cross_entropy(logits[:-1], inputs["input_ids"][0, 1:])

    with masked(model, masks):
        wanted_loss = loss()
        wanted = gradients(wanted_loss, parameters)
    with apply_policy(model, policy):
        found_loss = loss()
        found = gradients(found_loss, parameters)
        own, step, ends = in_own_order(model, found), 1e-3, []
        norm = torch.stack([grad.norm() for grad in found]).norm()
        for sign in (1, -2):
            for parameter, grad in zip(parameters, found, strict=True):
                parameter.data += sign * step * grad / norm
            ends.append(loss().item())
        for parameter, grad in zip(parameters, found, strict=True):
            parameter.data += step * grad / norm
    assert found_loss.item() == pytest.approx(wanted_loss.item(), rel=1e-12)
    for (name, _), one, other in zip(model.named_parameters(), own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm.item(), rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_training_step_computes_no_more_than_that_of_a_smaller_model(method):
    half = Policy(layers=dict.fromkeys(range(4), {"ffn_ratio": 0.5, "head_ratio": 0.5}))
    model, batch = FAMILIES["llama"].build("sdpa"), prompts_of("llama")
    config = copy.deepcopy(model.config)
    config.intermediate_size //= 2
    config.head_dim = model.config.hidden_size // model.config.num_attention_heads
    config.num_attention_heads //= 2
    config.num_key_value_heads //= 2
    smaller = type(model)(config).eval()

    def step_flops(model, policy):
        if method == "lora":
            names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names))
        with apply_policy(model, policy), FlopCounterMode(display=False) as counter:
            run(model, batch.padded("right"), gradients=True, use_cache=False).logits.sum().backward()
        return counter.get_total_flops()

    assert step_flops(model, half) == step_flops(smaller, Policy())


@pytest.fixture
def in_training(monkeypatch):
    """Keeps the logits of the model at the end of its training, still under the policy."""
    found, check = {}, recovering.refuse_infinite

    def look(model, curve):
        check(model, curve)
        model.eval()
        found["logits"] = logits_of(model, found["batch"])

    monkeypatch.setattr(recovering, "refuse_infinite", look)
    return found


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_folder_computes_what_was_trained_and_what_was_left_out_learned_nothing(
    method, subject_of, examples, tmp_path, in_training
):
    subject, data = subject_of("llama"), examples("llama")
    model, batch = subject.model, batch_of(subject, data[:4])
    in_training["batch"], masks = batch, masks_of(model, NARROW)
    before = copy.deepcopy(model.state_dict())
    trained(subject, NARROW, data, tmp_path / "out", method=method, distil="kl")
    with apply_policy(model, tmp_path / "out"):
        found = logits_of(model, batch)
    # A merged adapter is rounded.
    torch.testing.assert_close(found, in_training["logits"], **({"rtol": 0, "atol": 0} if method == "full" else {}))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    if method == "lora":
        return
    learned = load_file(tmp_path / "out" / "trained.safetensors")
    for index, (channels, heads) in enumerate(masks):
        for name, mask in (("mlp.down_proj", channels), ("self_attn.o_proj", heads)):
            key = f"model.layers.{index}.{name}.weight"
            changed = (learned[key] != before[key]).any(dim=0)
            assert torch.equal(changed, mask.bool()), key
    with masked(model, masks):
        model.load_state_dict(learned, strict=False)
        torch.testing.assert_close(logits_of(model, batch), found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trained_weights_change_no_choice_of_channels_or_heads(dtype, subject_of, examples, tmp_path):
    subject, data = subject_of("llama", dtype=dtype), examples("llama")
    model, batch, masks = subject.model, batch_of(subject, data[:4]), masks_of(subject.model, NARROW)
    policy = trained(subject, NARROW, data, tmp_path / "out", method="full", steps=1).policy
    file = tmp_path / "out" / "trained.safetensors"
    learned = load_file(file)
    # By these weights the channels and heads that run would be the worst.
    for index, (channels, heads) in enumerate(masks):
        for name, mask in (("mlp.down_proj", channels), ("self_attn.o_proj", heads)):
            learned[f"model.layers.{index}.{name}.weight"] *= torch.where(mask.bool(), 0.01, 1.0).to(model.dtype)
    save_file(learned, file)
    weights = TrainedWeights.of(tmp_path / "out", "safetensors")
    policy = policy.model_copy(update={"weights": weights}).beside(tmp_path / "out")
    with apply_policy(model, policy) as handle:
        found = logits_of(model, batch)
        with handle.dense():
            pass
        assert torch.equal(logits_of(model, batch), found)
    model.load_state_dict(learned, strict=False)
    with masked(model, masks):
        exact = {"rtol": 1e-4, "atol": 1e-4} if dtype == "float32" else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(found, logits_of(model, batch), **exact)


@pytest.mark.parametrize("method", ["full", "adapter"])
def test_the_ranking_by_energy_lies_beside_the_trained_weights(method, subject_of, examples, tmp_path):
    subject, data = subject_of("llama"), examples("llama")
    model, batch = subject.model, batch_of(subject, data[:4])
    scores = find_energies(model, [{"input_ids": batch["input_ids"][:1]}], channels=[1, 2]).scores
    content = ranking_file(scores, {})
    policy = Policy.model_validate(
        {
            "layers": {1: {"ffn_ratio": 0.5}, 2: {"ffn_ratio": 0.25, "attention": "skip"}},
            "width_selection": {"ranking": "energy", "file": "energy.safetensors", "sha256": digest(content)},
        }
    )
    if method == "full":  # as on the workers of a search
        remember(content)
    else:
        (tmp_path / "energy.safetensors").write_bytes(content)
        policy = policy.beside(tmp_path)
    done = trained(subject, policy, data, tmp_path / "out", method=method, learning_rate=0.03)
    assert (tmp_path / "out" / "energy.safetensors").read_bytes() == content
    with apply_policy(model, tmp_path / "out"):
        found = logits_of(model, batch)
    # As a search keeps it: the policy in one folder, and the weights in another one inside.
    (tmp_path / "out").rename(tmp_path / "trial")
    weights = done.policy.weights.model_copy(update={"folder": "trial"})
    done.policy.model_copy(update={"weights": weights}).save(tmp_path / "pareto.yaml")
    (tmp_path / "trial" / "README.md").write_text("---\nlibrary_name: skipsearch\n---\n")
    Policy.load(tmp_path / "pareto.yaml").save_pretrained(tmp_path / "copy")
    for place in ("pareto.yaml", "copy"):
        with apply_policy(model, Policy.load(tmp_path / place)):
            assert torch.equal(logits_of(model, batch), found)


def test_adapters_that_are_replaced_under_a_policy_are_refused():
    model = peft.get_peft_model(FAMILIES["llama"].build("sdpa"), peft.LoraConfig(r=2, target_modules=["down_proj"]))
    handle = apply_policy(model, Policy(layers={1: {"ffn_ratio": 0.5}}))
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["down_proj"]))
    with pytest.raises(ModelError, match="were replaced"):
        handle.remove()
    model.delete_adapter("second")
    handle.remove()
