"""Divergence equals a computation by hand, one unpadded forward at a time, and top-k bounds it from below."""

import pytest
import torch
import yaml

import tiny
from skipsearch.evaluators.accuracy import rungs as rungs
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.accuracy.memo import Memo
from skipsearch.evaluators.accuracy.model import lm_eval_model
from skipsearch.evaluators.answers import whole_text
from skipsearch.evaluators.base import IncrementalEvaluator
from skipsearch.evaluators.divergence import DivergenceEvaluator, DivergenceOptions
from skipsearch.evaluators.predictions import divergence, merge_others, top_tokens
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.policy import Policy

VOCABULARY = len(tiny.SPECIAL) + len(tiny.WORDS)
EOS, IMAGE = tiny.SPECIAL.index("<eos>"), tiny.SPECIAL.index("<image>")
DOCS = 5
KINDS = [("llama", "text_mc"), ("llama", "text_gen"), ("llava", "image_mc"), ("llava", "image_gen")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("tiny"))


def evaluator(world, kind, *tasks, **options):
    paths = [world.tasks.get(task, task) for task in tasks]
    return DivergenceEvaluator(
        DivergenceOptions(**{"tasks": paths, "search": {"limit": DOCS}, **options}), getattr(world, kind)
    )


def measured(found, model, policy, split="search"):
    with apply_policy(model, policy) as handle:
        result = found.measure(handle, split)["divergence"]
        assert handle.prompt_ends is None
    return result


def some_policy(kind):
    layers = {0: CHOICES["skip_ffn"], 1: CHOICES["skip_attention"], 3: CHOICES["parallel"]}
    return Policy(layers={**layers, 2: LayerChoice(token_ratio=0.5)} if kind == "llava" else layers)


def logits(subject, prompt, answer):
    """Of every place from the last of the prompt on; no padding, no cache."""
    ids = torch.cat([prompt["input_ids"], torch.tensor([answer], dtype=torch.long)], dim=1)
    pixels = {key: value for key, value in prompt.items() if key == "pixel_values"}
    with torch.no_grad():
        return subject.model(input_ids=ids, **pixels).logits[0, prompt["input_ids"].shape[1] - 1 :]


def greedy(subject, prompt, until="w7"):
    """At most four tokens, up to the end or the stop word of the task, and never the token of an image."""
    answer = []
    while len(answer) < 4 and not {EOS, subject.tokenizer.convert_tokens_to_ids(until)} & set(answer):
        row = logits(subject, prompt, answer)[-1]
        row[IMAGE] = float("-inf")
        answer.append(int(row.argmax()))
    return answer


def by_hand(subject, policy, document, task):
    """The divergence of one document, from the definition."""
    images = {"images": [document["image"]]} if "image" in document else {}
    prompt = subject.processor(text=[document["question"]], return_tensors="pt", **images)
    if task.endswith("_gen"):
        answers = [greedy(subject, prompt)]
    else:
        answers = [subject.tokenizer(" " + choice)["input_ids"] for choice in document["choices"]]
    found = []
    for answer in answers:
        dense = logits(subject, prompt, answer[:-1]).softmax(-1).double()
        with apply_policy(subject.model, policy) as handle:
            handle.prompt_ends = torch.tensor([prompt["input_ids"].shape[1]])
            other = logits(subject, prompt, answer[:-1]).softmax(-1).double()
        found += (dense * (dense / other).log()).sum(-1).tolist()
    return sum(found) / len(found)


