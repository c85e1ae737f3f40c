"""Searches whose figures are planted: times that are sums over the layers, measured with noise, on no clock at all."""

import numpy as np
import searching

from skipsearch.evaluators.base import Measurement
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome
from skipsearch.testing.pool import LocalPool

LAYERS = 8
CHANGES = {
    "evaluate": "{accuracy: {tasks: [none]}, flops: , latency: }",
    "objectives": "{accuracy: maximize, prefill_flops: minimize, ttft_ms: minimize}",
    "search__racing": "none",
    "search__sampler": "random",
}


def share(policy):
    """What share of the work a policy does."""
    done = 0.0
    for choice in policy.choices(LAYERS):
        ratio = 1.0 if choice.token_ratio is None else choice.token_ratio
        done += (0.4 * (choice.attention == "run") + 0.6 * (choice.ffn == "run")) * (0.25 + 0.75 * ratio)
    return done / LAYERS


class PolicyEvaluator:
    """Answers for a model.

    Args:
        noise: Standard deviation of one timed pair.
        alike: How much of a time the FLOPs tell; the rest is of the attentions alone.
        killed: Raises when so many policies were timed.
    """

    def __init__(self, noise=0.05, alike=1.0, killed=None):
        self.noise, self.alike, self.killed = noise, alike, killed
        self.timed = []

    def ratio(self, policy):
        attentions = np.mean([choice.attention == "run" for choice in policy.choices(LAYERS)])
        return 0.1 + 0.9 * (self.alike * share(policy) + (1 - self.alike) * attentions)

    def measure(self, policy, names, split="search", **given):
        found = {}
        if "flops" in names:
            found["prefill_flops"] = Measurement(1e9 * share(policy))
        if "latency" in names:
            found |= self._times(policy, split)
        if "accuracy" in names:
            kept = max(0.0, 0.9 - 0.8 * (1 - share(policy)) ** 1.5)
            found["accuracy"] = Measurement(kept - 0.01 * (split == "report"), n=100, stderr=0.03)
        return Outcome(found, {"total": 0.1, "forward": 0.05})

    def _times(self, policy, split):
        fingerprint = policy.fingerprint
        visit = self.timed.count((fingerprint, split))
        self.timed.append((fingerprint, split))
        if self.killed is not None and len(self.timed) > self.killed:
            raise KeyboardInterrupt
        draw = np.random.default_rng([*fingerprint.encode(), *split.encode(), visit])
        count = 2 if split == "report" else 5
        slow = 100 * np.exp(0.2 * draw.normal())
        dense, ours = (slow * one * np.exp(self.noise / 2**0.5 * draw.normal(size=count))
                       for one in (1.0, self.ratio(policy)))  # fmt: skip
        detail = {"repeats_ms": ours.tolist(), "dense_repeats_ms": dense.tolist()}
        iqr = float(np.subtract(*np.percentile(ours, (75, 25))))
        entry = Measurement(float(np.median(ours)), count, float(np.median(dense)), iqr=iqr, detail=detail)
        return {"ttft_ms": entry, "tpot_ms": entry}


def search(path, folder, bench, resume=False, console=None, confirm=True, **overrides):
    """A whole search; gives its driver."""
    space = searching.loaded(path, **{**CHANGES, **overrides}).space
    study = SearchStudy(folder / "study.db", "tiny", space, LAYERS, resume)
    progress = Progress(space.search.trials, space.objectives, shown=console is not None, console=console)
    driver = Driver(study, LocalPool(bench), progress)
    driver.timing.measure_noise()
    study.end(driver.search())
    if confirm:
        driver.confirm()
    return driver
