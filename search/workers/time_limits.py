"""How long a worker may take to measure a policy before it counts as hung."""

from ...evaluators.base import Split
from ...policies.policy import Policy
from ..space.space import Space
from ..trial.outcome import Outcome

DENSE_SECONDS = 6 * 3600.0  # the limit for the dense model, whose time is unknown
FACTOR, MARGIN_SECONDS = 20.0, 60.0  # the limit of other policies: a multiple of dense's time, and a margin


class TimeLimits:
    """The time limits of a search, by split of the examples.

    Args:
        space: The search space; a `workers.timeout` in it is the limit of every policy.
        dense: The dense model's seconds on the search split, where they are known.
    """

    def __init__(self, space: Space, dense: float | None) -> None:
        self._timeout = None if space.workers.timeout == "auto" else space.workers.timeout
        self._dense: dict[Split, float] = {} if dense is None else {"search": dense}

    def learn(self, split: Split, outcome: Outcome) -> None:
        """Add the time of one stage of the dense model's trial."""
        self._dense[split] = self._dense.get(split, 0.0) + outcome.seconds.get("total", 0.0)

    def of(self, split: Split, policy: Policy) -> float:
        """The limit for a policy, in seconds."""
        if self._timeout is not None:
            return self._timeout
        is_known = split in self._dense and not policy.is_dense
        return MARGIN_SECONDS + FACTOR * self._dense[split] if is_known else DENSE_SECONDS
