"""A guided search: the greedy path, losses before accuracies, and what guessing comes to."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from searching import LAYERS, AlonePool, likely_space
from tiers import soak

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.policy import Policy
from skipsearch.search.analysis.load_study import record_of
from skipsearch.search.driver.confirmation import trials_to_confirm
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.guide.accuracy_curve import AccuracyCurve, fit_logistic
from skipsearch.search.guide.greedy import GreedyPath, Probe, race_paths, spread_over_front
from skipsearch.search.guide.guide import ANSWER_DIVERGENCE, best_guide_metric
from skipsearch.search.guide.wide_gaps import policies_in_gaps
from skipsearch.search.space.constraint import Constraint
from skipsearch.search.space.guide_metrics import ANSWER_LOSS
from skipsearch.search.space.load import load_space
from skipsearch.search.study.database import progress_of
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.study.trial_cache import read_trials
from skipsearch.search.trial.pareto import feasible_points, front_trials
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.evaluate import PolicyEvaluator

KEYS = "[{range: all, attention: [run, skip], ffn: [run, skip], wiring: [sequential, parallel]}]"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return likely_space(tmp_path_factory.mktemp("space"))


def space_of(path, **overrides):
    given = {"search__sampler": "auto", "search__trials": 14, "layers": KEYS, **overrides}
    return load_space(str(path), {key.replace("__", "."): str(value) for key, value in given.items()}).space


@pytest.fixture(scope="module")
def bench(path):
    return PolicyEvaluator(space_of(path), threads=1)


class Killed(Exception):
    pass


class Dying(AlonePool):
    """A pool whose driver is killed when so many jobs were given out."""

    jobs = math.inf

    def next(self, until=None):
        if len(self.submitted) > self.jobs:
            raise Killed
        return super().next(until)


def search(path, bench, folder, jobs=math.inf, size=1, resume=False, **overrides):
    space = space_of(path, **overrides)
    bench.space = space
    guide = bench.guide.name if bench.guide else None
    study = SearchStudy(folder / "study.db", "tiny", space, LAYERS, resume, guide=guide)
    pool = Dying(bench, size)
    pool.jobs = jobs
    driver = Driver(study, pool, Progress(space.search.trials, space.objectives, shown=False))
    driver.search()
    return SimpleNamespace(study=study, records=study.results(), order=pool.submitted, folder=folder)


@pytest.fixture(scope="module")
def guided(path, bench, tmp_path_factory):
    return search(path, bench, tmp_path_factory.mktemp("guided"))


# The search


def test_probes_come_first_and_are_no_trials_of_the_budget(guided):
    dense, *others = guided.records
    probes = [record for record in others if record.is_probe]
    assert dense.policy.is_dense and dense.full_fidelity and dense.search["answer_loss"].n >= 48
    assert probes == others[: len(probes)] and 8 <= len(probes) <= 4 * 14
    assert guided.study.budget_used() == 14 == 1 + len(others) - len(probes)
    assert progress_of(guided.folder / "study.db") == "14 of 14 trials"
    assert all("answer_loss" in record.search and "prefill_flops" in record.search for record in others)


def test_the_path_begins_with_the_sublayer_that_loses_least_per_saved_flop(guided):
    dense, *others = guided.records
    singles = [one for one in others if len(one.policy.layers) == 1 and one.baseline == "greedy: from dense"]
    singles = [one for one in singles if not next(iter(one.policy.layers.values())).skips_layer]
    assert len(singles) == 2 * LAYERS

    def ratio(record):
        lost = record.search["answer_loss"].value - dense.search["answer_loss"].value
        return lost / (dense.search["prefill_flops"].value - record.search["prefill_flops"].value)

    best = min(singles, key=ratio)
    (layer, choice), = best.policy.layers.items()  # fmt: skip
    second = others[1 + len(singles)]  # behind what skips everything, and all single sublayers
    changed = second.policy.choice(layer)
    assert all(getattr(changed, key) == "skip" for key in ("attention", "ffn") if getattr(choice, key) == "skip")
    assert sum((one.attention, one.ffn).count("skip") for one in second.policy.layers.values()) == 2


def test_accuracy_is_measured_where_the_loss_promises_something(guided):
    measured = [record for record in guided.records if {"accuracy"} & {*record.search, *record.estimates}]
    assert 3 <= len(measured) < len(guided.records)
    front = front_trials(guided.records, guided.study.space.objectives)
    by_number = {record.number: record for record in guided.records}
    assert len(front) >= 3 and all(by_number[number].full_fidelity for number in front)
    # No policy whose loss and cost are both better than those of a front member was left unanswered.
    for number in front:
        member = by_number[number]
        for record in guided.records:
            both = all(
                record.search[name].value < member.search[name].value for name in ("answer_loss", "prefill_flops")
            )
            assert not both or record in measured


@pytest.mark.parametrize("size", [soak(1), 2])
def test_a_killed_search_repeats_no_probe_and_no_trial(path, bench, tmp_path, guided, size):
    for number, jobs in enumerate((1, 6, 9, 7)):
        with pytest.raises(Killed):
            search(path, bench, tmp_path, jobs, size, resume=number > 0)
    rest = search(path, bench, tmp_path, size=size, resume=True)
    counts = Counter(record.policy.fingerprint for record in rest.records if record.duplicate_of is None)
    assert set(counts.values()) == {1}
    if size == 1:
        assert [record.policy for record in rest.records] == [record.policy for record in guided.records]
        assert [figures(one) for one in rest.records] == [figures(one) for one in guided.records]


def figures(record):
    return {name: entry.value for name, entry in {**record.estimates, **record.search}.items()}


def test_without_a_guide_accuracy_is_searched_as_before(path):
    assert PolicyEvaluator(space_of(path, search__guide="none"), threads=1).guide is None
    few = space_of(path, evaluate__accuracy__search__limit=63)
    assert PolicyEvaluator(few, threads=1).guide is None
    for key, value in (("sampler", "tpe"), ("racing", "none")):
        assert not space_of(path, **{f"search__{key}": value}).may_be_guided
    assert not space_of(path, workers__runner="tune").may_be_guided
    both = "{accuracy: maximize, divergence: minimize, prefill_flops: minimize}"
    assert not space_of(path, evaluate__divergence="{}", objectives=both).may_be_guided
    assert space_of(path, evaluate__divergence="{}").may_be_guided


# Guessing


def test_a_multiple_choice_task_counts_from_chance(bench, guided):
    dense = guided.records[0].search
    choices = [len(request.doc["choices"]) for request in bench.guide._tasks("search")["likely"].instances]
    labels = Counter(request.doc["label"] for request in bench.guide._tasks("search")["likely"].instances)
    assert len(labels) > 1
    assert dense["accuracy"].floor >= np.mean([1 / count for count in choices]) - 1e-9
    assert dense["answer_loss"].floor == pytest.approx(np.mean(np.log(choices)))


def test_what_is_reported_in_gaps_is_what_is_confirmed(guided):
    """A report reads the study without its driver, and leaves out the probes that measured no accuracy."""
    study = guided.study.study
    record = record_of(study.study_name, study.user_attrs, read_trials(study), guided.folder)
    gaps = {*policies_in_gaps(guided.study.final_results(), record.front, record.objectives, guided.study.guide)}
    assert {*record.in_gaps} == gaps <= {trial.number for trial in trials_to_confirm(guided.study)}


@pytest.mark.parametrize(("value", "above"), [(0.30, False), (0.33, False), (0.35, True)])
def test_what_is_not_told_from_guessing_is_no_member_of_a_front(value, above):
    def entry(value):
        return {"accuracy": Measurement(value, 200, stderr=0.05, detail={"floor": 0.25})}

    dense, policy = TrialResult(0, "complete", Policy(), entry(0.6)), TrialResult(1, "complete", Policy(), entry(value))
    assert (feasible_points([dense, policy], ["accuracy"])[1] is not None) == above
    # Where dense guesses too, and where accuracy is no objective, there is nothing to tell apart.
    assert None not in feasible_points([replace(dense, search=entry(0.26)), policy], ["accuracy"])
    costs = [replace(one, search={**one.search, "f": Measurement(1.0)}) for one in (dense, policy)]
    assert None not in feasible_points(costs, ["f"])


def test_what_is_kept_counts_from_guessing():
    bound = Constraint.parse(">= 0.9 * kept")
    assert bound.limit(0.65, 0.25) == pytest.approx(0.25 + 0.9 * 0.4)
    assert bound.excess(0.60, 0.65, 0.25) == pytest.approx(0.01)
    assert Constraint.parse(">= 0.9 * dense").limit(0.65, 0.25) == pytest.approx(0.585)


# Its parts


def planted(seed, sublayers=10):
    """Deletions of sublayers with their own losses and costs, and interactions between all pairs."""
    draw = np.random.default_rng(seed)
    losses, costs = draw.exponential(1, sublayers), draw.uniform(0.5, 2, sublayers)
    pairs = draw.uniform(0, 0.3, (sublayers, sublayers))

    def measured(labels):
        gone = [place for place in range(sublayers) if labels[str(place)] == "skip"]
        together = sum(pairs[one, other] for one in gone for other in gone if one < other)
        return Probe(losses[gone].sum() + together, costs.sum() - costs[gone].sum())

    def deletions(labels):
        return {
            (place, "ffn"): {**labels, str(place): "skip"} for place in range(sublayers) if labels[str(place)] != "skip"
        }

    return {str(place): "run" for place in range(sublayers)}, deletions, measured


def walked(start, deletions, measured, worst, width=1):
    """Every policy that was probed, and the largest batch."""
    return raced([GreedyPath("dense", start, deletions, {}, worst, width)], measured)


def raced(paths, measured):
    """The same of several paths."""
    steps, probed, largest = race_paths(paths, lambda path: None), [], 0
    batch = next(steps)
    try:
        while True:
            largest = max(largest, len(batch))
            probed += batch
            batch = steps.send([measured(labels) for labels in batch])
    except StopIteration:
        return probed, largest


@pytest.mark.parametrize("seed", range(5))
def test_the_lazy_path_is_that_of_a_full_greedy_where_removals_only_grow_worse(seed):
    start, deletions, measured = planted(seed)
    state, path, full = start, [], 1
    while options := deletions(state):
        here = measured(state)
        full += len(options)
        state = min(
            options.values(),
            key=lambda labels: (measured(labels).loss - here.loss) / (here.cost - measured(labels).cost),
        )
        path.append(state)
    probed, largest = walked(start, deletions, measured, math.inf)
    assert all(policy in probed for policy in path) and len(probed) < 0.8 * full and largest == 1
    assert walked(start, deletions, measured, math.inf, width=3)[1] == 3


def test_a_path_ends_at_the_loss_of_guessing_and_passes_over_what_fails():
    start, deletions, measured = planted(0)
    probed, _ = walked(start, deletions, measured, 1.0)
    assert len(probed) < len(walked(start, deletions, measured, math.inf)[0])

    def failing(labels):
        return None if labels["3"] == "skip" else measured(labels)

    kept, _ = walked(start, deletions, failing, math.inf)
    assert sum(labels["3"] == "skip" for labels in kept) == 1


def test_a_path_that_stays_behind_another_waits_until_the_other_has_ended():
    start, deletions, measured = planted(0)

    def handicapped(labels):
        probe = measured(labels)
        return Probe(probe.loss + 0.5 * (labels["way"] == "poor"), probe.cost + 0.01 * (labels["way"] == "poor"))

    def paths(*ways):
        return [GreedyPath(way, {**start, "way": way}, deletions, {}, math.inf, 1) for way in ways]

    alone, _ = raced(paths("good"), handicapped)
    both, _ = raced(paths("good", "poor"), handicapped)
    ways = [labels["way"] for labels in both]
    good = [labels for labels in both if labels["way"] == "good"]
    assert good[-1] == alone[-1] and both[-1] == {**alone[-1], "way": "poor"}
    last = len(ways) - 1 - ways[::-1].index("good")
    assert ways[: last + 1].count("poor") < 0.5 * ways.count("poor")


def test_schedules_to_begin_with_are_non_dominated_and_spread():
    points = {f"s{cost}": Probe(10.0 - cost, float(cost)) for cost in range(10)} | {"worse": Probe(9.5, 8.5)}
    assert spread_over_front(points, 3) == ["s9", "s5", "s0"] and spread_over_front(points, 20)[0] == "s9"
    assert "worse" not in spread_over_front(points, 20)


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_is_learned_as_a_saturating_function_of_the_loss(seed):
    draw = np.random.default_rng(seed)
    losses = draw.uniform(0.0, 3.0, 60)
    truth = 0.25 + 0.7 / (1 + np.exp((losses - 1.0) / 0.3))
    scores = -(truth + draw.normal(0, 0.03, 60))
    found = AccuracyCurve.fit(losses, scores, np.full(60, 0.02), -0.25, np.r_[losses, 8.0])
    grid = np.linspace(0, 3, 50)
    expected = 0.25 + 0.7 / (1 + np.exp((grid - 1.0) / 0.3))
    assert np.abs(-found(grid) - expected).max() < 0.06
    assert (np.diff(found(grid)) >= 0).all() and (-found(grid) >= 0.25 - 1e-9).all()
    assert found(np.array([found.inverse(-0.6)]))[0] == pytest.approx(-0.6, abs=1e-6)
    assert 0.01 <= np.median(found.deviations) < 0.05


def test_the_curve_bends_near_dense_as_no_logistic_does():
    """Accuracy falls with the root of a small loss; the most useful policies lie there."""
    draw = np.random.default_rng(5)
    losses = np.r_[0.0, np.geomspace(0.004, 3.0, 40)]

    def truth(loss):
        return 0.25 + 0.73 * np.exp(-0.9 * np.sqrt(loss))

    scores = -(truth(losses) + draw.normal(0, 0.005, len(losses)))
    found = AccuracyCurve.fit(losses, scores, np.zeros(len(losses)), -0.25, np.r_[losses, 8.0])
    span, midpoint, width = fit_logistic(losses, -0.25 - scores, np.zeros(len(losses)), 0.0, 8.0)
    grid = np.geomspace(0.005, 0.5, 40)
    logistic = 0.25 + span / (1 + np.exp((grid - midpoint) / width))
    assert np.abs(-found(grid) - truth(grid)).max() < 0.02 < 0.06 < np.abs(logistic - truth(grid)).max()
    assert (np.diff(found.scores) >= 0).all() and found.deviations.min() >= found.residual


def test_the_more_examples_are_answered_the_more_they_count():
    grid = np.linspace(0.0, 8.0, 81)
    scores = -(0.25 + 0.7 / (1 + np.exp((grid - 1.0) / 0.3)))
    found = AccuracyCurve(grid, scores, np.full(81, 0.03), residual=0.03)
    loss, lucky = np.array([1.0]), np.array([-0.8])
    means = [-found.posterior(loss, lucky, np.array([error]))[0][0] for error in (1.0, 0.05, 0.01)]
    assert pytest.approx(means[0], abs=0.01) == 0.6 and means[0] < means[1] < means[2] < 0.8
    unknown = found.posterior(loss, np.array([np.nan]), np.array([0.0]))
    assert -unknown[0][0] == pytest.approx(0.6) and unknown[1][0] == pytest.approx(0.03)


def test_the_figure_that_ranks_accuracy_better_goes_on():
    def trial(number, loss, apart, accuracy):
        measured = {
            "answer_loss": Measurement(loss, detail={"divergence": apart}),
            "accuracy": Measurement(accuracy, 100),
        }
        return TrialResult(number, "complete", Policy(), measured)

    rising = [trial(number, number, 10 - number, 1 - number / 20) for number in range(12)]
    assert best_guide_metric(rising) == ANSWER_LOSS
    falling = [trial(number, 10 - number, number, 1 - number / 20) for number in range(12)]
    assert best_guide_metric(falling) == ANSWER_DIVERGENCE
