"""What ends a search from outside: Ctrl-C, a batch system's request to stop, and the end of the terminal."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_heeding: list[Callable[[], None]] = []  # of the context that is open, where there is one


class Stopped(KeyboardInterrupt):
    """A signal asks the search to end.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130, as after Ctrl-C; 129 where the terminal has gone."""
        return 128 + (signal.SIGHUP if self.number == signal.SIGHUP else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C end the search, a batch system's request to stop, and the end of the terminal.

    All are set here, since a shell starts what runs in the background with interrupts ignored; but who started it with
    `nohup` wants it to outlive the terminal. What comes after the first signal is ignored, while workers are stopped.

    Yields:
        Sets the signals' handlers again, after something else has taken them.
    """
    if _heeding:
        yield _heeding[-1]
        return
    heeded = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heeded.append(signal.SIGHUP)

    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for one in heeded:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    def heed() -> None:
        for number in before if not stopped else ():
            signal.signal(number, stop)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Elsewhere the caller's program handles its signals.
        before = {number: signal.signal(number, stop) for number in heeded}
    _heeding.append(heed)
    try:
        yield heed
    finally:
        _heeding.pop()
        for number, handler in before.items():
            signal.signal(number, handler)
