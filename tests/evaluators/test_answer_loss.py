"""The answer loss equals a computation by hand, one unpadded forward at a time, and shares its work with accuracy."""

import math

import pytest
import torch
import yaml

import tiny
from skipsearch.evaluators.accuracy import rungs as rungs
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.accuracy.tasks import load_tasks
from skipsearch.evaluators.answer_loss import AnswerLossEvaluator, AnswerLossOptions
from skipsearch.evaluators.gold import has_answers
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError
from skipsearch.policies.policy import Policy

DOCS = 5
SEVERAL = {"doc_to_target": "{{[answer, choices[0], choices[1]]}}"}
RAW = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
BY_LENGTH = [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}]
CASES = [
    ("llama", "text_mc", {"metric_list": RAW}),
    ("llama", "text_mc", {"metric_list": BY_LENGTH}),
    ("llama", "text_mc", {"doc_to_target": "{{[0, label]}}", "metric_list": RAW}),
    ("llama", "text_gen", {}),
    ("llama", "text_gen", SEVERAL),
    ("llava", "image_mc", {"metric_list": RAW}),
    ("llava", "image_gen", {}),
    ("llava", "image_gen", SEVERAL),
]
LIKELIHOOD = {"output_type": "loglikelihood", "doc_to_target": " {{choices[0]}}", "metric_list": RAW}
PERPLEXITY = [{"metric": "word_perplexity"}]
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_target": "{{question}}",
    "doc_to_text": "",
    "metric_list": PERPLEXITY,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("tiny"))


def edited(world, task, name="edited", **changes):
    with open(world.tasks[task]) as file:
        config = {**yaml.safe_load(file), "task": name, **changes}
    path = world.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def options_of(*paths, **options):
    return {"tasks": list(paths), "search": {"limit": DOCS}, "report": {"limit": 3}, **options}


def evaluator(world, kind, *paths, **options):
    return AnswerLossEvaluator(AnswerLossOptions(**options_of(*paths, **options)), getattr(world, kind))


def measured(found, model, policy, split="search"):
    with apply_policy(model, policy) as handle:
        return found.measure(handle, split)[found.name]


def some_policy(kind):
    layers = {0: CHOICES["skip_ffn"], 3: LayerChoice(attention="skip", phase="decode")}
    return Policy(layers={**layers, 1: LayerChoice(token_ratio=0.5)} if kind == "llava" else layers)


def documents(found):
    return [
        doc for task in found._tasks("search").values() for doc in {r.doc_id: r.doc for r in task.instances}.values()
    ]


