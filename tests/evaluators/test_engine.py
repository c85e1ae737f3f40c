"""Packed rows, rows that leave and join, and answers that end early: as lm-eval computes them, for less work."""

import random
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

import tiny
from families import CASES, FAMILIES, batch_of, built, forget
from skipsearch.evaluators.accuracy.answering import decodes_plainly
from skipsearch.evaluators.accuracy.memo import Memo
from skipsearch.evaluators.accuracy.model import lm_eval_model
from skipsearch.evaluators.accuracy.settled import Settled
from skipsearch.evaluators.engine import generation, packed
from skipsearch.evaluators.engine.budget import batches
from skipsearch.evaluators.engine.generation import Generation, Row, can_refill
from skipsearch.evaluators.engine.packed import PackedBatch, Question, can_pack
from skipsearch.evaluators.engine.prompt import Prompt
from skipsearch.evaluators.prompts import generation_options
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.caches.join import joined
from skipsearch.policies.policy import Policy

SKIP = {"attention": "skip", "ffn": "skip"}
ON_ALL = [
    {},
    {1: SKIP, 2: {"wiring": "parallel"}},
    {0: {"attention": "skip", "phase": "decode"}, 2: {"ffn": "skip", "phase": "prefill"}},
    {1: {"attention": "skip", "phase": "prefill"}, 2: {**SKIP, "phase": "decode"}},
]
ON_IMAGES = [
    {1: {"token_ratio": 0.5}, 2: {"token_ratio": 0.0}},
    {1: {"attention": "keys_only", "tokens": "image", "ffn": "skip"}, 2: {"attention": "skip", "tokens": "image"}},
    {1: {"token_ratio": 0.5, "phase": "decode"}, 2: {"token_ratio": 0.5, "phase": "prefill"}},
]
FEW = ("llama", "gpt2", "gemma3", "mixtral", "llava", "qwen2-vl")
REST = [name for name in FAMILIES if name not in FEW]
RECURRENT = tuple(name for name, family in FAMILIES.items() if family.linear)


def model_of(name):
    return built(name, next(kind for kind in ("sdpa", "eager") if (name, kind) in CASES))


def engine(name):
    """A model of a family as evaluators see it."""
    subject = SimpleNamespace(model=model_of(name), processor=tiny.tokenizer(), is_multimodal=False)
    return lm_eval_model(subject, 3, Memo(0))


def policies(name):
    for layers in ON_ALL + (ON_IMAGES if FAMILIES[name].image_tokens else []):
        yield Policy.model_validate({"layers": layers})


def question(length, draw):
    """A prompt of so many tokens with answers of several lengths, two of which differ in their last token alone."""
    first = tuple(draw.choices(range(3, 90), k=3))
    answers = [first, (*first[:-1], 7), *(tuple(draw.choices(range(3, 90), k=size)) for size in (1, 4))]
    found = Question(Prompt((draw.randrange(1 << 30),)), length)
    for place, answer in enumerate(answers):
        found.answers.setdefault(answer[:-1], []).append((place, answer))
    return found


def by_hand(model, handle, batch, row, answer):
    """The log-likelihood of one answer in a forward of its own."""
    inputs, length = batch.alone(row), len(batch.ids[row])
    more = torch.tensor([answer[:-1]], dtype=torch.long)
    for name, value in inputs.items():
        if value.shape == (1, length):
            filler = {"input_ids": more, "attention_mask": torch.ones_like(more)}.get(name, torch.zeros_like(more))
            inputs[name] = torch.cat([value, filler.to(value.dtype)], dim=1)
    forget(model)
    handle.prompt_ends = torch.tensor([length])
    with torch.no_grad():
        predicted = model(**inputs, use_cache=False).logits[0, length - 1 :].log_softmax(-1)
    handle.prompt_ends = None
    chosen = predicted.gather(1, torch.tensor(answer)[:, None])
    return chosen.sum().item(), predicted.argmax(-1).tolist() == list(answer)


