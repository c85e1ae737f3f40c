"""One search from its space to its folder of results."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .record import StudyRecord
from .results import environment, start_folder, write_folder
from .space import LoadedSpace
from .study import DATABASE


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
    from .driver import Driver
    from .progress import Progress
    from .study import SearchStudy
    from .workers import Pool

    space = loaded.space
    if space.workers.runner == "tune":
        from .tune import run_tune

        return run_tune(loaded, folder, name, resume)
    with Progress(space.search.trials, space.objectives, shown) as progress, interruptible():
        SearchStudy.check_free(folder / DATABASE, resume)
        pool = Pool(space)
        try:
            described = pool.describe()
            study = SearchStudy(folder / DATABASE, name or loaded.name, space, described[0]["num_layers"], resume)
            if not resume:
                start_folder(folder, loaded.text, environment(described, space))
            Driver(study, pool, progress).run()
        finally:
            pool.close()
    return write_folder(folder)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a batch system's request to stop end the search as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # Not the main thread: the caller's program handles its signals.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
