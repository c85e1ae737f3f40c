"""Writes `report.html` anew while a search runs, seldom enough that no trial notices it."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..analysis.load_study import record_of
from ..analysis.recovery_outcome import with_trained
from ..analysis.study_record import StudyRecord
from ..study.trial_cache import read_trials
from .folder import exported
from .html.live import LiveState, WorkerJob
from .html.page import write_page

if TYPE_CHECKING:
    from ..driver.progress import Progress
    from ..study.study import SearchStudy
    from ..workers.ray_pool import Pool

INTERVAL = 60.0  # seconds between two writings, at least
MAX_SHARE = 0.01  # of the run's time that all writings may take together


class LiveReport:
    """The report of a search that runs.

    It is written by the driver between two trials, from the study in memory, so that it neither reads the database nor
    runs beside a measurement on the worker that has just finished. The first one is written when the dense trial has
    finished. Later ones wait until a minute has passed and the time of all writings is below 1 % of the run's.

    Args:
        study: The study.
        folder: Its folder.
        progress: Says what is being done, and how long the search will take.
        pool: Says what the workers measure.
        clock: Returns seconds from any origin.

    Attributes:
        seconds: How long each writing took.
    """

    def __init__(
        self,
        study: "SearchStudy",
        folder: Path,
        progress: "Progress",
        pool: "Pool",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._folder, self._progress, self._pool = study, folder, progress, pool
        self._clock, self._begun, self._last = clock, clock(), -INTERVAL
        self.seconds: list[float] = []
        self._warned = ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write the report after changes; where the search ends by an error, a last page says so."""
        self._progress.watcher = self.update
        try:
            yield
        except BaseException as error:
            self._write("interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
            raise
        finally:
            self._progress.watcher = None

    def update(self) -> None:
        """Write the report where it is due."""
        now = self._clock()
        affordable = sum(self.seconds) + max(self.seconds[-3:], default=0.0) <= MAX_SHARE * (now - self._begun)
        if not self.seconds or (affordable and now - self._last >= INTERVAL):
            self._write()

    def _write(self, ended_by: str | None = None) -> None:
        """Write the report; a failure is noted once, since the trials matter more than their report."""
        if self._study.dense_measurements() is None:
            return
        self._last = self._clock()
        try:
            study = self._study.study
            searched = record_of(study.study_name, study.user_attrs, read_trials(study), self._folder)
            record = with_trained(searched, study.user_attrs, self._folder)
            write_page(record, self._folder, self._state(record, ended_by))
        except Exception as error:
            # The trials are worth more than their report, whatever goes wrong here; the traceback of a mistake is kept.
            reason = f"{type(error).__name__}: {error}"
            if reason != self._warned:
                self._warned = reason
                place = "" if isinstance(error, OSError) else f"\n{traceback.format_exc().rstrip()}"
                self._progress.note(f"report.html was not written, the search goes on: {reason}{place}")
        finally:
            self.seconds.append(self._clock() - self._last)

    def _state(self, record: StudyRecord, ended_by: str | None) -> LiveState:
        numbers = {result.policy.fingerprint: result.number for result in reversed(self._study.results())}
        jobs = [
            WorkerJob(worker, numbers.get(job.policy.fingerprint), job.policy, tuple(job.names), job.split, seconds)
            for worker, job, seconds in self._pool.jobs
        ]
        documents = {
            number: exported(record, record.trial(number)).to_yaml() for number in (*record.front, *record.in_gaps)
        }
        return LiveState(self._progress.state, jobs, [*self._progress.notes], documents, ended_by)
