"""Image tokens that routers rank and weigh: against their formulas, in every family that sees images."""

from __future__ import annotations

import pytest
import support
import torch
from contract import ANSWER, answered, check
from reference import reference
from safetensors.torch import save_file
from test_policy_contract import IMAGE_CASES, sample

from families import FAMILIES, IMAGE, LAYERS, batch_of, built, run
from skipsearch import Policy, apply_policy
from skipsearch.policies.errors import PolicyError, PolicyMismatch
from skipsearch.policies.families.layers import decoder_layers
from skipsearch.policies.trained.files import TrainedWeights
from skipsearch.policies.trained.routers import Routers

LAYERS_OF = {
    "decay": {1: {"token_ratio": 0.75}, 2: {"token_ratio": 0.5}, 3: {"token_ratio": 0.3}},
    "beside other choices": {
        0: {"token_ratio": 0.5, "ffn": "skip"},
        1: {"token_ratio": 0.5, "wiring": "parallel"},
        2: {"token_ratio": 0.6, "ffn_ratio": 0.5},
        3: {"attention": "skip", "token_ratio": 0.5},
    },
    "in pairs, of fewer heads": {
        0: {"token_ratio": 0.5, "wiring": "pair"},
        1: {"token_ratio": 0.7},
        2: {"token_ratio": 0.6, "head_ratio": 0.5},
    },
}
GAMMA_MOD = {"gate": "sigmoid", "alpha": 1.0, "beta": 0.0, "reweights_rest": False, "reads": "norm", "shared": True}
OPTIONS = {
    "tanh": None,
    # With a steeper line some weight is near 0: the next norm scales the small state up, and its rounding with it.
    "linear": {"gate": "linear", "alpha": 0.1},
    "kept alone": {"reweights_rest": False},
    "γ-MoD": GAMMA_MOD,
    "γ-MoD, by its threshold": GAMMA_MOD | {"threshold": 0.45},
}


def routed(layers, options=None):
    selection = {"score": "router"} | ({} if options is None else {"router": options})
    return Policy(layers=layers, token_selection=selection, model={"num_layers": LAYERS})


def drawn(model, policy, seed=0):
    """Routers whose weights are drawn."""
    routers = Routers.of(model, policy)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in routers.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return routers.requires_grad_(False)


