"""How long a worker may take for a policy before it is taken to hang."""

from ...evaluators.base import Split
from ...policies.policy import Policy
from ..space.space import Space
from ..trial.outcome import Outcome

DENSE_SECONDS = 6 * 3600.0  # for the dense model, of which nothing is known yet
TIMES, LEAST = 20.0, 60.0  # what others may take: so many times what dense took, and so many seconds more


class Limits:
    """Seconds by split of the examples.

    Args:
        space: The search space.
        dense: What the dense model took on the search split, where that is known.
    """

    def __init__(self, space: Space, dense: float | None) -> None:
        self._given = None if space.workers.timeout == "auto" else space.workers.timeout
        self._dense: dict[Split, float] = {} if dense is None else {"search": dense}

    def learn(self, split: Split, outcome: Outcome) -> None:
        """Take note of how long a stage of the dense model's trial took."""
        self._dense[split] = self._dense.get(split, 0.0) + outcome.seconds.get("total", 0.0)

    def of(self, split: Split, policy: Policy) -> float:
        """How long a policy may take."""
        if self._given is not None:
            return self._given
        is_known = split in self._dense and not policy.is_dense
        return LEAST + TIMES * self._dense[split] if is_known else DENSE_SECONDS
