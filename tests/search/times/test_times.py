"""Measured times in a search: smoothed, tied within their intervals, predicted where FLOPs tell them, timed again."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import planted_times
import pytest
import searching
from made_studies import study as made_up
from planted_times import PolicyEvaluator, search

from skipsearch import Policy
from skipsearch.evaluators.base import Measurement, Metric
from skipsearch.evaluators.timing.rounds import merge_rounds
from skipsearch.policies.choice import CHOICES, KEEP
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.driver.timing import ROUNDS
from skipsearch.search.report.folder import write_folder
from skipsearch.search.report.html.page import page
from skipsearch.search.report.terminal import summary_data
from skipsearch.search.space.constraint import Constraint
from skipsearch.search.times.noise import noise_warning, time_noise
from skipsearch.search.trial import time_model
from skipsearch.search.trial.modelled_time import (
    ExpectedTime,
    ModelledTime,
    optimistic_value,
    ratio_variance,
    repeat_variance,
    with_modelled_times,
)
from skipsearch.search.trial.pareto import front_trials, objective_value
from skipsearch.search.trial.tied_times import non_dominated_within
from skipsearch.search.trial.time_model import TimedPolicy, TimeEstimate, TimeModel
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.early_stopping import Race, Rival

NONE = np.zeros(0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def time(ratio, own):
    return TimeEstimate(ratio, NONE, own)


def told(ratio, own=0.0):
    return ModelledTime(100 * ratio, dense=100.0, estimate=time(ratio, own))


def trial(number, accuracy, entry, flops=1.0):
    policy = Policy.of([KEEP] * number + [CHOICES["skip_ffn"]]) if number else Policy()
    search = {"accuracy": Measurement(accuracy), "prefill_flops": Measurement(flops), "ttft_ms": entry}
    return TrialResult(number, "complete", policy, search)


def test_no_policy_is_on_the_front_for_a_time_within_the_interval() -> None:
    objectives = {"accuracy": "maximize", "ttft_ms": "minimize"}
    dense = trial(0, 0.9, Measurement(100.0, dense=101.0))
    tied = [trial(1, 0.85, told(0.80, 0.02)), trial(2, 0.84, told(0.77, 0.02))]
    apart = [trial(1, 0.85, told(0.80, 0.01)), trial(2, 0.84, told(0.77, 0.01))]
    assert front_trials([dense, *tied], objectives) == (0, 1)
    assert front_trials([dense, *apart], objectives) == (0, 1, 2)
    # A policy that is no faster than dense beyond the interval is not on the front beside it.
    assert front_trials([dense, trial(1, 0.89, told(0.97, 0.02))], objectives) == (0,)


def test_a_chain_of_ties_hides_no_difference_that_can_be_told() -> None:
    times = [[None, time(1 - 0.03 * place, 0.015)] for place in range(10)]
    costs = [(float(place), 1 - 0.03 * place) for place in range(10)]
    kept = non_dominated_within(costs, times)
    assert kept[0] == 0 and len(kept) >= 4
    for left in {*range(10)} - {*kept}:
        assert any(one < left and 0.03 * (left - one) <= 1.96 * 0.015 * 2**0.5 for one in kept)
    for one, other in zip(kept, kept[1:], strict=False):
        assert 0.03 * (other - one) > 1.96 * 0.015 * 2**0.5
    assert non_dominated_within([(1.0, math.nan)], [[None, None]]) == []
    # Of two that are equal but for a time that is tied, one stays.
    assert non_dominated_within([(1.0, 0.8), (1.0, 0.79)], [[None, time(0.8, 0.1)], [None, time(0.79, 0.1)]]) == [1]


def test_a_smoothed_time_is_compared_and_the_measured_one_stays() -> None:
    entry = ModelledTime.of(Measurement(50.0, 5, 100.0), time(0.6, 0.02))
    assert entry.value == 50.0 and entry.dense == 100.0
    assert objective_value("ttft_ms", entry, Measurement(80.0, dense=82.0)) == pytest.approx(48.0)


def test_what_stops_a_trial_is_sure() -> None:
    slow, bound = told(0.62, 0.02), Constraint.parse("<= 0.6 * dense")
    dense = Measurement(100.0)
    assert bound.excess(objective_value("ttft_ms", slow, dense), 100.0) > 0
    assert bound.excess(objective_value("ttft_ms", optimistic_value(slow, bound), dense), 100.0) < 0
    late = optimistic_value(told(0.62, 0.005), bound)
    assert bound.excess(objective_value("ttft_ms", late, dense), 100.0) > 0


def test_a_measurement_is_worth_what_its_repeats_agree() -> None:
    ours, dense = [50, 51, 52, 53, 54], [100, 101, 103, 105, 109]
    entry = Measurement(52.0, 5, 103.0, detail={"repeats_ms": ours, "dense_repeats_ms": dense})
    drifting = Measurement(52.0, 5, 103.0, detail={"repeats_ms": ours, "dense_repeats_ms": [2 * one for one in ours]})
    assert repeat_variance(drifting) == pytest.approx(1e-8) and 1e-8 < repeat_variance(entry) < 0.01**2
    assert repeat_variance(Measurement(52.0, 1, 103.0)) is None
    assert repeat_variance(Measurement(50.0, 4, 100.0, iqr=5.0)) == pytest.approx(
        (1.253 * 2**0.5 * 0.1 / 1.349) ** 2 / 4
    )
    assert ratio_variance(Measurement(52.0, 1, 104.0), 0.04) == pytest.approx(0.01)
    assert ratio_variance(drifting, 1e-4) == pytest.approx((4e-8 + 4e-4) / 8 * (52 / 103) ** 2, rel=1e-3)


def test_a_worker_judges_by_the_smoothed_time() -> None:
    expected = {"ttft_ms": ExpectedTime(time(0.8, 0.02), dense={"ttft_ms": 100.0}, pooled_variance=0.05**2)}
    lucky = {"ttft_ms": Measurement(60.0, 1, 100.0)}
    [found] = with_modelled_times(lucky, expected).values()
    assert isinstance(found, ModelledTime) and 0.7 < found.estimate.ratio < 0.8 and found.value == 60.0
    assert with_modelled_times({}, expected) == {}
    instead = {"ttft_ms": ExpectedTime(time(0.8, 0.02), dense={"ttft_ms": 100.0}, replaces_measurement=True)}
    [found] = with_modelled_times({}, instead).values()
    assert found.is_predicted and found.value == pytest.approx(80.0)
    costly = {"ttft_ms": ExpectedTime(time(0.9, 0.0), {"prefill_flops": (-0.5, NONE)}, {"ttft_ms": 100.0,
              "prefill_flops": 10.0}, replaces_measurement=True)}  # fmt: skip
    assert with_modelled_times({}, costly) == {}
    assert with_modelled_times({"prefill_flops": Measurement(6.0)}, costly)["ttft_ms"].value == pytest.approx(70.0)


def test_a_rival_that_is_tied_in_time_is_as_good(path) -> None:
    space = searching.loaded(path, **planted_times.CHANGES).space
    metrics = {"accuracy": Metric("fraction", "maximize", "")}
    scores, ours = [1.0] * 64, [0.0] * 32
    dense = {"accuracy": Measurement(1.0, 64, detail={"per_example": scores}), "ttft_ms": Measurement(100.0),
             "prefill_flops": Measurement(10.0)}  # fmt: skip
    part = Measurement(0.0, 32, detail={"per_example": ours, "places": [*range(32)], "total": 64})
    rival = Rival(4, {"accuracy": 1.0, "prefill_flops": 5.0, "ttft_ms": 60.0}, {"accuracy": scores},
                  {"ttft_ms": time(0.6, 0.02)})  # fmt: skip
    raced = searching.loaded(path, **{**planted_times.CHANGES, "search__racing": "{}"}).space
    for space, ratio, own, out in ((raced, 0.58, 0.02, True), (raced, 0.5, 0.02, False), (raced, 0.58, 0.001, False)):
        race = Race(space, metrics, dense, [Rival(4, rival.values, rival.scores, {"ttft_ms": time(0.6, own)})])
        known = {"prefill_flops": Measurement(6.0), "ttft_ms": told(ratio, own)}
        assert bool(race.reason_to_stop(known, {"accuracy": part})) == out


@pytest.fixture(scope="module")
def noisy(path, tmp_path_factory):
    """A search with a time that FLOPs do not tell, on a noisy machine."""
    folder = tmp_path_factory.mktemp("noisy")
    bench = PolicyEvaluator(noise=0.12, alike=0.0)
    return search(path, folder, bench, search__trials=40), bench, folder


@pytest.fixture(scope="module")
def alike(path, tmp_path_factory):
    """A search with a time that FLOPs tell."""
    folder = tmp_path_factory.mktemp("alike")
    bench = PolicyEvaluator(noise=0.02)
    return search(path, folder, bench, search__trials=40), bench, folder


def test_smoothed_times_are_nearer_the_truth_than_measured_ones(noisy) -> None:
    driver, bench, _ = noisy
    records = [one for one in driver.study.final_results()[1:] if one.duplicate_of is None]
    entries = [record.search["ttft_ms"] for record in records]
    true = np.array([bench.ratio(record.policy) for record in records])
    raw = np.array([entry.value / entry.dense for entry in entries]) - true
    smoothed = np.array([entry.estimate.ratio for entry in entries]) - true
    assert np.sqrt((smoothed**2).mean()) < 0.7 * np.sqrt((raw**2).mean())
    inside = [abs(off) <= 1.96 * entry.estimate.error for off, entry in zip(smoothed, entries, strict=True)]
    assert np.mean(inside) >= 0.9


def test_what_was_measured_stays_in_the_study(noisy) -> None:
    driver, _, _ = noisy
    for frozen in driver.study.study.trials:
        stored = json.loads(frozen.user_attrs["measurements"])["ttft_ms"]
        assert "estimate" not in stored
        again = np.median(stored["detail"]["repeats_ms"])
        assert stored["value"] == pytest.approx(again)
        if frozen.number > 3:
            # What Optuna is told is the smoothed figure.
            told, dense = frozen.values[2], driver.study.dense_measurements()["ttft_ms"].value
            assert told != pytest.approx(stored["value"] / stored["dense"] * dense, rel=1e-6)


def test_the_front_is_timed_again_in_turns_and_files_carry_both(noisy) -> None:
    driver, bench, folder = noisy
    record = read_record(folder)
    again = [fingerprint for fingerprint, split in bench.timed if split == "report"]
    size = len(record.front)
    assert len(again) == ROUNDS * size and all(again.count(one) == ROUNDS for one in again)
    rounds = [again[place : place + size] for place in range(0, len(again), size)]
    assert all(len({*one}) == size for one in rounds) and len({tuple(one) for one in rounds}) > 1
    write_folder(folder)
    for file in (folder / "policies").glob("*.yaml"):
        policy = Policy.load(file)
        late, early = policy.measured["ttft_ms"], policy.measured["search_ttft_ms"]
        assert late.split == "report" and late.n == 2 * ROUNDS and late.stderr is not None
        assert early.split == "search" and early.modelled != early.value and early.stderr > 0
        assert late.value / late.dense == pytest.approx(bench.ratio(policy), abs=4 * late.stderr / late.dense)
    [clock, _] = record.clocks.values()
    assert clock.again == size - 1 and clock.within >= 0.8 * clock.again
    data = summary_data(record, folder)
    assert data["times"]["ttft_ms"]["gap"] == clock.gap
    told = page(record)
    assert "Selection bias of times" in told and "Noise of this machine" in told
    rows = [*csv.DictReader((folder / "trials.csv").open())]
    assert {row["trial"] for row in rows if row["report_ttft_ms"]} == {str(number) for number in record.front}


def test_the_report_has_the_front_that_was_confirmed(noisy, alike) -> None:
    for driver, _, folder in (noisy, alike):
        record = read_record(folder)
        assert record.front == front_trials(driver.study.final_results(), record.objectives)
        assert all({"accuracy", "ttft_ms"} <= record.trial(number).report.keys() for number in record.front)


def test_a_cost_that_tells_a_time_ends_its_measurement_and_says_so_once(alike) -> None:
    driver, bench, folder = alike
    record = read_record(folder)
    timed = [one for one in bench.timed if one[1] == "search"]
    assert 12 <= len({*timed}) < 20
    predicted = [one for one in record.trials if one.predicted]
    assert predicted and all(one.full_fidelity and one.search["ttft_ms"].is_predicted for one in predicted)
    off = [abs(one.search["ttft_ms"].estimate.ratio - bench.ratio(one.policy)) for one in predicted]
    assert max(off) < 0.1
    for frozen in driver.study.study.trials:
        marked = "ttft_ms" in frozen.user_attrs.get("predicted", [])
        assert marked == ("ttft_ms" not in json.loads(frozen.user_attrs["measurements"]))
        assert frozen.state.name == "COMPLETE" and len(frozen.values) == 3
    assert record.clocks["ttft_ms"].cost == "prefill_flops"
    assert page(record).count("ranks policies as TTFT does") == 1
    for number in record.front[1:]:
        assert not record.trial(number).report["ttft_ms"].detail.get("places")
        assert record.trial(number).report["ttft_ms"].n == 2 * ROUNDS


def test_a_time_that_flops_do_not_tell_is_measured_to_the_end(noisy) -> None:
    driver, _, _ = noisy
    assert driver.study.times.stand_ins == [] and not any(one.predicted for one in driver.study.results())


@pytest.mark.parametrize(("sampler", "alike", "kills"), [("random", 1.0, (3, 8)), ("auto", 0.0, (12, 8))])
def test_a_search_that_was_killed_ends_as_if_it_had_not_been(path, tmp_path, sampler, alike, kills) -> None:
    given = {"search__trials": 22, "search__sampler": sampler, "confirm": False}
    whole = search(path, tmp_path / "whole", PolicyEvaluator(0.02, alike), **given)
    folder = tmp_path / "cut"
    for killed in kills:
        with pytest.raises(KeyboardInterrupt):
            search(path, folder, PolicyEvaluator(0.02, alike, killed), resume=(folder / "study.db").exists(), **given)
    rest = search(path, folder, PolicyEvaluator(0.02, alike), resume=True, **given)
    mine, theirs = ([(one.policy, one.predicted) for one in driver.study.results()] for driver in (rest, whole))
    assert mine == theirs
    assert [one.values for one in rest.study.study.trials] == [one.values for one in whole.study.study.trials]


def test_a_machine_that_is_too_noisy_is_said_to_be() -> None:
    null = [Measurement(100 * ratio, dense=100.0) for ratio in (1.04, 0.96)]
    assert time_noise(null) == pytest.approx(0.04) and time_noise([]) is None
    assert "Raise `repeats`" in noise_warning("ttft_ms", 0.04, 0.1) and noise_warning("ttft_ms", 0.04, 0.2) == ""


def test_visits_are_merged_by_their_pairs() -> None:
    def visit(ours, dense):
        return Measurement(np.median(ours), 2, np.median(dense), detail={"repeats_ms": ours, "dense_repeats_ms": dense})

    found = merge_rounds([visit([50, 52], [100, 104]), visit([100, 104], [200, 208]), visit([51, 50], [100, 100])])
    assert found.value / found.dense == pytest.approx(0.5) and found.n == 6 and found.dense == 102
    assert 0 < found.stderr < 1
    assert merge_rounds([Measurement(5.0, dense=10.0)]).value == 5.0
    assert merge_rounds([Measurement(5.0), Measurement(7.0)]).value == 6.0


def test_studies_without_times_are_as_they_were() -> None:
    record = made_up(objectives=("accuracy", "prefill_flops"))
    assert record.clocks == {} and "Selection bias of times" not in page(record)


def test_the_error_of_the_model_of_times_is_stated(noisy, alike) -> None:
    """It is that of fitting the model anew without each policy; no file calls a prediction a measurement."""
    for driver, bench, folder in (noisy, alike):
        record = read_record(folder)
        results = [one for one in driver.study.final_results() if one.duplicate_of is None and not one.policy.is_dense]
        timed = [one for one in results if not one.search["ttft_ms"].is_predicted]
        error = record.clocks["ttft_ms"].model
        assert error.policies == len(timed)
        # The truth is closer to a prediction than a noisy measurement is.
        assert error.noise / 2 < error.rms < 2 * math.hypot(error.noise, 0.03)
        assert error.correlation > (0.9 if bench.noise < 0.05 else 0.5)
        line = f"to ±{100 * error.rms:.1f} points of dense (each policy from the others, rank correlation "
        assert page(record).count(line) == 1 and summary_data(record, folder)["times"]["ttft_ms"]["model"]
        write_folder(folder)
        rows = {int(row["trial"]): row for row in csv.DictReader((folder / "trials.csv").open())}
        for one in record.trials[1:]:
            assert bool(rows[one.number]["ttft_ms"]) != one.search["ttft_ms"].is_predicted
        assert any(row.get("ttft_ms_predicted") for row in rows.values()) == (bench is alike[1])
        for file in (folder / "policies").glob("*.yaml"):
            assert all(entry.n != 0 for entry in Policy.load(file).measured.values())


def test_leaving_a_policy_out_is_fitting_the_model_without_it(monkeypatch) -> None:
    draw = np.random.default_rng(0)
    timed = [TimedPolicy({("ffn", int(layer)): 1.0 for layer in draw.choice(6, 3, replace=False)}, 1.0, 1e-4)
             for _ in range(20)]  # fmt: skip
    timed = [replace(one, ratio=1 - 0.05 * sum(layer + 1 for _, layer in one.features) / 3 + 0.01 * draw.normal())
             for one in timed]  # fmt: skip
    # With one value of each, the hyperparameters stay the same but for the misfit, which is as good as 0 here.
    for name, value in {"SCALES": 0.6, "SHARED": 0.5, "MISFITS": 1e-6, "NOISES": 1.0}.items():
        monkeypatch.setattr(time_model, name, (value,))
    model = TimeModel(6, timed)
    for place, one in enumerate(timed):
        without = TimeModel(6, timed[:place] + timed[place + 1 :])
        assert without.predict(one.features).ratio == pytest.approx(model.without_own[place], abs=1e-9)
