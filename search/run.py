"""Runs one search, from its space to its folder of results."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ..policies.errors import RunError, StudyError
from .analysis.load_study import ENVIRONMENT, read_environment
from .analysis.study_record import StudyRecord
from .loggers.loggers import Loggers, check_loggers
from .places import DATABASE, RANKING, refuse_several
from .report.folder import environment, start_folder, write_folder
from .report.live import LiveReport
from .signals import Stopped, interruptible
from .space.space import LoadedSpace, Space
from .study.database import attribute_of, check_whole
from .study.remote.address import Address, address_of, attribute_text
from .study.remote.connect import reason_of
from .study.remote.remote_study import lock_remote
from .study.storage import UNWRITABLE

TIMED_ON = "timed_on"  # the attribute of a study with the kind of device of its times
MIN_FREE_BYTES = 32 << 20  # for the study's database, its report and Ray's own files

if TYPE_CHECKING:
    from .baselines.dense_stats import DenseStats
    from .driver.forecast import ExampleCounts
    from .driver.progress import Progress
    from .study.study import SearchStudy
    from .workers.ray_pool import Pool


def run_study(
    loaded: LoadedSpace, folder: Path, name: str | None = None, resume: bool = False, shown: bool = True
) -> StudyRecord:
    """Search a space, confirm the front on examples that the search never saw, and write the study's folder.

    Args:
        loaded: The space.
        folder: The study's folder; it is created where it does not exist.
        name: The study's name; None for that of the space.
        resume: Go on with the study in the folder.
        shown: Show the progress on standard error.

    Raises:
        SkipsearchError: the model, an evaluator, the cluster or the study cannot be used.
    """
    from .driver.phases import PREPARING
    from .driver.progress import Progress
    from .study.study import SearchStudy
    from .workers.ranking import ranking_of_study, with_ranking

    space = loaded.space
    check_loggers(space.log)
    address = address_of(space, name or loaded.name)
    check_folder(folder, resume, address)
    ranking = began_with(folder, address, "space").get("width_selection", {}).get("sha256") if resume else None
    if ranking is not None:
        ranking_of_study(space, folder / RANKING, ranking)  # Before the model is loaded.
    with Progress(space.search.trials, space.objectives, shown) as progress, interruptible() as set_handlers:
        kind = began_with(folder, address, TIMED_ON).get("kind") if resume else None
        pinned = pin_revision(space, folder, address) if resume else space
        pool = start_pool(pinned, set_handlers, kind, progress.note)
        try:
            described = pool.describe()
            num_layers = described[0]["num_layers"]
            progress.phase(PREPARING)
            commit = common_commit(described)
            space.domains(num_layers)  # Refuses a space that does not fit the model before a folder is created.
            with lock_study(folder, address), database_errors(folder, address):
                space = with_ranking(space, num_layers, pool, folder / RANKING, ranking, progress.note)
                study = SearchStudy(
                    folder / DATABASE, name or loaded.name, space, num_layers, resume, loaded.model_id,
                    lambda: probe_dense(pool, progress), described[0]["guide"], commit,
                )  # fmt: skip
                keep_timed_on(study, pool)
                start_folder(folder, loaded.text, environment(described, space, loaded.model_id), resume)
                loggers = Loggers(space.log, name or loaded.name, progress.note, len(study.finished_trials()))
                with LiveReport(study, folder, progress, pool).watching():
                    search_and_confirm(study, pool, progress, folder, described[0]["examples"], loggers)
        finally:
            pool.close()
        record = write_folder(folder)
        loggers.log_front([record.trial(number) for number in record.front])
        loggers.close()
    return record


def check_folder(folder: Path, resume: bool, address: Address | None = None) -> None:
    """Check that a study can be written or resumed, before the model is loaded.

    Args:
        folder: The study's folder.
        resume: True to resume a study.
        address: Where the study is, if not in its folder.

    Raises:
        StudyError: the study exists, or does not exist to be resumed, or is damaged; or its folder cannot be written,
            or another search is writing to it.
    """
    from .study.opening import check_free

    refuse_several(folder, "give the study of one model another name with `--name`")
    check_free(folder / DATABASE, resume, address)
    above = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        hint = "give another folder with `--out`, or the right to write to this one"
        raise StudyError(f"no file can be written to {above}", [f"expected to, for {folder}"], hint)
    free = shutil.disk_usage(above).free
    if free < MIN_FREE_BYTES:
        found = f"found {free >> 20} MiB free, expected {MIN_FREE_BYTES >> 20} MiB"
        hint = "free some space, or give another folder with `--out`"
        raise StudyError(f"the disk of {above} is full", [found], hint)
    if resume:
        with lock_study(folder, address):
            if address is None:
                check_whole(folder / DATABASE)
        read_environment(folder / ENVIRONMENT)


def began_with(folder: Path, address: Address | None, key: str) -> dict[str, Any]:
    """An attribute of a study as its first run wrote it; empty for a study that has not begun."""
    text = attribute_of(folder / DATABASE, key) if address is None else attribute_text(address, key)
    found: dict[str, Any] = json.loads(text or "{}")
    return found


def pin_revision(space: Space, folder: Path, address: Address | None = None) -> Space:
    """The space with the model's commit of the study's first run, since a branch on the hub may have moved."""
    commit = began_with(folder, address, "facts").get("commit")
    if commit is None:
        return space
    return space.model_copy(update={"model": space.model.model_copy(update={"revision": commit})})


def common_commit(described: Sequence[Mapping[str, Any]]) -> str | None:
    """The commit of the hub model that every worker has loaded; None for a local model.

    Raises:
        RunError: workers have loaded different commits.
    """
    nodes = {worker.get("commit"): worker["node"] for worker in described}
    if len(nodes) > 1:
        lines = [f"node {node}: commit {commit}" for commit, node in nodes.items()]
        hint = "name the commit with `--set model.revision=…`"
        raise RunError("the workers have loaded different commits of the model", lines, hint)
    return next(iter(nodes))


@contextmanager
def database_errors(folder: Path, address: Address | None = None) -> Iterator[None]:
    """Turn errors of writing the database into one message; what was written before is kept.

    Raises:
        RunError: the disk is full, the file is locked or missing, or the server is gone.
    """
    try:
        yield
    except UNWRITABLE as cause:
        if address is not None:
            hint = "finished trials are kept; when the server answers again, go on with `--resume`"
            raise RunError(f"{address} cannot be written", [reason_of(address.url, cause)], hint) from None
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        hint = "free some space where the disk is full, close what holds the file, and go on with `--resume`"
        raise RunError(f"{folder / DATABASE} cannot be written", [reason], hint) from None


def start_pool(
    space: Space, set_handlers: Callable[[], None], kind: str | None = None, note: Callable[[str], None] | None = None
) -> "Pool":
    """Start the workers.

    Ray replaces the signal handlers while it starts, and raises `SystemExit` on SIGTERM.

    Args:
        space: The search space.
        set_handlers: Sets the signal handlers again.
        kind: The kind of device on which the study's times were measured so far; None for a new study.
        note: Tells of nodes and workers that join, leave or are left out; None for nothing.
    """
    from .workers.ray_pool import Pool

    try:
        return Pool(space, kind=kind, note=note)
    except SystemExit:
        raise Stopped(signal.SIGTERM) from None
    finally:
        set_handlers()


def keep_timed_on(study: "SearchStudy", pool: "Pool") -> None:
    """Store on which kind of device a study's times are measured, once; a resumed search needs the same."""
    if pool.kind is not None and TIMED_ON not in study.study.user_attrs:
        study.study.set_user_attr(TIMED_ON, {"kind": pool.kind})


