"""The results of a study by policy, and the objectives and constraint violations of measurements beside dense."""

from collections.abc import Iterable, Iterator, Mapping

from ...evaluators.base import Measurement
from ..guide.guide import Guide
from ..space.space import Space
from ..trial.pareto import objective_value
from ..trial.trial_result import TrialResult
from ..trial.violations import constraint_violations, surely_violates
from .expected_results import ScorePredictor


class PolicyResults:
    """Keeps one result for each policy that was measured, by its fingerprint.

    Args:
        space: The search space.
        results: Trials, by number; of duplicates the first counts.
    """

    def __init__(self, space: Space, results: Iterable[TrialResult]) -> None:
        self._space = space
        self._results: dict[str, TrialResult] = {}
        self._failed: set[str] = set()
        self._predictor: ScorePredictor | None = None
        for result in results:
            if result.state == "complete":
                self._results.setdefault(result.policy.fingerprint, result)
            elif result.state == "failed":
                self._failed.add(result.policy.fingerprint)

    def add(self, result: TrialResult) -> None:
        """Add the result of a measured policy, in place of the one from before a promotion."""
        self._results[result.policy.fingerprint] = result
        if not result.estimates:
            self._predictor = None

    def add_failure(self, fingerprint: str) -> None:
        """Note that a policy failed."""
        self._failed.add(fingerprint)

    def get(self, fingerprint: str) -> TrialResult | None:
        """The result of a policy; None where it was not measured."""
        return self._results.get(fingerprint)

    def has_failed(self, fingerprint: str) -> bool:
        """True for a policy that failed."""
        return fingerprint in self._failed

    def __contains__(self, fingerprint: str) -> bool:
        """True for a policy that was measured."""
        return fingerprint in self._results

    def __iter__(self) -> Iterator[TrialResult]:
        """The results of all measured policies, in the order in which they were added."""
        return iter(self._results.values())

    def __len__(self) -> int:
        """How many policies were measured."""
        return len(self._results)

    def dense(self) -> TrialResult | None:
        """The result of the dense model; None before it is measured."""
        return next((result for result in self._results.values() if result.policy.is_dense), None)

    def dense_measurements(self) -> Mapping[str, Measurement] | None:
        """The measurements of the dense model; None before it is measured."""
        dense = self.dense()
        return dense.search if dense else None

    def score_predictor(self, guide: Guide | None) -> ScorePredictor:
        """Predicts the scores of paused trials from the trials that answered all examples.

        Args:
            guide: The loss that guides the search.
        """
        if self._predictor is None or self._predictor.guide != guide:
            results = sorted(self._results.values(), key=lambda result: result.number)
            self._predictor = ScorePredictor.fit(results, guide, self._space)
        return self._predictor

    def objective_values(self, measurements: Mapping[str, Measurement]) -> list[float]:
        """The values of the objectives, with times corrected for the drift of the machine's clock."""
        dense = self.dense_measurements() or measurements
        return [objective_value(name, measurements[name], dense.get(name)) for name in self._space.objectives]

    def violations(self, measurements: Mapping[str, Measurement]) -> dict[str, float]:
        """By constrained metric that was measured, how far it lies beyond its bound."""
        dense = self.dense_measurements() or measurements
        return constraint_violations(self._space.constraints, measurements, dense)

    def surely_violates(self, measurements: Mapping[str, Measurement]) -> bool:
        """True where measurements violate a constraint for all that times are uncertain."""
        dense = self.dense_measurements() or measurements
        return surely_violates(self._space.constraints, measurements, dense)
