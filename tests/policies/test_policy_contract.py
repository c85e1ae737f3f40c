"""What a model computes under a policy, for every family, attention implementation and choice."""

from __future__ import annotations

import random

import pytest
import support
import torch
import transformers as t
from contract import (
    CHOICES,
    DROPPED,
    FALLING,
    HALF,
    NAMED,
    PAIR,
    PAIRED,
    PAIRED_IMAGES,
    PHASES,
    PLAIN,
    RANKINGS,
    READING,
    ROLE_PHASES,
    SCORES,
    WINDOWED,
    answer,
    answered,
    check,
    close,
    policy_of,
    rotated,
    scored,
    told,
)
from tiers import sample, soak
from torch._dynamo.utils import counters

from families import (
    CASES,
    FAMILIES,
    LAYERS,
    LAYOUTS,
    WITH_IMAGES,
    Batch,
    Family,
    batch_of,
    built,
    llava,
    run,
    square,
    without,
)
from skipsearch import Policy, apply_policy
from skipsearch.policies.errors import PolicyMismatch

IMAGE_CASES = [case for case in CASES if case[0] in WITH_IMAGES]
FIRST_CASES = [next(case for case in CASES if case[0] == name) for name in FAMILIES]


def varies(name):
    """True where the layers of a family are of several kinds."""
    family = FAMILIES[name]
    return bool(family.linear or family.cross or family.places or len({*family.windows}) > 1) or name in MIXED


# Families in which some layers have no positions, or no experts.
MIXED = ("smollm3", "deepseek-v3")


def everywhere_or_once():
    """Cases with True where each choice is put into every layer, and False where it is put into one.

    It is every layer where the layers differ, and in every fourth other family; in all with `-m soak`. So is the second
    attention implementation of all families but every third.
    """
    for name, attention in CASES:
        place = list(FAMILIES).index(name)
        everywhere = varies(name) or place % 4 == 0
        runs = (name, attention) in FIRST_CASES or place % 3 == 0
        yield (name, attention, everywhere) if runs else soak(name, attention, everywhere)
        if not everywhere:
            yield soak(name, attention, True)


# The second attention implementation of a family skips the same two layers everywhere. transformers generates with no
# model whose first layer attends to the image.
SHORTENED = [
    (name, attention, skipped)
    for name, attention in CASES
    for skipped in (({0}, {LAYERS - 1}, {1, 3}) if (name, attention) in FIRST_CASES else ({1, 3},))
    if not FAMILIES[name].places and not (skipped == {0} and FAMILIES[name].cross)
]
# The attention implementations of a family share the layouts.
ARRANGED = [
    (name, attention, layout)
    for name, attention in IMAGE_CASES
    for layout in (("middle", "two images") if (name, attention) in FIRST_CASES else ("first", "text"))
]


def choices_of(name, columns):
    return [choice for column in columns for choice in CHOICES[column]]


def working(name, *columns):
    return [column for column in columns if support.works(name, column)]


def mixed(name):
    """A policy with a bit of everything that the family can do."""
    layers = {0: NAMED["skip_attention"], 1: PLAIN[-1], 2: {**NAMED["skip_layer"], "phase": "decode"}, 3: PLAIN[0]}
    if name in WITH_IMAGES:
        layers |= {1: {**HALF, **PLAIN[-1]}, 3: {"token_ratio": 0.3, "ffn": "skip", "tokens": "image"}}
    return policy_of(layers)


