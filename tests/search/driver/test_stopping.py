"""What ends a search before its trials are spent: a front that grows no more, and time."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import searching
from asking import measured, open_study, spend

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.policy import Policy
from skipsearch.search.driver import stopping as stopping
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.driver.stopping import Stopping, relative_growth
from skipsearch.search.study.trial_cache import running_seconds
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.trial.trial_result import TrialResult


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def record(number, accuracy=0.8, flops=10.0, **fields):
    figures = {"accuracy": Measurement(accuracy), "prefill_flops": Measurement(flops)}
    return TrialResult(number, fields.pop("state", "complete"), Policy(), figures, **fields)


def followed(path, stop, records, spent=0.0):
    found = Stopping(searching.loaded(path, search__stop=stop).space, spent)
    reasons = []
    for one in records:
        found.follow(one)
        reasons.append(found.reason())
    return reasons


def test_a_front_that_grows_no_more_ends_the_search(path):
    grows = [record(0), *(record(number, 0.8, 10.0 - number) for number in range(1, 5))]
    stands = [record(number, 0.5, 9.0) for number in range(5, 9)]
    reasons = followed(path, "{stagnation: 4}", grows + stands)
    assert reasons[:-1] == [None] * 8
    assert reasons[-1] == (
        "the hypervolume grew by 0.00% in the last 4 trials, not more than 0.50% (search.stop.stagnation)"
    )


@pytest.mark.parametrize(("gain", "ends"), [(0.01, False), (0.02, True)])
def test_what_counts_as_growth(path, gain, ends):
    # 0.8 * 0.5, then 0.8 * 0.506: 1.2 % more.
    trials = [record(0), record(1, 0.8, 5.0), record(2, 0.8, 4.94)]
    reasons = followed(path, f"{{stagnation: 1, gain: {gain}}}", trials)
    assert (reasons[-1] is not None) == ends


def test_nothing_stagnates_before_a_policy_improves_on_dense(path):
    beyond = [record(number, 0.9, 1.0, violations={"accuracy": 0.1}) for number in range(1, 9)]
    assert followed(path, "{stagnation: 3}", [record(0), *beyond])[-1] is None


def test_failed_trials_count_and_duplicates_do_not(path):
    begun = [record(0), record(1, 0.8, 5.0)]
    failed = [record(number, state="failed", failure="broken") for number in (2, 3)]
    twins = [record(number, 0.8, 5.0, duplicate_of=1) for number in (2, 3)]
    assert followed(path, "{stagnation: 2}", begun + failed)[-1] is not None
    assert followed(path, "{stagnation: 2}", begun + twins)[-1] is None


def test_growth_needs_more_trials_than_it_looks_back():
    assert relative_growth([0.1, 0.2, 0.3], 3) is None
    assert relative_growth([0.1, 0.2, 0.3], 2) == pytest.approx(2.0)
    assert relative_growth([0.0, 0.2, 0.3], 2) is None
    assert relative_growth([0.1, 0.2], None) is None


def test_time_counts_what_was_spent_before_and_never_before_dense(path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = Stopping(searching.loaded(path, search__stop="{minutes: 2}").space, seconds_used=90.0)
    now[0] += 25
    assert found.reason() is None
    found.follow(record(0))
    assert found.reason() == "2 minutes are over, less what the front and the report take (search.stop.minutes)"
    now[0] -= 2
    assert found.reason() is None


def test_time_is_left_to_confirm_the_front_and_write_the_report(path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    found = Stopping(searching.loaded(path, search__stop="{minutes: 10}").space)
    assert found.ends == math.inf
    found.follow(record(0))
    assert found.ends == 1000 + 600 - 30
    found.confirm_seconds = 100.0
    now[0] = found.ends - 101
    assert not found.is_late
    now[0] = found.ends - 100
    assert found.is_late
    # Trainings come between the trials and the confirmation.
    found.recover_seconds = 60.0
    now[0] = found.ends - 161
    assert not found.is_late and found.recover_until == found.ends - 100
    now[0] = found.ends - 160
    assert found.is_late
    found.recover_seconds = 1e6
    now[0] = found.ends - 341
    assert not found.is_late
    found.confirm_seconds = 1e6
    now[0] = found.ends - 421
    assert not found.is_late and found.recover_until == found.ends - 180


def test_luck_on_few_examples_is_no_growth(path):
    """A trial that was set aside counts as growth when it has answered all, and not for what it looks like before."""
    part = {"accuracy": Measurement(0.9, 4, detail={"places": [0, 1, 2, 3]})}
    lucky = [replace(record(number), search={"prefill_flops": Measurement(5.0)}, estimates=part) for number in (2, 3)]
    begun = [record(0), record(1, 0.8, 9.0)]
    assert followed(path, "{stagnation: 2}", begun + lucky)[-1] is not None
    answered = record(4, 0.9, 5.0, promoted_from=2)
    assert followed(path, "{stagnation: 2}", [*begun, *lucky, answered])[-1] is None


def test_trials_at_the_same_time_count_once():
    assert running_seconds([]) == 0
    assert running_seconds([(10, 20), (12, 15), (18, 25), (40, 41), (40, 43)]) == 18


def slow(policy):
    outcome = measured(policy)
    return Outcome(outcome.measurements, {"total": 60.0})


def test_a_resumed_search_counts_the_time_of_its_trials(path, tmp_path):
    study = open_study(path, tmp_path)
    proposals = Proposals(study)
    for _ in range(3):
        proposal = proposals.next()
        proposals.finish(proposal, slow(proposal.policy))
    # All began within a moment, so they ran at the same time, for a minute.
    assert study.seconds_used() == pytest.approx(60, abs=5)
    again = Proposals(open_study(path, tmp_path, resume=True, search__stop="{minutes: 0.9}"))
    assert again.next() is None and again.reason.startswith("0.9 minutes are over")
    assert Proposals(open_study(path, tmp_path, resume=True, search__stop="{minutes: 9}")).next() is not None


def test_a_search_that_stagnates_ends_and_goes_on_under_another_rule(path, tmp_path):
    given = {"search__trials": 60, "search__sampler": "random"}
    study = open_study(path, tmp_path, search__stop="{stagnation: 6, gain: 0.05}", **given)
    first = spend(study)
    assert 6 < len(first) < 60
    assert "search.stop.stagnation" in Proposals(study).reason
    again = open_study(path, tmp_path, resume=True, **given)
    assert len(first) + len(spend(again)) == 60
    assert Proposals(again).reason == "all 60 trials are measured (search.trials)"


def test_through_ray_tune_it_ends_the_same(path, tmp_path):
    from skipsearch.search.driver.ray_tune import StudySearcher

    given = {"search__trials": 60, "search__sampler": "random", "search__stop": "{stagnation: 6, gain: 0.05}"}
    order = spend(open_study(path, tmp_path / "actors", **given))
    searcher, theirs = StudySearcher(open_study(path, tmp_path / "tune", **given)), []
    while (suggested := searcher.suggest(str(len(theirs)))) != searcher.FINISHED:
        policy = Policy.model_validate(suggested["policy"])
        theirs.append(policy.fingerprint)
        searcher.on_trial_complete(str(len(theirs) - 1), {"outcome": measured(policy)})
    assert theirs == order and len(order) < 60
    assert "search.stop.stagnation" in searcher.proposals.reason


def test_a_small_space_says_that_all_of_it_is_measured(path, tmp_path):
    study = open_study(path, tmp_path, layers="[{range: 0, choices: [keep, skip_ffn, skip_layer]}]")
    spend(study)
    assert Proposals(study).reason == "the space has no unmeasured policy left"
