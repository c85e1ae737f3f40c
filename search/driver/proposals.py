"""Which policy to measure next: one that nobody measured, while there is budget for it."""

from collections import defaultdict

from ...policies.errors import RunError
from ..study.study import Proposal, SearchStudy
from ..trial.outcome import Outcome
from .stopping import Stopping

# A sampler that repeats itself is helped out with a random policy; when even that finds nothing new, all is measured.
HELP_AFTER = 20


class Proposals:
    """Asks a study for policies, and answers repeated ones with what the first of their kind measured.

    Args:
        study: The study.

    Attributes:
        stopping: When the search has had enough.
    """

    def __init__(self, study: SearchStudy) -> None:
        self.study = study
        self._under_way: set[str] = set()
        self._twins: defaultdict[str, list[Proposal]] = defaultdict(list)
        self._failures = 0
        self._failed: dict[str, Proposal] = {}
        self._exhausted = False
        self.stopping = Stopping(study.space, study.spent_seconds())
        for record in study.ended():
            self.stopping.follow(record)

    @property
    def may_ask(self) -> bool:
        """True while there is budget; before the dense figures are there, nothing but dense is measured."""
        under_way = len(self._under_way)
        return self.reason is None and not (under_way and self.study.dense_measurements() is None)

    @property
    def reason(self) -> str | None:
        """Why nothing further is proposed; None while something may be."""
        under_way = len(self._under_way)
        if self._exhausted or self.study.known + len(self._failed) + under_way >= self.study.size:
            return "the space has no policy left that was not measured"
        trials = self.study.space.search.trials
        if self.study.measured() + under_way >= trials:
            return f"all {trials} trials are measured (search.trials)"
        return self.stopping.reason()

    def next(self) -> Proposal | None:
        """A policy to measure; None while there is none."""
        asked = 0
        while self.may_ask:
            if asked >= HELP_AFTER and not self.study.enqueue_random({*self._failed, *self._under_way}):
                self._exhausted = True
                break
            asked += 1
            proposal = self.study.ask()
            if proposal is None:
                continue
            fingerprint = proposal.policy.fingerprint
            twin = self.study.find_duplicate(proposal)
            if twin is not None:
                outcome = Outcome(twin.search, twin.seconds, None, twin.early_stopped, twin.estimates, twin.worker)
                self.study.tell(proposal, outcome, duplicate_of=twin.number)
            elif fingerprint in self._failed:
                first = self._failed[fingerprint].number
                self.study.tell(proposal, Outcome(failure=f"failed as trial {first}"), duplicate_of=first)
            elif fingerprint in self._under_way:
                self._twins[fingerprint].append(proposal)
            else:
                self._under_way.add(fingerprint)
                return proposal
        return None

    def finish(self, proposal: Proposal, outcome: Outcome) -> None:
        """Tell the study what a policy measured.

        Raises:
            RunError: the dense model could not be measured, or too many trials in a row failed.
        """
        self._under_way.discard(proposal.policy.fingerprint)
        self.study.tell(proposal, outcome)
        self.stopping.follow(self.study.record(proposal.number))
        for twin in self._twins.pop(proposal.policy.fingerprint, []):
            self.study.tell(twin, outcome, duplicate_of=proposal.number)
        if outcome.failure:
            self._failed[proposal.policy.fingerprint] = proposal
        if outcome.failure and proposal.policy.is_dense:
            hint = "mend the cause and go on with `--resume`"
            raise RunError("the dense model could not be measured", [outcome.failure], hint)
        self.count(outcome)

    def leave(self, proposal: Proposal, reason: str) -> None:
        """Leave a policy that could not be measured, through no fault of its own, for the next start of the search.

        Raises:
            RunError: it is the dense model's, which everything else is compared with.
        """
        if proposal.policy.is_dense:
            hint = "mend the machine and go on with `--resume`"
            raise RunError("the dense model could not be measured", [reason], hint)

    def count(self, outcome: Outcome) -> None:
        """Count failures in a row.

        Raises:
            RunError: they are too many.
        """
        self._failures = self._failures + 1 if outcome.failure else 0
        if self._failures >= self.study.space.search.max_failures:
            hint = "mend the cause and go on with `--resume`, or raise `search.max_failures`"
            raise RunError(f"{self._failures} trials in a row failed", [f"the last: {outcome.failure}"], hint)
