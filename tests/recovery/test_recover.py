"""Recovery from start to end: what is trained, what is written, what is left on the model, and resuming."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiers import sample, soak
from torch.nn.functional import cross_entropy

from skipsearch import Policy, apply_policy, draft
from skipsearch.exports.export import export
from skipsearch.exports.registry import target_class
from skipsearch.exports.target import Source
from skipsearch.policies.errors import (
    ExportError,
    ModelError,
    PolicyError,
    PolicyMismatch,
    RunError,
    TrainingDataError,
    UsageError,
)
from skipsearch.policies.scores.router import RouterOptions
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.policies.trained.adapters import Adapters, adapted_layers, without_adapters
from skipsearch.policies.trained.routers import Routers, routed_layers
from skipsearch.recovery.batches import EncodedExamples
from skipsearch.recovery.checkpoints import last_checkpoint
from skipsearch.recovery.examples import Example
from skipsearch.recovery.parts import lora_targets, trained_parameters
from skipsearch.recovery.recover import recover
from skipsearch.recovery.settings import RecoverySettings

SKIPS = Policy(layers={1: {"attention": "skip", "ffn": "skip"}, 2: {"ffn": "skip", "phase": "decode"}})
RATIO = Policy(
    layers={
        1: {"attention": "skip"},
        2: {"token_ratio": 0.5, "ffn": "skip", "tokens": "image"},
        3: {"attention": "keys_only", "ffn": "skip", "tokens": "image"},
    }
)
DECAY = Policy(layers={1: {"token_ratio": 0.75}, 3: {"token_ratio": 0.4}})
ROUTED = DECAY.model_copy(update={"token_selection": TokenSelection(score="router")})
# γ-MoD's: one router for all layers, which reads N1 x and selects by a threshold once it is trained.
GAMMA_MOD = RouterOptions(gate="sigmoid", alpha=1.0, beta=0.0, reweights_rest=False, reads="norm", shared=True,
                          threshold=0.4)  # fmt: skip
SHARED = DECAY.model_copy(update={"token_selection": TokenSelection(score="router", router=GAMMA_MOD)})
NO_ATTENTION = Policy(layers={1: {"attention": "skip", "ffn_ratio": 0.5}, 3: {"attention": "skip"}})
ADAPTED = Policy(layers={1: {"attention": "adapter"}, 3: {"attention": "adapter"}})
# Shares of channels and heads, for all tokens and beside a scope, in which the other tokens have all of them.
NARROW = Policy(layers={0: {"ffn_ratio": 0.5}, 1: {"head_ratio": 0.5, "ffn_ratio": 0.25}, 2: {"head_ratio": 0.5}})
SCOPED = Policy(
    layers={
        0: {"ffn_ratio": 0.5, "head_ratio": 0.5, "tokens": "image"},
        1: {"ffn_ratio": 0.25, "token_ratio": 0.5},
        3: {"attention": "skip", "ffn_ratio": 0.5},
    }
)
ROUTED_SHARES = SCOPED.model_copy(update={"token_selection": TokenSelection(score="router")})
ANY_ATTENTION = Policy(layers=dict.fromkeys(range(4), {"attention": "skip"}))
QUICK = {"steps": 6, "batch_size": 4, "learning_rate": 3e-3, "warmup": 0.0}


def trained(subject, policy, data, folder, resume=False, **settings):
    folder.mkdir(exist_ok=True)
    made = RecoverySettings.model_validate(QUICK | settings)
    return recover(subject.model, subject.processor, policy, data, made, folder, "run", resume)


def batch_of(subject, data):
    encoded = EncodedExamples(data, subject.processor, [2], 256)
    return encoded.collate([encoded[place] for place in range(len(data))])


def logits_of(model, batch):
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "prompt_ends")}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def traces(model):
    """What a trainer may put on the modules of a model: another forward, hooks, checkpoints."""
    return [("forward" in vars(part), len(part._forward_hooks), getattr(part, "gradient_checkpointing", False))
            for part in model.modules()]  # fmt: skip


def answer_loss(model, handle, batch):
    """The mean loss of all answer tokens, as the formula says."""
    handle.prompt_ends = batch["prompt_ends"]
    logits = logits_of(model, batch)
    handle.prompt_ends = None
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100).item()


CASES = {
    "lora": ("llama", SKIPS, {"method": "lora", "lora_rank": 4}),
    "lora of a model that sees": ("llava", RATIO, {"method": "lora", "lora_rank": 4, "distil": "kl"}),
    "full": ("llama", SKIPS, {"method": "full", "gradient_checkpointing": True}),
    "full, from dense": ("llava", RATIO, {"method": "full", "distil": "kl", "gradient_checkpointing": True}),
    "connector": ("llava", RATIO, {"method": "connector"}),
    "router": ("llava", DECAY, {"method": "router", "learning_rate": 0.1}),
    "full with one router": ("llava", SHARED, {"method": "full", "gradient_checkpointing": True, "router_loss": 0.01}),
    "lora with routers": ("llava", ROUTED, {"method": "lora", "lora_rank": 4, "distil": "kl"}),
    "adapter": ("llama", NO_ATTENTION, {"method": "adapter", "learning_rate": 0.03}),
    "adapter, frozen": ("llava", ADAPTED, {"method": "adapter", "learning_rate": 0.03, "distil": "kl", "freeze": True}),
    "full with adapters": ("llava", ADAPTED, {"method": "full", "gradient_checkpointing": True}),
    "lora beside adapters": ("llama", ADAPTED, {"method": "lora", "lora_rank": 4}),
    "lora of shares": ("llama", NARROW, {"method": "lora", "lora_rank": 4, "gradient_checkpointing": True}),
    "lora of shares in a scope": ("llava", SCOPED, {"method": "lora", "lora_rank": 4, "distil": "kl"}),
    "full of shares": ("llava", SCOPED, {"method": "full", "distil": "kl", "gradient_checkpointing": True}),
    "full of shares in bf16": ("llama", NARROW, {"method": "full", "dtype": "bfloat16"}),
    "connector of shares": ("llava", SCOPED, {"method": "connector"}),
    "router of shares": ("llava", ROUTED_SHARES, {"method": "router", "learning_rate": 0.1}),
    "adapter of shares": ("llava", SCOPED, {"method": "adapter", "learning_rate": 0.03, "freeze": True}),
    "lora in bf16": ("llava", RATIO, {"method": "lora", "precision": "bf16", "gradient_checkpointing": True}),
    "full in bf16": ("llama", SKIPS, {"method": "full", "distil": "kl", "dtype": "bfloat16"}),
}


@pytest.mark.parametrize("case", sample(CASES, 2))
def test_the_folder_has_what_was_learned_and_the_model_is_as_before(case, subject_of, examples, tmp_path):
    name, policy, settings = CASES[case]
    spec = {"dtype": settings["dtype"]} if "dtype" in settings else {}
    subject, data = subject_of(name, **spec), examples(name)
    settings = {key: value for key, value in settings.items() if key != "dtype"} | {"steps": 12}
    model, batch = subject.model, batch_of(subject, data[:6])
    before, dense, config = copy.deepcopy(model.state_dict()), logits_of(model, batch), model.config.to_dict()
    left = traces(model)
    done = trained(subject, policy, data, tmp_path / "out", **settings)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert traces(model) == left
    assert torch.equal(logits_of(model, batch), dense) and model.config.to_dict() == config
    curve = [step.loss for step in done.curve]
    # Steps of 4 take the 24 examples twice. A router only chooses which of the random tokens go through a layer.
    assert len(curve) == 12 and (sum(curve[6:]) < sum(curve[:6]) or settings["method"] == "router")
    files = {"peft": ["adapter_config.json", "adapter_model.safetensors"], "safetensors": ["trained.safetensors"]}
    routers = ["routers.safetensors"] if done.policy.weights.routers else []
    adapters = ["adapters.safetensors"] if done.policy.weights.adapters else []
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [*files[done.policy.weights.format], *routers, *adapters, "policy.yaml"]
    )

    # Routers change what is computed before they learn anything.
    start = done.policy.model_copy(update={"weights": None})
    untrained_routers = Routers.of(model, start) if routed_layers(start) else None
    with apply_policy(model, without_adapters(start), untrained_routers) as handle:
        untrained = answer_loss(model, handle, batch_of(subject, data))
    with apply_policy(model, tmp_path / "out") as handle:
        assert handle.weights == done.policy.weights.sha256
        if settings.get("distil") is None:
            assert answer_loss(model, handle, batch_of(subject, data)) < untrained
        with handle.dense():
            assert torch.equal(logits_of(model, batch), dense)
        assert not torch.equal(logits_of(model, batch), dense)
    assert torch.equal(logits_of(model, batch), dense)
    assert Policy.load(tmp_path / "out") == done.policy


@pytest.mark.parametrize(("name", "policy"), [("llama", SKIPS), ("llava", RATIO)])
def test_peft_computes_with_the_adapter_what_the_policy_does(name, policy, subject_of, examples, tmp_path):
    subject, data = subject_of(name), examples(name)
    trained(subject, policy, data, tmp_path / "out", method="lora")
    batch = batch_of(subject, data[:6])
    with apply_policy(subject.model, tmp_path / "out"):
        merged = logits_of(subject.model, batch)
    wrapped = peft.PeftModel.from_pretrained(subject.model, tmp_path / "out").eval()
    with apply_policy(wrapped, policy):
        torch.testing.assert_close(merged, logits_of(wrapped, batch), rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_mean_over_the_answer_tokens_of_a_step(subject_of, examples, tmp_path):
    subject, data = subject_of("llava"), examples("llava", 12)
    with apply_policy(subject.model, RATIO) as handle:
        wanted = answer_loss(subject.model, handle, batch_of(subject, data))
    for batch_size, accumulate in ((12, 1), (3, 4)):
        out = tmp_path / str(accumulate)
        done = trained(
            subject, RATIO, data, out, method="connector", steps=1, batch_size=batch_size, accumulate=accumulate
        )
        assert done.curve[0].loss == pytest.approx(wanted, rel=1e-5)


def test_the_divergence_from_dense_is_none_where_nothing_is_skipped(subject_of, examples, tmp_path):
    subject = subject_of("llava")
    for method in ("lora", "full"):
        done = trained(subject, Policy(), examples("llava"), tmp_path / method, method=method, steps=1, distil="kl")
        assert done.curve[0].loss == pytest.approx(0.0, abs=1e-6)
    done = trained(subject, SKIPS, examples("llava"), tmp_path / "skips", method="full", steps=1, distil="kl")
    assert done.curve[0].loss > 0.01


class Stopping:
    """A processor that ends the training after so many batches."""

    def __init__(self, processor, batches):
        self.processor, self.batches = processor, batches
        self.tokenizer = getattr(processor, "tokenizer", processor)

    def __call__(self, *args, **kwargs):
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return self.processor(*args, **kwargs)


@pytest.mark.parametrize(
    ("method", "name", "policy"), [("lora", "llama", SKIPS), soak("full", "llama", SKIPS), ("full", "llava", ROUTED),
     ("adapter", "llama", ANY_ATTENTION), soak("full", "llama", NARROW), soak("lora", "llama", NARROW)],
)  # fmt: skip
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    method, name, policy, subject_of, examples, tmp_path
):
    subject, data = subject_of(name), examples(name)
    settings = {"method": method, "steps": 8, "save_every": 3, "skip": 2 if policy is ANY_ATTENTION else None}
    whole = trained(subject, policy, data, tmp_path / "whole", **settings)
    processor = subject.processor
    subject.processor = Stopping(processor, 5)
    with pytest.raises(KeyboardInterrupt):
        trained(subject, policy, data, tmp_path / "out", **settings)
    subject.processor = processor
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    with pytest.raises(UsageError, match="was interrupted"):
        trained(subject, policy, data, tmp_path / "out", **settings)
    with pytest.raises(UsageError, match="other settings or data"):
        recover(
            subject.model, processor, policy, data, RecoverySettings(method=method), tmp_path / "out", "other", True
        )
    resumed = trained(subject, policy, data, tmp_path / "out", resume=True, **settings)
    assert [(step.step, step.loss) for step in resumed.curve] == [(step.step, step.loss) for step in whole.curve]
    assert resumed.policy.weights == whole.policy.weights
    assert all(torch.equal(value, before[key]) for key, value in subject.model.state_dict().items())


@pytest.mark.parametrize("steps", [1, 6])
def test_a_training_that_diverges_is_refused_and_leaves_the_model_as_it_was(steps, subject_of, examples, tmp_path):
    subject = subject_of("llama")
    before = copy.deepcopy(subject.model.state_dict())
    with pytest.raises(RunError, match="the training diverged"):
        trained(subject, SKIPS, examples("llama"), tmp_path / "out", method="full", steps=steps, learning_rate=1e300)
    assert all(torch.equal(value, before[key]) for key, value in subject.model.state_dict().items())
    assert not (tmp_path / "out" / "policy.yaml").exists()


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    for step, state in ((4, "{}"), (8, '{"step'), (12, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_what_the_policy_skips_is_not_trained(subject_of):
    subject = subject_of("llava")
    full = set(trained_parameters(subject.model, RATIO, "full"))
    idle = {name for name, _ in subject.model.named_parameters() if "language_model.layers.1." in name
            and ("self_attn" in name or "input_layernorm" in name)}  # fmt: skip
    tower = {name for name, _ in subject.model.named_parameters() if "vision_tower" in name}
    assert full == {name for name, _ in subject.model.named_parameters()} - idle - tower
    assert {name.rpartition(".")[0] for name in idle} & set(lora_targets(subject.model, RATIO)) == set()
    assert all("multi_modal_projector" in name for name in trained_parameters(subject.model, RATIO, "connector"))
    shared = Policy(layers={1: {"wiring": "parallel", "norm": "shared"}})
    assert {name for name, _ in subject.model.named_parameters()} - tower - set(
        trained_parameters(subject.model, shared, "full")
    ) == {"model.language_model.layers.1.post_attention_layernorm.weight"}


def test_frozen_adapters_have_the_means_over_the_prompts_of_the_training_examples(subject_of, examples, tmp_path):
    subject, data = subject_of("llama"), examples("llama", 10)
    model, one = subject.model, Policy(layers={1: {"attention": "skip"}})
    done = trained(subject, one, data, tmp_path / "out", method="adapter", steps=1, freeze=True, adapter_rank=4)
    assert adapted_layers(done.policy) == [1]
    adapter = Adapters.read(tmp_path / "out", [1], model.config.hidden_size).of_layer(1)
    layer, found = model.model.layers[1], []
    entering = []
    hook = layer.register_forward_pre_hook(lambda module, args, kwargs: entering.append(args[0]), with_kwargs=True)
    for example in data:
        with torch.no_grad():
            model(**subject.processor([example.prompt], return_tensors="pt"))
            mean = layer.post_attention_layernorm(entering.pop())[0].mean(0)
            found.append(torch.cat([adapter.mean(mean), (adapter.gate(mean) / 10).softmax(0)]))
    hook.remove()
    torch.testing.assert_close(adapter.frozen, torch.stack(found).mean(0))


def test_the_attentions_that_are_missed_least_stay_skipped(subject_of, examples, tmp_path):
    subject, data = subject_of("llama"), examples("llama", 8)
    with torch.no_grad():
        for index in (0, 2):  # without these the model loses nothing
            subject.model.model.layers[index].self_attn.o_proj.weight.zero_()
        for index in (1, 3):
            subject.model.model.layers[index].self_attn.o_proj.weight.mul_(8.0)
    done = trained(
        subject, ANY_ATTENTION, data, tmp_path / "out", method="adapter", steps=40, skip=2, distil="kl",
        learning_rate=1e-6, freeze=True,
    )  # fmt: skip
    assert {index: choice.attention for index, choice in done.policy.canonical().layers.items()} == {
        0: "adapter", 2: "adapter",
    }  # fmt: skip
    assert list(Adapters.read(tmp_path / "out", [0, 2], subject.model.config.hidden_size)) == ["0", "2"]
    with apply_policy(subject.model, tmp_path / "out") as handle:
        found = logits_of(subject.model, batch_of(subject, data))
        with handle.dense():
            torch.testing.assert_close(found, logits_of(subject.model, batch_of(subject, data)), rtol=0, atol=2e-2)


# Refusals


def test_what_cannot_be_trained_is_refused(subject_of, examples, tmp_path):
    llama, data = subject_of("llama"), examples("llama")
    with pytest.raises(ModelError, match="no connector to train"):
        trained(llama, SKIPS, data, tmp_path / "a", method="connector")
    with pytest.raises(ModelError, match="torch.float16 are not trained"):
        trained(subject_of("llama", dtype="float16"), SKIPS, data, tmp_path / "b", method="full")
    with pytest.raises(ModelError, match="bfloat16 do not compute in float32"):
        trained(subject_of("llama", dtype="bfloat16"), SKIPS, data, tmp_path / "c", method="full", precision="fp32")
    skip = Policy(layers=dict.fromkeys(range(4), {"attention": "skip", "ffn": "skip"}))
    with pytest.raises(UsageError, match="leaves out no image tokens"):
        trained(llama, SKIPS, data, tmp_path / "r", method="router")
    once = RATIO.model_copy(update={"token_selection": TokenSelection(reselect="once")})
    with pytest.raises(UsageError, match="--router-loss needs routers"):
        trained(llama, SKIPS, data, tmp_path / "r", method="lora", router_loss=0.01)
    with pytest.raises(UsageError, match="routers cannot rank"):
        trained(llama, once, data, tmp_path / "r", method="router")
    with pytest.raises(UsageError, match="leaves no place to adapters"):
        trained(
            llama, Policy(layers={1: {"attention": "skip", "phase": "decode"}}), data, tmp_path / "r", method="adapter"
        )
    with pytest.raises(UsageError, match="adapters cannot take the place of attentions"):
        removing = {0: {"token_ratio": 0.5}, 1: {"attention": "skip"}}
        once = Policy(layers=removing, token_selection=TokenSelection(reselect="once"))
        trained(llama, once, data, tmp_path / "r", method="adapter")
    with pytest.raises(UsageError, match="no attention to choose"):
        trained(llama, NO_ATTENTION, data, tmp_path / "r", method="adapter", skip=2)
    with pytest.raises(ValueError, match="found skip beside method full"):
        RecoverySettings(method="full", skip=2)
    with pytest.raises(UsageError, match="nothing to freeze"):
        trained(llama, SKIPS, data, tmp_path / "r", method="full", freeze=True)
    with pytest.raises(ModelError, match="no linear layers to adapt"):
        trained(llama, skip, data, tmp_path / "d", method="lora")
    wrong = [Example("w1", " w2"), Example("w1", " "), Example("w1 " * 300, " w2", line=7)]
    with pytest.raises(TrainingDataError) as error:
        trained(llama, SKIPS, wrong, tmp_path / "e", method="lora")
    assert error.value.details == (
        "prompt 'w1': the answer ' ' has no tokens",
        "line 7: found 302 tokens, the model reads 256",
    )


@pytest.fixture
def recovered(subject_of, examples, tmp_path):
    subject = subject_of("llama")
    return subject, trained(subject, SKIPS, examples("llama"), tmp_path / "out", method="full", steps=1).policy


def test_trained_weights_are_part_of_the_policy(recovered, tmp_path):
    subject, policy = recovered
    assert policy.fingerprint != SKIPS.fingerprint and not policy.is_dense
    with pytest.raises(PolicyError, match="weights are not beside it"):
        apply_policy(subject.model, Policy.model_validate(policy.document()))
    policy.save_pretrained(tmp_path / "out")  # in place
    (tmp_path / "out" / "README.md").write_text("---\nlibrary_name: skipsearch\n---\n")
    policy.save_pretrained(tmp_path / "copy")
    with apply_policy(subject.model, Policy.from_pretrained(tmp_path / "copy")) as handle:
        assert handle.steps()[0].weights == policy.weights.sha256
    with pytest.raises(UsageError, match="cannot be recovered again"):
        trained(subject, policy, [Example("w1", " w2")], tmp_path / "again", method="lora")
    with pytest.raises(PolicyMismatch, match="no draft"):
        draft(subject.model, policy)
    with pytest.raises(ExportError, match="cannot be exported yet"):
        export(
            policy, Source(subject.model, subject.processor, None, None, []), target_class("hf")(None), tmp_path / "x"
        )


def test_other_weights_and_other_models_are_refused(recovered, subject_of, tmp_path):
    subject, policy = recovered
    before = copy.deepcopy(subject.model.state_dict())
    with pytest.raises(PolicyMismatch, match="do not fit the model") as error:
        apply_policy(subject_of("llava").model, policy)
    assert "model.embed_tokens.weight: the model has none" in error.value.details
    file = tmp_path / "out" / "trained.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"] + 1}, file)
    with pytest.raises(PolicyError, match="other weights than its policy"):
        apply_policy(subject.model, tmp_path / "out")
    file.unlink()
    with pytest.raises(PolicyError, match="lacks trained weights"):
        apply_policy(subject.model, tmp_path / "out")
    assert all(torch.equal(value, before[key]) for key, value in subject.model.state_dict().items())


def test_an_adapter_that_is_no_plain_lora_is_refused(subject_of, examples, tmp_path):
    subject = subject_of("llama")
    policy = trained(subject, SKIPS, examples("llama"), tmp_path / "out", method="lora", steps=1).policy
    file = tmp_path / "out" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    weights = type(policy.weights).of(tmp_path / "out", "peft")
    policy.model_copy(update={"weights": weights}).save(tmp_path / "out" / "policy.yaml")
    with pytest.raises(PolicyMismatch, match="no plain LoRA"):
        apply_policy(subject.model, tmp_path / "out")