def predictions(subject, policy, document, answer, question=None):
    """Log-probabilities at each place of an answer; no padding, no cache, no batch."""
    images = {"images": [document["image"]]} if "image" in document else {}
    prompt = subject.processor(text=[question or document["question"]], return_tensors="pt", **images)
    start = prompt["input_ids"].shape[1]
    ids = torch.cat([prompt["input_ids"], torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)
    pixels = {key: value for key, value in prompt.items() if key == "pixel_values"}
    with torch.no_grad(), apply_policy(subject.model, policy) as handle:
        handle.prompt_ends = torch.tensor([start])
        return subject.model(input_ids=ids, **pixels).logits[0, start - 1 :].double().log_softmax(-1)


def likelihoods(subject, policy, document, text):
    answer = subject.tokenizer(" " + text)["input_ids"]
    return predictions(subject, policy, document, answer).gather(1, torch.tensor(answer)[:, None])[:, 0]


def apart(dense, other):
    return (dense.exp() * (dense - other)).sum(-1)


def choices_by_hand(subject, policy, document, changes):
    """Loss and divergence of a document with choices, from the definition."""
    lengths = [len(choice) if changes["metric_list"] is BY_LENGTH else 1 for choice in document["choices"]]
    dense, other = (
        torch.stack(
            [
                likelihoods(subject, model, document, text).sum() / length
                for text, length in zip(document["choices"], lengths, strict=True)
            ]
        ).log_softmax(0)
        for model in (Policy(), policy)
    )
    gold = {0, document["label"]} if "doc_to_target" in changes else {document["label"]}
    return -math.log(sum(other[place].exp().item() for place in gold)), apart(dense, other).item()


def texts_by_hand(subject, policy, document, changes):
    """Loss and divergence of a document with a text, or several, as its answer."""
    texts = [document["answer"], *(document["choices"][:2] if changes is SEVERAL else [])]
    losses = [-likelihoods(subject, policy, document, text).mean().item() for text in texts]
    tokens = [subject.tokenizer(" " + text)["input_ids"] for text in texts]
    places = [
        apart(*(predictions(subject, model, document, answer) for model in (Policy(), policy))) for answer in tokens
    ]
    return min(losses), torch.cat(places).mean().item()


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize(("kind", "task", "changes"), CASES)
def test_equals_a_computation_by_hand(world, kind, task, changes, batch_size):
    subject, found = getattr(world, kind), evaluator(world, kind, edited(world, task, **changes), batch_size=batch_size)
    result = measured(found, subject.model, some_policy(kind))
    by_hand = choices_by_hand if task.endswith("_mc") else texts_by_hand
    losses, divergences = zip(
        *(by_hand(subject, some_policy(kind), document, changes) for document in documents(found)), strict=True
    )
    assert result.detail["per_example"] == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert result.detail["divergences"] == pytest.approx(divergences, rel=1e-3, abs=1e-5)
    assert result.value == pytest.approx(sum(losses) / DOCS, rel=1e-4)
    assert result.detail["divergence"] == pytest.approx(sum(divergences) / DOCS, rel=1e-3)
    assert result.n == DOCS
    assert min(losses) > 0 < min(divergences)


def test_texts_that_are_scored_whole_or_behind_a_prompt(world):
    subject, policy = world.llama, some_policy("llama")
    found = evaluator(world, "llama", edited(world, "text_mc", **LIKELIHOOD))
    expected = [-likelihoods(subject, policy, doc, doc["choices"][0]).mean().item() for doc in documents(found)]
    assert measured(found, subject.model, policy).detail["per_example"] == pytest.approx(expected, rel=1e-4)
    found = evaluator(world, "llama", edited(world, "text_mc", "rolling", **ROLLING))
    # All of such a text is prompt, also for a choice about the answer.
    policy = Policy(layers={2: CHOICES["skip_ffn"], 3: LayerChoice(attention="skip", phase="decode")})
    whole = Policy(layers={2: CHOICES["skip_ffn"]})
    expected = []
    for document in documents(found):
        answer = subject.tokenizer(document["question"])["input_ids"]
        found_there = predictions(subject, whole, document, answer, question="<bos>")
        expected.append(-found_there.gather(1, torch.tensor(answer)[:, None]).mean().item())
    assert measured(found, subject.model, policy).detail["per_example"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kind", "task"), [("llama", "text_mc"), ("llama", "text_gen"), ("llava", "image_gen")])
def test_the_dense_model_is_not_apart_from_itself(world, kind, task):
    for memory in (0, 1 << 20):
        found = evaluator(world, kind, world.tasks[task], memory_bytes=memory)
        result = measured(found, getattr(world, kind).model, Policy())
        assert result.detail["divergences"] == [0.0] * DOCS
        assert result.value > 0


def test_the_dense_model_is_asked_once_and_a_policy_in_one_forward_a_batch(world):
    found, counts = evaluator(world, "llava", world.tasks["image_gen"], states_bytes=0), []
    hook = world.llava.model.register_forward_hook(lambda *_: counts.append(1))
    numbers = []
    for policy in (some_policy("llava"), Policy(), some_policy("llava")):
        counts.clear()
        measured(found, world.llava.model, policy)
        numbers.append(len(counts))
    hook.remove()
    assert numbers == [2, 1, 1]


@pytest.mark.parametrize(("kind", "task"), [("llama", "text_mc"), ("llava", "image_gen")])
def test_a_part_and_its_continuation_are_the_whole(world, kind, task, monkeypatch):
    monkeypatch.setattr(rungs, "MIN_EXAMPLES", 2)
    model, policy = getattr(world, kind).model, some_policy(kind)
    found = evaluator(world, kind, world.tasks[task], batch_size=2)
    whole = measured(found, model, policy)
    with apply_policy(model, policy) as handle:
        first = next(found.rungs(handle, "search", (0.4, 1.0)))
    part = first["answer_loss"]
    assert part.n == len(part.detail["per_example"]) == len(part.detail["divergences"]) == 2
    places = part.detail["places"]
    for name in ("per_example", "divergences"):
        expected = [whole.detail[name][place] for place in places]
        assert part.detail[name] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    rows = []
    hook = model.lm_head.register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
    with apply_policy(model, policy) as handle:
        (rest,) = found.rungs(handle, "search", (0.4, 1.0), previous=first)
    hook.remove()
    # A prompt is fed once, and after it each of its answers.
    assert 0 < sum(rows) <= (DOCS - 2) * 2 * (1 + 4 if task == "text_mc" else 1)
    for name in ("per_example", "divergences"):
        assert rest["answer_loss"].detail[name] == pytest.approx(whole.detail[name], rel=1e-4, abs=1e-6)
    assert rest["answer_loss"].detail["divergence"] == pytest.approx(whole.detail["divergence"], rel=1e-4)


@pytest.mark.parametrize("first", ["accuracy", "answer_loss"])
def test_what_accuracy_compares_is_computed_once_for_both(world, first):
    subject, options = world.llama, options_of(world.tasks["text_mc"])
    alone = measured(AccuracyEvaluator(AccuracyOptions(**options), subject), subject.model, some_policy("llama"))
    loss = AnswerLossEvaluator(AnswerLossOptions(**options), subject)
    accuracy = AccuracyEvaluator(AccuracyOptions(**options), subject)
    order = [accuracy, loss] if first == "accuracy" else [loss, accuracy]
    measured(loss, subject.model, Policy())
    forwards = []
    hook = subject.model.register_forward_hook(lambda *_: forwards.append(1))
    with apply_policy(subject.model, some_policy("llama")) as handle:
        found = {one.name: one.measure(handle, "search")[one.name] for one in order}
    assert len(forwards) == 1, "the prompts with the answers to them"
    # Another policy has answers of its own.
    measured(accuracy, subject.model, Policy(layers={1: CHOICES["parallel"]}))
    hook.remove()
    assert len(forwards) == 2
    assert found["accuracy"].detail["per_example"] == alone.detail["per_example"]


def test_evaluators_with_other_examples_share_nothing(world):
    one, other, third = (
        evaluator(world, "llama", world.tasks["text_mc"], **more) for more in ({}, {"batch_size": 3}, {"metric": "acc"})
    )
    assert one._shared is third._shared is not other._shared


def test_several_tasks_count_alike(world):
    paths = [world.tasks[name] for name in ("image_gen", "text_mc")]
    together = measured(evaluator(world, "llava", *paths), world.llava.model, some_policy("llava"))
    alone = [measured(evaluator(world, "llava", path), world.llava.model, some_policy("llava")) for path in paths]
    assert together.value == pytest.approx(sum(one.value for one in alone) / 2, rel=1e-4)
    divergences = [one.detail["divergence"] for one in alone]
    assert together.detail["divergence"] == pytest.approx(sum(divergences) / 2, rel=1e-4)


UNUSABLE = [
    ("text_gen", {"doc_to_target": ""}),
    ("text_gen", {"doc_to_target": "{{[]}}"}),
    ("text_mc", {"doc_to_target": "{{ -1 }}"}),
    ("text_mc", {"doc_to_target": "no such choice"}),
]


@pytest.mark.parametrize(("task", "changes"), UNUSABLE)
def test_a_task_without_right_answers_is_refused_by_name(world, task, changes):
    path = edited(world, task, "blank", **changes)
    assert not has_answers(load_tasks([path], None, 0)["blank"])
    with pytest.raises(EvaluatorError, match="task blank has no right answers") as caught:
        evaluator(world, "llama", path)
    assert "divergence" in caught.value.hint


def test_a_single_document_without_an_answer_is_refused_by_number(world):
    last = documents(evaluator(world, "llama", world.tasks["text_mc"]))[-1]["question"]
    target = f"{{{{7 if question == {last!r} else label}}}}"
    path = edited(world, "text_mc", "holes", doc_to_target=target)
    with pytest.raises(EvaluatorError, match=f"holes: the right answer is none.*\n  document {DOCS - 1}: .* choice 7"):
        measured(evaluator(world, "llama", path), world.llama.model, Policy())


@pytest.mark.parametrize("task", ["text_mc", "text_gen", "image_mc", "image_gen"])
def test_tasks_with_right_answers_are_known(world, task):
    assert has_answers(load_tasks([world.tasks[task]], None, 0)[task])
