"""Measured times as noisy sums: what every layer saves, learned from all policies that were timed.

The time of a policy, as a ratio to dense, is 1 minus what its layers save, plus what no sum explains (its misfit), and
it is measured with noise. What a key saves is expected to be alike in all layers, and most alike in neighbouring ones:
a Bayesian linear model whose scale, sharing, misfit and noise are weighed by their evidence. It knows no study.
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
from .arrays import Floats

Feature: TypeAlias = tuple[str, int]  # what is left out, and in which layer
Features: TypeAlias = Mapping[Feature, float]

SCALES = (0.2, 0.6, 2.0)  # of a layer's saving, in units of half a layer of dense
SHARED = (0.5, 0.9)  # the share of a saving's variance that all layers have in common
MISFITS = (0.02, 0.04, 0.08, 0.16, 0.32)  # in units of what policies save; no sum is exact
NOISES = (0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0)  # variance of the noise, in units of what repeats show
DOUBT = 1.5  # standard deviation of the logarithm of the last, before anything is measured
REACH = 2.0  # layers over which savings resemble each other
ENOUGH = 256  # policies by which the evidence is told
COST = -1  # the layer of a saving in a counted cost, which is no layer's


@dataclass(frozen=True, eq=False)
class TimeEstimate:
    """A policy's time as a ratio to dense, and how well it is known.

    Attributes:
        ratio: The expected ratio.
        shared: (p,): errors that come from what is known of the layers, in units that all policies have in common.
        own: Standard error that no other policy has a part in.
    """

    ratio: float
    shared: Floats
    own: float

    @property
    def error(self) -> float:
        """Standard error of the ratio."""
        return math.hypot(float(np.linalg.norm(self.shared)), self.own)

    def apart(self, other: "TimeEstimate") -> float:
        """Standard error of the difference of two ratios of one model: what they have in common cancels."""
        alike = self.shared.shape == other.shared.shape  # Dense has no errors at all.
        shared = self.shared - other.shared if alike else np.r_[self.shared, other.shared]
        return math.hypot(float(np.linalg.norm(shared)), self.own, other.own)

    def measured(self, ratio: float, variance: float) -> "TimeEstimate":
        """The estimate once the policy itself was measured.

        Args:
            ratio: The measured ratio.
            variance: Of the measurement.
        """
        before = self.error**2
        gain = before / (before + variance) if before else 0.0
        own = math.hypot((1 - gain) * self.own, gain * math.sqrt(variance))
        return TimeEstimate(self.ratio + gain * (ratio - self.ratio), (1 - gain) * self.shared, own)


@dataclass(frozen=True)
class Timed:
    """A policy whose time was measured.

    Attributes:
        features: See `features`.
        ratio: Its time, as a ratio to dense.
        variance: Of that ratio, as its repeats show it.
    """

    features: Features
    ratio: float
    variance: float


@lru_cache(maxsize=4096)
def changes(choice: LayerChoice) -> tuple[str, ...]:
    """What a canonical choice leaves out or changes, key by key, but for its share of the image tokens."""
    scope = f"{choice.phase} {choice.tokens}"
    keys = choice.document().keys() - {"token_ratio", "phase", "tokens"}
    return tuple(f"{key} {getattr(choice, key)} {scope}" for key in sorted(keys))


def features(policy: Policy, num_layers: int, costs: Mapping[str, float] = MappingProxyType({})) -> Features:
    """What a policy saves: by key and layer 1 where it is changed, of a token ratio the share of tokens left out.

    Args:
        policy: The policy.
        num_layers: The model's decoder layers.
        costs: Counted costs as shares of dense.
    """
    same = policy.canonical()
    found = {(name, COST): 1 - share for name, share in costs.items()}
    selection, left = same.token_selection, 1.0
    for layer, choice in enumerate(same.choices(num_layers)):
        found |= {(change, layer): 1.0 for change in changes(choice)}
        ratio = left if choice.token_ratio is None else min(left, choice.token_ratio)
        if choice.token_ratio is not None:
            found[f"selection by {selection.score}", layer] = 1.0
        if ratio < 1:
            running = [key for key in ("attention", "ffn") if getattr(choice, key) == "run"]
            found |= {(f"tokens of {key}", layer): 1 - ratio for key in running}
        left = ratio if selection.reselect == "once" else 1.0
    return found


@dataclass(frozen=True)
class Setting:
    """How times are taken to come about: see the constants of this file; `misfit` and `noise` as variances."""

    scale: float
    shared: float
    misfit: float
    noise: float


class TimeModel:
    """What is known of times.

    Args:
        num_layers: The model's decoder layers.
        timed: Policies that were measured.
        null: Ratio and variance of measurements of dense against dense, whose true ratio is 1.

    Attributes:
        noise: Variance of the noise, in units of what the repeats of one measurement show.
        misfit: Standard deviation of what no sum over the layers explains.
    """

    def __init__(self, num_layers: int, timed: Sequence[Timed], null: Sequence[tuple[float, float]] = ()) -> None:
        self._layers = num_layers
        self._kinds = sorted({(kind, layer == COST) for one in timed for kind, layer in one.features})
        self._null = np.array(null, float).reshape(-1, 2) - (1.0, 0.0)
        rows = self._rows([one.features for one in timed])
        saved, spread = (np.array([getattr(one, key) for one in timed], float) for key in ("ratio", "variance"))
        saved = saved - 1
        self._setting = self._chosen(rows, saved, spread)
        self.noise, self.misfit = self._setting.noise, math.sqrt(self._setting.misfit)
        root = self._half_prior(self._setting.scale, self._setting.shared)
        white = rows @ root
        weights = 1 / (self._setting.misfit + self.noise * spread)
        half = np.linalg.cholesky(np.eye(len(root)) + (white.T * weights) @ white)
        self._errors: Floats = root @ np.linalg.inv(half).T
        self._weights: Floats = self._errors @ (self._errors.T @ (rows.T @ (weights * saved)))

    def expected(self, found: Features) -> TimeEstimate:
        """What a policy that was not measured is expected to take."""
        [row] = self._rows([found])
        strange = sum(value**2 for (kind, layer), value in found.items() if (kind, layer == COST) not in self._kinds)
        own = math.sqrt(self._setting.misfit + strange * (self._setting.scale * self._unit) ** 2)
        return TimeEstimate(1 + float(row @ self._weights), row @ self._errors, own)

    def smoothed(self, one: Timed) -> TimeEstimate:
        """The time of a policy that the model was fitted to: part of what sets it apart is its own, the rest noise."""
        before = self.expected(one.features)
        noise = self.noise * one.variance
        own = self._setting.misfit / (self._setting.misfit + noise)
        ratio = before.ratio + own * (one.ratio - before.ratio)
        return TimeEstimate(ratio, (1 - own) * before.shared, math.sqrt(own * noise))

    def at_cost(self, name: str) -> tuple[float, Floats]:
        """What saving all of a counted cost adds to an expectation: to its ratio and to its shared errors."""
        [row] = self._rows([{(name, COST): 1.0}])
        return float(row @ self._weights), row @ self._errors

    @property
    def _unit(self) -> float:
        """Half a layer of dense."""
        return 0.5 / self._layers

    def _rows(self, found: Sequence[Features]) -> Floats:
        """(policies, features): every kind in every layer; costs have one column."""
        places: dict[Feature, int] = {}
        for kind, is_cost in self._kinds:
            for layer in (COST,) if is_cost else range(self._layers):
                places[kind, layer] = len(places)
        rows = np.zeros((len(found), len(places)))
        for row, one in zip(rows, found, strict=True):
            for feature, value in one.items():
                if feature in places:
                    row[places[feature]] = value
        return rows

    def _half_prior(self, scale: float, shared: float) -> Floats:
        """A root of the covariance of all savings before anything is measured."""
        apart = np.abs(np.subtract.outer(np.arange(self._layers), np.arange(self._layers)))
        alike = shared + (1 - shared) * np.exp(-apart / REACH)
        block = scale * self._unit * np.linalg.cholesky(alike)
        blocks = [np.eye(1) if is_cost else block for _, is_cost in self._kinds]
        size = sum(map(len, blocks))
        root, place = np.zeros((size, size)), 0
        for one in blocks:
            root[place : place + len(one), place : place + len(one)] = one
            place += len(one)
        return root

    def _chosen(self, rows: Floats, saved: Floats, spread: Floats) -> Setting:
        """The setting of highest evidence; misfit and noise are means over all that have some."""
        some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ENOUGH)).astype(int))
        rows, saved, spread = rows[some], saved[some], spread[some]
        unit = float(np.mean(saved**2)) if len(saved) else 0.0

        def weighed(
            priors: Sequence[tuple[float, float]], strays: Iterable[tuple[float, float]]
        ) -> dict[Setting, float]:
            found = {}
            strays = list(strays)
            for scale, shared in priors:
                white = rows @ self._half_prior(scale, shared)
                covariance = white @ white.T
                for misfit, noise in strays:
                    setting = Setting(scale, shared, misfit**2 * unit, noise)
                    found[setting] = self._evidence(covariance, saved, setting.misfit + noise * spread, noise)
            return found

        rough = weighed([*product(SCALES, SHARED)], product(MISFITS[::2], NOISES[::3]))
        best = max(rough, key=lambda setting: rough[setting])
        found = weighed([(best.scale, best.shared)], product(MISFITS, NOISES))
        most = max(found.values())
        weights = {setting: math.exp(told - most) for setting, told in found.items()}
        total = sum(weights.values())
        misfit = sum(weight * setting.misfit for setting, weight in weights.items()) / total
        noise = math.exp(sum(weight * math.log(setting.noise) for setting, weight in weights.items()) / total)
        return Setting(best.scale, best.shared, misfit, noise)

    def _evidence(self, covariance: Floats, saved: Floats, own: Floats, noise: float) -> float:
        """The logarithm of how probable the measurements are, but for a constant."""
        half = np.linalg.cholesky(covariance + np.diag(own))
        told = -0.5 * float((np.linalg.solve(half, saved) ** 2).sum()) - float(np.log(np.diag(half)).sum())
        null, variances = self._null[:, 0], noise * self._null[:, 1]
        told -= 0.5 * float((null**2 / variances + np.log(variances)).sum())
        return told - 0.5 * (math.log(noise) / DOUBT) ** 2
