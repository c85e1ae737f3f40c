"""What a model computes under a policy, for every family, attention implementation and choice."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as t
from reference import reference
from torch import Tensor

from families import (
    CASES,
    LAYERS,
    LAYOUTS,
    WITH_IMAGES,
    Batch,
    Family,
    batch_of,
    built,
    forget,
    llava,
    run,
    square,
    without,
)
from skipsearch import Policy, apply_policy

CHOICES: dict[str, dict[str, Any]] = {
    "skip_ffn": {"ffn": "skip"},
    "skip_attention": {"attention": "skip"},
    "skip_layer": {"attention": "skip", "ffn": "skip"},
    "parallel": {"wiring": "parallel"},
}
RATIOS: dict[str, dict[str, Any]] = {
    "half": {"token_ratio": 0.5},
    "none": {"token_ratio": 0.0},
    "half+skip_ffn": {"token_ratio": 0.5, "ffn": "skip"},
    "half+skip_attention": {"token_ratio": 0.5, "attention": "skip"},
    "half+parallel": {"token_ratio": 0.5, "wiring": "parallel"},
}
PLACES = [[0], [LAYERS - 1], list(range(LAYERS)), list(range(1, LAYERS))]


def policy_of(layers: dict[int, dict[str, Any]], score: str = "attention") -> Policy:
    return Policy.model_validate({"layers": layers, "token_selection": {"score": score}})


def policies() -> list[Any]:
    """Every family and implementation with every choice that fits it, and every score with the plain ratio."""
    cases = []
    for name, attention in CASES:
        kinds = [(label, choice, "attention") for label, choice in CHOICES.items()]
        if name in WITH_IMAGES:
            kinds += [(label, choice, "attention") for label, choice in RATIOS.items()]
            kinds += [(f"half by {score}", RATIOS["half"], score) for score in ("norm", "uniform")]
        cases += [
            pytest.param(name, attention, choice, score, id=f"{name}-{attention}-{label}")
            for label, choice, score in kinds
        ]
    return cases


def placed(choice: dict[str, Any], score: str) -> list[Policy]:
    """The choice in the first layer, in the last, in all, and in all but the first, which then gives the scores."""
    return [policy_of(dict.fromkeys(layers, choice), score) for layers in PLACES]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def check_against_reference(model: Any, batch: Batch, policy: Policy, sides: tuple[str, ...]) -> None:
    expected = []
    for row, ids in enumerate(batch.ids):
        expected.append(reference(model, batch.family, policy, batch.alone(row), len(ids)))
    with apply_policy(model, policy):
        for side in sides:
            logits = run(model, batch.padded(side)).logits
            for row, wanted in enumerate(expected):
                close(batch.real(logits, row, side), wanted)


def answer(model: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Any:
    forget(model)
    return model.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False, **kwargs})


def continued(inputs: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The inputs with an answer after the prompt."""
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], tokens], 1)}
    for name, value in {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}.items():
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.full_like(tokens, value, dtype=inputs[name].dtype)], 1)
    return longer


def check_cached_against_uncached(model: Any, batch: Batch, policy: Policy) -> None:
    inputs = batch.padded("left")
    length = inputs["input_ids"].shape[1]
    with apply_policy(model, policy) as handle:
        out = answer(model, inputs, output_logits=True, return_dict_in_generate=True)
        handle.prompt_ends = torch.full((len(batch.ids),), length)
        whole = run(model, continued(inputs, out.sequences[:, length:]), use_cache=False).logits
    close(torch.stack(out.logits, 1), whole[:, length - 1 : -1])
    assert [layer.get_seq_length() for layer in out.past_key_values.layers] == [length + 3] * LAYERS


@pytest.mark.parametrize(("name", "attention", "choice", "score"), policies())
def test_a_choice_computes_what_its_formula_says_in_a_padded_batch(name, attention, choice, score):
    for policy in placed(choice, score):
        check_against_reference(built(name, attention), batch_of(name), policy, ("left", "right"))


@pytest.mark.parametrize(("name", "attention", "choice", "score"), policies())
def test_cached_generation_equals_one_uncached_forward(name, attention, choice, score):
    for policy in placed(choice, score):
        check_cached_against_uncached(built(name, attention), batch_of(name), policy)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_an_empty_policy_is_dense_bit_for_bit(name, attention):
    model, inputs = built(name, attention), batch_of(name).padded()
    dense = run(model, inputs).logits
    with apply_policy(model, Policy()):
        assert torch.equal(run(model, inputs).logits, dense)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_removed_policy_leaves_the_model_as_it_was_bit_for_bit(name, attention):
    model, inputs = built(name, attention), batch_of(name).padded()
    dense, tokens = run(model, inputs).logits, answer(model, inputs)
    layers = {0: CHOICES["parallel"], 1: CHOICES["skip_attention"], 2: CHOICES["skip_ffn"], 3: CHOICES["skip_layer"]}
    with apply_policy(model, policy_of(layers | ({2: RATIOS["half"]} if name in WITH_IMAGES else {}))):
        assert not torch.equal(run(model, inputs).logits, dense)
        answer(model, inputs)
    assert torch.equal(run(model, inputs).logits, dense)
    assert torch.equal(answer(model, inputs), tokens)