def documents(found, split="search"):
    return [doc for task in found._tasks(split).values() for doc in {r.doc_id: r.doc for r in task.instances}.values()]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_equals_a_computation_by_hand(world, kind, task, batch_size):
    subject, found = getattr(world, kind), evaluator(world, kind, task, batch_size=batch_size)
    result = measured(found, subject.model, some_policy(kind))
    expected = [by_hand(subject, some_policy(kind), document, task) for document in documents(found)]
    assert min(expected) > 0.01
    assert result.detail["per_example"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert result.value == pytest.approx(sum(expected) / DOCS, rel=1e-4)
    assert result.stderr == pytest.approx(torch.tensor(expected).std().item() / DOCS**0.5, rel=1e-3)
    assert result.n == DOCS


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_of_the_dense_model_is_exactly_nothing(world, kind, task):
    for memory in (0, 1 << 20):
        result = measured(evaluator(world, kind, task, memory_bytes=memory), getattr(world, kind).model, Policy())
        assert result.detail["per_example"] == [0.0] * DOCS


@pytest.mark.parametrize("task", ["image_mc", "image_gen"])
def test_answers_are_of_the_decode_phase_and_prompts_choose_the_image_tokens(world, task):
    found, values = evaluator(world, "llava", task), set()
    for phase in ("both", "prefill", "decode"):
        policy = Policy(layers={1: LayerChoice(attention="skip", phase=phase), 2: LayerChoice(token_ratio=0.3)})
        result = measured(found, world.llava.model, policy)
        expected = [by_hand(world.llava, policy, document, task) for document in documents(found)]
        assert result.detail["per_example"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        values.add(result.value)
    assert len(values) == 3


def test_what_the_dense_model_predicts_is_computed_once(world):
    forwards, calls = [], []
    hook = world.llava.model.register_forward_hook(lambda *_: forwards.append(1))
    tower = world.llava.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    found = evaluator(world, "llava", "image_gen", "text_mc", batch_size=16)
    counts = []
    for policy in (some_policy("llava"), Policy(), some_policy("llava")):
        forwards.clear()
        calls.clear()
        result = measured(found, world.llava.model, policy)
        counts.append((len(forwards), len(calls)))
    hook.remove()
    tower.remove()
    # One batch with images and one without: nothing is generated, and no image is looked at again.
    assert counts[0] > counts[1] == counts[2] == (2, 0)
    assert result.value > 0


def test_a_full_memory_changes_nothing(world):
    plain, forgetful = evaluator(world, "llava", "image_gen"), evaluator(world, "llava", "image_gen", memory_bytes=0)
    first = measured(plain, world.llava.model, some_policy("llava"))
    for found in (plain, forgetful, forgetful):
        again = measured(found, world.llava.model, some_policy("llava"))
        assert again.detail["per_example"] == first.detail["per_example"]


@pytest.mark.parametrize("task", ["text_mc", "text_gen"])
def test_some_tokens_apart_are_a_lower_bound_that_grows_to_the_whole(world, task):
    values = [
        measured(evaluator(world, "llama", task, top_k=k), world.llama.model, some_policy("llama")).value
        for k in (1, 4, 16, VOCABULARY - 1, VOCABULARY, 10**6)
    ]
    assert 0 < values[0] < values[1] < values[2] < values[3]
    assert values[3:] == pytest.approx([values[4]] * 3, rel=1e-5)
    assert values[4] == values[5]


def test_merging_keeps_all_of_the_probability():
    torch.manual_seed(0)
    dense, other = (torch.randn(7, 50).mul(3).log_softmax(-1) for _ in range(2))
    tokens = top_tokens(dense, 8)
    whole = divergence(dense, other)
    assert torch.allclose(merge_others(other, tokens).exp().sum(1), torch.ones(7))
    assert (divergence(merge_others(dense, tokens), merge_others(other, tokens)) <= whole).all()
    assert (divergence(dense, dense) == 0).all()
    assert torch.allclose(
        whole, torch.nn.functional.kl_div(other, dense, log_target=True, reduction="none").sum(1).double(), atol=1e-5
    )


def test_its_examples_are_those_of_accuracy(world):
    limits = {"search": {"limit": 4}, "report": {"limit": 3}}
    ours = evaluator(world, "llama", "text_mc", **limits)
    theirs = AccuracyEvaluator(AccuracyOptions(tasks=[world.tasks["text_mc"]], **limits), world.llama)
    for split, count in (("search", 4), ("report", 3)):
        assert documents(ours, split) == documents(theirs, split)
        assert measured(ours, world.llama.model, Policy(), split).n == count


def test_of_several_tasks_the_plain_mean(world):
    names = ("image_gen", "text_mc", "image_mc")
    together = measured(evaluator(world, "llava", *names), world.llava.model, some_policy("llava"))
    alone = [measured(evaluator(world, "llava", name), world.llava.model, some_policy("llava")) for name in names]
    assert list(together.detail["tasks"]) == list(names)
    assert together.value == pytest.approx(sum(one.value for one in alone) / 3, rel=1e-4)
    assert together.stderr == pytest.approx(sum(one.stderr**2 for one in alone) ** 0.5 / 3, rel=1e-3)
    assert together.n == len(together.detail["per_example"]) == 3 * DOCS


@pytest.mark.parametrize("task", ["text_mc", "image_gen"])
def test_a_share_of_the_examples_first(world, task, monkeypatch):
    monkeypatch.setattr(rungs, "MIN_EXAMPLES", 2)
    kind = "llava" if task == "image_gen" else "llama"
    found, policy = evaluator(world, kind, task, batch_size=2), some_policy(kind)
    assert isinstance(found, IncrementalEvaluator)
    whole = measured(found, getattr(world, kind).model, policy)
    with apply_policy(getattr(world, kind).model, policy) as handle:
        parts = [part["divergence"] for part in found.rungs(handle, "search", (0.4, 1.0))]
    assert [part.n for part in parts] == [2, DOCS]
    first, last = parts[0].detail, parts[1].detail
    assert first["total"] == DOCS
    expected = [whole.detail["per_example"][place] for place in first["places"]]
    assert first["per_example"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert parts[0].value == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert last["per_example"] == pytest.approx(whole.detail["per_example"], rel=1e-4, abs=1e-6)


def test_an_answer_ends_with_the_text_that_ends_it(world):
    questions = [doc["question"] for doc in documents(evaluator(world, "llama", "text_gen"))]
    prompts = [world.llama.tokenizer([question], return_tensors="pt") for question in questions]
    word = world.llama.tokenizer.decode(greedy(world.llama, prompts[1])[1])
    path = edited(world, "text_gen", "stopped", generation_kwargs={"until": word, "max_gen_toks": 4})
    found = evaluator(world, "llama", path)
    measured(found, world.llama.model, Policy())
    rows = {row.examples[0]: row.fed for row in found._answers["search", (1.0,), 0].batches[0]}
    expected = [greedy(world.llama, prompt, word) for prompt in prompts]
    assert [rows[number] for number in range(DOCS)] == [tuple(answer[:-1]) for answer in expected]
    assert len(expected[1]) == 2 < max(map(len, expected))


def test_no_image_token_is_answered(world):
    def tempt(module, args, output):
        output[..., IMAGE] += 100

    hook = world.llava.model.lm_head.register_forward_hook(tempt)
    found = evaluator(world, "llava", "image_gen")
    measured(found, world.llava.model, Policy())
    hook.remove()
    assert not any(IMAGE in row.fed for row in found._answers["search", (1.0,), 0].batches[0])


def test_one_question_about_several_pictures_is_asked_of_each(world):
    asked = {"question": "w1 <image> w2", "choices": ["w3 w4", "w5"]}
    path = edited(world, "image_mc", "same", doc_to_text=asked["question"], doc_to_choice=asked["choices"])
    found = evaluator(world, "llava", path)
    result = measured(found, world.llava.model, some_policy("llava"))
    expected = [by_hand(world.llava, some_policy("llava"), doc | asked, "image_mc") for doc in documents(found)]
    assert result.detail["per_example"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(set(expected)) == DOCS


def edited(world, task, name, **changes):
    with open(world.tasks[task]) as file:
        config = {**yaml.safe_load(file), "task": name, **changes}
    path = world.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_answers_of_one_token_share_a_forward(world):
    letters = edited(world, "text_mc", "letters", doc_to_choice=["w1", "w2", "w3"])
    found, rows = evaluator(world, "llama", letters), []
    hook = world.llama.model.lm_head.register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
    result = measured(found, world.llama.model, some_policy("llama"))
    hook.remove()
    assert rows == [DOCS, DOCS]
    assert result.value > 0


def test_a_text_that_is_scored_whole_is_all_prompt(world):
    path = edited(
        world,
        "text_mc",
        "whole",
        output_type="loglikelihood_rolling",
        doc_to_target="{{question}}",
        doc_to_text="",
        metric_list=[{"metric": "word_perplexity"}],
    )
    found, values = evaluator(world, "llama", path), {}
    for phase in ("both", "prefill", "decode"):
        policy = Policy(layers={1: LayerChoice(ffn="skip", phase=phase)})
        values[phase] = measured(found, world.llama.model, policy).value
    assert values["prefill"] == values["both"] > values["decode"] == 0
    longest = max(len(document["question"].split()) for document in documents(found))
    row = found._answers["search", (1.0,), 0].batches[0][0]
    assert row.back == len(row.prompt.ids) == longest


def test_a_long_text_is_scored_in_parts(world):
    model = lm_eval_model(world.llama, 4, Memo(0))
    model._max_length = 4
    parts = list(whole_text(list(range(10, 20)), model))
    assert [part.prompt.ids for part in parts] == [(1, 10, 11, 12), (13, 14, 15, 16), (17, 18)]


def test_sampled_answers_are_replaced_by_greedy_ones(world):
    sampled = {"until": ["w7"], "max_gen_toks": 4, "do_sample": True, "temperature": 9.0}
    path = edited(world, "text_gen", "sampled", generation_kwargs=sampled)
    values = [
        measured(evaluator(world, "llama", task), world.llama.model, some_policy("llama")).detail["per_example"]
        for task in ("text_gen", path)
    ]
    assert values[0] == values[1]


def test_costs_are_measured_on_the_prompt_of_accuracy_where_both_are_there(world):
    subject, path = world.llama, world.tasks["text_mc"]
    subject.prompts = []
    evaluator(world, "llama", "text_gen")
    assert len(subject.prompts) == 4
    AccuracyEvaluator(AccuracyOptions(tasks=[path], search={"limit": 2}), subject)
    chosen = subject.prompts
    evaluator(world, "llama", "text_gen")
    assert subject.prompts is chosen
