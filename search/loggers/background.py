"""Runs a logger in a thread of its own, so that no failure and no hung network of it costs a trial."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from .entry import Entry, Logger

HUNG_SECONDS = 120.0  # how long one call of a logger may take before it is switched off
CLOSE_SECONDS = 20.0  # how long a search waits at its end for a logger to write what is left


class BackgroundLogger:
    """A logger in a thread that the end of the process does not wait for.

    Args:
        name: What warnings call it.
        make: Makes the logger; called in the thread.
        warn: Shows why the logger was switched off, once.
        hung_seconds: How long one call may take.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Logger],
        warn: Callable[[str], None],
        hung_seconds: float = HUNG_SECONDS,
    ) -> None:
        self.name, self.is_on = name, True
        self._warn, self._hung_seconds = warn, hung_seconds
        self._calls: deque[Callable[[Logger], None]] = deque()
        self._changed = threading.Condition()
        self._since: float | None = time.monotonic()  # when the running call began
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._work, args=(make,), name=f"logger {name}", daemon=True)
        self._thread.start()

    def log(self, entry: Entry) -> None:
        """Write one trial, later."""
        self._add(lambda logger: logger.log(entry))

    def log_front(self, front: Sequence[Entry]) -> None:
        """Write the front, later."""
        self._add(lambda logger: logger.log_front(front))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until everything is written, but not longer than so many seconds."""
        if not self.is_on:
            return
        self._add(lambda logger: logger.close())
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._is_done(), seconds)
            is_done = self._is_done()
        self._check()
        if self.is_on and not is_done:
            self._switch_off(f"has not written everything {seconds:g} s after the search ended")
        self.is_on = False

    def _is_done(self) -> bool:
        return not self._calls and self._since is None

    def _add(self, call: Callable[[Logger], None]) -> None:
        self._check()
        if self.is_on:
            with self._changed:
                self._calls.append(call)
                self._changed.notify_all()

    def _check(self) -> None:
        """Switch the logger off where it has failed or hangs."""
        if not self.is_on:
            return
        with self._changed:
            since, failure = self._since, self._failure
        if failure is not None:
            self._switch_off(failure)
        elif since is not None and time.monotonic() - since > self._hung_seconds:
            self._switch_off(f"has not answered for {self._hung_seconds:g} s")

    def _switch_off(self, reason: str) -> None:
        self.is_on = False
        self._warn(f"warning: the logger {self.name} is switched off, the search goes on: {reason}")

    def _work(self, make: Callable[[], Logger]) -> None:
        """Make the logger and write what is to be written, until a call fails."""
        try:
            logger = make()
            while True:
                with self._changed:
                    self._since = None
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: bool(self._calls))
                    call, self._since = self._calls.popleft(), time.monotonic()
                call(logger)
        except BaseException as cause:  # Some clients end the process where a login fails; here the thread ends alone.
            lines = str(cause).strip().splitlines()
            with self._changed:
                self._failure = f"{type(cause).__name__}: {lines[0] if lines else ''}".removesuffix(": ")
                self._changed.notify_all()
