"""Evaluators that go on from kept hidden states measure exactly what they would have measured without."""

import random

import pytest
import yaml
from lm_eval.api.instance import Instance

import tiny
from skipsearch.evaluators.accuracy import rungs as rungs
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.accuracy.memo import Memo
from skipsearch.evaluators.accuracy.model import lm_eval_model
from skipsearch.evaluators.answer_loss import AnswerLossEvaluator, AnswerLossOptions
from skipsearch.evaluators.divergence import DivergenceEvaluator, DivergenceOptions
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.policy import Policy
from skipsearch.policies.runtime.prefix import PrefixStates
from skipsearch.policies.scores.token_selection import TokenSelection

KINDS = {
    "divergence": (DivergenceEvaluator, DivergenceOptions),
    "answer_loss": (AnswerLossEvaluator, AnswerLossOptions),
    "accuracy": (AccuracyEvaluator, AccuracyOptions),
}
ON_ALL = [
    LayerChoice(),
    CHOICES["skip_ffn"],
    CHOICES["skip_layer"],
    CHOICES["parallel"],
    LayerChoice(attention="skip", phase="decode"),
    LayerChoice(ffn="skip", phase="prefill", tokens="text"),
]
ON_IMAGES = [LayerChoice(token_ratio=0.5), LayerChoice(ffn="skip", tokens="image", token_ratio=0.3)]
CASES = [
    ("divergence", "llama", "text_mc", "each_layer"),
    ("divergence", "llava", "image_gen", "each_layer"),
    ("divergence", "llava", "image_mc", "once"),
    ("answer_loss", "llava", "image_mc", "each_layer"),
    ("answer_loss", "llava", "image_gen", "once"),
    ("accuracy", "llama", "text_mc", "each_layer"),
    ("accuracy", "llava", "image_mc", "each_layer"),
    ("accuracy", "llava", "image_mc", "once"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("tiny"))


def evaluator(world, name, kind, task, **options):
    made, known = KINDS[name]
    given = {"tasks": [world.tasks[task]], "search": {"limit": 6}, "report": {"limit": 6}, "batch_size": 2}
    return made(known(**{**given, **options}), getattr(world, kind))


def measured(found, model, policy, split="search"):
    with apply_policy(model, policy) as handle:
        return found.measure(handle, split)[found.name]


def walk(kind, reselect, count=7):
    """Policies that each begin as one before does."""
    draw = random.Random(f"{kind} {reselect}")
    choices = ON_ALL + (ON_IMAGES if kind == "llava" else [])
    found = [[LayerChoice()] * tiny.LAYERS]
    while len(found) < count:
        start = draw.randrange(tiny.LAYERS)
        found.append([*draw.choice(found)[:start], *(draw.choice(choices) for _ in range(tiny.LAYERS - start))])
    return [Policy.of(layers, TokenSelection(reselect=reselect)) for layers in found]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_the_figures_are_the_same_to_the_last_bit(world, case):
    name, kind, task, reselect = case
    model, (keeping, plain) = getattr(world, kind).model, (
        evaluator(world, name, kind, task, states_bytes=size) for size in (1 << 24, 0)
    )  # fmt: skip
    saved = 0
    for policy in walk(kind, reselect):
        # In a search, answers share the forward of a text prompt instead.
        one, other = (measured(found, model, policy, "report") for found in (keeping, plain))
        assert one.detail["per_example"] == other.detail["per_example"]
        assert (one.value, one.stderr) == (other.value, other.stderr)
        layers, without = one.detail["layers"], other.detail["layers"]
        assert layers["asked"] == without["asked"]
        saved += without["run"] - layers["run"]
    assert saved > 0


@pytest.mark.parametrize("name", KINDS)
def test_layers_are_counted_that_were_asked_for_and_that_were_run(world, name):
    found, model = evaluator(world, name, "llama", "text_mc"), world.llama.model
    forwards = []
    hooks = [layer.mlp.register_forward_hook(lambda *_: forwards.append(1)) for layer in model.model.layers]
    for policy in (Policy(), Policy(layers={3: CHOICES["parallel"]}), Policy(layers={1: CHOICES["parallel"]})):
        forwards.clear()
        layers = measured(found, model, policy, "report").detail["layers"]
        assert layers["run"] == len(forwards) < layers["asked"] or policy.is_dense
    for hook in hooks:
        hook.remove()
    assert layers["run"] * 4 == layers["asked"] * 3


def test_a_policy_that_tells_prompt_from_answer_goes_on_from_one_that_does_not(world):
    found, model = evaluator(world, "accuracy", "llama", "text_mc"), world.llama.model
    measured(found, model, Policy(), "report")
    policy = Policy(layers={3: LayerChoice(ffn="skip", phase="decode")})
    layers = measured(found, model, policy, "report").detail["layers"]
    assert layers["run"] * 4 == layers["asked"]


def test_states_of_the_search_make_room_for_those_of_the_report(world):
    found, model = evaluator(world, "divergence", "llama", "text_mc"), world.llama.model
    measured(found, model, Policy())
    search = {*found._states._store._batches}
    measured(found, model, Policy(), "report")
    measured(found, model, Policy(layers={3: CHOICES["skip_ffn"]}), "report")
    assert {key[0] for key in found._states._store._batches} == {"report"} != {key[0] for key in search}


def test_what_goes_on_with_more_examples_counts_all_of_its_layers(world, monkeypatch):
    monkeypatch.setattr(rungs, "MIN_EXAMPLES", 2)
    found, model = evaluator(world, "divergence", "llama", "text_mc"), world.llama.model
    policy = Policy(layers={2: CHOICES["skip_ffn"]})
    measured(found, model, Policy())
    with apply_policy(model, policy) as handle:
        first = next(found.rungs(handle, "search", (0.4, 1.0)))
        whole = [*found.rungs(handle, "search", (0.4, 1.0), previous=first)][-1]
    asked = [entry["divergence"].detail["layers"]["asked"] for entry in (first, whole)]
    assert 0 < asked[0] < asked[1]


def test_tasks_that_generate_have_no_layers_to_save(world):
    found = evaluator(world, "accuracy", "llama", "text_gen")
    assert "layers" not in measured(found, world.llama.model, Policy()).detail


def test_rows_that_are_fed_alike_but_have_other_prompts_are_told_apart(world):
    model, states = world.llama.model, PrefixStates(1 << 24)
    lm = lm_eval_model(world.llama, 16, Memo(0), states)
    questions = [("w1 w2", " w3 w4"), ("w1", " w2 w3 w4")]
    found = {}
    for policy in (Policy(), Policy(layers={2: LayerChoice(ffn="skip", phase="decode")})):
        for known in (lm, lm_eval_model(world.llama, 16, Memo(0))):
            with apply_policy(model, policy) as known.handle:
                requests = [Instance("loglikelihood", {}, pair, 0) for pair in questions]
                found[policy.fingerprint, known is lm] = [known.loglikelihood([one])[0] for one in requests]
        assert found[policy.fingerprint, True] == found[policy.fingerprint, False]
    assert states.run < states.asked


def test_one_question_about_several_pictures_is_answered_for_each(world):
    with open(world.tasks["image_mc"]) as file:
        asked = {"task": "alike", "doc_to_text": "w1 <image> w2", "doc_to_choice": ["w3 w4", "w5 w6", "w7"]}
        config = {**yaml.safe_load(file), **asked}
    world.tasks["alike"] = str(world.folder / "alike.yaml")
    (world.folder / "alike.yaml").write_text(yaml.safe_dump(config))
    one, other = (
        evaluator(world, "accuracy", "llava", "alike", batch_size=1, states_bytes=size) for size in (1 << 24, 0)
    )
    requests = [request for found in (one, other) for request in found._tasks("search")["alike"].instances]
    for found in (one, other):
        measured(found, world.llava.model, Policy())
    scores = [request.resps for request in requests]
    assert scores[: len(scores) // 2] == scores[len(scores) // 2 :]