@pytest.mark.parametrize(("name", "attention", "everywhere"), [*everywhere_or_once()])
def test_every_choice_in_every_layer_computes_what_its_formula_says(name, attention, everywhere, record_property):
    model, batch = built(name, attention), batch_of(name)
    columns = working(name, *support.TEXT, "tokens", "token_ratio")
    policies = rotated(choices_of(name, columns), name)
    # The attention implementations of a family share its policies.
    kinds = [kind for other, kind in CASES if other == name]
    step = 1 if everywhere else LAYERS
    for number in range(kinds.index(attention) * step, len(policies), len(kinds) * step):
        layers = support.taken(name, dict(enumerate(policies[number])))
        check(model, batch, policy_of(layers, SCORES[number // step % len(SCORES)]))
    record_property("works", [name, attention, columns, "FCPB"])


@pytest.mark.parametrize(("name", "attention"), sample(CASES, 3))
def test_tokens_have_their_roles_and_their_shares_of_channels(name, attention, record_property):
    model, batch = built(name, attention), batch_of(name)
    columns = working(name, *support.TEXT_ROLES, *support.TEXT_WIDTHS, *support.IMAGE_ROLES, *support.IMAGE_WIDTHS)
    policies = rotated(choices_of(name, columns), name)
    # The attention implementations of a family share its choices; each choice is in a layer that the family draws.
    kinds = [kind for other, kind in CASES if other == name]
    for number in range(kinds.index(attention) * LAYERS, len(policies), len(kinds) * LAYERS):
        layers = support.taken(name, dict(enumerate(policies[number])))
        ranking = RANKINGS[number // LAYERS % len(RANKINGS)]
        check(model, batch, policy_of(layers, SCORES[number % len(SCORES)], ranking=ranking))
    record_property("works", [name, attention, columns, "FCPB"])


@pytest.mark.parametrize(("name", "attention"), sample(CASES, 7, 2))
def test_the_layers_of_a_pair_read_the_same_and_add_half_of_what_they_add(name, attention, record_property):
    model, batch = built(name, attention), batch_of(name)
    for layers in PAIRED:
        check(model, batch, policy_of(support.taken(name, layers)))
    for layers in PAIRED_IMAGES if name in WITH_IMAGES else []:
        once = ("once", "merge") if layers is PAIRED_IMAGES[-1] else ("each_layer",)
        check(model, batch, policy_of(support.taken(name, layers), "attention", *once))
    record_property("works", [name, attention, ["pair"], "FCPB"])


@pytest.mark.parametrize(("name", "attention"), [case for case in IMAGE_CASES if FAMILIES[case[0]].grids])
def test_image_tokens_see_their_neighbours_and_the_text_before_them(name, attention, record_property):
    for layers, layout in zip(WINDOWED, ("ragged", "first"), strict=True):
        check(built(name, attention), batch_of(name, layout), policy_of(support.taken(name, layers)))
    record_property("works", [name, attention, ["window"], "FCPB"])


@pytest.mark.parametrize(("name", "attention"), sample(IMAGE_CASES, 3))
def test_a_token_that_is_removed_once_does_not_come_back(name, attention, record_property):
    model, batch = built(name, attention), batch_of(name)
    for number, layers in enumerate(FALLING, IMAGE_CASES.index((name, attention))):
        selection = (SCORES[number % len(SCORES)], "once", DROPPED[number % 2])
        check(model, batch, policy_of(support.taken(name, layers), *selection))
    record_property("works", [name, attention, ["reselect: once"], "FCPB"])


@pytest.mark.parametrize(("name", "attention"), sample(IMAGE_CASES, 3, 1))
def test_scores_come_from_the_nearest_layer_that_reads_the_image(name, attention):
    for layers in READING:
        check(built(name, attention), batch_of(name), policy_of(support.taken(name, layers)))


@pytest.mark.parametrize(("name", "attention"), FIRST_CASES)
def test_what_a_layer_cannot_do_is_refused_with_the_reason(name, attention):
    model = built(name, attention)
    for choice in choices_of(name, CHOICES):
        for number in range(LAYERS):
            refusals = support.refused(name, number, choice)
            if refusals:
                with pytest.raises(PolicyMismatch) as error, apply_policy(model, policy_of({number: choice})):
                    pass
                assert any(refusal.error in str(error.value) for refusal in refusals)


def test_the_page_of_what_works_is_what_is_declared():
    made = support.rendered(support.declared())
    assert support.committed(support.PAGE.read_text()) == made, (
        "run pytest on this file with -m '' --table policies/README.md"
    )


# Dense, bit for bit


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_an_empty_or_removed_policy_is_dense_bit_for_bit(name, attention):
    model, inputs = built(name, attention), batch_of(name).padded()
    dense, tokens = run(model, inputs).logits, answer(model, inputs)
    with apply_policy(model, Policy()):
        assert torch.equal(run(model, inputs).logits, dense)
        assert torch.equal(answer(model, inputs), tokens)
    with apply_policy(model, mixed(name)):
        assert not torch.equal(run(model, inputs).logits, dense)
        answer(model, inputs)
    assert torch.equal(run(model, inputs).logits, dense)
    assert torch.equal(answer(model, inputs), tokens)


@pytest.mark.parametrize(("name", "attention", "skipped"), SHORTENED, ids=str)
def test_skipping_layers_is_a_model_built_without_them(name, attention, skipped):
    model, inputs = built(name, attention), batch_of(name).padded()
    smaller = without(model, skipped)
    expected, tokens = run(smaller, inputs).logits, answer(smaller, inputs)
    with apply_policy(model, policy_of(dict.fromkeys(skipped, NAMED["skip_layer"]))):
        assert torch.equal(run(model, inputs).logits, expected)
        assert torch.equal(answer(model, inputs), tokens)


@pytest.mark.parametrize(("name", "attention"), IMAGE_CASES)
def test_a_ratio_that_keeps_every_token_is_dense(name, attention):
    model, inputs = built(name, attention), batch_of(name).padded()
    dense = run(model, inputs).logits
    real = inputs["attention_mask"].bool()
    turn = IMAGE_CASES.index((name, attention))
    for score in (SCORES * 2)[turn % len(SCORES) :][:3]:
        with apply_policy(model, policy_of(dict.fromkeys(range(LAYERS), {"token_ratio": 1.0}), score)):
            assert torch.equal(run(model, inputs).logits, dense)
        # This ratio is not written as one, so the tokens are gathered and scattered, and still all of them.
        with apply_policy(model, policy_of(dict.fromkeys(range(LAYERS), {"token_ratio": 1.0 - 1e-12}), score)):
            close(run(model, inputs).logits[real], dense[real])


# Layouts and ways to generate


@pytest.mark.parametrize(("name", "attention", "layout"), ARRANGED)
def test_images_may_stand_anywhere(name, attention, layout):
    check(built(name, attention), batch_of(name, layout), mixed(name))


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_sampling_draws_from_the_uncached_distribution(name, attention):
    model, batch = built(name, attention), batch_of(name)
    inputs = batch.padded("left")
    length = inputs["input_ids"].shape[1]
    with apply_policy(model, mixed(name)) as handle:
        torch.manual_seed(1)
        out = told(model, inputs, do_sample=True, num_return_sequences=2)
        whole = scored(model, handle, answered(batch, out.sequences[1::2, length:]), "left")
    close(torch.stack(out.logits, 1)[1::2], whole[:, length - 1 : -1])


# torch.compile


def compiled_equals_uncompiled(model, policy, calls, fullgraph):
    torch._dynamo.reset()
    counters.clear()
    with apply_policy(model, policy):
        compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
        for inputs in calls:
            close(run(compiled, inputs, use_cache=False).logits, run(model, inputs, use_cache=False).logits)


@pytest.mark.parametrize(("name", "attention"), sample(FIRST_CASES, 12))
def test_a_choice_without_token_selection_compiles_to_one_graph(name, attention, record_property):
    columns = working(name, *support.TEXT_COLUMNS)
    # Of the choices for one phase, each family compiles some, and the families together all.
    turn = list(FAMILIES).index(name)
    some = [*PHASES, *(choice for choices in ROLE_PHASES.values() for choice in choices)]
    phases = [PAIR, *(some[(turn + number) % len(some)] for number in range(LAYERS - 2))]
    columns = [column for column in columns if "T" in support.oracles_of(name, column)]
    narrow = {key: 0.5 for key in ("ffn_ratio", "head_ratio") if key in columns}
    for choices in (PLAIN[:LAYERS], [{**PLAIN[-1], **narrow}, *phases]):
        policy = policy_of(support.taken(name, dict(enumerate(choices))))
        compiled_equals_uncompiled(built(name, attention), policy, [batch_of(name, "text").padded()], fullgraph=True)
        assert counters["stats"]["unique_graphs"] == 1
    record_property("works", [name, attention, columns, "T"])


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_prompts_of_other_lengths_compile_once_more_and_never_again(name):
    calls = [Batch.of(FAMILIES[name], [(length,), (length - 2,)]).padded() for length in (9, 10, 11, 12)]
    compiled_equals_uncompiled(built(name, "sdpa"), policy_of(dict(enumerate(PLAIN[1:]))), calls, fullgraph=True)
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("name", ["llava", soak("qwen2.5-vl")])
def test_a_choice_about_tokens_runs_under_a_compiler(name):
    compiled_equals_uncompiled(built(name, "sdpa"), mixed(name), [batch_of(name).padded()], fullgraph=False)


# Random policies


def drawn(draw, name):
    """A policy of any choices that the family can do."""
    layers, sees = {}, name in WITH_IMAGES
    for number in range(LAYERS):
        choice = dict(draw.choice([{}, *PLAIN, {"attention": "keys_only"}, {"attention": "queries_only"}]))
        choice |= {"ffn": "skip"} if "attention" in choice and draw.random() < 0.3 else {}
        if choice:
            choice |= {"phase": draw.choice(["prefill", "decode"])} if draw.random() < 0.5 else {}
            choice |= {"tokens": draw.choice(["image", "text"])} if draw.random() < 0.5 else {}
        if sees and draw.random() < 0.4:
            choice["token_ratio"] = draw.choice([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
            choice["rest"] = draw.choice(["skip", "keys_only", "attention", "ffn"])
            choice |= draw.choice([{}, {}, {"evict": True}, {"phase": "decode"}])
        if draw.random() < 0.25 and number not in support.with_biased_experts(FAMILIES[name]):
            choice["ffn_ratio"] = draw.choice([0.1, 0.5, 0.9, 1.0])
        if draw.random() < 0.25:
            choice["head_ratio"] = draw.choice([0.5, 0.75, 1.0])
        if draw.random() < 0.2:
            choice["wiring"] = "pair"
        layers[number] = choice
    once = sees and not FAMILIES[name].linear and draw.random() < 0.5
    reselect = ("once", draw.choice(DROPPED)) if once else ("each_layer",)
    policy = policy_of(support.taken(name, layers), draw.choice(SCORES), *reselect, ranking=draw.choice(RANKINGS))
    # A ratio that changes nothing in its layer removes nothing from later ones.
    return policy.canonical() if once else policy


@pytest.mark.parametrize("seed", [*range(60), *map(soak, range(60, 300))])
def test_a_random_policy_computes_what_its_formulas_say_and_leaves_nothing(seed):
    draw = random.Random(seed)
    name, attention = draw.choice(CASES)
    model, batch = built(name, attention), batch_of(name, "ragged", seed)
    dense = run(model, batch.padded()).logits
    check(model, batch, drawn(draw, name))
    assert torch.equal(run(model, batch.padded()).logits, dense)


def test_a_ratio_leaves_a_family_with_parallel_sublayers_parallel():
    family = Family("llava-neox", llava(t.GPTNeoXConfig), image_tokens=9, pixels=square(12))
    batch = Batch.of(family, LAYOUTS["ragged"])
    check(family.build("sdpa"), batch, policy_of({1: HALF, 3: HALF}))
