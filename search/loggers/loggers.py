"""The loggers that a space names: checks them before a search, sends them its trials, and its front at the end."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...policies.errors import LoggerError
from ..space.log import Log
from ..trial.trial_result import TrialResult
from .background import CLOSE_SECONDS, BackgroundLogger
from .entry import Entry, Logger, front_entry
from .mlflow import MLflowLogger
from .tensorboard import TensorBoardLogger
from .wandb import WandbLogger


@dataclass(frozen=True)
class Kind:
    """One kind of logger.

    Attributes:
        package: The package that it writes through.
        make: Makes it from its setting in the space and the name of the study.
    """

    package: str
    make: Callable[[str, str], Logger]


KINDS: Mapping[str, Kind] = {
    "tensorboard": Kind("tensorboardX", TensorBoardLogger),
    "mlflow": Kind("mlflow", MLflowLogger),
    "wandb": Kind("wandb", WandbLogger),
}


def check_loggers(log: Log) -> None:
    """Check that the packages of a space's loggers are installed.

    Raises:
        LoggerError: one is missing.
    """
    missing = [name for name in log.settings if importlib.util.find_spec(KINDS[name].package) is None]
    if missing:
        found = [f"log.{name} needs the package {KINDS[name].package}" for name in missing]
        hint = f"`pip install 'skipsearch[{','.join(missing)}]'`, or leave the key out of the space"
        raise LoggerError("the package of a logger is not installed", found, hint)


class Loggers:
    """All loggers of a search.

    Args:
        log: The loggers that the space names.
        study: The study's name.
        warn: Shows a warning.
        finished: How many trials of the study had ended before, which are not sent again.
    """

    def __init__(self, log: Log, study: str, warn: Callable[[str], None], finished: int = 0) -> None:
        self._sent = finished
        self._all = [
            BackgroundLogger(name, partial(KINDS[name].make, value, study), warn)
            for name, value in log.settings.items()
        ]

    def update(self, finished: Callable[[], Sequence[TrialResult]]) -> None:
        """Send the trials that have ended since the last call.

        Args:
            finished: Gives all trials by the time that they ended; called only where a logger is on.
        """
        if not any(one.is_on for one in self._all):
            return
        results = finished()
        for result in results[self._sent :]:
            for one in self._all:
                one.log(Entry.of(result))
        self._sent = len(results)

    def log_front(self, front: Sequence[TrialResult]) -> None:
        """Send the front of the finished search."""
        entries = [front_entry(result) for result in front]
        for one in self._all:
            one.log_front(entries)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until everything is written, but not longer than so many seconds for each logger."""
        for one in self._all:
            one.close(seconds)
