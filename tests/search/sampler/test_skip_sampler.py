"""The sampler on cheap stand-ins for a model: what it finds, what it never proposes, and how it goes on."""

import itertools
import subprocess
import sys
from datetime import timedelta

import numpy as np
import optuna
import pytest
from threadpoolctl import threadpool_limits

from skipsearch.search.sampler import fitted_models
from skipsearch.search.sampler.acquisition import ModelCache
from skipsearch.search.sampler.additive_cost import fit_costs
from skipsearch.search.sampler.candidates import Strategy, distinct
from skipsearch.search.sampler.fitted_models import FittedModels
from skipsearch.search.sampler.gaussian_process import Surrogate, typical
from skipsearch.search.sampler.knapsack import additive_front
from skipsearch.search.sampler.observations import Observations
from skipsearch.search.sampler.search_space import CategoricalSpace
from skipsearch.search.sampler.skip_sampler import BLAS, SkipSampler
from skipsearch.search.trial.hypervolume import hypervolume

optuna.logging.set_verbosity(optuna.logging.WARNING)
CHOICES = ["keep", "skip_attention", "skip_ffn", "skip_layer"]
COST = dict(zip(CHOICES, (6, 4, 2, 0), strict=True))
BOTH = ["minimize", "minimize"]
COMPLETE = optuna.trial.TrialState.COMPLETE


class Model:
    """Losses of single choices and of pairs of layers; each layer costs 6 units."""

    def __init__(self, layers, seed=0):
        draw = np.random.default_rng(seed)
        self.names = [f"layer_{index:02}" for index in range(layers)]
        self.neutral = dict.fromkeys(self.names, "keep")
        self.space = {name: optuna.distributions.CategoricalDistribution(CHOICES) for name in self.names}
        self.alone = np.exp(draw.normal(0, 0.9, (layers, 1))) * [0, 0.4, 0.6, 1]
        self.alone *= layers / 4 / self.alone[:, 3].sum()
        self.pair = np.triu(np.maximum(draw.normal(0.3, 0.8, (layers, layers)), -0.4), 1)

    def loss(self, codes):
        each = np.take_along_axis(self.alone[None], codes[:, :, None], 2)[:, :, 0]
        root = np.sqrt(each)
        return each.sum(1) + np.einsum("ni,ij,nj->n", root, self.pair, root) / 3

    def __call__(self, params):
        code = np.array([CHOICES.index(params[name]) for name in self.names])
        return float(self.loss(code[None])[0]), sum(COST[params[name]] for name in self.names) / (6 * len(self.names))

    def volume(self, points):
        return hypervolume(points, BOTH, (1.0, 1.0))


def sampler(model, **options):
    return SkipSampler(model.neutral, reference=options.pop("reference", (1.0, 1.0)), **options)


def search(model, trials, study=None, **options):
    study = study or optuna.create_study(directions=BOTH, sampler=sampler(model, **options))
    for _ in range(trials):
        trial = study.ask(model.space)
        study.tell(trial, model(trial.params))
    return study


def policies(study):
    return [tuple(trial.params.values()) for trial in study.trials]


def volume(model, study):
    return model.volume([trial.values for trial in study.trials])


def test_the_first_trial_is_dense_and_none_repeats():
    model = Model(10)
    found = policies(search(model, 80))
    assert found[0] == ("keep",) * 10 and len(set(found)) == 80


def test_one_seed_proposes_the_same_and_another_seed_something_else():
    model = Model(8)
    one, same, other = (policies(search(model, 30, seed=seed)) for seed in (3, 3, 4))
    assert one == same != other


def test_numbers_are_rounded_alike_whatever_the_number_of_threads():
    def threads():
        # Of numpy, which the sampler computes with: other libraries may bring their own later.
        return {pool["num_threads"] for pool in BLAS.info()}

    seen = set()
    with threadpool_limits(2, "blas"):
        search(Model(6), 12, identity=lambda params: seen.update(threads()) or tuple(params.values()))
        assert threads() == {2}
    assert seen == {1}


