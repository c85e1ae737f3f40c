"""Accuracy equals `lm_eval.simple_evaluate` on the same patched model, and what is remembered changes nothing."""

import random
from pathlib import Path

import lm_eval
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.accuracy.memo import Memo, cached_image_features
from skipsearch.evaluators.accuracy.model import lm_eval_model
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES, LayerChoice
from skipsearch.policies.errors import EvaluatorError
from skipsearch.policies.policy import Policy
from skipsearch.policies.trained.adapters import Adapters

BATCH = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch):
    # simple_evaluate runs pip in a subprocess to describe the machine.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def policies(has_images, count=2):
    """Dense, and some random policies."""
    draw = random.Random(5)
    choices = [choice for choice in CHOICES.values() if has_images or choice.tokens == "all"]
    choices += [LayerChoice(token_ratio=0.5)] if has_images else []
    yield Policy()
    for _ in range(count):
        yield Policy.of([draw.choice(choices) for _ in range(tiny.LAYERS)])


def evaluator(subject, *tasks, **options):
    return AccuracyEvaluator(AccuracyOptions(tasks=list(tasks), batch_size=BATCH, **options), subject)


def reference(model, tasks, **options):
    manager = TaskManager(include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager, bootstrap_iters=10, **options)


def plain_lm(subject):
    if subject.is_multimodal:
        return HFMultimodalLM(pretrained=subject.model, batch_size=BATCH)
    return HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=BATCH)


def responses(measured, split):
    """What the model answered, by task and document."""
    found = {}
    for name, task in measured._tasks(split).items():
        for request in task.instances:
            found.setdefault((name, request.doc_id), []).append(request.resps)
    return found


def alike(found, expected):
    """Equal answers; log-likelihoods up to rounding, since answers to one prompt share its row in a search."""
    if found.keys() != expected.keys():
        return False
    return all(
        same(ours, theirs)
        for key in found
        for ours, theirs in zip(sum(found[key], []), sum(expected[key], []), strict=True)
    )


def same(ours, theirs):
    if isinstance(ours, str):
        return ours == theirs
    return ours[1] == theirs[1] and ours[0] == pytest.approx(theirs[0], abs=1e-5)


def their_responses(results):
    return {
        (name, sample["doc_id"]): sample["resps"] for name, samples in results["samples"].items() for sample in samples
    }


@pytest.mark.parametrize(
    ("kind", "task"),
    [("llama", "text_mc"), ("llama", "text_gen"), ("llava", "text_mc"), ("llava", "image_gen"), ("llava", "image_mc")],
)
def test_equals_simple_evaluate(world, kind, task):
    subject, path = getattr(world, kind), world.tasks[task]
    measured = evaluator(subject, path, search={"limit": 7})
    metric = "acc" if task.endswith("mc") else "exact_match"
    values = set()
    for policy in policies(kind == "llava"):
        with apply_policy(subject.model, policy) as handle:
            # lm-eval has no image multiple choice of its own; test_image_choices_by_hand is its oracle.
            lm = lm_eval_model(subject, BATCH, Memo(0)) if task == "image_mc" else plain_lm(subject)
            lm.handle = handle
            for split, docs in (("search", range(7)), ("report", range(7, 24 if "text" in task else 12))):
                ours = measured.measure(handle, split)["accuracy"]
                theirs = reference(lm, [path], samples={task: list(docs)})
                assert ours.value == theirs["results"][task][f"{metric},none"]
                assert ours.stderr == theirs["results"][task][f"{metric}_stderr,none"]
                assert ours.n == len(docs)
                assert ours.detail["per_example"] == [sample[metric] for sample in theirs["samples"][task]]
                found, expected = responses(measured, split), their_responses(theirs)
                assert found == expected if split == "report" else alike(found, expected)
                values.add(str(responses(measured, split)))
    assert len(values) > 2, "the policies should not all answer alike"


