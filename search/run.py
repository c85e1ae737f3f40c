"""One search from its space to its folder of results."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..policies.errors import StudyError
from .database import DATABASE
from .record import StudyRecord
from .results import environment, start_folder, write_folder
from .space import LoadedSpace

if TYPE_CHECKING:
    from .preview import Preview
    from .progress import Progress
    from .study import SearchStudy
    from .workers import Pool


def run_study(
    loaded: LoadedSpace, folder: Path, name: str | None = None, resume: bool = False, shown: bool = True
) -> StudyRecord:
    """Search a space, confirm the front on examples that the search never saw, and write the study's folder.

    Args:
        loaded: The space.
        folder: The study's folder; made if there is none.
        name: The study's name; the space's where none is given.
        resume: Go on with the study in the folder.
        shown: Show the progress on standard error.

    Raises:
        SkipsearchError: the model, an evaluator, the cluster or the study is not as it must be.
    """
    from .progress import PREPARING, Progress
    from .study import SearchStudy
    from .workers import Pool

    space = loaded.space
    SearchStudy.check_free(folder / DATABASE, resume)
    with Progress(space.search.trials, space.objectives, shown) as progress, interruptible():
        pool = Pool(space)
        try:
            described = pool.describe()
            progress.phase(PREPARING)
            space.domains(described[0]["num_layers"])  # What does not fit is refused before a folder is made.
            with only_writer(folder):
                study = SearchStudy(
                    folder / DATABASE, name or loaded.name, space, described[0]["num_layers"], resume, loaded.model_id,
                    lambda: noted(pool, progress), described[0]["guide"],
                )  # fmt: skip
                start_folder(folder, loaded.text, environment(described, space, loaded.model_id), resume)
                search_and_confirm(study, pool, progress, folder)
        finally:
            pool.close()
    return write_folder(folder)


def noted(pool: "Pool", progress: "Progress") -> "Preview":
    """See the dense model for the rules to begin with, and say so: it takes as long as a few trials."""
    progress.note("finding out what the rules to begin with need to know of the dense model")
    return pool.preview()


def search_and_confirm(study: "SearchStudy", pool: "Pool", progress: "Progress", folder: Path) -> None:
    """Spend the budget of trials, through Ray Tune where the space says so, and confirm the front."""
    from .driver import Driver

    driver = Driver(study, pool, progress)
    driver.timing.find_noise()
    if study.space.workers.runner == "tune":
        from .tune import tune_search

        reason = tune_search(study, pool, folder, progress)
    else:
        reason = driver.search()
    study.end(reason)
    progress.note(f"the search ended: {reason}")
    driver.confirm()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a study for one search at a time; the lock goes with the process, however that ends.

    Raises:
        StudyError: another search holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        hint = "wait for it to end, or give this one another name with `--name`"
        raise StudyError(f"another search is writing to {folder}", hint=hint) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the search, and a batch system's request to stop as well.

    Both are set here, since a shell starts what runs in the background with interrupts ignored.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Elsewhere the caller's program handles its signals.
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
