"""Times that can be believed: intervals of ratios, and requests in continuous batches that are answered as alone."""

import itertools
import random
import statistics

import numpy as np
import pytest
import searching

import tiny
from families import CASES, FAMILIES, batch_of, built
from skipsearch import Policy, apply_policy
from skipsearch.evaluators.base import declared_metric, metrics_of
from skipsearch.evaluators.latency import LatencyEvaluator, LatencyOptions
from skipsearch.evaluators.subject import ModelSpec, Subject, load_subject
from skipsearch.evaluators.timing.load import LoadOptions
from skipsearch.evaluators.timing.ratio import disturbances, ratio_interval, turn_orders
from skipsearch.evaluators.timing.scheduler import Request, Scheduler, answered_alone
from skipsearch.policies.errors import EvaluatorError, SpaceError
from skipsearch.search.space.units import phrase

SKIP = {"attention": "skip", "ffn": "skip"}
EVERY_FAMILY = [
    {},
    {1: {"attention": "skip"}, 2: {"wiring": "parallel"}},
    {1: SKIP, 2: {**SKIP, "phase": "decode"}},
    {2: {"attention": "skip", "phase": "prefill"}},
]
WITH_IMAGES = [
    {1: {"token_ratio": 0.5}, 2: {"token_ratio": 0.0}},
    {1: {"token_ratio": 0.5, "phase": "prefill"}, 2: {"attention": "skip", "tokens": "image"}},
    {1: {"token_ratio": 0.5, "phase": "decode"}, 2: {"attention": "keys_only", "tokens": "image", "ffn": "skip"}},
]
FEW = ("llama", "gpt2", "gemma3", "llava-mistral", "qwen2-vl")
LENGTHS = (3, 7, 2, 5, 4, 9, 2, 6, 3)
RECURRENT = ("qwen3-next", "lfm2", "bamba", "granite-hybrid", "qwen3.5")
OTHERWISE = ("paligemma", "mllama", "phi4-multimodal")  # its places, cross attention, or cache are of another kind


def model_of(name):
    return built(name, next(kind for kind in ("sdpa", "eager") if (name, kind) in CASES))


def requests_of(name):
    """Requests of different lengths: texts, and images in several places."""
    batches = [batch_of(name, "ragged", seed) for seed in range(3)]
    inputs = [batch.alone(row) for batch in batches for row in range(len(batch.ids))]
    return [Request(one, length) for one, length in zip(inputs, LENGTHS, strict=True)]


def check_family(name):
    model = model_of(name)
    for layers in EVERY_FAMILY + (WITH_IMAGES if FAMILIES[name].image_tokens else []):
        with apply_policy(model, Policy.model_validate({"layers": layers})):
            requests = requests_of(name)
            alone = [answered_alone(model, request)[0] for request in requests]
            Scheduler(model, 3, itertools.count().__next__).run(requests)
            assert [request.tokens for request in requests] == alone, layers


@pytest.mark.parametrize("name", FEW)
def test_requests_in_a_batch_are_answered_as_alone(name):
    check_family(name)


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in (*FEW, *RECURRENT, *OTHERWISE)])
def test_requests_of_every_family_are_answered_as_alone(name):
    check_family(name)


@pytest.mark.parametrize("name", ["qwen3-next"])
def test_recurrent_layers_are_refused(name):
    with pytest.raises(EvaluatorError, match="cannot be joined") as said:
        Scheduler(model_of(name), 2, itertools.count().__next__).run(requests_of(name))
    assert "layer 1 has a LinearAttentionLayer" in str(said.value)


def test_a_model_whose_places_begin_elsewhere_is_refused_before_it_is_timed():
    prompts = [dict(request.inputs) for request in requests_of("paligemma")]
    model = model_of("paligemma")
    subject = Subject(model, None, None, ModelSpec(id="paligemma"), True, prompts)
    evaluator = LatencyEvaluator(LatencyOptions(repeats=1, warmup=0, load=LoadOptions(concurrency=[2])), subject)
    with (
        apply_policy(model, Policy()) as handle,
        pytest.raises(EvaluatorError, match="otherwise in a batch than alone"),
    ):
        evaluator.measure(handle, "search")