def test_equals_simple_evaluate_with_examples_in_the_prompt(world):
    measured = evaluator(world.llama, world.tasks["text_gen"], search={"limit": 5}, num_fewshot=2)
    with apply_policy(world.llama.model, Policy()) as handle:
        ours = measured.measure(handle, "search")["accuracy"]
        theirs = reference(plain_lm(world.llama), [world.tasks["text_gen"]], limit=5, num_fewshot=2)
    assert responses(measured, "search") == their_responses(theirs)
    assert ours.value == theirs["results"]["text_gen"]["exact_match,none"]


def test_equals_simple_evaluate_with_a_chat_template(world, monkeypatch):
    template = "{% for m in messages %}w2 {{ m['content'] }} {% endfor %}w3 "
    monkeypatch.setattr(world.llama.tokenizer, "chat_template", template, raising=False)
    path = world.tasks["text_mc"]
    measured = evaluator(world.llama, path, search={"limit": 5}, apply_chat_template=True)
    with apply_policy(world.llama.model, Policy()) as handle:
        measured.measure(handle, "search")
        theirs = reference(plain_lm(world.llama), [path], limit=5, apply_chat_template=True)
    assert alike(responses(measured, "search"), their_responses(theirs))


def test_several_tasks_with_and_without_images(world):
    names = ("image_gen", "text_mc", "image_mc", "text_gen")
    measured = evaluator(world.llava, *(world.tasks[name] for name in names), search={"limit": 6})
    with apply_policy(world.llava.model, Policy()) as handle:
        accuracy = measured.measure(handle, "search")["accuracy"]
        lm = lm_eval_model(world.llava, BATCH, Memo(0))
        theirs = reference(lm, [world.tasks[name] for name in names], limit=6)
    tasks = accuracy.detail["tasks"]
    assert list(tasks) == list(names)
    assert alike(responses(measured, "search"), their_responses(theirs))
    assert accuracy.value == sum(part["value"] for part in tasks.values()) / 4
    assert accuracy.stderr == pytest.approx(sum(part["stderr"] ** 2 for part in tasks.values()) ** 0.5 / 4)
    assert accuracy.n == len(accuracy.detail["per_example"]) == 24


def test_choices_and_generation_together_select_tokens_as_they_do_alone(world):
    names = ("image_mc", "image_gen")
    measured = evaluator(world.llava, *(world.tasks[name] for name in names), search={"limit": 6})
    with apply_policy(world.llava.model, Policy(layers={1: LayerChoice(token_ratio=0.3)})) as handle:
        measured.measure(handle, "search")
        alone = their_responses(reference(plain_lm(world.llava), [world.tasks["image_gen"]], limit=6))
    together = responses(measured, "search")
    assert {key: together[key] for key in alone} == alone


def by_hand(subject, handle, document):
    """Log-likelihood of each choice: one unpadded forward each, and no code of ours or of lm-eval."""
    found = []
    for choice in document["choices"]:
        images = {"images": [document["image"]]} if "image" in document else {}
        prompt = subject.processor(text=[document["question"]], return_tensors="pt", **images)
        pixels = {key: value for key, value in prompt.items() if key == "pixel_values"}
        answer = subject.tokenizer(" " + choice, return_tensors="pt")["input_ids"]
        start = prompt["input_ids"].shape[1]
        handle.prompt_ends = torch.tensor([start])
        ids = torch.cat([prompt["input_ids"], answer], dim=1)
        with torch.no_grad():
            logits = subject.model(input_ids=ids[:, :-1], **pixels).logits
        chosen = logits[0, start - 1 :].log_softmax(-1)
        found.append((chosen.gather(1, answer[0, :, None]).sum().item(), bool((chosen.argmax(-1) == answer[0]).all())))
    handle.prompt_ends = None
    return found


