"""Bayesian linear model of measured times: learns what each layer saves from all timed policies.

The time of a policy, as a ratio to dense, is 1 minus the savings of its layers, plus what no sum explains (the misfit),
plus measurement noise. A change is expected to save alike in all layers, and most alike in neighbouring ones. The
evidence (marginal likelihood) chooses the scale of the savings and how much layers share; misfit and noise are averaged
by their evidence. The model needs no study.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from ...policies.choice import LayerChoice
from ...policies.policy import Policy
from ...policies.quantized.kinds import NONE
from .arrays import Floats

Feature: TypeAlias = tuple[str, int]  # what is changed, and in which layer
Features: TypeAlias = Mapping[Feature, float]

SCALES = (0.2, 0.6, 2.0)  # prior standard deviation of a layer's saving, in units of half a dense layer
SHARED = (0.5, 0.9)  # share of a saving's prior variance that all layers have in common
MISFITS = (0.02, 0.04, 0.08, 0.16, 0.32)  # standard deviation of the misfit, as a share of the RMS saving
NOISES = (0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0)  # noise variance, as a multiple of what repeats show
LOG_NOISE_PRIOR = 1.5  # prior standard deviation of the logarithm of that multiple
CORRELATION_LENGTH = 2.0  # layers over which the correlation of savings falls by 1/e
MAX_EVIDENCE_POLICIES = 256  # policies from which the evidence is computed, at most
COST = -1  # layer number of a saving in a counted cost or by quantised weights, which belongs to no layer


@dataclass(frozen=True, eq=False)
class TimeEstimate:
    """A policy's time as a ratio to dense, with its errors.

    Attributes:
        ratio: The expected ratio.
        shared_errors: (p,): contributions to the error from p independent standard normal variables that all policies
            of one model share: the uncertainty of what layers save.
        independent_error: Standard error that is independent of all other policies.
    """

    ratio: float
    shared_errors: Floats
    independent_error: float

    @property
    def error(self) -> float:
        """Standard error of the ratio."""
        return math.hypot(float(np.linalg.norm(self.shared_errors)), self.independent_error)

    def difference_error(self, other: "TimeEstimate") -> float:
        """Standard error of the difference of two ratios of one model: their shared errors partly cancel."""
        mine, theirs = self.shared_errors, other.shared_errors
        # The estimate of dense has no shared errors.
        shared = mine - theirs if mine.shape == theirs.shape else np.r_[mine, theirs]
        return math.hypot(float(np.linalg.norm(shared)), self.independent_error, other.independent_error)

    def updated(self, ratio: float, variance: float) -> "TimeEstimate":
        """The posterior after the policy itself was measured.

        Args:
            ratio: The measured ratio.
            variance: Variance of the measurement.
        """
        prior = self.error**2
        gain = prior / (prior + variance) if prior else 0.0  # the Kalman gain
        independent = math.hypot((1 - gain) * self.independent_error, gain * math.sqrt(variance))
        return TimeEstimate(self.ratio + gain * (ratio - self.ratio), (1 - gain) * self.shared_errors, independent)


@dataclass(frozen=True)
class TimedPolicy:
    """A policy with its measured time.

    Attributes:
        features: See `features`.
        ratio: Its time, as a ratio to dense.
        variance: Variance of that ratio, as its repeats show it.
    """

    features: Features
    ratio: float
    variance: float


@lru_cache(maxsize=4096)
def changes(choice: LayerChoice) -> tuple[str, ...]:
    """What a canonical choice skips or changes, one entry a key, except its ratios and what belongs to them."""
    scope = f"{choice.phase} {choice.tokens}"
    keys = choice.document().keys() - {"ffn_ratio", "head_ratio", "token_ratio", "rest", "evict", "phase", "tokens"}
    return tuple(f"{key} {getattr(choice, key)} {scope}" for key in sorted(keys))


def features(policy: Policy, num_layers: int, costs: Mapping[str, float] = MappingProxyType({})) -> Features:
    """Features of a policy: by change and layer 1; for a ratio the share of what it counts that it leaves out.

    Args:
        policy: The policy.
        num_layers: The model's decoder layers.
        costs: Counted costs as shares of dense; each adds a feature, the share it saves. So do quantised weights.
    """
    canonical = policy.canonical()
    found = {(name, COST): 1 - share for name, share in costs.items()}
    if canonical.model.quantization != NONE:
        found[f"weights {canonical.model.quantization}", COST] = 1.0
    selection, kept = canonical.token_selection, 1.0
    for layer, choice in enumerate(canonical.choices(num_layers)):
        found |= {(change, layer): 1.0 for change in changes(choice)}
        ratio = kept if choice.token_ratio is None or not choice.ranks_images else min(kept, choice.token_ratio)
        if choice.ffn_ratio is not None:
            found[f"channels of ffn {choice.phase} {choice.tokens}", layer] = 1 - choice.ffn_ratio
        if choice.head_ratio is not None:
            found[f"heads of attention {choice.phase} {choice.tokens}", layer] = 1 - choice.head_ratio
        if choice.token_ratio is not None:
            found[f"selection by {selection.label}", layer] = 1.0
        if choice.token_ratio is not None and choice.evicts:
            found["evicted tokens", layer] = 1 - choice.token_ratio
        if ratio < 1:
            running = [key for key in ("attention", "ffn") if getattr(choice, key) != "skip"]
            found |= {(f"tokens of {key}", layer): 1 - ratio for key in running}
        if choice.rest != "skip":
            found[f"rest {choice.rest}", layer] = 1 - ratio
        kept = ratio if selection.reselect == "once" else 1.0
    return found


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the time model, see the constants of this file; here `misfit` is a variance."""

    scale: float
    shared: float
    misfit: float
    noise: float