def test_a_user_needs_no_distributions_beforehand():
    model = Model(6)
    study = optuna.create_study(directions=BOTH, sampler=sampler(model))
    study.optimize(
        lambda trial: model(
            {name: trial.suggest_categorical(name, CHOICES) for name in model.names},
        ),
        20,
    )
    assert policies(study)[0] == ("keep",) * 6 and len(set(policies(study))) == 20


def test_a_new_sampler_on_the_same_study_goes_on_as_if_never_stopped():
    model = Model(8)
    whole = search(model, 60)
    cut = search(model, 23)
    cut.sampler = sampler(model)
    search(model, 20, cut)
    cut.sampler = sampler(model)
    assert policies(search(model, 17, cut)) == policies(whole)


STEP = """
import sys; sys.path[:0] = {path!r}
import optuna, test_skip_sampler as t
model = t.Model(6)
study = optuna.load_study(study_name="s", storage={url!r}, sampler=t.sampler(model))
t.search(model, 9, study)
study.ask(model.space)
import os; os._exit(9)
"""


@pytest.mark.parametrize("ended", [0, 12])
def test_another_study_of_the_same_name_is_begun_anew(ended):
    model, again = Model(6), sampler(Model(6))
    before, after = (optuna.create_study(study_name="same", directions=BOTH, sampler=again) for _ in range(2))
    search(model, ended, before)
    for _ in range(3):
        before.ask(model.space)
    assert policies(search(model, 16, after)) == policies(search(model, 16))


def test_killed_processes_end_in_the_same_trials_as_one_that_lived(tmp_path):
    model, url = Model(6), f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(study_name="s", storage=url, directions=BOTH)
    for _ in range(2):
        died = subprocess.run([sys.executable, "-c", STEP.format(path=sys.path, url=url)], check=False)
        assert died.returncode == 9
        study = optuna.load_study(study_name="s", storage=url, sampler=sampler(model))
        lost = study.trials[-1]
        study.tell(lost.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(lost.params)
    study = search(model, 10, study)
    measured = [tuple(trial.params.values()) for trial in study.trials if trial.values]
    assert measured == policies(search(model, 28))


def test_workers_that_ask_at_once_get_different_policies_and_are_never_refused():
    model = Model(8)
    study = optuna.create_study(directions=BOTH, sampler=sampler(model))
    running = [study.ask(model.space) for _ in range(8)]
    for turn in range(60):
        trial = running.pop(turn * 5 % 8)
        study.tell(trial, model(trial.params))
        running.append(study.ask(model.space))
    assert len(set(policies(study))) == 68
    for trial in running:
        study.tell(trial, model(trial.params))
    assert volume(model, study) > 0.95 * volume(model, search(model, 68))


def test_threads_never_measure_a_policy_twice():
    model = Model(6)
    study = optuna.create_study(directions=BOTH, sampler=sampler(model, search_space=model.space))
    study.optimize(
        lambda trial: model({name: trial.suggest_categorical(name, CHOICES) for name in model.names}), 80, n_jobs=8
    )
    assert len(set(policies(study))) == 80


@pytest.mark.parametrize("finished", [0, 1, 20])
def test_processes_that_ask_in_the_same_instant_get_different_policies(finished):
    model, storage = Model(6), optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, directions=BOTH, sampler=sampler(model))
    search(model, finished, study)
    begun = [storage.create_new_trial(study._study_id) for _ in range(4)]
    drawn = [sampler(model).sample_relative(study, storage.get_trial(number), model.space) for number in begun]
    assert len({tuple(params.values()) for params in drawn}) == 4


def test_what_is_queued_is_not_proposed():
    model = Model(6)
    expected = policies(search(model, 12))[11]
    study = search(model, 11)
    study.enqueue_trial(dict(zip(model.names, expected, strict=True)))
    study.enqueue_trial(dict(zip(model.names, expected[::-1], strict=True)))
    found = policies(search(model, 6, study))
    assert len(set(found)) == 17 or expected == expected[::-1]