def check_choices_by_hand(subject, path, policy, batch_size):
    """Every answer's log-likelihood, and whether the right one was the likeliest."""
    measured = AccuracyEvaluator(AccuracyOptions(tasks=[path], batch_size=batch_size, search={"limit": 6}), subject)
    with apply_policy(subject.model, policy) as handle:
        accuracy = measured.measure(handle, "search")["accuracy"]
        assert handle.prompt_ends is None
        (task,) = measured._tasks("search").values()
        correct = []
        for document in {request.doc_id: request.doc for request in task.instances}.values():
            expected = by_hand(subject, handle, document)
            ours = [r.resps[0] for r in task.instances if r.doc is document]
            assert [value for value, _ in ours] == pytest.approx([value for value, _ in expected], abs=1e-5)
            assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]
            scores = [value for value, _ in expected]
            correct.append(float(scores.index(max(scores)) == document["label"]))
        assert accuracy.detail["per_example"] == correct
        return str(responses(measured, "search"))


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_image_choices_by_hand(world, batch_size):
    for policy in policies(has_images=True, count=3):
        check_choices_by_hand(world.llava, world.tasks["image_mc"], policy, batch_size)


@pytest.mark.parametrize("kind", ["llama", "llava"])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_an_answer_that_is_scored_is_of_the_decode_phase(world, kind, batch_size):
    found = set()
    for phase in ("both", "prefill", "decode"):
        layers = {1: LayerChoice(ffn="skip", phase=phase), 2: LayerChoice(attention="skip", phase=phase)}
        path = world.tasks["text_mc" if kind == "llama" else "image_mc"]
        found.add(check_choices_by_hand(getattr(world, kind), path, Policy(layers=layers), batch_size))
    assert len(found) == 3


def adapted(model):
    """A policy with an adapter in place of an attention, and that adapter."""
    policy = Policy(layers={1: LayerChoice(attention="adapter")})
    torch.manual_seed(0)
    adapters = Adapters.of(model, policy, 4)
    for parameter in adapters.parameters():
        parameter.data.normal_()
    return policy, adapters.requires_grad_(False)


@pytest.mark.parametrize("kind", ["phases", "adapter"])
def test_one_row_that_is_read_with_two_prompts_is_scored_for_each(world, kind):
    phases = {1: LayerChoice(ffn="skip", phase="decode"), 2: LayerChoice(wiring="parallel", phase="prefill")}
    policy, adapters = (Policy(layers=phases), None) if kind == "phases" else adapted(world.llama.model)
    texts = [("w1 w2 w3", " w4 w5"), ("w1 w2", " w3 w4 w6"), ("w9", " w8"), ("w1 w2 w3", " w4 w7")]
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(texts)]
    lm = lm_eval_model(world.llama, BATCH, Memo(0))
    with apply_policy(world.llama.model, policy, adapters=adapters) as lm.handle:
        together = lm.loglikelihood(requests, disable_tqdm=True)
        alone = [lm.loglikelihood([request], disable_tqdm=True)[0] for request in requests]
        document = {"question": "w1 w2", "choices": ["w3 w4 w6"]}
        assert together[1][0] == pytest.approx(by_hand(world.llama, lm.handle, document)[0][0], abs=1e-5)
    assert [value for value, _ in together] == pytest.approx([value for value, _ in alone], abs=1e-5)


def test_a_text_without_a_prompt_is_all_prompt(world):
    lm = lm_eval_model(world.llama, BATCH, Memo(0))
    request = Instance("loglikelihood_rolling", {}, ("w1 w2 w3 w4",), 0)
    values = {}
    for phase in ("both", "prefill", "decode"):
        with apply_policy(world.llama.model, Policy(layers={1: LayerChoice(ffn="skip", phase=phase)})) as lm.handle:
            values[phase] = lm.loglikelihood_rolling([request], disable_tqdm=True)[0]
    assert values["prefill"] == values["both"] != values["decode"]
    policy, adapters = adapted(world.llama.model)
    with (
        apply_policy(world.llama.model, policy, adapters=adapters) as lm.handle,
        pytest.raises(EvaluatorError, match="a text without a prompt cannot be scored under adapters"),
    ):
        lm.loglikelihood_rolling([request], disable_tqdm=True)


