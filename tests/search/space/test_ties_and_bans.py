"""Layers that choose together, and combinations that a space forbids: what may be proposed, and what never is."""

import itertools
import random

import pytest
import searching
from asking import LAYERS, SAMPLERS, measured, open_study, spend

from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.errors import SpaceError
from skipsearch.policies.policy import Policy
from skipsearch.search.baselines.dense_stats import DenseStats
from skipsearch.search.driver.proposals import Proposals
from skipsearch.search.space.parameters import Parameters
from skipsearch.search.space.search_settings import DEFAULT_BASELINES
from skipsearch.search.space.ties_and_bans import ForbiddenChoices, ForbiddenRun, ForbiddenTogether, forbids_dense
from skipsearch.search.study.warm_start import initial_points

SKIPS = "[{choices: [keep, skip_ffn, skip_layer]}]"
FORBID = "[{1: skip_ffn, 2: [skip_ffn, skip_layer]}, {consecutive: [skip_layer, skip_ffn], more_than: 2}]"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def space_of(path, **given):
    return searching.loaded(path, **({"layers": SKIPS} | given)).space


def started(made):
    """Labels of everything that a search may begin with."""
    return [start.labels for start in initial_points(made, DEFAULT_BASELINES, 99, DenseStats())]


def allowed(choices):
    """What FORBID says, in other words."""
    names = ["." if choice == KEEP else "f" if choice == CHOICES["skip_ffn"] else "l" for choice in choices]
    runs = [len(run) for run in "".join(names).replace("f", "l").split(".")]
    return not (names[1] == "f" and names[2] != ".") and max(runs) <= 2


def every_policy(count=LAYERS):
    return [list(row) for row in itertools.product([KEEP, CHOICES["skip_ffn"], CHOICES["skip_layer"]], repeat=count)]


@pytest.mark.parametrize(
    ("tied", "groups"),
    [
        ("[]", [(0,), (1,), (2,), (3,), (4,), (5,), (6,)]),
        ("[[2, 1], [3, 6]]", [(0,), (1, 2), (3, 6), (4,), (5,)]),
        ("{every: 2}", [(0,), (1, 2), (3, 4), (5, 6)]),
        ("{every: 4}", [(0,), (1, 2, 3, 4), (5, 6)]),
        ("{every: 9}", [(0,), (1, 2, 3, 4, 5, 6)]),
    ],
)
def test_groups(path, tied, groups):
    rules = "[{range: 1-last, choices: [keep, skip_ffn]}]"
    assert space_of(path, layers=rules, tied=tied).groups(7) == groups


def test_a_group_is_one_parameter_and_its_layers_do_the_same(path):
    made = Parameters(space_of(path, tied="[[1, 3]]"), LAYERS)
    assert [*made.options] == ["layer_00", "layer_01", "layer_02"]
    assert made.size == 27
    assert made.policy({"layer_01": "skip_ffn"}) == Policy.of([KEEP, CHOICES["skip_ffn"], KEEP, CHOICES["skip_ffn"]])
    draw = random.Random(0)
    for labels in [*(made.random(draw) for _ in range(20)), *started(made)]:
        assert made.policy(labels).choice(1) == made.policy(labels).choice(3)


def test_the_rules_to_start_from_are_those_of_whole_groups_and_each_once(path):
    made = Parameters(space_of(path, tied="[[0, 1, 2, 3]]"), LAYERS)
    assert started(made) == [{"layer_00": "skip_ffn"}, {"layer_00": "skip_layer"}]


def test_what_is_forbidden_equals_its_definition(path):
    made = Parameters(space_of(path, forbid=FORBID), LAYERS)
    for choices in every_policy():
        assert made.allows(Policy.of(choices)) == allowed(choices), choices
    assert made.size == sum(map(allowed, every_policy())) < 81


def test_nothing_that_is_forbidden_is_drawn_or_started_from(path):
    made = Parameters(space_of(path, forbid=FORBID), LAYERS)
    starts = [made.policy(labels) for labels in started(made)]
    drawn = [made.policy(made.random(random.Random(seed))) for seed in range(200)]
    assert starts and len({policy.fingerprint for policy in drawn}) > 20
    assert all(allowed(policy.choices(LAYERS)) for policy in starts + drawn)


