"""Proposes policies that were not measured yet, while the budget lasts."""

from collections import defaultdict

from ...policies.errors import RunError
from ..study.asking import Proposal
from ..study.study import SearchStudy
from ..trial.outcome import Outcome
from .stopping import Stopping

# After so many repeated proposals, a random policy is enqueued; where none is new, the space is exhausted.
MAX_REPEATS = 20


class Proposals:
    """Asks a study for policies, and answers duplicates with the result of their first trial.

    Args:
        study: The study.

    Attributes:
        stopping: Decides when to stop proposing.
    """

    def __init__(self, study: SearchStudy) -> None:
        self.study = study
        self._running: set[str] = set()
        self._duplicates: defaultdict[str, list[Proposal]] = defaultdict(list)
        self._failures_in_a_row = 0
        self._failed: dict[str, Proposal] = {}
        self._exhausted = False
        self.stopping = Stopping(study.space, study.seconds_used())
        for result in study.finished_trials():
            self.stopping.follow(result)

    @property
    def may_ask(self) -> bool:
        """True while the budget lasts; until dense is measured, no other policy is proposed beside it."""
        return self.reason is None and not (self._running and self.study.dense_measurements() is None)

    @property
    def reason(self) -> str | None:
        """Why no further policy is proposed; None where one may be."""
        running = len(self._running)
        if self._exhausted or self.study.num_measured + len(self._failed) + running >= self.study.size:
            return "the space has no unmeasured policy left"
        trials = self.study.space.search.trials
        if self.study.budget_used() + running >= trials:
            return f"all {trials} trials are measured (search.trials)"
        return self.stopping.reason()

    def next(self) -> Proposal | None:
        """A policy to measure; None where there is none."""
        asked = 0
        while self.may_ask:
            if asked >= MAX_REPEATS and not self.study.enqueue_random({*self._failed, *self._running}):
                self._exhausted = True
                break
            asked += 1
            proposal = self.study.ask()
            if proposal is not None and not self._answer_duplicate(proposal):
                self._running.add(proposal.policy.fingerprint)
                return proposal
        return None

    def _answer_duplicate(self, proposal: Proposal) -> bool:
        """Tell the study the result of an earlier trial of the same policy; False for a new policy."""
        fingerprint = proposal.policy.fingerprint
        first = self.study.find_duplicate(proposal)
        if first is not None:
            outcome = Outcome(first.search, first.seconds, None, first.early_stopped, first.estimates, first.worker)
            self.study.tell(proposal, outcome, duplicate_of=first.number)
        elif fingerprint in self._failed:
            number = self._failed[fingerprint].number
            self.study.tell(proposal, Outcome(failure=f"failed as trial {number}"), duplicate_of=number)
        elif fingerprint in self._running:
            self._duplicates[fingerprint].append(proposal)
        else:
            return False
        return True

    def finish(self, proposal: Proposal, outcome: Outcome) -> None:
        """Tell the study the outcome of a policy, and of its duplicates.

        Raises:
            RunError: the dense model could not be measured, or too many trials in a row failed.
        """
        self._running.discard(proposal.policy.fingerprint)
        self.study.tell(proposal, outcome)
        self.stopping.follow(self.study.result(proposal.number))
        for duplicate in self._duplicates.pop(proposal.policy.fingerprint, []):
            self.study.tell(duplicate, outcome, duplicate_of=proposal.number)
        if outcome.failure:
            self._failed[proposal.policy.fingerprint] = proposal
        if outcome.failure and proposal.policy.is_dense:
            hint = "fix the cause and go on with `--resume`"
            raise RunError("the dense model could not be measured", [outcome.failure], hint)
        self.count(outcome)

    def defer(self, proposal: Proposal, reason: str) -> None:
        """Leave a policy that the machine could not measure to a resumed search.

        Raises:
            RunError: it is the dense model, which every trial is compared with.
        """
        if proposal.policy.is_dense:
            hint = "fix the machine and go on with `--resume`"
            raise RunError("the dense model could not be measured", [reason], hint)

    def count(self, outcome: Outcome) -> None:
        """Count failures in a row.

        Raises:
            RunError: there are `search.max_failures` of them.
        """
        self._failures_in_a_row = self._failures_in_a_row + 1 if outcome.failure else 0
        if self._failures_in_a_row >= self.study.space.search.max_failures:
            hint = "fix the cause and go on with `--resume`, or raise `search.max_failures`"
            message = f"{self._failures_in_a_row} trials in a row failed"
            raise RunError(message, [f"the last: {outcome.failure}"], hint)
