"""The study without workers: what it proposes, what it keeps, and how it goes on after an interruption."""

import math

import pytest
import searching
from asking import LAYERS, SAMPLERS, measured, open_study, spend
from optuna.storages import RDBStorage

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.errors import RunError, SkipsearchError, StudyError
from skipsearch.policies.policy import Policy
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.search.baselines.dense_stats import DenseStats
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.space.parameters import Parameters
from skipsearch.search.study.samplers import population_size
from skipsearch.search.study.warm_start import initial_points
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.workers.evaluate import not_finite


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_seed_proposes_the_same_and_nothing_is_measured_twice(path, tmp_path, sampler):
    runs = [
        spend(open_study(path, tmp_path / str(run), search__sampler=sampler, search__trials=16)) for run in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0]) == 16


def test_another_seed_proposes_something_else(path, tmp_path):
    runs = [
        spend(
            open_study(
                path,
                tmp_path / str(seed),
                search__seed=seed,
                search__sampler="nsga2",
                search__trials=8,
                search__start="none",
            )
        )
        for seed in range(2)
    ]
    assert runs[0] != runs[1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_search_proposes_what_it_would_have(path, tmp_path, sampler):
    whole = spend(open_study(path, tmp_path / "whole", search__sampler=sampler, search__trials=16))
    first = spend(open_study(path, tmp_path / "cut", search__sampler=sampler, search__trials=16), stop_after=7)
    rest = spend(open_study(path, tmp_path / "cut", resume=True, search__sampler=sampler, search__trials=16))
    assert first + rest == whole


def test_what_ran_when_the_driver_died_is_asked_for_again_first_and_under_its_number(path, tmp_path):
    study = open_study(path, tmp_path)
    spend(study, stop_after=3)
    lost = [study.ask(), study.ask()]
    study.study.ask()  # killed before it has drawn anything
    again = open_study(path, tmp_path, resume=True)
    assert again.budget_used() == 3
    proposals = [again.ask() for _ in range(4)]
    assert [proposal.number for proposal in proposals] == [3, 4, 5, 6]
    assert [proposal.policy for proposal in proposals[:2]] == [proposal.policy for proposal in lost]
    assert [proposal.baseline for proposal in proposals[:2]] == [proposal.baseline for proposal in lost]


def test_what_was_measured_but_not_told_when_the_driver_died_is_told(path, tmp_path, monkeypatch):
    study = open_study(path, tmp_path)
    spend(study, stop_after=3)
    cut = study.ask()

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RDBStorage, "set_trial_state_values", dies)
        study.tell(cut, measured(cut.policy))
    again = open_study(path, tmp_path, resume=True)
    assert again.budget_used() == 4
    record = again.results()[cut.number]
    assert record.state == "complete" and record.search["accuracy"] == measured(cut.policy).measurements["accuracy"]


def test_the_rules_that_a_search_begins_with_are_marked_and_stay_so(path, tmp_path):
    study = open_study(path, tmp_path, schedules="[{fastv: {layer: [1, 2], token_ratio: 0.5}}]", search__trials=40)
    proposals = Proposals(study)
    dense = proposals.next()
    proposals.finish(dense, measured(dense.policy))
    first, second = study.ask(), study.ask()
    named = {record.number: record.baseline for record in study.results()}
    rules = {first.number: "fastv: layer 1, token_ratio 0.5", second.number: "interval: skip_ffn in 1 layer"}
    assert named == {0: None, **rules}
    given = {"schedules": "[{fastv: {layer: [1, 2], token_ratio: 0.5}}]", "search__trials": 40}
    again = open_study(path, tmp_path, resume=True, **given)
    spend(again)
    assert rules.items() <= {record.number: record.baseline for record in again.results()}.items()


