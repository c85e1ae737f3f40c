"""One search from its space to its folder of results."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..policies.errors import RunError, StudyError
from .analysis.load_study import ENVIRONMENT, read_environment
from .analysis.study_record import StudyRecord
from .report.folder import environment, start_folder, write_folder
from .signals import Stopped, interruptible
from .space.space import LoadedSpace, Space
from .study.storage import DATABASE, UNWRITABLE, check_whole, commit_of

FREE_BYTES = 32 << 20  # for the database of a study, its report and Ray's own files

if TYPE_CHECKING:
    from .baselines.dense_stats import DenseStats
    from .driver.progress import Progress
    from .study.study import SearchStudy
    from .workers.ray_pool import Pool


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
    from .driver.phases import PREPARING
    from .driver.progress import Progress
    from .study.study import SearchStudy

    space = loaded.space
    check_folder(folder, resume)
    with Progress(space.search.trials, space.objectives, shown) as progress, interruptible() as heed:
        pool = started(pinned(space, folder / DATABASE) if resume else space, heed)
        try:
            described = pool.describe()
            progress.phase(PREPARING)
            commit = the_commit(described)
            space.domains(described[0]["num_layers"])  # What does not fit is refused before a folder is made.
            with only_writer(folder):
                study = SearchStudy(
                    folder / DATABASE, name or loaded.name, space, described[0]["num_layers"], resume, loaded.model_id,
                    lambda: noted(pool, progress), described[0]["guide"], commit,
                )  # fmt: skip
                start_folder(folder, loaded.text, environment(described, space, loaded.model_id), resume)
                with kept_in(folder):
                    search_and_confirm(study, pool, progress, folder)
        finally:
            pool.close()
    return write_folder(folder)


def check_folder(folder: Path, resume: bool) -> None:
    """See before minutes of loading that a study can be written, or gone on with.

    Raises:
        StudyError: it exists, or does not, or is damaged; or the folder cannot be written to, or another search does.
    """
    from .study.study import SearchStudy

    SearchStudy.check_free(folder / DATABASE, resume)
    above = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        hint = "give another folder with `--out`, or the right to write to this one"
        raise StudyError(f"no file can be written to {above}", [f"expected to, for {folder}"], hint)
    free = shutil.disk_usage(above).free
    if free < FREE_BYTES:
        found = f"found {free >> 20} MiB free, expected {FREE_BYTES >> 20} MiB"
        raise StudyError(
            f"the disk of {above} is full", [found], "free some space, or give another folder with `--out`"
        )
    if resume:
        with only_writer(folder):
            check_whole(folder / DATABASE)
        read_environment(folder / ENVIRONMENT)


def pinned(space: Space, database: Path) -> Space:
    """The space with the commit of its model that a study began with, so that a branch may move on meanwhile."""
    commit = commit_of(database)
    if commit is None:
        return space
    return space.model_copy(update={"model": space.model.model_copy(update={"revision": commit})})


def the_commit(described: Sequence[Mapping[str, Any]]) -> str | None:
    """The commit of the model on the hub that all workers have loaded; None of a local one.

    Raises:
        RunError: they have loaded different ones.
    """
    found = {worker.get("commit"): worker["node"] for worker in described}
    if len(found) > 1:
        lines = [f"node {node}: commit {commit}" for commit, node in found.items()]
        hint = "name the commit with `--set model.revision=…`"
        raise RunError("the workers have loaded different commits of the model", lines, hint)
    return next(iter(found))


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Tell in one line that the database cannot be written any more; what was written is kept.

    Raises:
        RunError: the disk is full, or the file is held or gone.
    """
    try:
        yield
    except UNWRITABLE as cause:
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        hint = "free some space where the disk is full, close what holds the file, and go on with `--resume`"
        raise RunError(f"{folder / DATABASE} cannot be written", [reason], hint) from None


def started(space: Space, heed: Callable[[], None]) -> "Pool":
    """Start the workers. Ray takes over the handling of signals while it starts, and stops with an exit."""
    from .workers.ray_pool import Pool

    try:
        return Pool(space)
    except SystemExit:
        raise Stopped(signal.SIGTERM) from None
    finally:
        heed()


def noted(pool: "Pool", progress: "Progress") -> "DenseStats":
    """See the dense model for the rules to begin with, and say so: it takes as long as a few trials."""
    progress.note("finding out what the rules to begin with need to know of the dense model")
    return pool.probe_dense()


def search_and_confirm(study: "SearchStudy", pool: "Pool", progress: "Progress", folder: Path) -> None:
    """Spend the budget of trials, through Ray Tune where the space says so, and confirm the front."""
    from .driver.driver import Driver

    driver = Driver(study, pool, progress)
    driver.timing.find_noise()
    if study.space.workers.runner == "tune":
        from .driver.ray_tune import tune_search

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