def test_policies_that_mean_the_same_are_measured_once():
    model = Model(6)

    def kept(params):
        return sum(choice == "keep" for choice in params.values())

    study = search(model, 7, identity=kept)
    assert sorted(kept(trial.params) for trial in study.trials) == list(range(7))


def test_a_failed_policy_is_not_proposed_again():
    model = Model(5)
    study = optuna.create_study(directions=BOTH, sampler=sampler(model))
    for number in range(30):
        trial = study.ask(model.space)
        fails = number % 3 == 2
        study.tell(
            trial, None if fails else model(trial.params), state=None if not fails else optuna.trial.TrialState.FAIL
        )
    assert len(set(policies(study))) == 30


@pytest.mark.parametrize("early", [False, True])
def test_policies_that_break_a_constraint_teach_where_the_others_are(early):
    model = Model(12)
    study = optuna.create_study(directions=BOTH, sampler=sampler(model))
    kept = []
    for _ in range(60):
        trial = study.ask(model.space)
        loss, cost = model(trial.params)
        trial.set_constraint("loss", loss - 0.3)
        trial.set_constraint("cost", 0.4 - cost)
        broken = max(loss - 0.3, 0.4 - cost) > 0
        study.tell(
            trial,
            None if broken and early else (loss, cost),
            state=optuna.trial.TrialState.PRUNED if broken and early else None,
        )
        kept.append(not broken)
    assert sum(kept[30:]) > 10
    assert model.volume([trial.values for trial in study.best_trials]) > 0.2
    assert not any(value > 0 for trial in study.best_trials for value in trial.constraints.values())


def test_forbidden_policies_are_never_proposed():
    model = Model(8)

    def allowed(params):
        return params["layer_00"] == "keep" and params["layer_07"] != "skip_layer"

    study = search(model, 60, allowed=allowed)
    assert all(allowed(trial.params) for trial in study.trials)
    assert len(set(policies(study))) == 60


def test_neutral_must_be_a_choice():
    model = Model(3)
    study = optuna.create_study(directions=BOTH, sampler=SkipSampler({"layer_00": "none"}, search_space=model.space))
    with pytest.raises(ValueError, match="neutral choice of layer_00: found 'none', expected one of"):
        study.ask(model.space)


def test_layers_must_be_ascending():
    model = Model(3)
    layers = {"layer_00": 1, "layer_01": 0, "layer_02": 1}
    study = optuna.create_study(directions=BOTH, sampler=sampler(model, layers=layers))
    search(model, 1, study)
    with pytest.raises(ValueError, match=r"layers: found \[1, 0, 1\], expected ascending"):
        study.ask(model.space)


def test_one_objective_with_a_bound_on_the_cost():
    model = Model(8)
    study = optuna.create_study(direction="maximize", sampler=SkipSampler(model.neutral))
    for _ in range(80):
        trial = study.ask(model.space)
        loss, cost = model(trial.params)
        trial.set_constraint("cost", cost - 0.6)
        study.tell(trial, -loss)
    codes = np.array(list(itertools.product(range(4), repeat=8)))
    affordable = np.array([6, 4, 2, 0])[codes].sum(1) <= 0.6 * 48
    assert -study.best_value <= np.quantile(model.loss(codes[affordable]), 0.001)


def test_three_objectives_of_any_direction_with_the_expensive_one_last():
    model = Model(10)
    directions = ["minimize", "maximize", "maximize"]

    def measured(params):
        loss, cost = model(params)
        saved = sum(choice in ("skip_attention", "skip_layer") for choice in params.values())
        return cost, saved, 1 - loss

    def found(chosen):
        study = optuna.create_study(directions=directions, sampler=chosen)
        for _ in range(100):
            trial = study.ask(model.space)
            study.tell(trial, measured(trial.params))
        return hypervolume([trial.values for trial in study.trials], directions, (1.0, 0.0, 0.0))

    ours = found(SkipSampler(model.neutral, expensive=2, reference=(1.0, 0.0, 0.0)))
    assert ours > 1.2 * found(optuna.samplers.NSGAIISampler(population_size=20, seed=0))


