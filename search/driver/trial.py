"""A trial on its way through the workers."""

from dataclasses import dataclass, field
from datetime import datetime

from ..study.asking import Proposal
from ..trial.outcome import Outcome
from ..trial.trial_result import TrialResult


@dataclass
class Trial:
    """A policy that is being measured.

    Attributes:
        subject: A new proposal, or a paused trial that is promoted.
        stages: Names of evaluators, one list per stage; the first stage is running or next.
        max_examples: On how many examples it is measured; None for all.
        outcome: What the earlier stages measured.
        is_probe: True for a probe, which does not count towards the budget.
        begun: When it started.
    """

    subject: Proposal | TrialResult
    stages: list[list[str]]
    max_examples: int | None
    outcome: Outcome = Outcome()
    is_probe: bool = False
    begun: datetime = field(default_factory=datetime.now)