@pytest.mark.parametrize("skipped", [{0}, {LAYERS - 1}, {0, 1}, {1, 3}], ids=str)
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_skipping_layers_is_a_model_built_without_them(name, attention, skipped):
    model, inputs = built(name, attention), batch_of(name).padded()
    smaller = without(model, skipped)
    expected, tokens = run(smaller, inputs).logits, answer(smaller, inputs)
    with apply_policy(model, policy_of(dict.fromkeys(skipped, CHOICES["skip_layer"]))):
        assert torch.equal(run(model, inputs).logits, expected)
        assert torch.equal(answer(model, inputs), tokens)


@pytest.mark.parametrize("score", ["attention", "norm", "uniform"])
@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] in WITH_IMAGES])
def test_a_ratio_that_keeps_every_token_is_dense(name, attention, score):
    model, inputs = built(name, attention), batch_of(name).padded()
    dense = run(model, inputs).logits
    with apply_policy(model, policy_of(dict.fromkeys(range(LAYERS), {"token_ratio": 1.0}), score)):
        assert torch.equal(run(model, inputs).logits, dense)
    # This ratio is not written as one, so the tokens are gathered and scattered, and still all of them.
    everything = policy_of(dict.fromkeys(range(LAYERS), {"token_ratio": 1.0 - 1e-12}), score)
    with apply_policy(model, everything):
        close(run(model, inputs).logits[inputs["attention_mask"].bool()], dense[inputs["attention_mask"].bool()])


@pytest.mark.parametrize("layout", ["middle", "first", "two images", "text"])
@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] in WITH_IMAGES])
def test_images_may_stand_anywhere(name, attention, layout):
    model, batch = built(name, attention), batch_of(name, layout)
    policy = policy_of({1: RATIOS["half"], 2: {"token_ratio": 0.25}, 3: RATIOS["half+skip_ffn"]})
    check_against_reference(model, batch, policy, ("left",))
    check_cached_against_uncached(model, batch, policy)


@pytest.mark.parametrize("score", ["attention", "norm", "uniform"])
@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] in WITH_IMAGES])
def test_an_answer_that_is_scored_with_its_prompt_selects_no_tokens(name, attention, score):
    model, batch = built(name, attention), batch_of(name)
    policy = policy_of({1: RATIOS["half"], 2: RATIOS["half"]}, score)
    for side in ("left", "right"):
        inputs = batch.padded(side)
        length = inputs["input_ids"].shape[1]
        ends = [length - 2 if side == "left" else len(ids) - 2 for ids in batch.ids]
        expected = [
            reference(model, batch.family, policy, batch.alone(row), len(ids) - 2) for row, ids in enumerate(batch.ids)
        ]
        with apply_policy(model, policy) as handle:
            handle.prompt_ends = torch.tensor(ends)
            logits = run(model, inputs).logits
        for row, wanted in enumerate(expected):
            close(batch.real(logits, row, side), wanted)


MIXED = {0: CHOICES["skip_attention"], 1: CHOICES["parallel"], 3: CHOICES["skip_ffn"]}


def mixed(name: str) -> Policy:
    """A policy with a bit of everything that fits the family."""
    return policy_of(MIXED | ({2: RATIOS["half"], 3: {"token_ratio": 0.3}} if name in WITH_IMAGES else {}))


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_greedy_and_beam_search_answer_a_batch_as_its_rows_alone(name, attention):
    model, batch = built(name, attention), batch_of(name)
    with apply_policy(model, mixed(name)):
        for beams in (1, 3):
            together = answer(model, batch.padded("left"), num_beams=beams)[:, -4:]
            alone = [answer(model, batch.alone(row), num_beams=beams)[0, -4:] for row in range(len(batch.ids))]
            assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_sampling_draws_from_the_uncached_distribution(name, attention):
    model, batch = built(name, attention), batch_of(name)
    inputs = batch.padded("left")
    length = inputs["input_ids"].shape[1]
    with apply_policy(model, mixed(name)) as handle:
        torch.manual_seed(1)
        more = {"num_return_sequences": 2, "output_logits": True, "return_dict_in_generate": True}
        out = answer(model, inputs, do_sample=True, **more)
        handle.prompt_ends = torch.full((len(batch.ids),), length)
        whole = run(model, continued(inputs, out.sequences[::2, length:]), use_cache=False).logits
    close(torch.stack(out.logits, 1)[::2], whole[:, length - 1 : -1])


def test_a_ratio_leaves_a_family_with_parallel_sublayers_parallel():
    family = Family("llava-neox", llava(t.GPTNeoXConfig), image_tokens=9, pixels=square(12))
    batch = Batch.of(family, LAYOUTS["ragged"])
    check_against_reference(family.build("sdpa"), batch, policy_of({1: RATIOS["half"], 3: RATIOS["half"]}), ("left",))


@pytest.mark.parametrize("seed", range(60))
def test_a_random_policy_computes_what_its_formulas_say(seed):
    draw = random.Random(seed)
    name, attention = draw.choice(CASES)
    model, batch = built(name, attention), batch_of(name, "ragged", seed)
    options = list(CHOICES.values()) + [{}]
    if name in WITH_IMAGES:
        options += [{**choice, "token_ratio": draw.choice([0.0, 0.2, 0.5, 0.9])} for choice in options]
    layers = {index: draw.choice(options) for index in range(LAYERS)}
    policy = policy_of(layers, draw.choice(["attention", "norm", "uniform"]))
    dense = run(model, batch.padded()).logits
    check_against_reference(model, batch, policy, ("left", "right"))
    check_cached_against_uncached(model, batch, policy)
    assert torch.equal(run(model, batch.padded()).logits, dense)