def test_a_driver_that_died_before_dense_was_measured_begins_anew(path, tmp_path):
    study = open_study(path, tmp_path)
    queued = len(study.study.trials)
    study.ask()
    again = open_study(path, tmp_path, resume=True)
    assert len(again.study.trials) == queued and again.ask().policy.is_dense


def test_trial_0_is_dense_and_nothing_else_is_measured_before_it(path, tmp_path):
    proposals = Proposals(open_study(path, tmp_path))
    first = proposals.next()
    assert first.number == 0 and first.policy.is_dense
    assert proposals.next() is None
    proposals.finish(first, measured(first.policy))
    assert proposals.next() is not None


def test_a_policy_under_way_is_not_given_out_twice(path, tmp_path):
    study = open_study(path, tmp_path, search__trials=40)
    proposals = Proposals(study)
    dense = proposals.next()
    proposals.finish(dense, measured(dense.policy))
    out = [proposals.next() for _ in range(30)]
    assert len({proposal.policy.fingerprint for proposal in out}) == 30
    for proposal in out:
        proposals.finish(proposal, measured(proposal.policy))
    assert all(record.state == "complete" for record in study.results())


def test_a_small_space_ends_when_all_of_it_is_measured(path, tmp_path):
    study = open_study(path, tmp_path, layers="[{range: 0, choices: [keep, skip_ffn, skip_layer]}]", search__trials=50)
    assert len(spend(study)) == 3


def test_a_failed_dense_model_ends_the_search(path, tmp_path):
    proposals = Proposals(open_study(path, tmp_path))
    with pytest.raises(RunError, match="the dense model could not be measured") as caught:
        proposals.finish(proposals.next(), Outcome(failure="out of memory"))
    assert caught.value.details == ("out of memory",)


def test_a_failed_policy_is_not_tried_again_in_the_same_run(path, tmp_path):
    study = open_study(path, tmp_path, layers="[{range: 0, choices: [keep, skip_ffn, skip_layer]}]", search__trials=50)
    proposals, asked = Proposals(study), []
    while (proposal := proposals.next()) is not None:
        asked.append(proposal.policy.fingerprint)
        bad = proposal.policy.choice(0).skips_layer
        proposals.finish(proposal, Outcome(failure="accuracy is nan") if bad else measured(proposal.policy))
    assert len(asked) == len(set(asked)) == 3


def test_another_model_at_the_same_path_is_another_study(tmp_path):
    place = searching.tiny_space(tmp_path)
    before = searching.loaded(place).space.fingerprint()
    (tmp_path / "llava" / "config.json").write_text((tmp_path / "llava" / "config.json").read_text() + " ")
    assert searching.loaded(place).space.fingerprint() != before


def test_a_study_that_was_moved_is_the_same(tmp_path):
    place = searching.tiny_space(tmp_path / "here")
    before = searching.loaded(place).space.fingerprint()
    (tmp_path / "here").rename(tmp_path / "there")
    assert searching.loaded(tmp_path / "there" / "tiny.yaml").space.fingerprint() == before


def test_failures_do_not_end_a_search_but_too_many_in_a_row_do(path, tmp_path):
    study = open_study(path, tmp_path, search__max_failures=3)
    proposals = Proposals(study)
    dense = proposals.next()
    proposals.finish(dense, measured(dense.policy))
    proposals.finish(proposals.next(), Outcome(failure="accuracy is nan"))
    good = proposals.next()
    proposals.finish(good, measured(good.policy))
    with pytest.raises(RunError, match="3 trials in a row failed"):
        for _ in range(3):
            proposals.finish(proposals.next(), Outcome(failure="broken"))
    states = [record.state for record in study.results()]
    assert states == ["complete", "failed", "complete", "failed", "failed", "failed"]
    assert study.results()[1].failure == "accuracy is nan"