@pytest.mark.parametrize("task", ["image_gen", "image_mc"])
def test_remembering_is_exact_and_spares_the_vision_tower(world, task):
    options = {"search": {"limit": 6}}
    remembering = evaluator(world.llava, world.tasks[task], **options)
    forgetful = evaluator(world.llava, world.tasks[task], **options, memory_bytes=0)
    calls = []
    hook = world.llava.model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    for number, policy in enumerate(policies(has_images=True)):
        with apply_policy(world.llava.model, policy) as handle:
            remembering.measure(handle, "search")
            assert bool(calls) == (number == 0)
            forgetful.measure(handle, "search")
            calls.clear()
        assert responses(remembering, "search") == responses(forgetful, "search")
    hook.remove()


def test_features_are_remembered_by_content_and_the_model_is_left_alone(world):
    inner, memo = world.llava.model.model, Memo(1 << 20)
    before = dict(vars(inner))
    pixels = torch.rand(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    plain = inner.get_image_features(pixel_values=pixels).pooler_output
    with pytest.raises(KeyError), cached_image_features(world.llava.model, memo):
        first = inner.get_image_features(pixel_values=pixels)
        first.pooler_output = None
        again = inner.get_image_features(pixel_values=pixels.clone()).pooler_output
        other = inner.get_image_features(pixel_values=pixels + 1).pooler_output
        raise KeyError
    assert dict(vars(inner)) == before
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert not torch.equal(plain[0], other[0])


def test_a_full_memo_takes_nothing_more_in():
    memo, made = Memo(40), []
    for _ in range(2):
        for key in range(3):
            memo.get(key, lambda key=key: made.append(key) or torch.zeros(4))
    assert made == [0, 1, 2, 2]
    assert memo.used_bytes == 32


def edited(world, task, name, **changes):
    config = {**yaml.safe_load(Path(world.tasks[task]).read_text()), "task": name, **changes}
    path = world.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def test_sampled_answers_are_repeatable(world):
    sampled = {"until": ["w7"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    path = edited(world, "text_gen", "sampled", generation_kwargs=sampled)
    measured = evaluator(world.llama, path)
    with apply_policy(world.llama.model, Policy()) as handle:
        measured.measure(handle, "search")
        first = responses(measured, "search")
        measured.measure(handle, "search")
        theirs = reference(plain_lm(world.llama), [path], limit=12)
    assert responses(measured, "search") == first == their_responses(theirs)


@pytest.mark.parametrize("kind", ["llama", "llava"])
def test_an_answer_ends_when_its_filter_can_take_nothing_else(world, kind):
    first = [{"function": "regex", "regex_pattern": "(w[0-9]+ w[0-9]*)"}, {"function": "take_first"}]
    task = "text_gen" if kind == "llama" else "image_gen"
    changes = {
        "generation_kwargs": {"until": ["w7"], "max_gen_toks": 24},
        "filter_list": [{"name": "own", "filter": first}],
    }
    path, subject, tokens = edited(world, task, f"filtered_{kind}", **changes), getattr(world, kind), {}
    results = {}
    for exact in (("search",), ()):
        measured, count = evaluator(subject, path, search={"limit": 7}), []
        measured.exact_splits = exact
        hook = subject.model.lm_head.register_forward_hook(lambda *args, count=count: count.append(args[2].shape[0]))
        with apply_policy(subject.model, Policy(layers={1: LayerChoice(ffn="skip")})) as handle:
            results[exact] = measured.measure(handle, "search")["accuracy"].detail["per_example"]
        hook.remove()
        taken = [
            request.filtered_resps["own"] for one in measured._tasks("search").values() for request in one.instances
        ]
        tokens[exact] = sum(count), taken
    assert results["search",] == results[()] and tokens["search",][1] == tokens[()][1]
    assert tokens[()][0] < 0.7 * tokens["search",][0], "rows times steps"


def test_nothing_is_printed(world, capfd):
    measured = evaluator(world.llava, world.tasks["image_mc"], world.tasks["text_gen"], search={"limit": 3})
    with apply_policy(world.llava.model, Policy()) as handle:
        measured.measure(handle, "search")
    assert capfd.readouterr() == ("", "")
