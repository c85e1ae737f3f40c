"""Racing: what counts as evidence, the examples one after the other, and searches that give candidates up early."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from searching import EXAMPLES, LAYERS, AlonePool, likely_space

import tiny
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.base import Measurement
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.choice import CHOICES
from skipsearch.policies.errors import RunError
from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.load_study import summary
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.driver.promotion import next_promotion
from skipsearch.search.space.load import load_space
from skipsearch.search.space.search_settings import Racing
from skipsearch.search.study.expected_results import ScorePredictor
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.study.trial_attributes import read_trial
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.trial.pareto import front_trials
from skipsearch.search.trial.scores import example_weights, task_sizes
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.early_stopping import Race, Rival, betting_wealth, rung_fractions
from skipsearch.search.workers.evaluate import PolicyEvaluator


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return likely_space(tmp_path_factory.mktemp("space"))


def space_of(path, **overrides):
    return load_space(str(path), {key.replace("__", "."): str(value) for key, value in overrides.items()}).space


# Evidence


def evidence(*args):
    return betting_wealth(*args).max()


def test_seven_losses_without_a_win_are_evidence_and_six_are_not():
    assert evidence([1.0] * 6, 10_000, -1.0) < 20 < evidence([1.0] * 7, 10_000, -1.0)
    assert evidence([0.0] * 50 + [1.0] * 7, 10_000, -1.0) > 20


def test_what_the_rest_cannot_make_up_for_is_certain():
    assert evidence([1.0] * 3, 5, -1.0) == np.inf
    assert evidence([0.5, 0.5], 3, -0.9) == np.inf
    assert evidence([1.0, 1.0], 4, -1.0) < np.inf


def test_a_tie_on_all_examples_is_no_evidence():
    assert evidence([1.0, -1.0] * 20, 40, -1.0) < 20
    assert evidence([-1.0] * 20 + [1.0] * 20, 40, -1.0) < 20
    assert evidence([0.0] * 40, 40, -1.0) == 1.0


@pytest.mark.parametrize("kind", ["same accuracy", "few differ", "unbounded", "weighted"])
def test_a_policy_that_is_no_worse_is_seldom_stopped_however_many_looks(kind):
    """The mean over all is exactly 0, the worst case; the share of orders that ever reach 20 stays under 1 in 20."""
    draw = np.random.default_rng(4)
    found = {
        "same accuracy": np.repeat([1.0, -1.0, 0.0], [40, 40, 20]),
        "few differ": np.repeat([1.0, -1.0, 0.0], [8, 8, 184]),
        "unbounded": (sample := draw.pareto(1.5, 200)) - sample.mean(),
        "weighted": np.repeat([2.0, -0.5, 0.25], [10, 60, 40]),
    }[kind]
    assert abs(found.mean()) < 1e-9
    lost = sum(evidence(draw.permutation(found), len(found), found.min()) >= 20 for _ in range(2000))
    assert lost / 2000 < 0.05


def test_a_clear_loser_is_given_up_on_a_quarter():
    draw = np.random.default_rng(5)
    found = np.repeat([1.0, -1.0, 0.0], [120, 20, 260])
    assert np.mean([evidence(draw.permutation(found)[:100], 400, -1.0) >= 20 for _ in range(200)]) > 0.9


# The race


def measured(scores, order=None, total=None):
    detail = {"per_example": list(scores), "tasks": {"a": {"n": len(scores)}}}
    if order is not None:
        detail |= {"places": list(order), "total": total}
    return Measurement(float(np.mean(scores)), len(scores), detail=detail)


def race(path, rivals, dense=None, **overrides):
    whole = {"accuracy": measured(dense or [1.0] * 100), "prefill_flops": Measurement(100.0)}
    space = space_of(path, **overrides)
    return Race(space, space.metrics(), whole, rivals)


def rival(number, accuracy, flops):
    right = int(accuracy * 100)
    scores = [1.0] * right + [0.0] * (100 - right)
    return Rival(number, {"accuracy": accuracy, "prefill_flops": flops}, {"accuracy": scores})


def test_only_a_policy_that_costs_no_more_makes_a_candidate_lose(path):
    partial = {"accuracy": measured([0.0] * 10, range(10), 100)}
    known = {"prefill_flops": Measurement(60.0)}
    assert race(path, [rival(3, 0.9, 61.0)]).reason_to_stop(known, partial) is None
    assert (
        race(path, [rival(3, 0.9, 60.0)]).reason_to_stop(known, partial)
        == "worse than trial 3 in accuracy (10 of 100 examples)"
    )
    assert "trial 4" in race(path, [rival(3, 0.8, 50.0), rival(4, 0.9, 55.0)]).reason_to_stop(known, partial)
    assert race(path, [rival(3, 0.9, 60.0)]).reason_to_stop({}, partial) is None


def test_a_bound_is_raced_against_the_dense_model(path):
    partial = {"accuracy": measured([0.0] * 12, range(12), 100)}
    bounded = {"constraints": "{accuracy: '>= 0.9 * dense'}"}
    assert (
        race(path, [], **bounded).reason_to_stop({}, partial) == "accuracy is not >= 0.9 * dense (12 of 100 examples)"
    )
    assert race(path, [], [0.0] * 50 + [1.0] * 50, **bounded).reason_to_stop({}, partial) is None
    assert race(path, []).reason_to_stop({}, partial) is None


def test_bets_on_two_reasons_are_one_fortune(path):
    """The largest values of each policy are of different moments: no single moment has their mean."""
    parts = [6, 4, 8, 982]
    own, other, dense = (
        np.repeat(scores, parts).tolist() for scores in ([0.0, 1, 0, 0], [1.0, 0, 0, 0], [0.0, 1, 1, 0])
    )
    apart = [
        betting_wealth(np.subtract(beside, own)[:18], 1000, -1.0).max() for beside in (other, np.multiply(0.9, dense))
    ]
    assert np.mean(apart) > 20
    rivals = [Rival(3, {"accuracy": 0.9, "prefill_flops": 50.0}, {"accuracy": other})]
    running = race(path, rivals, dense, constraints="{accuracy: '>= 0.9 * dense'}")
    known, partial = {"prefill_flops": Measurement(60.0)}, {"accuracy": measured(own[:18], range(18), 1000)}
    assert running.reason_to_stop(known, partial) is None


def test_what_cannot_be_compared_example_by_example_is_not_raced(path):
    known = {"prefill_flops": Measurement(60.0)}
    for scores in ([], [2.0] * 10):
        partial = {
            "accuracy": Measurement(0.0, 10, detail={"per_example": scores, "places": [*range(10)], "total": 100})
        }
        assert race(path, [rival(3, 0.9, 50.0)]).reason_to_stop(known, partial) is None


def test_a_few_examples_are_no_evidence(path):
    known = {"prefill_flops": Measurement(60.0)}
    for count, stops in ((8, True), (3, False)):
        partial = {"accuracy": measured([0.0] * count, range(count), 100)}
        assert bool(race(path, [rival(3, 0.9, 50.0)]).reason_to_stop(known, partial)) == stops


def test_each_task_counts_the_same_however_few_examples_it_has():
    whole = Measurement(0.5, 8, detail={"tasks": {"a": {"n": 2}, "b": {"n": 6}}})
    assert example_weights(task_sizes(whole)).tolist() == [2.0] * 2 + [2 / 3] * 6


def test_looks_are_evenly_spaced():
    assert rung_fractions(Racing()) == tuple(number / 16 for number in range(1, 17))
    assert rung_fractions("none") == (1.0,)


def test_racing_is_no_other_study(path):
    fingerprints = {space_of(path, search__racing=given).fingerprint() for given in ("none", "{patience: 2}", "{}")}
    assert fingerprints == {space_of(path).fingerprint()}


# Examples first


@pytest.fixture(scope="module")
def bench(path):
    return PolicyEvaluator(space_of(path), threads=1)


def accuracy_of(bench, *tasks, **options):
    given = AccuracyOptions(
        tasks=list(map(str, tasks)), search={"limit": EXAMPLES // 2 if len(tasks) > 1 else EXAMPLES}, **options
    )
    return AccuracyEvaluator(given, bench.subject)


def rungs_of(bench, evaluator, policy, looks=(0.125, 0.25, 0.5, 1.0)):
    with apply_policy(bench.subject.model, policy) as handle:
        found = [rung["accuracy"] for rung in evaluator.rungs(handle, "search", looks)]
        return found, evaluator.measure(handle, "search")["accuracy"]


@pytest.mark.parametrize("names", [["text_gen"], ["likely"], ["text_gen", "likely"]])
def test_the_last_rung_is_the_whole_and_each_a_part_of_it(path, bench, names):
    evaluator = accuracy_of(bench, *(path.parent / f"{name}.yaml" for name in names))
    found, whole = rungs_of(bench, evaluator, Policy(layers={1: CHOICES["skip_ffn"]}))
    assert [rung.n for rung in found] == [24, 48, 96]
    assert (found[-1].value, found[-1].stderr, found[-1].detail["per_example"]) == (
        whole.value, whole.stderr, whole.detail["per_example"],
    )  # fmt: skip
    for rung, after in itertools.pairwise(found[:-1]):
        assert after.detail["places"][: rung.n] == rung.detail["places"]
    for rung in found[:-1]:
        assert rung.detail["per_example"] == [whole.detail["per_example"][place] for place in rung.detail["places"]]
    places = found[-2].detail["places"]
    assert places != sorted(places) and len({*places}) == 48


def test_every_policy_has_the_same_order_and_answers_no_more_than_asked(path, bench):
    evaluator = accuracy_of(bench, path.parent / "likely.yaml")
    orders = [
        rungs_of(bench, evaluator, policy)[0][0].detail["places"]
        for policy in (Policy(), Policy(layers={1: CHOICES["parallel"]}))
    ]
    assert orders[0] == orders[1]
    asked = []
    score = evaluator._model.loglikelihood
    evaluator._model.loglikelihood = lambda requests, **more: asked.append(len(requests)) or score(requests, **more)
    with apply_policy(bench.subject.model, Policy()) as handle:
        next(evaluator.rungs(handle, "search", (0.125, 0.25, 1.0)))
    assert asked == [24 * 3]


def refused(**changes):
    generate = {**tiny.GENERATE["generation_kwargs"], **changes.pop("generation_kwargs", {})}
    return {**tiny.GENERATE, "generation_kwargs": generate, **changes}


@pytest.mark.parametrize(
    "config",
    [
        refused(generation_kwargs={"do_sample": True, "temperature": 1.0}),
        refused(metric_list=[{**tiny.GENERATE["metric_list"][0], "aggregation": "median"}]),
        refused(filter_list=[{"name": "own", "filter": [{"function": "custom", "filter_fn": "!function own.own"}]}]),
    ],
    ids=["sampled", "median", "own filter"],
)  # fmt: skip
def test_what_needs_all_documents_at_once_is_measured_at_once(path, bench, config):
    folder = path.parent
    (folder / "own.py").write_text("def own(resps, docs):\n    return [answers[0] for answers in resps]\n")
    text = yaml.safe_dump({"task": "odd", **config}, sort_keys=False).replace(
        "'!function own.own'", "!function own.own"
    )
    tiny.write_task(folder, "odd", folder / "text.jsonl")
    base = yaml.safe_load((folder / "odd.yaml").read_text())
    (folder / "odd.yaml").write_text(yaml.safe_dump(base) + text.replace("task: odd\n", ""))
    evaluator = accuracy_of(bench, folder / "odd.yaml")
    found, _ = rungs_of(bench, evaluator, Policy())
    assert [rung.n for rung in found] == [EXAMPLES]


def test_a_small_split_is_measured_at_once(path, bench):
    evaluator = AccuracyEvaluator(
        AccuracyOptions(tasks=[str(path.parent / "likely.yaml")], search={"limit": 63}), bench.subject
    )
    assert [rung.n for rung in rungs_of(bench, evaluator, Policy())[0]] == [63]


# Whole searches


class Killed(Exception):
    pass


class Killer(Progress):
    """Kills a search when so many trials are measured."""

    def __init__(self, space, trials):
        super().__init__(space.search.trials, space.objectives, shown=False)
        self.last = trials

    def update(self, records, measured):
        if measured == self.last:
            raise Killed


class Dying(AlonePool):
    """A pool whose driver is killed while its second job runs."""

    def next(self, until=None):
        if len(self.submitted) == 2:
            raise Killed
        return super().next(until)


class Failing(AlonePool):
    """A pool in which trials fail that are to answer more: the first of them, so many times."""

    times, fault = 1, "policy"

    def next(self, until=None):
        job = self.running[0]
        chosen = getattr(type(self), "chosen", None)
        promoted = isinstance(job.tag.subject, TrialResult)
        if promoted and self.times and chosen in (None, job.tag.subject.number):
            type(self).chosen = job.tag.subject.number
            type(self).times -= 1
            self.running.popleft()
            return job, Outcome(failure="accuracy is nan", fault=self.fault)
        return super().next(until)


def search(path, bench, folder, trials=None, resume=False, pool=AlonePool, **overrides):
    space = space_of(path, **overrides)
    bench.space = space
    study = SearchStudy(folder / "study.db", "tiny", space, LAYERS, resume)
    driver = Driver(study, pool(bench), Killer(space, trials))
    ended = driver.search()
    return SimpleNamespace(study=study, records=study.results(), order=driver.pool.submitted, ended=ended)


def figures(record):
    return {name: entry.value for name, entry in record.search.items()}


@pytest.fixture(scope="module")
def whole(path, bench, tmp_path_factory):
    return search(path, bench, tmp_path_factory.mktemp("whole"), search__racing="none")


@pytest.fixture(scope="module")
def raced(path, bench, tmp_path_factory):
    return search(path, bench, tmp_path_factory.mktemp("raced"))


def test_a_race_gives_losers_up_and_changes_no_figure(whole, raced):
    full = {record.policy.fingerprint: figures(record) for record in whole.records}
    dropped = [record for record in raced.records if record.early_stopped]
    assert len(raced.records) == len(full) == 30 and len(dropped) >= 5
    for record in raced.records:
        expected = full[record.policy.fingerprint]
        unknown = {"accuracy"} if record.early_stopped else set()
        assert figures(record) == {name: value for name, value in expected.items() if name not in unknown}
    assert not raced.records[0].early_stopped
    objectives = raced.study.space.objectives
    assert front_trials(raced.records, objectives) == front_trials(whole.records, objectives)


def test_what_was_answered_and_what_was_spared_is_counted(whole, raced):
    with_race, without = (summary(tuple(found.records)) for found in (raced, whole))
    assert without["examples"] == 30 * EXAMPLES and without["examples_spared"] == 0
    assert 0 < with_race["examples"] < 30 * EXAMPLES
    assert with_race["examples"] + with_race["examples_spared"] == 30 * EXAMPLES


def test_an_early_stopped_trial_keeps_its_estimate(raced):
    dropped = [record for record in raced.records if record.early_stopped]
    for record in dropped:
        estimate = record.estimates["accuracy"]
        assert estimate.n in range(18, 91, 18) and estimate.detail["total"] == EXAMPLES
        assert estimate.value == pytest.approx(np.mean(estimate.detail["per_example"]))
        assert record.state == "complete" and not record.feasible and "accuracy" not in record.search
        assert f"({estimate.n} of 96 examples)" in record.early_stopped
        assert raced.study.study.trials[record.number].state.name == "PRUNED"
    best = {trial.number for trial in raced.study.study.best_trials}
    assert best.isdisjoint(record.number for record in dropped)
    assert raced.study.budget_used() == 30


def test_a_killed_race_resumes_with_the_same_trials(path, bench, tmp_path, raced):
    for number, trials in enumerate((7, 16, 17)):
        with pytest.raises(Killed):
            search(path, bench, tmp_path, trials, resume=number > 0)
    rest = search(path, bench, tmp_path, resume=True)
    for mine, never in zip(rest.records, raced.records, strict=True):
        assert (mine.policy, mine.early_stopped, figures(mine)) == (never.policy, never.early_stopped, figures(never))
        assert [entry.detail["per_example"] for entry in mine.estimates.values()] == [
            entry.detail["per_example"] for entry in never.estimates.values()
        ]
    assert len(rest.order) == 30 - 17


def test_a_duplicate_of_an_early_stopped_trial_takes_its_result(path, bench, tmp_path, raced):
    study = search(path, bench, tmp_path, search__trials=29).study.study
    first = next(record for record in raced.records if record.early_stopped)
    study.enqueue_trial(study.trials[first.number].params)
    again = search(path, bench, tmp_path, resume=True)
    twin = next(record for record in again.records if record.duplicate_of is not None)
    assert (
        twin.duplicate_of == first.number and twin.policy == first.policy and twin.early_stopped == first.early_stopped
    )
    assert twin.estimates == again.records[first.number].estimates
    assert len(again.order) == 1


class Canned:
    """A bench whose figures are known beforehand."""

    def measure(self, policy, names, split, **given):
        made = {"flops": "prefill_flops", "latency": "ttft_ms", "accuracy": "accuracy", "memory": "kv_cache_bytes"}
        return Outcome({made[name]: Measurement(1.0) for name in names}, {"total": 0.1})


@pytest.mark.parametrize("racing", ["{}", "none"])
def test_latency_is_measured_before_the_examples_of_a_race(path, tmp_path, racing):
    space = space_of(
        path,
        evaluate="{accuracy: {tasks: [likely.yaml]}, flops: , latency: , memory: }",
        objectives="{accuracy: maximize, ttft_ms: minimize}",
        search__trials=7,
        search__racing=racing,
    )
    driver = Driver(
        SearchStudy(tmp_path / "study.db", "tiny", space, LAYERS),
        AlonePool(Canned(), size=2),
        Progress(space.search.trials, space.objectives, shown=False),
    )
    driver.search()
    stages = (
        [("flops", "latency", "memory"), ("accuracy",)]
        if racing == "{}"
        else [("accuracy", "flops", "memory"), ("latency",)]
    )
    for number in range(7):
        assert [names for trial, names in driver.pool.submitted if trial == number] == stages
    assert all(record.state == "complete" for record in driver.study.results())
    assert driver.pool.alone


def test_a_race_for_a_bound_alone_keeps_losers_off_the_front(path, bench, tmp_path):
    """Its objectives are all measured, so only that it was given up bars a candidate."""
    found = search(
        path, bench, tmp_path, objectives="{prefill_flops: minimize}", constraints="{accuracy: '>= 0.9 * dense'}"
    )
    dropped = [record for record in found.records if record.early_stopped]
    assert dropped and all("accuracy is not" in record.early_stopped and not record.feasible for record in dropped)
    front = front_trials(found.records, found.study.space.objectives)
    assert front and all(found.records[number].search["accuracy"].value >= 0.9 for number in front)
    assert {trial.number for trial in found.study.study.best_trials}.isdisjoint(r.number for r in dropped)


def test_a_paused_trial_is_not_on_the_front_where_accuracy_is_only_a_bound(path, bench, tmp_path):
    """Its objectives are all measured, and it may look as if it kept the bound."""
    bound = {"objectives": "{prefill_flops: minimize}", "constraints": "{accuracy: '>= 0.9 * dense'}"}
    found = search(path, bench, tmp_path, search__sampler="auto", **bound)
    aside = {record.number for record in found.records if record.estimates}
    assert aside and aside.isdisjoint(front_trials(found.records, found.study.space.objectives))
    assert aside.isdisjoint(trial.number for trial in found.study.study.best_trials)


def test_a_paused_trial_that_may_satisfy_a_bound_is_promoted(path):
    bounds = {"objectives": "{prefill_flops: minimize}", "constraints": "{accuracy: '>= 0.5 * dense'}"}
    space, few = space_of(path, **bounds), np.random.default_rng(1).permutation(400)[:50].tolist()

    def chosen(share, **others):
        scores = {0: np.ones(400), 1: (np.arange(400) % 40 < 40 * share).astype(float)}
        records = [trial(0, 100.0, scores[0].tolist()), replace(trial(1, 50.0, scores[1].tolist(), few), **others)]
        return next_promotion(records, ScorePredictor.fit(records), space, 0)

    assert chosen(0.6).number == chosen(0.475).number == 1
    assert chosen(0.2) is None
    assert chosen(0.6, duplicate_of=2) is chosen(0.6, early_stopped="surely worse") is None


# Set aside


def part_of(scores, places):
    return measured([scores[place] for place in places], places, len(scores))


def trial(number, cost, scores, places=None):
    """A trial that answered all examples, or those of some places."""
    policy = Policy(layers={n: CHOICES["skip_ffn"] for n in range(number)})
    whole = {"accuracy": measured(scores)} if places is None else {}
    rough = {} if places is None else {"accuracy": part_of(scores, places)}
    figures = {"prefill_flops": Measurement(cost), **whole}
    return TrialResult(number, "complete", policy, figures, estimates=rough)


def test_policies_with_similar_answers_correct_the_mean_of_a_few_examples():
    hard = [1.0] * 50 + [0.0] * 50
    known = ScorePredictor.fit([trial(0, 100.0, [1.0] * 100), trial(1, 50.0, hard), trial(2, 20.0, [0.0] * 100)])
    easier = part_of(hard, [*range(40), *range(50, 60)])
    told = known.predict_score("accuracy", easier)
    assert easier.value == 0.8 and told.value == pytest.approx(0.5, abs=0.01) and told.stderr < 0.02
    alone = ScorePredictor.fit([trial(0, 100.0, [1.0] * 100)]).predict_score("accuracy", easier)
    assert alone.value == pytest.approx(0.8) and 0.03 < alone.stderr < 0.06


def test_the_error_of_what_few_answers_say_is_what_they_stray_by():
    draw = np.random.default_rng(7)
    ease, levels = draw.normal(0.0, 1.0, 400), draw.uniform(-0.5, 2.0, 60)
    scores = (levels[:, None] + ease + draw.normal(0.0, 1.0, (60, 400)) > 0).astype(float)
    known = ScorePredictor.fit([trial(number, 1.0, row) for number, row in enumerate(scores[:12].tolist())])
    strayed, beside_dense = [], []
    for row in scores[12:]:
        for _ in range(10):
            places = draw.permutation(400)[:50]
            told = known.predict_score("accuracy", part_of(row, places))
            strayed.append((told.value - row.mean()) / told.stderr)
            beside_dense.append((row[places].mean() - row.mean()) / told.stderr)
    assert 0.85 < np.std(strayed) < 1.15 < np.std(beside_dense)


def test_the_trial_with_the_largest_expected_gain_is_promoted_first_and_one_with_hardly_any_never(path):
    space, few = space_of(path), np.random.default_rng(1).permutation(400)[:50].tolist()
    shares = {0: (100.0, 1.0), 1: (60.0, 0.9), 2: (62.0, 0.7), 3: (30.0, 0.8), 4: (10.0, 0.75)}

    def chosen(*whole, patience=0, going_on=()):
        scores = {number: (np.arange(400) % 40 < 40 * share).astype(float) for number, (_, share) in shares.items()}
        records = [trial(n, shares[n][0], scores[n].tolist(), None if n in whole else few) for n in shares]
        record = next_promotion(records, ScorePredictor.fit(records), space, patience, going_on)
        return record and record.number

    assert chosen(0) == 4
    assert chosen(0, going_on=[4]) in (1, 3) and chosen(0, 4, going_on=[1, 3]) is None
    assert chosen(0, 1, 3, 4) is None
    assert chosen(0, patience=2) == 1 and chosen(0, 1, patience=2) is None


def test_a_gap_above_a_policy_that_dominates_by_luck_has_its_best_policy_promoted(path):
    """Up to the dense model too, which is dominated; one with all answers in the gap is enough."""
    space, few = space_of(path), np.random.default_rng(1).permutation(400)[:50].tolist()
    shares = {0: (100.0, 0.9), 1: (60.0, 0.95), 2: (80.0, 0.8), 3: (85.0, 0.85), 4: (97.0, 0.9)}

    def chosen(*whole):
        scores = {number: (np.arange(400) % 40 < 40 * share).astype(float) for number, (_, share) in shares.items()}
        records = [trial(n, shares[n][0], scores[n].tolist(), None if n in whole else few) for n in shares]
        record = next_promotion(records, ScorePredictor.fit(records), space, 0)
        return record and record.number

    assert chosen(0, 1) == 3
    assert chosen(0, 1, 3) is chosen(0, 1, 2) is None


@pytest.fixture(scope="module")
def patient(path, bench, tmp_path_factory):
    return search(path, bench, tmp_path_factory.mktemp("patient"), search__sampler="auto")


def test_a_patient_race_ends_when_no_paused_trial_looks_non_dominated(patient, bench):
    space, records = patient.study.space, patient.records
    aside = [record for record in records if record.estimates and not record.early_stopped]
    assert len(records) == patient.study.budget_used() == 30 and len(aside) >= 5
    assert next_promotion(records, patient.study.score_predictor(), space, 0) is None
    for number in front_trials(records, space.objectives):
        record = next(record for record in records if record.number == number)
        whole = bench.measure(record.policy, ["accuracy", "flops"]).measurements
        assert figures(record) == {name: entry.value for name, entry in whole.items()}
        assert record.search["accuracy"].detail["per_example"] == whole["accuracy"].detail["per_example"]


def test_a_patient_race_answers_each_example_once(patient):
    told = [trial for trial in patient.study.study.trials if "continues" in trial.user_attrs]
    assert told
    for record in patient.records:
        answered = [entry.n for entry in (*record.search.values(), *record.estimates.values()) if entry.n > 1]
        assert answered in ([EXAMPLES], [54], [84], [36], [18], [72], [90])


def test_a_killed_patient_race_resumes_with_the_same_trials(path, bench, tmp_path, patient):
    for number, trials in enumerate((7, 16, 17, 30)):
        with pytest.raises(Killed):
            search(path, bench, tmp_path, trials, resume=number > 0, search__sampler="auto")
    rest = search(path, bench, tmp_path, resume=True, search__sampler="auto")
    for mine, never in zip(rest.records, patient.records, strict=True):
        assert (mine.number, mine.policy, figures(mine)) == (never.number, never.policy, figures(never))
        assert [entry.detail["places"] for entry in mine.estimates.values()] == [
            entry.detail["places"] for entry in never.estimates.values()
        ]
    continued = [
        [trial.user_attrs.get("continues") for trial in found.study.study.trials if trial.state.is_finished()]
        for found in (rest, patient)
    ]
    assert [*filter(None, continued[0])] == [*filter(None, continued[1])]


@pytest.mark.parametrize("racing", ["none", "{patience: none}"])
def test_a_search_that_resumes_without_racing_leaves_no_trial_paused(path, bench, tmp_path, racing):
    with pytest.raises(Killed):
        search(path, bench, tmp_path, 20, search__sampler="auto")
    given = {"search__sampler": "auto", "search__trials": 20, "search__racing": racing}
    begun = SearchStudy(tmp_path / "study.db", "tiny", space_of(path, **given), LAYERS, resume=True)
    assert next_promotion(begun.results(), begun.score_predictor(), begun.space, 0) is not None
    rest = search(path, bench, tmp_path, resume=True, **given)
    assert next_promotion(rest.records, rest.study.score_predictor(), rest.study.space, 0) is None


def test_a_search_that_finds_nothing_new_ends_as_one_that_spent_its_trials(path, bench, tmp_path):
    """Most of its combinations are the same policies, which it finds out by asking."""
    ends = {"start": [*range(4)], "end": [*range(1, 5)]}
    choices = ["skip_ffn", "skip_attention", "skip_layer", "parallel"]
    many = {"interval": [*range(1, 11)], **ends, "norm": ["own", "shared"], "choice": choices}
    space = {"layers": "[]", "schedules": json.dumps([{"interval": many}]), "search__trials": 200}
    found = search(path, bench, tmp_path, search__sampler="auto", **space)
    assert found.study.size > 1000 and "no unmeasured policy left" in found.ended
    own = {record.policy.fingerprint: record for record in found.records if record.duplicate_of is None}
    assert 20 < len(own) < 64 and len(found.records) - len(own) <= 20
    assert next_promotion(found.records, found.study.score_predictor(), found.study.space, 0) is None


def test_a_race_killed_while_it_measures_resumes_with_the_same_trials(path, bench, tmp_path):
    """Trials that were interrupted are measured first, before promotions: they were asked for earlier."""
    given = {"search__sampler": "auto", "search__trials": 12}
    kills, ended = 0, None
    while ended is None:
        try:
            ended = search(path, bench, tmp_path / "killed", resume=kills > 0, pool=Dying, **given)
        except Killed:
            kills += 1
    assert kills >= 12
    whole = search(path, bench, tmp_path / "whole", **given)
    orders = [[], []]
    for found, order in zip((ended, whole), orders, strict=True):
        for trial in sorted(found.study.study.trials, key=lambda trial: trial.datetime_complete):
            continues = trial.user_attrs.get("continues")
            order.append((trial.number, continues, trial.params, trial.state, trial.values))
    assert orders[0] == orders[1] and any(continues is not None for _, continues, *_ in orders[1])


@pytest.mark.parametrize("fault", ["policy", "machine"])
def test_a_trial_that_fails_when_it_is_to_answer_more_keeps_what_it_had(path, bench, tmp_path, patient, fault):
    """It is asked again at once; a machine's fault is not kept, and the trial waits for the next start."""

    class Once(Failing):
        pass

    Once.fault = fault
    found = search(path, bench, tmp_path, search__sampler="auto", pool=Once)
    again = SearchStudy(tmp_path / "study.db", "tiny", found.study.space, LAYERS, resume=True)
    for records in (found.records, again.results()):
        mine = next(record for record in records if record.number == Once.chosen)
        assert mine.state == "complete" and (mine.estimates or "accuracy" in mine.search)
    assert again.num_promotion_failures(Once.chosen) == (1 if fault == "policy" else 0)
    if fault == "policy":
        assert [figures(record) for record in found.records] == [figures(record) for record in patient.records]
    else:
        rest = search(path, bench, tmp_path, resume=True, search__sampler="auto")
        assert next_promotion(rest.records, rest.study.score_predictor(), rest.study.space, 0) is None


def test_a_trial_that_fails_again_when_it_is_to_answer_more_is_not_asked_a_third_time(path, bench, tmp_path):
    class Twice(Failing):
        times = 9

    found = search(path, bench, tmp_path, search__sampler="auto", pool=Twice)
    assert Twice.times == 7 and found.study.num_promotion_failures(Twice.chosen) == 2
    again = search(path, bench, tmp_path, resume=True, search__sampler="auto", pool=Twice)
    assert Twice.times == 7
    for one in (found, again):
        mine = next(record for record in one.records if record.number == Twice.chosen)
        assert mine.state == "complete" and mine.estimates and not mine.failure
    attrs = again.study.study.user_attrs
    assert read_trial(again.study.frozen_trial(Twice.chosen), attrs).promotion_failures == ("accuracy is nan",) * 2


def test_failures_of_trials_that_are_to_answer_more_count_like_others(path, bench, tmp_path):
    class Always(Failing):
        def next(self, until=None):
            type(self).chosen, type(self).times = None, 1
            return super().next(until)

    with pytest.raises(RunError, match="2 trials in a row failed"):
        search(path, bench, tmp_path, search__sampler="auto", search__max_failures=2, pool=Always)