def test_a_request_arrives_when_another_one_ends():
    requests = requests_of("llama")
    Scheduler(model_of("llama"), 3, itertools.count().__next__).run(requests)
    ends = [request.times[-1] for request in requests]
    for request in requests:
        others = [one for one in requests if one is not request]
        inside = sum(one.arrived <= request.arrived <= one.times[-1] for one in others)
        assert inside <= 2 and request.times == sorted(request.times)
        assert request.arrived < 3 or any(end < request.arrived for end in ends)
    assert [request.arrived for request in requests] == sorted(request.arrived for request in requests)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(ModelSpec(id=str(tiny.tiny_llama(tmp_path_factory.mktemp("model"))), device="cpu"))


def measured(subject, policy=Policy(), **options):
    evaluator = LatencyEvaluator(LatencyOptions.model_validate(options), subject)
    with apply_policy(subject.model, policy) as handle:
        return evaluator.measure(handle, "search")


def test_load_measures_what_its_options_name(subject):
    load = {"concurrency": [1, 3], "requests": 4, "repeats": 2}
    found = measured(subject, new_tokens=3, repeats=2, warmup=1, load=load)
    assert {*found} == {*metrics_of("latency", {"load": load})} and len(found) == 2 + 2 * 5
    for name, entry in found.items():
        assert entry.value > 0 and entry.dense > 0 and entry.n == 2
        assert entry.detail["ratio"]["low"] <= entry.detail["ratio"]["value"] <= entry.detail["ratio"]["high"]
        assert declared_metric(name).unit == ("tokens/s" if name.startswith("throughput") else "ms")
    assert found["ttft_p95_ms_c3"].value >= found["ttft_ms_c3"].value
    assert found["ttft_ms_c3"].detail["requests"] == 4
    assert phrase("ttft_p95_ms_c3") == "TTFT p95 (3 at a time)"


def test_a_model_that_answers_otherwise_in_a_batch_is_refused(subject, monkeypatch):
    """Every row at the place of the longest one: what a scheduler without padding's positions would do."""
    from skipsearch.evaluators.timing import scheduler

    decode = scheduler.decode

    def shifted(model, requests, cache):
        longest = max(request.length for request in requests)
        for request in requests:
            request.delta = longest - request.length
        return decode(model, requests, cache)

    monkeypatch.setattr(scheduler, "decode", shifted)
    prompts = iter(range(9))
    monkeypatch.setattr(
        "skipsearch.evaluators.timing.load.fixed_input",
        lambda subject, batch, tokens, number: tiny_prompt(subject, 5 + 3 * next(prompts)),
    )
    with pytest.raises(EvaluatorError, match="answered otherwise in a batch than alone"):
        measured(subject, repeats=1, warmup=0, load={"concurrency": [2]})


def tiny_prompt(subject, tokens):
    from skipsearch.evaluators.prompts import synthetic_prompt

    return synthetic_prompt(subject, tokens, tokens)


def test_objectives_under_load_are_those_of_the_space(tmp_path):
    path = searching.tiny_space(tmp_path / "space")
    accuracy = "accuracy: {tasks: [./image_gen.yaml], search: {limit: 8}, report: {limit: 8}}"
    given = {
        "evaluate": f"{{{accuracy}, latency: {{load: {{concurrency: [8]}}}}}}",
        "objectives": "{accuracy: maximize, throughput_c8: maximize, ttft_p95_ms_c8: minimize}",
    }
    space = searching.loaded(path, **given).space
    assert {"throughput_c8", "ttft_ms_c8", "ttft_ms"} <= space.metrics().keys()
    with pytest.raises(SpaceError, match="no evaluator measures this metric"):
        searching.loaded(path, **{**given, "objectives": "{accuracy: maximize, throughput_c4: maximize}"})
    with pytest.raises(SpaceError, match="found a number twice"):
        searching.loaded(path, evaluate=f"{{{accuracy}, latency: {{load: {{concurrency: [8, 8]}}}}}}")