def test_plateaus_and_noise_of_a_small_benchmark_do_no_harm():
    model, draw = Model(12), np.random.default_rng(0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SkipSampler(model.neutral))
    true = []
    for _ in range(80):
        trial = study.ask(model.space)
        loss, cost = model(trial.params)
        true.append((loss, cost))
        study.tell(trial, (draw.binomial(50, max(0.0, 0.9 - loss)) / 50, cost))
    assert len(set(policies(study))) == 80
    assert model.volume(true) > 0.85 * volume(model, search(model, 80))


@pytest.mark.parametrize("unit", [1e-6, 1e4])
def test_units_do_not_matter(unit):
    model = Model(8)
    study = optuna.create_study(directions=BOTH, sampler=sampler(model, reference=(unit, 1.0)))
    for _ in range(40):
        trial = study.ask(model.space)
        loss, cost = model(trial.params)
        study.tell(trial, (unit * loss, cost))
    scaled = [(loss / unit, cost) for loss, cost in (trial.values for trial in study.trials)]
    assert model.volume(scaled) == pytest.approx(volume(model, search(model, 40)), rel=0.03)


def test_a_reference_is_completed_by_what_dense_costs():
    model = Model(6)
    assert policies(search(model, 20, reference=(1.0, None))) == policies(search(model, 20))


def test_a_model_that_loses_nothing_is_searched_too():
    model = Model(8)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SkipSampler(model.neutral))
    for _ in range(30):
        trial = study.ask(model.space)
        study.tell(trial, (0.5, model(trial.params)[1]))
    assert min(trial.values[1] for trial in study.trials) < 0.3


def test_a_space_ends_in_every_policy_and_then_in_dense():
    model = Model(3)
    found = policies(search(model, 66))
    assert len(set(found[:64])) == 64 and found[64:] == [("keep",) * 3] * 2


def test_99_percent_of_the_true_front_of_a_space_that_can_be_enumerated():
    model = Model(6, seed=5)
    codes = np.array(list(itertools.product(range(4), repeat=6)))
    costs = np.array([6, 4, 2, 0])[codes].sum(1) / 36
    true = model.volume(list(zip(model.loss(codes).tolist(), costs.tolist(), strict=True)))
    assert volume(model, search(model, 200)) >= 0.99 * true


def test_fewer_evaluations_than_random_and_nsga2():
    model = Model(16, seed=7)
    ours = volume(model, search(model, 60))
    for other in (optuna.samplers.RandomSampler(0), optuna.samplers.NSGAIISampler(population_size=30, seed=0)):
        theirs = search(model, 300, optuna.create_study(directions=BOTH, sampler=other))
        assert ours > 1.1 * volume(model, theirs)


def test_the_additive_front_is_that_of_every_policy():
    draw = np.random.default_rng(0)
    losses, costs = draw.random((5, 3)), draw.integers(0, 6, (5, 3)).astype(float)
    losses[2, 2] = np.inf
    codes = np.array(list(itertools.product(range(3), repeat=5)))
    every = np.array([(losses[range(5), code].sum(), costs[range(5), code].sum()) for code in codes])
    true = {point for point in map(tuple, every) if not ((every <= point).all(1) & (every < point).any(1)).any()}
    span = int((costs.max(1) - costs.min(1)).sum())
    span -= int(max(costs[2]) - min(costs[2])) - int(costs[2, :2].max() - costs[2, :2].min())
    found = {
        (losses[range(5), code].sum(), costs[range(5), code].sum()) for code in additive_front(losses, costs, span)
    }
    assert {(round(loss, 9), cost) for loss, cost in found} == {(round(loss, 9), cost) for loss, cost in true}


def test_distinct_policies_and_numbers_of_combinations_are_those_of_numpy():
    draw = np.random.default_rng(0)
    space = CategoricalSpace([[*range(size)] for size in (2, 300, 3, 2, 4, 2)], [0, 0, 1, 1, 1, 4])
    codes = draw.integers(0, space.sizes, (60, 6)).astype(np.int16)
    assert np.array_equal(distinct(np.vstack([codes, codes[::3]])), np.unique(codes, axis=0))
    assert np.array_equal(space.from_combinations(space.to_combinations(codes)), codes)