def test_constraints_are_optunas_own_and_bar_from_the_best(path, tmp_path):
    study = open_study(path, tmp_path, constraints="{accuracy: '>= 0.95 * dense'}", search__trials=25)
    spend(study)
    broken = [record for record in study.results() if not record.feasible]
    assert broken and all(record.violations["accuracy"] > 0 for record in broken)
    best = {trial.number for trial in study.study.best_trials}
    assert best and not best & {record.number for record in broken}


def test_a_trial_that_stopped_early_counts_and_is_kept(path, tmp_path):
    study = open_study(path, tmp_path, constraints="{prefill_flops: '<= 0.5 * dense'}", search__trials=3)
    proposals = Proposals(study)
    dense = proposals.next()
    proposals.finish(dense, measured(dense.policy))
    early = proposals.next()
    only_cost = {"prefill_flops": Measurement(3.9e6)}
    proposals.finish(early, Outcome(only_cost, {"total": 0.1}))
    record = study.results()[1]
    assert record.state == "complete" and not record.feasible and "accuracy" not in record.search
    assert study.budget_used() == 2


def test_latency_is_compared_by_its_ratio_to_the_dense_of_its_own_process(path, tmp_path):
    study = open_study(
        path, tmp_path, evaluate="{latency: {}}", objectives="{ttft_ms: minimize}", constraints="{ttft_ms: '<= dense'}"
    )
    proposals = Proposals(study)
    dense = proposals.next()
    proposals.finish(dense, Outcome({"ttft_ms": Measurement(10.0, dense=10.0)}, {"total": 1}))
    slow_day = proposals.next()
    proposals.finish(slow_day, Outcome({"ttft_ms": Measurement(16.0, dense=20.0)}, {"total": 1}))
    trial = study.study.trials[1]
    assert trial.values == pytest.approx([8.0])
    assert study.results()[1].feasible


def test_a_resume_that_does_not_match_is_refused(path, tmp_path):
    spend(open_study(path, tmp_path), stop_after=2)
    with pytest.raises(StudyError, match="made for another space"):
        open_study(path, tmp_path, resume=True, search__seed=99)
    with pytest.raises(StudyError, match="already holds a study"):
        open_study(path, tmp_path)
    with pytest.raises(StudyError, match="no study to resume"):
        open_study(path, tmp_path / "nowhere", resume=True)
    open_study(path, tmp_path, resume=True, search__trials=99)


def test_errors_keep_their_parts_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(StudyError("what", ["where"], "do this")))
    assert (error.what, error.details, error.hint) == ("what", ("where",), "do this")
    assert isinstance(error, SkipsearchError)


def test_no_number_is_a_failure():
    assert not_finite({"accuracy": Measurement(math.nan)}) == "accuracy is nan"
    assert not_finite({"ttft_ms": Measurement(math.inf)}) == "ttft_ms is inf"
    assert not_finite({"accuracy": Measurement(0.5)}) is None


# Schedules


PATTERNS = """[
  {shifted_cosine: {ratio: [0.3, 0.5], max: 0.85, min: [0.1, 0.2]}},
  {fastv: {layer: [1, 2], token_ratio: 0.5}},
  {interval: {interval: [1, [2, 1]], choice: [skip_ffn, skip_layer], phase: decode}},
  {fastv: {layer: 3, token_ratio: 0}},
]"""
SELECTION = "{score: [attention, norm], reselect: [each_layer, once]}"


def parameters(path, **overrides):
    given = {"schedules": PATTERNS, "token_selection": SELECTION, "layers": "[{range: 3, choices: [keep, parallel]}]"}
    return Parameters(searching.loaded(path, **(given | overrides)).space, LAYERS)


def test_every_list_is_a_categorical_parameter(path):
    found = {name: tuple(labels) for name, labels in parameters(path).options.items()}
    assert found == {
        "layer_03": ("keep", "parallel"),
        "schedule": ("none", "shifted_cosine", "fastv", "interval", "fastv 2"),
        "shifted_cosine.ratio": ("0.3", "0.5"),
        "shifted_cosine.min": ("0.1", "0.2"),
        "fastv.layer": ("1", "2"),
        "interval.interval": ("1", "[2, 1]"),
        "interval.choice": ("skip_ffn", "skip_layer"),
        "score": ("attention", "norm"),
        "reselect": ("each_layer", "once"),
    }