def scripted(monkeypatch, noise, slow_down=0.0, policy=0.8):
    """A clock whose dense generation takes 100 ms, slower by a share at every call, with relative noise."""
    draw, calls = random.Random(1), itertools.count()

    def time(self, model, decoder, inputs):
        ratio = policy if "forward" in vars(model.model.layers[0]) else 1.0
        drift = 1 + slow_down * next(calls)
        return tuple(100 * ratio * drift * (1 + noise * draw.random()) for _ in range(2))

    monkeypatch.setattr(LatencyEvaluator, "_time", time)


HALF = Policy.model_validate({"layers": {0: SKIP}})


def test_repeats_go_on_until_the_interval_is_narrow(subject, monkeypatch):
    scripted(monkeypatch, noise=0.3)
    loose, tight = (measured(subject, HALF, warmup=0, target=target)["ttft_ms"] for target in (0.1, 0.05))
    assert 5 <= loose.n < tight.n < 60
    for entry, target in ((loose, 0.1), (tight, 0.05)):
        low, value, high = (entry.detail["ratio"][key] for key in ("low", "value", "high"))
        assert (high - low) / 2 / value <= target and low <= 0.8 * 1.02 and high >= 0.8 * 0.98
        assert entry.value == pytest.approx(value * entry.dense) and "target" not in entry.detail.get("warnings", {})


def test_a_target_that_is_not_reached_is_said(subject, monkeypatch):
    scripted(monkeypatch, noise=0.5)
    entry = measured(subject, HALF, warmup=0, target=0.001, max_repeats=11)["tpot_ms"]
    assert (
        entry.n == 11 and "after 11 repeats (max_repeats), the target is ±0.1 %" in entry.detail["warnings"]["target"]
    )


def test_the_ratio_does_not_follow_a_drift_which_is_said(subject, monkeypatch):
    scripted(monkeypatch, noise=0.0, slow_down=0.02)
    entry = measured(subject, HALF, warmup=0, repeats=12, target=0.02)["ttft_ms"]
    assert entry.value / entry.dense == pytest.approx(0.8, rel=0.01)
    assert "slower meanwhile" in entry.detail["warnings"]["drift"]


def test_without_a_target_the_medians_are_reported_with_their_interval(subject, monkeypatch):
    scripted(monkeypatch, noise=0.2)
    entry = measured(subject, HALF, warmup=0)["ttft_ms"]
    assert entry.n == 5 and entry.value == statistics.median(entry.detail["repeats_ms"])
    assert entry.detail["ratio"]["value"] == pytest.approx(entry.value / entry.dense)


def test_orders_are_balanced_and_seeded():
    orders = [list(itertools.islice(turn_orders(seed), 40)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(first != second for first, second in np.reshape(orders[0], (-1, 2)))
    assert sum(orders[2]) == 20 and len({*map(tuple, np.reshape(orders[2], (-1, 2)))}) == 2
    assert list(itertools.islice(turn_orders(None), 4)) == [True, False, True, False]


def test_the_interval_holds_the_ratio_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        dense = 100 * draw.lognormal(0, 0.2, 15)
        interval = ratio_interval(0.7 * dense * draw.lognormal(0, 0.1, 15), dense)
        held += interval.low <= 0.7 <= interval.high
    assert 0.9 <= held / 200 <= 1


def test_the_interval_holds_the_ratio_where_neighbouring_pairs_are_disturbed_alike():
    """A load that stays for eight pairs, and slows the policy more than dense."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        load = np.repeat(draw.random(10) < 0.5, 8)
        ratios = np.where(load, 0.74, 0.66) * draw.lognormal(0, 0.02, 80)
        interval = ratio_interval(ratios, np.ones(80), lambda ours, dense: np.mean(ours / dense, axis=-1))
        held += interval.low <= 0.7 <= interval.high
    assert held >= 85  # Drawn one by one, 63 of these intervals hold it.


def test_outliers_are_counted_and_a_quiet_machine_is_left_alone():
    quiet = [100 + (3 * number) % 7 for number in range(20)]
    assert disturbances(quiet, quiet) == {}
    assert disturbances([*quiet[:10], 400, *quiet[10:]], [*quiet, 100]) == {"outliers": "1 of 42 times are outliers"}
    assert "faster meanwhile" in disturbances(quiet, [*[150] * 10, *[100] * 10])["drift"]