def test_the_surrogate_believes_an_estimate_less_than_a_measurement():
    model, draw = Model(6), np.random.default_rng(1)
    codes = draw.integers(0, 4, (40, 6)).astype(np.int16)
    truth = model.loss(codes)
    rough = np.arange(40) % 2 == 0
    figures = truth + np.where(rough, draw.normal(0, 0.3, 40), 0.0)
    space, weights = CategoricalSpace([CHOICES] * 6), np.ones(18)
    fits = [Surrogate(space, weights, codes, figures, errors) for errors in (np.zeros(40), np.where(rough, 0.3, 0.0))]
    fresh = draw.integers(0, 4, (200, 6)).astype(np.int16)
    blind, knowing = (np.abs(fit.warping.inverse(fit.mean(fresh)) - model.loss(fresh)).mean() for fit in fits)
    assert knowing < 0.9 * blind
    again = fits[1].with_measured(fresh[:1], np.array([9.0]), np.array([100.0]))
    assert np.allclose(again.mean(fresh), fits[1].mean(fresh), atol=0.02)


def test_a_surrogate_that_grows_knows_what_a_gaussian_process_of_all_policies_knows():
    draw, space = np.random.default_rng(0), CategoricalSpace([[0, 1, 2]] * 12)
    codes = np.unique(draw.integers(0, 3, (420, 12)), axis=0)[draw.permutation(400)].astype(np.int16)
    losses = codes @ draw.uniform(0.01, 0.1, 12) + 0.2 * (codes[:, 0] > 0) * (codes[:, 1] > 0)
    losses += draw.normal(0, 0.01, 400)
    begun = Surrogate(space, np.ones(24), codes[:300], losses[:300], np.zeros(300))
    grown = begun.with_measured(codes[300:320], losses[300:320], np.zeros(20))
    waiting = grown.with_pending(codes[320:330])
    means, deviations = waiting.predict(codes[330:])
    prior, choices = grown.prior, space.features(codes)
    every = choices @ prior.covariance @ choices.T
    every += prior.interaction_variance * (choices @ prior.interaction_root @ choices.T) ** 2
    assert np.allclose(waiting.pending_means, grown.mean(codes[320:330]))
    linked = np.r_[prior.warping(losses[:320]), waiting.pending_means]
    # Rasmussen and Williams 2006, 2.25 and 2.26.
    covariance, cross, expected = every[:330, :330] + prior.noise * np.eye(330), every[330:, :330], choices @ prior.mean
    expected[330:] += cross @ np.linalg.solve(covariance, linked - expected[:330])
    assert np.allclose(waiting.mean(codes[330:]), expected[330:])
    assert np.all(np.abs(means - expected[330:]) < 0.02 * deviations)
    told = np.einsum("ij,ji->i", cross, np.linalg.solve(covariance, cross.T))
    assert np.allclose(deviations, np.sqrt(np.diag(every)[330:] - told), rtol=0.02)


def test_what_a_choice_adds_is_the_difference_that_it_makes():
    draw, space = np.random.default_rng(0), CategoricalSpace([[0, 1, 2], [0, 2], [0, 1, 2, 3]] * 4)
    codes = draw.integers(0, space.sizes, (200, 12)).astype(np.int16)
    losses = (codes > 0) @ draw.uniform(0.01, 0.1, 12) + 0.2 * (codes[:, 0] > 0) * (codes[:, 1] > 0)
    surrogate = Surrogate(space, np.ones(24), codes, losses, np.zeros(200))
    for code, added in zip(codes[:5], surrogate.marginal_effects(codes[:5]), strict=True):
        with_it, without = np.repeat(code[None], 24, axis=0), np.repeat(code[None], 24, axis=0)
        with_it[np.arange(24), space.variable] = space.code
        without[np.arange(24), space.variable] = 0
        assert np.allclose(added, surrogate.mean(with_it) - surrogate.mean(without))
    single = with_it * 0
    single[np.arange(24), space.variable] = space.code
    assert np.allclose(surrogate.main_effects(), surrogate.mean(single))


