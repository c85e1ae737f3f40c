"""A policy as a draft of its own model: the answer is the model's own, and the guesses are the policy's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import accelerate
import pytest
import torch
from configurations import VOCABULARY
from contract import (
    CHOICES,
    HALF,
    HEAD_TOKENS,
    HEADS,
    NAMED,
    PAIRS,
    PHASES,
    PLAIN,
    RATIOS,
    ROLE_PHASES,
    ROLE_TOKENS,
    TOKENS,
    WIDTH_TOKENS,
    WIDTHS,
    WINDOWS,
    Choice,
    policy_of,
    rotated,
)
from support import taken
from tiers import sample
from torch import Tensor, nn

from families import FAMILIES, LAYERS, PAD, REFUSED, Batch, built, forget, run
from skipsearch import Policy, applied_policy, apply_policy, draft
from skipsearch.policies.caches.cache import find_cache
from skipsearch.policies.errors import ModelError, PolicyMismatch
from skipsearch.policies.runtime.tokens import image_token_ids

ANSWER, DRAFTED = 9, 3
RECURRENT = ["bamba", "granite-hybrid", "qwen3-next", "qwen3.5"]
DRAFTABLE = [name for name in FAMILIES if name not in [*RECURRENT, "paligemma", "mllama"]]
# With and without a sliding window, of text and of images.
THOROUGH = ["llama", "mistral", "llava", "llava-mistral"]


def attention_of(name: str) -> str:
    return "eager" if (name, "sdpa") in REFUSED else "sdpa"


IN_PHASES = [choice for choices in ROLE_PHASES.values() for choice in choices]
OF_ROLES = [*ROLE_TOKENS["roles: tokens"], *ROLE_TOKENS["rest"]]
ABOUT_IMAGES = [*TOKENS, *RATIOS, *OF_ROLES, *WIDTH_TOKENS, *HEAD_TOKENS]


def row_of(name: str, seed: int = 0) -> Batch:
    """A prompt longer than the sliding window."""
    family = FAMILIES[name]
    return Batch.of(family, [(3, "image", 4) if family.image_tokens else (9,)], seed)


def layers_of(name: str) -> list[dict[int, Choice]]:
    """Policies that put each choice into some layer; one of them for most families, drawn by its name."""
    choices = [*PLAIN, *PHASES, *IN_PHASES, *WIDTHS, *HEADS, *PAIRS]
    choices += ABOUT_IMAGES if FAMILIES[name].image_tokens else []
    # Transformers hands a draft no `image_sizes`, which say how the tokens of LLaVA-NeXT lie.
    choices += WINDOWS if FAMILIES[name].image_tokens and name != "llava-next" else []
    every = rotated(choices, name)
    chosen = every[::LAYERS] if name in THOROUGH else every[:1]
    return [taken(name, dict(enumerate(layers))) for layers in chosen]


CASES = [(name, number) for name in DRAFTABLE for number in range(len(layers_of(name)))]


def never(model: Any) -> list[int]:
    """Tokens that no answer has: a draft guesses no image tokens, and takes padding tokens for padding."""
    return [PAD, *(token for token in image_token_ids(model) if token < VOCABULARY)]


def answered(model: Any, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    forget(model)
    return model.generate(**inputs, max_new_tokens=ANSWER, do_sample=False, suppress_tokens=never(model), **options)


@dataclass
class Drafting:
    """A generation with a draft.

    Attributes:
        tokens: The prompt and its answer.
        checks: By check, how many tokens were there before, and the ids with the drafted ones.
    """

    tokens: Tensor
    checks: list[tuple[int, list[int]]]

    @property
    def drafted(self) -> int:
        return sum(len(ids) - before for before, ids in self.checks)

    @property
    def accepted(self) -> int:
        return ANSWER - len(self.checks)


def drafting(model: Any, guesser: Any, inputs: dict[str, Tensor]) -> Drafting:
    """Generate with a draft, and note what it guessed."""
    fed, length = [], inputs["input_ids"].shape[1]

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        fed.append((find_cache(kwargs).get_seq_length(), kwargs["input_ids"][0].tolist()))

    constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    guesser.generation_config.update(num_assistant_tokens=DRAFTED, **constant)
    forget(guesser)
    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        tokens = answered(model, inputs, assistant_model=guesser)
    finally:
        hook.remove()
    final = tokens[0].tolist()
    return Drafting(tokens, [(seen + 1 if seen else length, [*final[:seen], *ids]) for seen, ids in fed])


def check_guesses(model: Any, batch: Batch, policy: Policy, found: Drafting) -> None:
    """Hold what was drafted against forwards of the policy without a cache that know where the prompt ends."""
    with apply_policy(model, policy) as handle:
        for before, ids in found.checks:
            handle.prompt_ends = torch.tensor([len(batch.ids[0])])
            logits = run(model, replace(batch, ids=[ids]).padded(), use_cache=False).logits[0, before - 1 : -1]
            handle.prompt_ends = None
            logits[:, never(model)] = float("-inf")
            assert logits.argmax(-1).tolist() == ids[before:]


@pytest.mark.parametrize(("name", "number"), sample(CASES, 2))
def test_a_draft_changes_no_token(name, number):
    model, batch, policy = (
        built(name, attention_of(name)),
        row_of(name, number),
        policy_of(layers_of(name)[number], ranking="first"),
    )
    inputs = batch.padded()
    dense, guesser = answered(model, inputs), draft(model, policy)
    found = drafting(model, guesser, inputs)
    assert torch.equal(found.tokens, dense)
    assert 0 <= found.accepted <= found.drafted
    check_guesses(model, batch, policy, found)


@pytest.mark.parametrize(("name", "number"), [case for case in CASES if case[0] in THOROUGH])
def test_a_draft_changes_no_token_of_a_model_under_a_policy(name, number):
    """The dense model drafts, and is rejected."""
    model, inputs = built(name, attention_of(name)), row_of(name, number).padded()
    with apply_policy(model, policy_of(layers_of(name)[number], ranking="first")):
        own = answered(model, inputs)
        found = drafting(model, draft(model, Policy()), inputs)
    assert torch.equal(found.tokens, own)
    assert found.accepted < found.drafted


@pytest.mark.parametrize("score", ["attention", "uniform"])
@pytest.mark.parametrize("name", ["llava", "llava-mistral"])
def test_a_draft_that_removes_image_tokens_for_good(name, score):
    model, batch = built(name, "sdpa"), row_of(name)
    policy = policy_of({0: HALF, 2: {"token_ratio": 0.2}, 3: {"ffn": "skip", "phase": "decode"}}, score, "once")
    found = drafting(model, draft(model, policy), batch.padded())
    assert torch.equal(found.tokens, answered(model, batch.padded()))
    check_guesses(model, batch, policy, found)


@pytest.mark.parametrize(("name", "layers"), [("llama", {2: NAMED["skip_layer"]}), ("llava", {2: HALF, 3: HALF})])
def test_a_draft_that_leaves_out_little_is_accepted(name, layers):
    model = FAMILIES[name].build("sdpa")
    for layer in model.get_decoder().layers[2:]:
        for sublayer in (layer.self_attn.o_proj, layer.mlp.down_proj):
            sublayer.weight.data *= 0.01
    batch, policy = row_of(name), policy_of(layers)
    found = drafting(model, draft(model, policy), batch.padded())
    assert torch.equal(found.tokens, answered(model, batch.padded()))
    assert found.accepted >= 0.8 * found.drafted and len(found.checks) <= ANSWER / 2
    check_guesses(model, batch, policy, found)


@pytest.mark.parametrize(
    "layers", [{1: NAMED["skip_attention"]}, {1: NAMED["skip_layer"], 3: NAMED["skip_layer"]}], ids=str
)
def test_a_convolution_is_cut_back_whether_it_runs_or_not(layers):
    model, batch, policy = built("lfm2", "sdpa"), row_of("lfm2"), policy_of(layers)
    found = drafting(model, draft(model, policy), batch.padded())
    assert torch.equal(found.tokens, answered(model, batch.padded()))
    check_guesses(model, batch, policy, found)


# What a draft shares


def test_a_draft_has_no_tensor_of_its_own():
    for name in ("llama", "gpt2", "llava", "qwen3-moe"):
        model = built(name, "sdpa")
        guesser = draft(model, policy_of({1: NAMED["skip_attention"]}))
        for tensors in ("parameters", "buffers"):
            ours = {id(tensor) for tensor in getattr(model, tensors)()}
            assert {id(tensor) for tensor in getattr(guesser, tensors)()} == ours


def test_the_model_stays_as_it_is():
    model, inputs = built("llama", "sdpa"), row_of("llama").padded()
    before, keys = run(model, inputs).logits, [sorted(vars(part)) for part in model.modules()]
    guesser = draft(model, policy_of({1: NAMED["skip_ffn"]}))
    assert applied_policy(model) is None and applied_policy(guesser).model is guesser
    assert torch.equal(run(model, inputs).logits, before)
    assert not torch.equal(run(guesser, inputs).logits, before)
    assert [sorted(vars(part)) for part in model.modules()] == keys
    applied_policy(guesser).remove()
    assert torch.equal(run(guesser, inputs).logits, before)


def test_a_draft_takes_nothing_from_the_policy_that_its_model_runs_under():
    model, inputs = built("llava", "sdpa"), row_of("llava").padded()
    target, own = policy_of({0: NAMED["skip_attention"], 2: HALF}), policy_of({1: NAMED["skip_ffn"]})
    with apply_policy(model, own):
        expected = run(model, inputs).logits
    with apply_policy(model, target) as handle:
        guesser = draft(model, own)
        assert applied_policy(model) is handle
        found = run(guesser, inputs).logits
    for logits in (found, expected):
        logits[..., never(model)] = 0.0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_hooks_of_a_device_map_run_on_the_draft(name):
    model = accelerate.dispatch_model(FAMILIES[name].build("sdpa"), {"": "cpu"}, force_hooks=True)
    batch, policy = row_of(name), policy_of({1: NAMED["skip_attention"], 2: {"ffn": "skip", "phase": "decode"}})
    guesser = draft(model, policy)
    hooked = [part for part in model.modules() if hasattr(part, "_hf_hook")]
    copies = [part for part in guesser.modules() if hasattr(part, "_hf_hook")]
    assert len(hooked) == len(copies) > LAYERS and not {map(id, hooked)} & {map(id, copies)}
    found = drafting(model, guesser, batch.padded())
    assert torch.equal(found.tokens, answered(model, batch.padded()))
    check_guesses(model, batch, policy, found)


# What is refused


def refusal(model: Any, policy: Policy | None = None, kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        draft(model, policy or Policy())
    return str(caught.value)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_states_cannot_be_cut_back(name):
    model = built(name, attention_of(name))
    assert f"{type(model).__name__} cannot be drafted for\n  it has recurrent layers" in refusal(model)


def test_other_models_that_cannot_be_drafted_for():
    assert "all tokens of its prompt see each other" in refusal(built("paligemma", "sdpa"))
    assert "layers that attend to the image" in refusal(built("mllama", "sdpa"))
    assert "it has no `generate`" in refusal(built("llama", "sdpa").model)
    assert "a policy is applied to a transformers model" in refusal(nn.Linear(2, 2))
    assert "layer" in refusal(built("llama", "sdpa"), policy_of({9: NAMED["skip_ffn"]}), PolicyMismatch)
    offloaded = accelerate.cpu_offload(FAMILIES["llama"].build("sdpa"), torch.device("cpu"))
    assert "of its tensors are offloaded" in refusal(offloaded)
    assert "layer 1 has one" in refusal(built("llava-next", "sdpa"), policy_of({1: WINDOWS[0]}))


class Copying(nn.Linear):
    """A module that copies its weights whatever it is told."""

    def __deepcopy__(self, memo: Any) -> nn.Module:
        copied = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        copied.load_state_dict(self.state_dict())
        return copied


def test_a_module_that_copies_its_weights_is_named():
    model = FAMILIES["llama"].build("sdpa")
    model.model.layers[1].mlp.up_proj.__class__ = Copying
    assert "model.layers.1.mlp.up_proj.weight" in refusal(model)


@pytest.mark.parametrize("layers", [{1: NAMED["skip_layer"]}, {1: HALF}], ids=str)
def test_a_prompt_that_ends_in_an_image_token_is_refused_where_the_draft_reads_it_again(layers):
    model = built("llava", "sdpa")
    inputs = Batch.of(FAMILIES["llava"], [(9, "image")]).padded()
    with pytest.raises(ModelError, match="image token"):
        for seed in range(9):
            drafting(model, draft(model, policy_of(layers)), Batch.of(FAMILIES["llava"], [(9, "image")], seed).padded())
    # Another model as an assistant gets no images from transformers; a token ratio is refused there all the same.
    helper = FAMILIES["llava"].build("sdpa")
    with apply_policy(helper, policy_of({1: HALF})), pytest.raises(ModelError, match="ends in an image token"):
        answered(model, inputs, assistant_model=helper)


def test_every_choice_is_drafted_with():
    """The draws of all families together put every choice into some layer."""
    drawn = [choice for name in DRAFTABLE for layers in layers_of(name) for choice in layers.values()]
    drafted = [choices for column, choices in CHOICES.items() if column != "evict"]
    assert all(choice in drawn for choices in drafted for choice in choices)


@pytest.mark.parametrize("choice", ROLE_TOKENS["evict"], ids=str)
def test_an_eviction_is_refused_in_a_draft(choice):
    model = built("llava", "sdpa")
    with pytest.raises(ModelError, match="a draft with an eviction"):
        drafting(model, draft(model, policy_of({1: choice})), row_of("llava").padded())
