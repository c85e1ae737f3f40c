"""The model of measured times, on planted sums with noise: how far it strays, and how honest its intervals are."""

import numpy as np
import pytest

from skipsearch.policies.choice import CHOICES, KEEP, LayerChoice
from skipsearch.policies.metadata import Z95
from skipsearch.policies.policy import Policy
from skipsearch.policies.scores.token_selection import TokenSelection
from skipsearch.search.trial.time_model import TimedPolicy, TimeEstimate, TimeModel, features

LAYERS = 12
RATIOS = [LayerChoice(token_ratio=0.5), LayerChoice(token_ratio=0.25)]
FLAT = [*(choice for name, choice in CHOICES.items() if name != "freeze_image"), *RATIOS]
PRODUCT = [LayerChoice(attention=a, ffn=f, token_ratio=r) for a in ("run", "skip") for f in ("run", "skip")
           for r in (1.0, 0.5, 0.25)]  # fmt: skip
SAVED = {"attention skip both all": -0.02, "ffn skip both all": -0.045, "wiring parallel both all": -0.003,
         "tokens of attention": -0.012, "tokens of ffn": -0.03, "selection by attention": 0.008}  # fmt: skip


class Planted:
    """Times that are sums of what layers save, some of it explained by no sum, and measured with noise."""

    def __init__(self, seed, count, noise, misfit=0.0, choices=FLAT):
        draw = np.random.default_rng(seed)
        self.saved = {(kind, layer): value * (1 + 0.3 * draw.normal()) for kind, value in SAVED.items()
                      for layer in range(LAYERS)}  # fmt: skip
        busy = draw.random(count)
        self.policies = [
            Policy.of([choices[draw.integers(len(choices))] if draw.random() < share else KEEP for _ in range(LAYERS)])
            for share in busy
        ]
        self.true = np.array([self.time(policy) for policy in self.policies])
        self.true += misfit * draw.normal(size=count)
        errors = noise * np.exp(0.4 * draw.normal(size=count))
        self.raw = self.true + errors * draw.normal(size=count)
        spread = errors**2 * draw.chisquare(6, size=count) / 6
        self.timed = [
            TimedPolicy(features(policy, LAYERS), float(ratio), float(one))
            for policy, ratio, one in zip(self.policies, self.raw, (6 * spread + 4 * spread.mean()) / 10, strict=True)
        ]
        self.null = [(1 + noise * draw.normal(), noise**2) for _ in range(4)]

    def time(self, policy):
        return 1 + sum(self.saved[feature] * value for feature, value in features(policy, LAYERS).items())

    def model(self):
        return TimeModel(LAYERS, self.timed, self.null)


@pytest.mark.parametrize("choices", [FLAT, PRODUCT], ids=["flat", "product"])
@pytest.mark.parametrize(("noise", "misfit"), [(0.005, 0.0), (0.03, 0.0), (0.1, 0.0), (0.03, 0.02)])
def test_intervals_hold_what_they_promise_and_errors_shrink(choices, noise, misfit):
    inside, apart, error, raw = [], [], [], []
    for seed in range(4):
        planted = Planted(seed, 80, noise, misfit, choices)
        model = planted.model()
        found = [model.smoothed(one) for one in planted.timed]
        off = np.array([one.ratio for one in found]) - planted.true
        inside += [abs(gap) <= Z95 * one.error for gap, one in zip(off, found, strict=True)]
        pairs = np.random.default_rng(seed).integers(80, size=(100, 2))
        apart += [abs(off[a] - off[b]) <= Z95 * found[a].difference_error(found[b]) for a, b in pairs]
        error.append(np.mean(off**2))
        raw.append(np.mean((planted.raw - planted.true) ** 2))
    assert np.mean(inside) >= 0.9 and np.mean(apart) >= 0.9
    gain = np.sqrt(np.mean(error) / np.mean(raw))
    assert gain < (1.0 if noise < 0.01 else 0.7 if misfit else 0.6)


def test_a_policy_that_was_not_timed_is_predicted_within_its_interval():
    planted, others = Planted(0, 60, 0.03), Planted(0, 200, 0.03)
    model = planted.model()
    found = [model.predict(features(policy, LAYERS)) for policy in others.policies[60:]]
    off = [abs(one.ratio - true) / one.error for one, true in zip(found, others.true[60:], strict=True)]
    assert np.mean(np.array(off) <= Z95) > 0.9
    # A fifth of how far the times of all policies lie apart.
    assert np.sqrt(np.mean([one.error**2 for one in found])) < 0.2 * others.true.std()