def test_a_ratio_tells_of_its_neighbours_on_the_scale():
    draw, values = np.random.default_rng(0), [1.0, 0.75, 0.5, 0.25]
    scales = {value: ("tokens", 1 - value) for value in values[1:]}
    codes = np.where(draw.random((60, 10)) < 0.4, 2, 0).astype(np.int16)
    codes[0] = 0
    weights, left_out = draw.uniform(0.2, 2.0, 10), np.array([0.0, 0.25, 0.5, 0.75])
    losses = (weights * left_out[codes]).sum(1)
    untried = np.repeat([1, 3], 10), np.tile(np.arange(10), 2)
    single = np.zeros((20, 10), np.int16)
    single[np.arange(20), untried[1]] = untried[0]
    found = {}
    for name, given in {"scales": scales, "none": {}}.items():
        space = CategoricalSpace([values] * 10, None, given)
        surrogate = Surrogate(space, np.tile(left_out[1:], 10), codes, losses, np.zeros(60))
        found[name] = surrogate.predict(single)[1]
        assert surrogate.warping.scale == np.inf, "the deviations are in losses"
    assert (found["scales"] < 0.8 * found["none"]).all()
    # Without a scale only equal values are similar, and each of them has a policy of the initial design.
    alone, together = CategoricalSpace([values] * 9), CategoricalSpace([values] * 9, None, scales)
    assert np.array_equal(alone.similarity, np.tile(np.eye(3), (9, 9)))
    designs = [Strategy(space)._initial_design() for space in (alone, together)]
    assert [len(design) + 1 for design in designs] == [alone.num_initial, together.num_initial] == [4, 2]
    assert designs[1][0].tolist() == [0, 1, 0, 0, 2, 0, 0, 3, 0]


# With seed 32 strong interactions shared by 0.8 and weaker ones by a half are each better than what lies between.
@pytest.mark.parametrize(("seed", "shared", "alike"), [(0, True, 0.8), (0, False, 0.5), (32, False, 0.5)])
def test_evidence_tells_whether_choices_of_a_layer_share_their_interactions(seed, shared, alike):
    draw, space = np.random.default_rng(seed), CategoricalSpace([[0, 1, 2, 3]] * 10)
    codes = np.where(draw.random((120, 10)) < 0.15, draw.integers(1, 4, (120, 10)), 0).astype(np.int16)
    codes[0] = 0
    effects = draw.normal(0, 0.1, (10, 10, 1, 1) if shared else (10, 10, 4, 4)) * np.ones((10, 10, 4, 4))
    effects[:, :, 0] = effects[:, :, :, 0] = 0
    pairs = [effects[one, other, codes[:, one], codes[:, other]] for one in range(10) for other in range(one)]
    losses = (codes > 0) @ (0.1 * np.exp(draw.normal(0, 0.7, 10))) + np.sum(pairs, axis=0)
    assert Surrogate(space, np.ones(30), codes, losses, np.zeros(120)).hyperparameters.shared_interactions == alike


def test_a_policy_that_loses_far_too_much_says_little_of_its_choices():
    space, half = CategoricalSpace([[0, 1, 2]] * 12), np.arange(12) < 6
    some = np.where(np.random.default_rng(0).random((40, 12)) < 0.3, np.where(half, 2, 1), 0)
    codes = np.vstack([0 * some[:1], some, np.full((1, 12), 2)]).astype(np.int16)
    losses, nothing = np.r_[0.0, some @ np.where(half, 0.01, 0.05), 4.0], np.zeros(42)
    history = Observations(codes, losses, 1 - codes.sum(1)[:, None] / 24, np.zeros((42, 0)), nothing, codes[:0])
    # The other half was never tried, but in the last policy.
    untried = (space.code == 2) & (space.variable >= 6)
    beyond, within = (FittedModels(space, history, np.array([worst, 1.0])) for worst in (1.0, 40.0))
    assert beyond.surrogate.main_effects()[untried].max() < 0.5 * within.surrogate.main_effects()[untried].min()


