"""Answers that share their prompt's forward score what they score when each is fed with it, for fewer tokens."""

import random
from types import SimpleNamespace

import pytest

import tiny
from families import FAMILIES, built
from skipsearch.evaluators.accuracy.memo import Memo
from skipsearch.evaluators.accuracy.model import lm_eval_model
from skipsearch.evaluators.accuracy.shared_prompts import prompts_to_share
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import LayerChoice
from skipsearch.policies.policy import Policy

TEXT = [name for name, family in FAMILIES.items() if not family.image_tokens]
RECURRENT = {name for name in TEXT if FAMILIES[name].linear}
POLICIES = [
    Policy(),
    Policy(layers={1: LayerChoice(attention="skip", ffn="skip"), 2: LayerChoice(ffn="skip")}),
    Policy(layers={0: LayerChoice(attention="skip", phase="decode"), 2: LayerChoice(ffn="skip", phase="prefill")}),
    Policy(layers={0: LayerChoice(attention="skip", phase="prefill"), 2: LayerChoice(attention="skip", ffn="skip")}),
]


def requests(seed, questions=5, choices=4, prompt=(9, 16), answer=(1, 4)):
    """Questions with choices, as token ids; some answers are equal up to their last token."""
    draw = random.Random(seed)

    def tokens(low, high):
        return [draw.randrange(3, 90) for _ in range(draw.randint(low, high))]

    made = []
    for _ in range(questions):
        context, first = tokens(*prompt), tokens(*answer)
        answers = [first, [*first[:-1], 7], *(tokens(*answer) for _ in range(choices - 2))]
        made += [(("", ""), context, one) for one in answers]
    return made


def scores(name, policy, asked, shares, **options):
    """What each answer scores, and how many tokens the model read."""
    model = built(name, "eager" if name in ("gemma2", "gpt-oss", "gptj") else "sdpa")
    subject = SimpleNamespace(model=model, processor=tiny.tokenizer(), is_multimodal=False)
    lm = lm_eval_model(subject, 6, Memo(0), **options)
    lm.is_exact, read = not shares, []
    hook = model.get_input_embeddings().register_forward_hook(lambda _, ids, __: read.append(ids[0].numel()))
    try:
        with apply_policy(model, policy) as lm.handle:
            found = lm._loglikelihood_tokens(asked, disable_tqdm=True)
            assert lm.handle.prompt_ends is None
    finally:
        hook.remove()
    return found, sum(read)


@pytest.mark.parametrize("name", TEXT)
def test_shared_prompts_change_nothing_but_the_work(name):
    for seed, policy in enumerate(POLICIES):
        if name in RECURRENT and any(choice.phase != "both" for choice in policy.layers.values()):
            continue
        asked = requests(seed)
        (alone, dear), (shared, cheap) = (scores(name, policy, asked, shares) for shares in (False, True))
        assert [value for value, _ in shared] == pytest.approx([value for value, _ in alone], abs=3e-5)
        assert [greedy for _, greedy in shared] == [greedy for _, greedy in alone]
        # The state of a recurrence cannot be repeated, so its prompts run once for each answer.
        assert cheap == dear if name in RECURRENT else cheap < dear / 1.5


def test_short_prompts_and_rows_that_are_too_long_are_left_to_lm_eval():
    short = requests(0, prompt=(1, 2), answer=(6, 9))
    for asked, options in ((short, {}), (requests(1), {"max_length": 8})):
        (alone, dear), (shared, cheap) = (
            scores("llama", Policy(), asked, shares, **options) for shares in (False, True)
        )
        assert shared == alone and cheap == dear
    mixed = [*short, *requests(2)]
    (alone, dear), (shared, cheap) = (scores("llama", Policy(), mixed, shares) for shares in (False, True))
    assert [value for value, _ in shared] == pytest.approx([value for value, _ in alone], abs=3e-5)
    assert cheap < dear


def test_no_more_answers_run_together_than_a_batch_has():
    asked = requests(3, questions=2, choices=20, prompt=(40, 50))
    (alone, _), (shared, _) = (scores("llama", Policy(), asked, shares) for shares in (False, True))
    assert [value for value, _ in shared] == pytest.approx([value for value, _ in alone], abs=3e-5)
    rows = {prompt.ids: len(prompt.answers) for prompt in prompts_to_share(asked, 256, 1000)}
    assert all(len(prompt.answers) <= 6 for prompt in prompts_to_share(asked, 256, 6)) and max(rows.values()) > 6