def check_packed(name):
    lm, batch, draw = engine(name), batch_of(name), random.Random(name)
    questions = [question(len(ids), draw) for ids in batch.ids]
    made = PackedBatch.of(questions, batch.padded(), 0)
    # Places of the requests count from 0 in each question.
    shift = [(row, *entry) for row, one in enumerate(questions) for part in one.answers.values() for entry in part]
    for policy in policies(name):
        with apply_policy(lm.model, policy) as lm.handle:
            found = [value for _, value in packed.score(lm, made)]
            expected = [by_hand(lm.model, lm.handle, batch, row, answer) for row, _, answer in shift]
            assert lm.handle.prompt_ends is None
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4), policy
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("name", [name for name in FEW if name != "gemma3"])
def test_packed_answers_score_what_they_score_alone(name):
    assert can_pack(model_of(name))
    check_packed(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", REST)
def test_every_family_packs_its_answers_or_is_left_to_lm_eval(name):
    if can_pack(model_of(name)) and not any(FAMILIES[name].windows):
        check_packed(name)


def answers_alone(model, batch, row, count):
    forget(model)
    inputs = batch.alone(row)
    with torch.no_grad():
        out = model.generate(**inputs, **generation_options(max_new_tokens=count, pad_token_id=0))
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def check_refilled(name, monkeypatch):
    """Nine rows in three groups, which end after different numbers of tokens and join while others are running."""
    lm = engine(name)
    made = [batch_of(name, seed=seed) for seed in range(3)]
    draw, limits, groups = random.Random(name), {}, []
    for number, batch in enumerate(made):
        groups.append([Row(Prompt((number, row)), len(ids)) for row, ids in enumerate(batch.ids)])
        limits |= {one.prompt.ids: draw.randint(1, 7) for one in groups[-1]}
    limits |= {one.prompt.ids: size for one, size in zip(groups[0], (2, 7, 1), strict=True)}
    joins = []
    monkeypatch.setattr(generation, "encode", lambda prompts, _: made[prompts[0].ids[0]].padded())
    monkeypatch.setattr(generation, "joined", lambda *given: joins.append(1) or joined(*given))
    for policy in policies(name):
        joins.clear()
        for one in (row for group in groups for row in group):
            one.tokens.clear()
        with apply_policy(lm.model, policy) as lm.handle:
            Generation(lm, lambda row: len(row.tokens) >= limits[row.prompt.ids]).run(groups)
            for one in (row for group in groups for row in group):
                number, row = one.prompt.ids
                assert one.tokens == answers_alone(lm.model, made[number], row, limits[one.prompt.ids]), policy
        assert joins


@pytest.mark.parametrize("name", FEW)
def test_rows_that_leave_and_join_are_answered_as_alone(name, monkeypatch):
    assert can_refill(engine(name))
    check_refilled(name, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("name", REST)
def test_every_family_refills_its_batches_or_is_left_to_lm_eval(name, monkeypatch):
    if can_refill(engine(name)):
        check_refilled(name, monkeypatch)


@pytest.mark.parametrize(
    ("options", "is_plain"),
    [({"eos_token_id": 7, "temperature": 0.6}, True), ({"repetition_penalty": 1.05}, False), ({"num_beams": 2}, False)],
)
def test_settings_of_a_model_that_change_greedy_answers_are_known(options, is_plain):
    config = GenerationConfig.from_model_config(tiny.text_config())
    config.update(**options)
    assert decodes_plainly(config) == is_plain


@pytest.mark.parametrize("name", RECURRENT[:1])
def test_a_recurrence_is_left_to_lm_eval(name):
    assert not can_pack(model_of(name)) and not can_refill(engine(name))


def test_a_token_that_sees_another_answer_or_stands_elsewhere_is_found(monkeypatch):
    """What `can_pack` looks at: packing without the mask, and without the positions."""
    model = model_of("llama")
    with monkeypatch.context() as patch:
        patch.setattr(packed, "packed_mask", lambda mask, batch, model: mask)
        assert not can_pack(model)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "positions", lambda given, batch: given)
        assert not can_pack(model)
    assert can_pack(model)


def test_rows_that_fit_in_no_window_or_no_model_are_left_out():
    draw = random.Random(0)
    asked = [(place, Prompt((size,)), draw.choices(range(9), k=4)) for place, size in enumerate((5, 5, 9, 30))]

    def rows(longest=99, window=None, most=99):
        found = packed.questions_of(asked, lambda prompt: prompt.ids[0], longest, window, most)
        return [(one.length, one.tokens) for one in found]

    assert rows() == [(30, 33), (9, 12), (5, 11)]
    assert rows(longest=20) == [(9, 12), (5, 11)]
    assert rows(window=11) == [(5, 11)]
    assert rows(most=10) == [(30, 33), (9, 12), (5, 8), (5, 8)]


def test_batches_hold_tokens_with_their_padding():
    lengths = sorted((random.Random(1).randint(1, 40) for _ in range(200)), reverse=True)
    made = [*batches(lengths, int, 100)]
    assert sum(made, []) == lengths
    assert all(len(batch) * batch[0] <= 100 for batch in made)
    assert all(len(one) * one[0] + one[0] > 100 for one in made[:-1])
    assert [*batches([300, 2], int, 100)] == [[300], [2]] and [*batches([], int, 100)] == []


PATTERNS = [
    (r"#### (\-?[0-9\.\,]+)", 0), (r"([A-D])", 0), (r"(?i)answer is\s*\(?([A-D])\)?", 0), (r"x.*y|b", 0),
    (r"(-?[0-9]{2,4})|(a+b)", 1), (r"\d*", 0), (r"(?:the )?answer:? *(.+)", 0), (r"a??b+?c*", 0), (r"[^1]{2,}1", 0),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "number"), PATTERNS)
def test_a_match_that_is_settled_is_taken_of_every_longer_answer(pattern, number):
    draw, settled, count = random.Random(pattern), Settled(pattern, number), 0
    parts = [*"abcxyABD1029 .,#()-\n", "#### ", "answer is ", "the answer: ", "b", "12"]
    for _ in range(300):
        text = "".join(draw.choices(parts, k=draw.randint(1, 12)))
        if not settled(text):
            continue
        count += 1
        for _ in range(8):
            longer = text + "".join(draw.choices(parts, k=draw.randint(0, 12)))
            assert re.findall(pattern, longer)[number] == re.findall(pattern, text)[number]
    assert count > 5


def task_with(*filters):
    from lm_eval.filters import build_filter_ensemble

    return SimpleNamespace(_filters=[build_filter_ensemble("mine", [*filters])])


@pytest.mark.parametrize(
    ("filters", "is_known"),
    [
        ([["regex", {"regex_pattern": "([A-D])"}], ["take_first", None]], True),
        ([["regex", {"regex_pattern": "([A-D])", "group_select": -1}]], False),
        ([["regex", {"regex_pattern": "([A-D])$"}]], False),
        ([["regex", {"regex_pattern": "([A-D])(?=\\.)"}]], False),
        ([["regex", {"regex_pattern": "([A-D])\\1"}]], False),
        ([["lowercase", None], ["regex", {"regex_pattern": "([a-d])"}]], False),
        ([["take_first", None]], False),
    ],
)
def test_filters_that_need_the_whole_answer_are_known(filters, is_known):
    assert (Settled.of(task_with(*filters), "mine") is not None) == is_known
    assert Settled.of(task_with(*filters), "another") is None