def test_a_guided_search_reads_a_bound_on_the_loss_from_the_loss():
    draw, space = np.random.default_rng(0), CategoricalSpace([[0, 1]] * 8)
    codes = np.vstack([np.zeros((1, 8)), draw.random((40, 8)) < 0.4]).astype(np.int16)
    sizes = np.linspace(0.2, 1.0, 8)
    losses, costs = codes @ sizes, 1 - codes.sum(1, keepdims=True) / 8
    scores, none = -1 / (1 + np.exp(losses - 4)), np.zeros(41)
    given = Observations(codes, losses, costs, losses[:, None] - 1.5, none, codes[:0], scores, none, np.arange(1, 42))
    acquisition = ModelCache(space, np.array([-0.1, 1.0]), -0.0).acquisition(given)
    candidates = (np.arange(8) < np.array([3, 4, 6, 7])[:, None]).astype(np.int16)
    assert ((acquisition.expected_improvement(candidates) > 1e-4) == (candidates @ sizes < 1.5)).all()


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_an_estimate_is_replaced_by_a_later_trial_of_the_same_parameters(error):
    model = Model(6)
    told = search(model, 30)

    def proposed(loss, again):
        options = {"estimate": lambda trial: ((loss, 0.5), error) if trial.state.name == "PRUNED" else None}
        rough = optuna.create_study(directions=BOTH, sampler=sampler(model, **options))
        for trial in told.trials:
            estimated = trial.number % 3 == 1
            states = [optuna.trial.TrialState.PRUNED] * estimated + [COMPLETE] * (again or not estimated)
            for state in states:
                values = trial.values if state == COMPLETE else None
                rough.add_trial(
                    optuna.trial.create_trial(
                        state=state, values=values, params=trial.params, distributions=trial.distributions
                    )
                )
        return policies(search(model, 4, rough))[-4:]

    assert proposed(9.0, again=True) == proposed(0.1, again=True)
    assert proposed(9.0, again=False) != proposed(0.1, again=False)


@pytest.mark.parametrize("stopped", [False, True])
def test_estimates_that_later_trials_change_are_read_anew(stopped):
    """Also those that were stopped when measured in full: another evaluator may find a bound broken after that."""
    model = Model(8)

    def proposed(fresh):
        known = []

        def estimate(trial):
            loss, cost = model(trial.params)
            return None if trial.number in known else ((loss + 1 / len(known), cost), 0.1)

        study = optuna.create_study(directions=BOTH, sampler=sampler(model, estimate=estimate))
        for number in range(40):
            if fresh:
                study.sampler = sampler(model, estimate=estimate)
            trial, few = study.ask(model.space), number % 3 == 2
            if few or (stopped and number > 4 and number % 3 == 1):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(trial, model(trial.params))
            known += [] if few else [number]
        return policies(study)

    assert proposed(fresh=False) == proposed(fresh=True)


def test_an_estimate_says_which_bounds_are_expected_to_be_broken():
    """Where nothing but a bound is measured on examples; without that all would look best that do least."""
    model = Model(6)

    def trial(number, cost, expected):
        params = {name: "skip_layer" if place < number else "keep" for place, name in enumerate(model.names)}
        state = optuna.trial.TrialState.PRUNED if expected else optuna.trial.TrialState.COMPLETE
        return optuna.trial.create_trial(
            state=state, values=None if expected else [cost], params=params, distributions=model.space,
            constraints={} if expected else {"accuracy": -0.5}, user_attrs={"cost": cost},
        )  # fmt: skip

    def skipped(expected):
        """How many layers the next policies skip."""

        def estimate(trial):
            cost = trial.user_attrs["cost"]
            return [cost], 0.0, {"accuracy": 0.1 if expected and cost < 0.5 else -0.1}

        study = optuna.create_study(sampler=SkipSampler(model.neutral, estimate=estimate))
        study.add_trials([trial(number, 1 - number / 6, number > 1) for number in range(6)])
        proposed = [study.ask(model.space).params for _ in range(4)]
        return [sum(choice == "skip_layer" for choice in one.values()) for one in proposed]

    assert np.mean(skipped(expected=True)) < np.mean(skipped(expected=False))