def probe_dense(pool: "Pool", progress: "Progress") -> "DenseStats":
    """Measure the statistics of the dense model that baselines need; this takes as long as a few trials."""
    progress.note("measuring the statistics of the dense model that the baselines need")
    return pool.probe_dense()


def search_and_confirm(
    study: "SearchStudy",
    pool: "Pool",
    progress: "Progress",
    folder: Path,
    examples: "ExampleCounts",
    loggers: Loggers,
) -> None:
    """Spend the budget of trials, through Ray Tune where the space says so, train policies, and confirm the front."""
    from .driver.driver import Driver

    def log() -> None:
        loggers.update(study.finished_trials)

    driver = Driver(study, pool, progress, examples, log)
    driver.begin()
    if study.space.workers.runner == "tune":
        from .driver.ray_tune import tune_search

        reason = tune_search(study, pool, folder, progress, driver.after_trial)
    else:
        reason = driver.search()
    study.end(reason)
    progress.note(f"the search ended: {reason}")
    driver.recover()
    driver.confirm()


@contextmanager
def lock_study(folder: Path, address: Address | None = None) -> Iterator[None]:
    """Lock a study for one search at a time, its folder and what is at its address; the lock ends with the process.

    Raises:
        StudyError: another search holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        hint = "wait for it to end, or give this one another name with `--name`"
        raise StudyError(f"another search is writing to {folder}", hint=hint) from None
    try:
        with nullcontext() if address is None else lock_remote(address):
            yield
    finally:
        lock.release()