def test_what_two_policies_have_in_common_does_not_keep_them_apart():
    model = Planted(1, 40, 0.05).model()
    busy = [CHOICES["skip_ffn"]] * 8 + [KEEP] * 4
    one, other = (
        model.predict(features(Policy.of([*busy[:11], last]), LAYERS)) for last in (KEEP, CHOICES["skip_ffn"])
    )
    alone = np.hypot(one.error, other.error)
    assert one.difference_error(other) < 0.9 * alone
    assert one.difference_error(other) == pytest.approx(other.difference_error(one))


def test_a_new_measurement_moves_an_estimate_by_what_it_is_worth():
    before = TimeEstimate(0.8, np.array([0.03]), 0.04)
    exact, vague = before.updated(0.7, 1e-12), before.updated(0.7, 100.0)
    assert exact.ratio == pytest.approx(0.7) and exact.error == pytest.approx(0, abs=1e-5)
    assert vague.ratio == pytest.approx(0.8, abs=1e-4) and vague.error == pytest.approx(before.error, rel=1e-3)
    even = before.updated(0.7, before.error**2)
    assert even.ratio == pytest.approx(0.75) and even.error == pytest.approx(before.error / np.sqrt(2))


def test_noise_that_repeats_hide_is_found_by_what_they_leave_unexplained():
    """Repeats of one minute agree where the machine is slow for all of it: residuals and dense itself tell."""
    planted = Planted(3, 120, 0.05)
    timed = [TimedPolicy(one.features, one.ratio, one.variance / 9) for one in planted.timed]
    null = [(ratio, variance / 9) for ratio, variance in planted.null]
    model = TimeModel(LAYERS, timed, null)
    assert model.noise > 3
    found = [model.smoothed(one) for one in timed]
    inside = [abs(one.ratio - true) <= Z95 * one.error for one, true in zip(found, planted.true, strict=True)]
    assert np.mean(inside) > 0.85


def test_a_counted_cost_tells_times_that_no_layer_was_seen_for():
    policies = [Policy.of([CHOICES["skip_layer"] if layer == place else KEEP for layer in range(LAYERS)])
                for place in range(6)]  # fmt: skip
    timed = [
        TimedPolicy(features(policy, LAYERS, {"prefill_flops": 1 - (place + 1) / 100}), 1 - (place + 1) / 100, 1e-6)
        for place, policy in enumerate(policies)
    ]
    model = TimeModel(LAYERS, timed)
    change, errors = model.cost_effect("prefill_flops")
    unseen = model.predict(features(Policy(), LAYERS, {"prefill_flops": 0.9}))
    assert unseen.ratio == pytest.approx(1 + 0.1 * change) and len(errors) == len(unseen.shared_errors)
    assert unseen.ratio < 0.97


def test_equal_policies_have_equal_features_however_they_are_written():
    same = [LayerChoice(attention="skip", ffn="skip", token_ratio=0.5), CHOICES["skip_layer"]]
    one, other = (features(Policy.of([KEEP, choice, KEEP]), 3) for choice in same)
    assert one == other == {("attention skip both all", 1): 1.0, ("ffn skip both all", 1): 1.0}
    assert features(Policy(), 3) == {}


def test_tokens_that_are_gone_for_good_are_saved_in_later_layers_too():
    choices = [LayerChoice(token_ratio=0.5), KEEP, LayerChoice(ffn="skip")]
    back, gone = (
        features(Policy.of(choices).model_copy(update={"token_selection": TokenSelection(reselect=word)}), 3)
        for word in ("each_layer", "once")
    )
    assert gone == back | {("tokens of attention", 1): 0.5, ("tokens of ffn", 1): 0.5, ("tokens of attention", 2): 0.5}
    assert ("tokens of ffn", 2) not in gone  # What does not run saves nothing by fewer tokens.


def test_a_share_of_channels_or_heads_counts_by_what_it_leaves_out():
    choices = [LayerChoice(ffn_ratio=0.25), LayerChoice(ffn_ratio=0.5, tokens="image"), LayerChoice(ffn="skip")]
    choices += [LayerChoice(head_ratio=0.75, phase="decode")]
    assert features(Policy.of(choices), 4) == {
        ("channels of ffn both all", 0): 0.75,
        ("channels of ffn both image", 1): 0.5,
        ("ffn skip both all", 2): 1.0,
        ("heads of attention decode all", 3): 0.25,
    }