def test_a_space_that_allows_next_to_nothing_still_draws(path):
    only_dense = "[" + ", ".join(f"{{{layer}: [skip_ffn, skip_layer], {(layer + 1) % 4}: [keep, skip_ffn, skip_layer]}}"
                                 for layer in range(4)) + "]"  # fmt: skip
    made = Parameters(space_of(path, forbid=only_dense), LAYERS)
    assert made.size == 1
    assert made.policy(made.random(random.Random(0))).is_dense and started(made) == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_measures_what_is_forbidden_and_all_else_is_measured(path, tmp_path, sampler):
    rules = {"layers": "[{range: 1-3, choices: [keep, skip_ffn, skip_layer]}]", "forbid": FORBID}
    study = open_study(path, tmp_path, search__sampler=sampler, search__trials=99, **rules)
    spend(study)
    policies = [record.policy.choices(LAYERS) for record in study.results()]
    assert all(map(allowed, policies))
    assert study.num_measured == sum(allowed([KEEP, *rest]) for rest in every_policy(3))
    if sampler != "auto":  # It knows beforehand.
        assert len(study.study.trials) > len(policies), "something was proposed and turned away"
    assert study.budget_used() == study.num_measured


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_with_groups_and_forbidden_choices_goes_on_where_it_was(path, tmp_path, sampler):
    given = {"layers": SKIPS, "forbid": FORBID, "tied": "[[0, 3]]", "search__sampler": sampler, "search__trials": 12}
    whole = spend(open_study(path, tmp_path / "whole", **given))
    first = spend(open_study(path, tmp_path / "cut", **given), stop_after=7)
    assert first + spend(open_study(path, tmp_path / "cut", resume=True, **given)) == whole


def test_what_was_turned_away_is_no_trial_of_the_study(path, tmp_path):
    study = open_study(path, tmp_path, layers=SKIPS, forbid=FORBID, search__start="none", search__sampler="random")
    proposals = Proposals(study)
    dense = proposals.next()
    proposals.finish(dense, measured(dense.policy))
    study.study.enqueue_trial(study.parameters.labels({"layer_01": "skip_ffn", "layer_02": "skip_layer"}))
    assert study.ask() is None
    assert (len(study.study.trials), len(study.results()), study.budget_used()) == (2, 1, 1)


def test_a_forbidden_choice_is_known_in_every_spelling():
    no_image = LayerChoice(attention="skip", ffn="skip", tokens="image")
    spelled = {"attention": "skip", "ffn": "skip", "tokens": "image"}
    rule = ForbiddenTogether.model_validate({0: spelled, 1: {"choice": "skip_layer", "tokens": "image"}})
    assert ForbiddenChoices([rule]).match(Policy.of([no_image, LayerChoice(token_ratio=0.0)]).choices(2))
    assert not ForbiddenChoices([rule]).match([no_image, KEEP])


def test_a_run_is_of_any_of_its_choices_and_ends_at_others():
    rule = ForbiddenChoices([ForbiddenRun(consecutive=["skip_ffn", "skip_layer"], more_than=2)])
    f, s = CHOICES["skip_ffn"], CHOICES["skip_layer"]
    assert rule.match([f, s, f])
    assert not rule.match([f, s, KEEP, s, f, CHOICES["skip_attention"], f])


def test_what_would_forbid_dense_is_told():
    assert forbids_dense(ForbiddenRun(consecutive=["skip_ffn", "keep"], more_than=1))
    assert forbids_dense(ForbiddenTogether.model_validate({0: ["skip_ffn", "keep"], 1: "keep"}))
    assert not forbids_dense(ForbiddenTogether.model_validate({0: "keep", 1: "skip_ffn"}))


@pytest.mark.parametrize("coupling", [{"tied": "[[2, 4]]"}, {"forbid": "[{1: skip_ffn, 4: skip_ffn}]"}])
def test_layers_beyond_the_model_are_refused(path, coupling):
    with pytest.raises(SpaceError, match="the space names layer 4, the model has layers 0 to 3"):
        Parameters(space_of(path, **coupling), LAYERS)