def test_labels_become_a_schedule_with_the_layers_own_choices_over_it(path):
    made = parameters(path)
    labels = made.labels({"schedule": "fastv", "fastv.layer": "2", "score": "norm", "reselect": "once"})
    expected = Policy.of([KEEP, KEEP, LayerChoice(token_ratio=0.5), LayerChoice(token_ratio=0.5)],
                         TokenSelection(score="norm", reselect="once"))  # fmt: skip
    assert made.policy(labels) == expected
    above = made.policy({**labels, "layer_03": "parallel"})
    assert above.choices(LAYERS)[2:] == [LayerChoice(token_ratio=0.5), CHOICES["parallel"]]
    assert made.policy({**labels, "schedule": "fastv 2"}).choice(3) == LayerChoice(token_ratio=0.0)
    parts = made.policy({**labels, "schedule": "interval", "interval.interval": "[2, 1]"})
    assert parts.layers == {2: LayerChoice(ffn="skip", phase="decode")}


def test_what_has_no_choice_is_no_parameter(path):
    made = parameters(path, schedules="[{fastv: {layer: 1, token_ratio: 0.5}}]", token_selection="{score: norm}")
    assert list(made.options) == ["layer_03", "schedule"]
    assert made.policy({"layer_03": "keep", "schedule": "fastv"}).token_selection.score == "norm"


def test_the_start_takes_schedules_and_rules_in_turn(path):
    made = parameters(path)
    found = initial_points(made, ["schedules", "last"], 8, DenseStats())
    assert [start.labels["schedule"] for start in found] == [
        "shifted_cosine", "fastv", "interval", "fastv 2", "none", "shifted_cosine", "fastv", "interval",
    ]  # fmt: skip
    assert made.policy(found[4].labels).layers == {3: CHOICES["parallel"]}
    every = initial_points(made, ["schedules", "last"], 100, DenseStats())
    assert {start.labels["schedule"] for start in every[9:]} == {"shifted_cosine", "interval"}
    assert len({made.policy(start.labels).fingerprint for start in every}) == 4 + 2 + 4 + 1 + 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_over_schedules_goes_on_where_it_was(path, tmp_path, sampler):
    given = {"schedules": PATTERNS, "token_selection": SELECTION, "search__sampler": sampler, "search__trials": 10}
    whole = spend(open_study(path, tmp_path / "whole", **given))
    first = spend(open_study(path, tmp_path / "cut", **given), stop_after=6)
    study = open_study(path, tmp_path / "cut", resume=True, **given)
    assert first + spend(study) == whole and len(set(whole)) == 10
    assert study.results()[0].policy.is_dense
    assert len({trial.params["schedule"] for trial in study.study.trials}) == 5


def test_schedules_alone_are_a_space_which_ends_when_all_of_it_is_measured(path, tmp_path):
    given = {"layers": "[]", "schedules": PATTERNS, "token_selection": "{reselect: once}"}
    study = open_study(path, tmp_path, search__trials=99, **given)
    order = spend(study)
    assert len(order) == len(set(order)) == study.size == 1 + 4 + 2 + 4 + 1


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_queued_trials_become_parents(path, tmp_path, sampler):
    """Optuna never breeds from queued trials by itself; the first generation must hold them all."""
    study = open_study(path, tmp_path, search__sampler=sampler, search__trials=40)
    spend(study)
    kind = type(study.study.sampler)
    key = f"{kind.__name__}:generation"
    generations = [trial.system_attrs.get(key) for trial in study.study.trials]
    assert generations[: population_size(40)] == [0] * population_size(40)
    assert max(generations) >= 2
