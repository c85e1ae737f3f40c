"""Drafting is counted check by check, its answers are the dense model's own, and nothing is repeated in memory."""

import pytest
import torch

import tiny
from skipsearch.evaluators import speculative
from skipsearch.evaluators.prompts import fixed_input, generate
from skipsearch.evaluators.speculative import (
    Checks,
    Speculation,
    SpeculativeEvaluator,
    SpeculativeOptions,
    assisted_generate,
)
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError
from skipsearch.policies.policy import Policy

COUNTED = ("accepted_tokens", "draft_acceptance")
POLICY = Policy(layers={1: CHOICES["skip_ffn"], 3: LayerChoice(attention="skip", phase="decode")})


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(ModelSpec(id=str(tiny.tiny_llama(tmp_path_factory.mktemp("tiny"))), device="cpu"))


def made(subject, **options):
    return SpeculativeEvaluator(SpeculativeOptions(**{"new_tokens": 8, "prompts": 1, "repeats": 1, **options}), subject)


def measured(evaluator, policy):
    with apply_policy(evaluator._subject.model, policy) as handle:
        return evaluator.measure(handle, "search")


def test_checks_are_counted_from_the_tokens_that_each_gives():
    found = Speculation()
    # Ten tokens: the last check has one token left, the model's own, so nothing was drafted for it.
    found.count([4, 1, 3, 1, 1], new_tokens=10, draft_tokens=3)
    assert found.accepted == [3, 0, 2, 0] and found.drafted == [3, 3, 3, 1]
    checks = Checks()
    for tokens in (torch.zeros(1, 5), torch.zeros(1, 3)):
        checks.put(tokens)
    assert checks.tokens == [5, 3]


def test_the_dense_model_accepts_itself(subject):
    found = measured(made(subject, draft_tokens=3, prompts=2), Policy())
    # Eight tokens of each prompt: two checks give four each, of which three are drafted.
    assert found["accepted_tokens"].value == 3 and found["accepted_tokens"].n == 4
    assert found["draft_acceptance"].value == 1 and found["draft_acceptance"].n == 12


def test_a_policy_is_accepted_where_it_agrees(subject):
    """The acceptance of one drafted token at a time is how often the policy's next token is the dense model's."""
    evaluator = made(subject, draft_tokens=1, new_tokens=12, prompts=1)
    found = measured(evaluator, POLICY)
    agrees, inputs = [], fixed_input(subject, 1, 64, 0)
    answer = generate(subject.model, inputs, 12).sequences
    length = inputs["input_ids"].shape[1]
    with apply_policy(subject.model, POLICY) as handle:
        handle.prompt_ends = torch.tensor([length])
        with torch.no_grad():
            likeliest = subject.model(answer, use_cache=False).logits[0].argmax(-1)
    place = length
    while place < length + 11:
        agrees.append(bool(likeliest[place - 1] == answer[0, place]))
        place += 1 + agrees[-1]
    assert found["accepted_tokens"].value == found["draft_acceptance"].value == sum(agrees) / len(agrees)


def test_counts_are_repeatable_and_the_draft_is_made_once(subject):
    evaluator, other = made(subject), made(subject)
    first, again, anew = (measured(one, POLICY) for one in (evaluator, evaluator, other))
    for name in COUNTED:
        assert first[name] == again[name] == anew[name]
    shared = {id(weight) for weight in subject.model.parameters()}
    draft = evaluator._draft
    measured(evaluator, Policy())
    assert evaluator._draft is draft and {id(weight) for weight in draft.parameters()} == shared


def test_prompts_of_examples_are_taken_as_far_as_there_are(subject):
    subject.prompts = [{"input_ids": torch.arange(5, 5 + count)[None]} for count in (9, 4)]
    try:
        detail = measured(made(subject, prompts=4), POLICY)["accepted_tokens"].detail
    finally:
        subject.prompts = []
    assert detail["prompt_tokens"] == [9, 4] and detail["prompt"] == "2 examples' prompts"


def test_an_answer_with_other_tokens_than_the_dense_model_s_is_an_error(subject, monkeypatch):
    def spoiled(*args, **options):
        sequences = assisted_generate(*args, **options).clone()
        sequences[0, -2] += 1
        return sequences

    monkeypatch.setattr(speculative, "assisted_generate", spoiled)
    with pytest.raises(EvaluatorError, match="prompt 0: token 6 of the answer is the first that differs"):
        measured(made(subject), POLICY)