@pytest.mark.parametrize(("name", "attention"), sample([case for case in IMAGE_CASES if case[0] != "mllama"], 4, 1))
def test_routed_tokens_compute_what_their_formulas_say(name, attention):
    model, batch = built(name, attention), batch_of(name)
    policies = [*LAYERS_OF.values(), LAYERS_OF["in pairs, of fewer heads"], LAYERS_OF["beside other choices"]]
    for number, (layers, options) in enumerate(zip(policies, OPTIONS.values(), strict=True)):
        policy = routed(support.taken(name, layers), options)
        check(model, batch, policy, drawn(model, policy, number))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_routers_are_those_of_their_formulas(options):
    model, batch = FAMILIES["llava"].build("sdpa").double(), batch_of("llava")
    policy = routed(LAYERS_OF["decay"], options)
    routers = drawn(model, policy).double().requires_grad_(True)
    parameters = list(routers.parameters())
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in batch.alone(0).items()}
    direction = torch.randn(len(batch.ids[0]), 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with apply_policy(model, policy, routers):
        logits = run(model, inputs, gradients=True, use_cache=False).logits[0]
        found = torch.autograd.grad((logits * direction).sum(), parameters)
    logits = reference(model, batch.family, policy, inputs, len(batch.ids[0]), gradients=True, routers=routers)
    wanted = torch.autograd.grad((logits * direction).sum(), parameters)
    norm = torch.stack([one.norm() for one in wanted]).norm()
    for one, other in zip(found, wanted, strict=True):
        # The norms of the model compute in float32: 4e-7 to 4e-6, over several slopes of the gate.
        assert one.norm() > 0 and (one - other).norm() < 1e-5 * norm


def test_a_threshold_keeps_what_is_above_it_and_the_ratio_holds_in_training():
    model, batch = FAMILIES["llava"].build("sdpa"), batch_of("llava")
    policy = routed({1: {"token_ratio": 0.5}}, GAMMA_MOD | {"threshold": 0.45})
    routers, states = drawn(model, policy), []
    assert [*routers] == ["shared"]
    hook = decoder_layers(model)[1].module.register_forward_pre_hook(
        lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    inputs = batch.alone(0)
    with apply_policy(model, policy, routers):
        kept = [cached_tokens(model, inputs, 1), None]
        model.train()
        kept[1] = cached_tokens(model, inputs, 1)
        model.eval()
    hook.remove()
    images = torch.tensor(batch.ids[0]) == IMAGE
    read = decoder_layers(model)[1].sublayers.attention_norm(states[0])[0, images]
    above = (routers["shared"](read)[:, 0].sigmoid() > 0.45).sum().item()
    text = (~images).sum().item()
    assert kept == [text + above, text + int(images.sum()) // 2] and kept[0] != kept[1]


def cached_tokens(model, inputs, layer):
    """How many tokens a layer stores."""
    with torch.no_grad():
        return model(**inputs, use_cache=True).past_key_values.layers[layer].keys.shape[2]


def test_routers_learn_to_foresee_what_is_kept():
    """The further loss of a training, and its gradient, against their formulas."""
    model, batch = FAMILIES["llava"].build("sdpa").double(), batch_of("llava")
    policy = routed({1: {"token_ratio": 0.5}, 2: {"token_ratio": 0.3}}, GAMMA_MOD)
    routers = drawn(model, policy).double().requires_grad_(True)
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in batch.alone(0).items()}
    images, states = torch.tensor(batch.ids[0]) == IMAGE, {}

    def keep(index):
        return lambda _, args, kwargs: states.update({index: args[0] if args else kwargs["hidden_states"]})

    layers = {index: decoder_layers(model)[index] for index in policy.layers}
    hooks = [one.module.register_forward_pre_hook(keep(index), with_kwargs=True) for index, one in layers.items()]
    model.train()
    with apply_policy(model, policy, routers):
        model(**inputs, use_cache=False)
    model.eval()
    for hook in hooks:
        hook.remove()
    expected = []
    for index, layer in layers.items():
        r = routers["shared"](layer.sublayers.attention_norm(states[index]))[0, images, 0]
        kept = sorted(range(len(r)), key=lambda i: -r[i].item())[: int(policy.layers[index].token_ratio * len(r))]
        parts = [-(p if i in kept else 1 - p).log() for i, p in enumerate(1 / (1 + torch.exp(-r)))]
        expected.append(sum(parts) / len(r))
    assert torch.allclose(torch.stack(routers.losses), torch.stack(expected), atol=1e-9)
    [found] = torch.autograd.grad(sum(routers.losses), [routers["shared"].weight], retain_graph=True)
    [wanted] = torch.autograd.grad(sum(expected), [routers["shared"].weight])
    assert found.norm() > 0 and (found - wanted).norm() < 1e-6 * wanted.norm()


def test_a_router_at_zero_weighs_nothing_and_keeps_the_first_tokens():
    model, batch = built("llava", "sdpa"), batch_of("llava")
    policy = routed(LAYERS_OF["decay"])
    inputs = batch.padded("left")
    with apply_policy(model, policy, Routers.of(model, policy)):
        found = run(model, inputs).logits
    whole = answered(batch, torch.full((len(batch.ids), ANSWER), 5))
    ids, zero = batch.ids[0], Routers.of(model, policy)
    expected = reference(model, batch.family, policy, whole.alone(0), len(ids), routers=zero)
    assert torch.allclose(batch.real(found, 0, "left"), expected[: len(ids)], atol=1e-4)


def test_the_file_beside_a_policy_has_its_routers(tmp_path):
    model = built("llava", "sdpa")
    policy, inputs = routed(LAYERS_OF["decay"]), batch_of("llava").padded("left")
    routers = drawn(model, policy)
    with pytest.raises(PolicyError, match="none were trained"):
        apply_policy(model, policy)
    save_file({}, tmp_path / "trained.safetensors")
    routers.save(tmp_path)
    weights = TrainedWeights.of(tmp_path, "safetensors", routers=True)
    policy.model_copy(update={"weights": weights}).save(tmp_path / "policy.yaml")
    with apply_policy(model, policy, routers):
        expected = run(model, inputs).logits
    with apply_policy(model, tmp_path):
        assert torch.equal(run(model, inputs).logits, expected)
    fewer = Policy.load(tmp_path).model_copy(update={"layers": {1: policy.layers[1]}})
    with pytest.raises(PolicyMismatch, match=r"routers .* do not fit"):
        apply_policy(model, fewer)
    drawn(model, policy, 1).save(tmp_path)
    with pytest.raises(PolicyError, match="other weights than its policy"):
        apply_policy(model, tmp_path)


@pytest.mark.parametrize(
    ("layer", "selection", "found"),
    [
        ({"token_ratio": 0.5, "rest": "ffn"}, {}, r"layers\[1\]: found rest: ffn"),
        ({"token_ratio": 0.0}, {}, "found token_ratio: 0, expected a token_ratio above 0"),
        ({"token_ratio": 0.5, "phase": "decode"}, {}, "found phase: decode"),
        ({"token_ratio": 0.5, "ffn": "skip", "tokens": "image"}, {}, "found tokens: image"),
        ({"token_ratio": 0.5}, {"reselect": "once"}, "found reselect: once beside score router"),
        ({"token_ratio": 0.5}, {"score": "norm", "router": {}}, "found router beside score norm"),
        ({"token_ratio": 0.5}, {"router": {"threshold": 0.5}}, "found threshold beside gate tanh"),
    ],
)
def test_what_cannot_be_routed_is_refused(layer, selection, found):
    with pytest.raises(ValueError, match=found):
        Policy(layers={1: layer}, token_selection={"score": "router"} | selection)


def test_equal_policies_have_equal_fingerprints():
    layers = LAYERS_OF["decay"]
    assert routed(layers).fingerprint == routed(layers, {"gate": "tanh"}).fingerprint
    assert routed(layers).fingerprint != routed(layers, {"gate": "linear"}).fingerprint
    assert (
        Policy(layers=layers).fingerprint == Policy(layers=layers, token_selection={"score": "attention"}).fingerprint
    )
    skipped = {"attention": "skip", "ffn": "skip", "tokens": "image"}
    assert routed({1: skipped, 2: {"token_ratio": 0.5}}).canonical().layers[1].token_ratio is None