class TimeModel:
    """The posterior of what each change saves in each layer.

    Args:
        num_layers: The model's decoder layers.
        timed: Policies that were measured.
        null: Ratio and variance of measurements of dense against dense, whose true ratio is 1.

    Attributes:
        noise: Noise variance, as a multiple of what the repeats of one measurement show.
        misfit: Standard deviation of what no sum over the layers explains.
        without_own: (n,): the ratio of each measured policy as the model predicts it from the other policies alone
            (leave-one-out, in closed form for a linear model with given hyperparameters).
    """

    def __init__(self, num_layers: int, timed: Sequence[TimedPolicy], null: Sequence[tuple[float, float]] = ()) -> None:
        self._layers = num_layers
        self._kinds = sorted({(kind, layer == COST) for one in timed for kind, layer in one.features})
        self._null = np.array(null, float).reshape(-1, 2) - (1.0, 0.0)
        design = self._design([one.features for one in timed])
        changed, variances = (np.array([getattr(one, key) for one in timed], float) for key in ("ratio", "variance"))
        changed = changed - 1
        self._hyper = self._fit_hyperparameters(design, changed, variances)
        self.noise, self.misfit = self._hyper.noise, math.sqrt(self._hyper.misfit)
        root = self._prior_root(self._hyper.scale, self._hyper.shared)
        whitened = design @ root
        precisions = 1 / (self._hyper.misfit + self.noise * variances)
        cholesky = np.linalg.cholesky(np.eye(len(root)) + (whitened.T * precisions) @ whitened)
        # The posterior covariance of the savings is errors @ errors.T.
        self._errors: Floats = root @ np.linalg.inv(cholesky).T
        self._mean: Floats = self._errors @ (self._errors.T @ (design.T @ (precisions * changed)))
        leverages = precisions * ((design @ self._errors) ** 2).sum(1)
        self.without_own: Floats = 1 + changed - (changed - design @ self._mean) / (1 - leverages)

    def predict(self, found: Features) -> TimeEstimate:
        """Predicted time of a policy that was not measured."""
        [row] = self._design([found])
        unseen = {key: value for key, value in found.items() if (key[0], key[1] == COST) not in self._kinds}
        prior = self._hyper.scale * self._unit
        variances = ((value * (1.0 if layer == COST else prior)) ** 2 for (_, layer), value in unseen.items())
        error = math.sqrt(self._hyper.misfit + sum(variances))
        return TimeEstimate(1 + float(row @ self._mean), row @ self._errors, error)

    def smoothed(self, one: TimedPolicy) -> TimeEstimate:
        """Posterior of the time of a policy that the model was fitted to.

        Its residual is split in proportion to the variances: the misfit's part is the policy's own, the rest noise.
        """
        fitted = self.predict(one.features)
        noise = self.noise * one.variance
        share = self._hyper.misfit / (self._hyper.misfit + noise)
        ratio = fitted.ratio + share * (one.ratio - fitted.ratio)
        return TimeEstimate(ratio, (1 - share) * fitted.shared_errors, math.sqrt(share * noise))

    def cost_effect(self, name: str) -> tuple[float, Floats]:
        """The change of a predicted ratio, and of its shared errors, when all of a counted cost is saved."""
        [row] = self._design([{(name, COST): 1.0}])
        return float(row @ self._mean), row @ self._errors

    @property
    def _unit(self) -> float:
        """Half a dense layer, as a ratio to the whole dense model."""
        return 0.5 / self._layers

    def _design(self, found: Sequence[Features]) -> Floats:
        """(policies, features): the design matrix, a column for every kind in every layer and one for each cost."""
        columns: dict[Feature, int] = {}
        for kind, is_cost in self._kinds:
            for layer in (COST,) if is_cost else range(self._layers):
                columns[kind, layer] = len(columns)
        design = np.zeros((len(found), len(columns)))
        for row, one in zip(design, found, strict=True):
            for feature, value in one.items():
                if feature in columns:
                    row[columns[feature]] = value
        return design

    def _prior_root(self, scale: float, shared: float) -> Floats:
        """A square root of the prior covariance of all savings."""
        distance = np.abs(np.subtract.outer(np.arange(self._layers), np.arange(self._layers)))
        correlation = shared + (1 - shared) * np.exp(-distance / CORRELATION_LENGTH)
        block = scale * self._unit * np.linalg.cholesky(correlation)
        blocks = [np.eye(1) if is_cost else block for _, is_cost in self._kinds]
        size = sum(map(len, blocks))
        root, place = np.zeros((size, size)), 0
        for one in blocks:
            root[place : place + len(one), place : place + len(one)] = one
            place += len(one)
        return root

    def _fit_hyperparameters(self, design: Floats, changed: Floats, variances: Floats) -> Hyperparameters:
        """Scale and sharing of highest evidence; misfit and noise are averaged, weighted by their evidence."""
        some = np.unique(np.linspace(0, len(design) - 1, min(len(design), MAX_EVIDENCE_POLICIES)).astype(int))
        design, changed, variances = design[some], changed[some], variances[some]
        unit = float(np.mean(changed**2)) if len(changed) else 0.0

        def evidence(
            priors: Sequence[tuple[float, float]], noises: Iterable[tuple[float, float]]
        ) -> dict[Hyperparameters, float]:
            found = {}
            noises = list(noises)
            for scale, shared in priors:
                whitened = design @ self._prior_root(scale, shared)
                covariance = whitened @ whitened.T
                for misfit, noise in noises:
                    hyper = Hyperparameters(scale, shared, misfit**2 * unit, noise)
                    found[hyper] = self._evidence(covariance, changed, hyper.misfit + noise * variances, noise)
            return found

        coarse = evidence([*product(SCALES, SHARED)], product(MISFITS[::2], NOISES[::3]))
        best = max(coarse, key=lambda hyper: coarse[hyper])
        found = evidence([(best.scale, best.shared)], product(MISFITS, NOISES))
        highest = max(found.values())
        weights = {hyper: math.exp(value - highest) for hyper, value in found.items()}
        total = sum(weights.values())
        misfit = sum(weight * hyper.misfit for hyper, weight in weights.items()) / total
        noise = math.exp(sum(weight * math.log(hyper.noise) for hyper, weight in weights.items()) / total)
        return Hyperparameters(best.scale, best.shared, misfit, noise)

    def _evidence(self, covariance: Floats, changed: Floats, own: Floats, noise: float) -> float:
        """Log marginal likelihood of the measurements and log prior of the noise, up to a constant.

        Args:
            covariance: (n, n): prior covariance of the ratios.
            changed: (n,): measured ratios minus 1.
            own: (n,): variance of misfit and noise together.
            noise: Noise variance, as a multiple of what repeats show.
        """
        cholesky = np.linalg.cholesky(covariance + np.diag(own))
        whitened = np.linalg.solve(cholesky, changed)
        log_likelihood = -0.5 * float((whitened**2).sum()) - float(np.log(np.diag(cholesky)).sum())
        null, variances = self._null[:, 0], noise * self._null[:, 1]
        log_likelihood -= 0.5 * float((null**2 / variances + np.log(variances)).sum())
        return log_likelihood - 0.5 * (math.log(noise) / LOG_NOISE_PRIOR) ** 2