@pytest.mark.parametrize("costs", [0, 1])
def test_a_surrogate_trains_on_so_many_policies_however_long_the_search(costs, monkeypatch):
    trained = []

    class Counted(Surrogate):
        def __init__(self, space, weights, codes, *measured):
            trained.append(len(codes))
            super().__init__(space, weights, codes, *measured)

    monkeypatch.setattr(fitted_models, "MAX_TRAINING_POLICIES", 32)
    monkeypatch.setattr(fitted_models, "Surrogate", Counted)
    space, draw = CategoricalSpace([CHOICES] * 6), np.random.default_rng(0)
    for count in (40, 300, 800):
        codes = np.vstack([np.zeros((1, 6), int), draw.integers(4, size=(count - 1, 6))]).astype(np.int16)
        nothing, losses = np.zeros((count, 0)), codes.sum(1) / 18
        cost = 1 - losses[:, None] if costs else nothing
        FittedModels(space, Observations(codes, losses, cost, nothing, np.zeros(count), codes[:0]), None)
        assert trained.pop() == max(16, 32 - count // 16) and not trained


def test_a_few_huge_losses_do_not_say_how_large_losses_are():
    losses = np.random.default_rng(0).exponential(size=100)
    without = typical(losses)
    assert typical(np.r_[losses, 1e3]) < 2 * without
    assert typical(np.r_[losses, [1e12] * 9]) < 2 * typical(np.r_[losses, [1e4] * 9]) < 4 * without
    assert typical(7 * losses) == pytest.approx(7 * without)
    # Where most lose nothing at all, the others tell.
    assert 0.01 < typical(np.r_[np.zeros(90), 10 * [1.0]]) < 1 and typical(np.zeros(5)) > 0


def test_a_sampler_serves_studies_of_other_spaces_and_knows_old_trials_of_more_choices():
    model, few = Model(4), optuna.distributions.CategoricalDistribution(CHOICES[:2])
    smaller = dict.fromkeys(model.names, few)
    mine, first = SkipSampler(model.neutral), None
    for space in (model.space, smaller):
        study = optuna.create_study(directions=BOTH, sampler=mine)
        first = first or study
        for _ in range(6):
            trial = study.ask(space)
            study.tell(trial, model(trial.params))
        assert len({*policies(study)}) == 6
    known = optuna.create_study(directions=BOTH, sampler=SkipSampler(model.neutral, search_space=smaller))
    known.tell(known.ask(smaller), (0.0, 1.0))
    known.add_trials(first.get_trials())
    old = {one for one in policies(first) if {*one} <= {*few.choices}}
    assert 1 < len(old) < 6
    rest = [known.ask(smaller) for _ in range(2**4 - len(old))]
    assert {tuple(trial.params.values()) for trial in rest} | old == {*itertools.product(few.choices, repeat=4)}


def test_costs_of_which_only_dense_is_known_are_those_of_dense():
    """So it is with a bound on accuracy where everything but dense answered few examples, or was stopped before."""
    space = CategoricalSpace([CHOICES] * 6)
    for count in (0, 1, 2):
        by_feature, error = fit_costs(space, np.zeros((count, 6), np.int16), np.zeros(count))
        assert not by_feature.any() and error == 0 and space.table(by_feature, 0.0).shape == (6, 4)


def test_a_trial_that_came_late_is_read_where_it_finished():
    model = Model(8)
    # Without a reference the first to finish say what counts.
    lived, fresh = (search(model, 30, reference=None) for _ in range(2))
    first = lived.trials[0].datetime_complete - timedelta(hours=1)
    for study in (lived, fresh):
        params = dict.fromkeys(model.names, "skip_layer")
        late = optuna.trial.create_trial(params=params, distributions=model.space, values=[3.0, 0.0])
        late.datetime_complete = first
        study.add_trial(late)
    fresh.sampler = sampler(model, reference=None)
    assert policies(search(model, 10, lived)) == policies(search(model, 10, fresh))
