"""The report's panel about a search that runs, as values for `live.html`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ....evaluators.base import Split
from ....policies.policy import Policy
from ...analysis.study_record import StudyRecord
from ...driver.phases import PhaseState
from ..layer_map import describe

MAX_FAILURES = 5  # reasons that the panel lists; the others are listed under "How it was measured"
RELOAD_SECONDS = 30


@dataclass(frozen=True)
class WorkerJob:
    """What one worker measures.

    Attributes:
        worker: Its name.
        trial: The trial of the policy; None where it belongs to none, such as a random choice of image tokens.
        policy: The policy.
        evaluators: What is measured.
        split: The examples.
        seconds: Since when.
    """

    worker: str
    trial: int | None
    policy: Policy
    evaluators: tuple[str, ...]
    split: Split
    seconds: float


@dataclass(frozen=True)
class LiveState:
    """A search at the moment that its report is written.

    Attributes:
        phase: How far it is.
        jobs: What is being measured.
        notes: What the search said lately, such as warnings.
        documents: Each policy of the front as YAML, by its trial.
        ended_by: The error or signal that ended it; None while it runs.
    """

    phase: PhaseState
    jobs: Sequence[WorkerJob]
    notes: Sequence[str]
    documents: Mapping[int, str]
    ended_by: str | None = None


@dataclass(frozen=True)
class LivePanel:
    """The panel.

    Attributes:
        ended_by: The error or signal that ended the search; empty while it runs.
        phase: What the search does, with the number of steps.
        done: Steps of the phase that are done.
        total: All its steps; 0 where they are not known.
        left: The time left; empty where it is not known.
        written: When the page was written, as ISO 8601.
        reload: Seconds after which an open page reads the file again.
        jobs: What is being measured: worker, policy, evaluators, and since when.
        failures: Reasons of failed trials, each with its trials, latest first.
        more_failures: How many reasons are left out.
        notes: What the search said lately.
    """

    ended_by: str
    phase: str
    done: int
    total: int
    left: str
    written: str
    reload: int
    jobs: list[tuple[str, str, str, str]]
    failures: list[tuple[str, list[int]]]
    more_failures: int
    notes: Sequence[str]


def live_panel(record: StudyRecord, state: LiveState) -> LivePanel:
    """What a page says about the search that is writing it."""
    phase = state.phase
    failures: defaultdict[str, list[int]] = defaultdict(list)
    for trial in reversed(record.trials):
        if trial.state == "failed" and trial.duplicate_of is None:
            failures[trial.failure or "no reason recorded"].append(trial.number)
    return LivePanel(
        ended_by=state.ended_by or "",
        phase=f"{phase.name} {phase.done} of {phase.total}" if phase.total else phase.name,
        done=phase.done,
        total=phase.total,
        left="" if phase.seconds_left is None else duration(phase.seconds_left),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        reload=RELOAD_SECONDS,
        jobs=[_job(job) for job in state.jobs] or _running_trials(record),
        failures=[*failures.items()][:MAX_FAILURES],
        more_failures=max(0, len(failures) - MAX_FAILURES),
        notes=state.notes,
    )


def _job(job: WorkerJob) -> tuple[str, str, str, str]:
    name = "" if job.trial is None else f"trial {job.trial}: "
    measured = f"{', '.join(job.evaluators)} on the {job.split} split"
    return job.worker, name + _changes(job.policy), measured, f"for {duration(job.seconds)}"


def _running_trials(record: StudyRecord) -> list[tuple[str, str, str, str]]:
    """The trials that run elsewhere, as under Ray Tune, which has workers of its own."""
    running = [trial for trial in record.trials if trial.state == "running"]
    return [(trial.worker or "", f"trial {trial.number}: {_changes(trial.policy)}", "", "") for trial in running]


def _changes(policy: Policy) -> str:
    return ", ".join(describe(policy)) or "dense"


def duration(seconds: float) -> str:
    """A duration in the two largest units that it has."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
