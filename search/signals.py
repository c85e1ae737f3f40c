"""Stops a search cleanly on SIGINT (Ctrl-C), SIGTERM (a batch system) and SIGHUP (a closed terminal)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_open_contexts: list[Callable[[], None]] = []  # what the open `interruptible` context yields, where one is open


class Stopped(KeyboardInterrupt):
    """A signal asks the search to stop.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130, as after Ctrl-C; 129 after SIGHUP."""
        return 128 + (signal.SIGHUP if self.number == signal.SIGHUP else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Raise `Stopped` on SIGINT, SIGTERM and SIGHUP.

    All three are set here, because a shell starts background processes with SIGINT ignored. SIGHUP stays ignored where
    it was, since `nohup` ignores it to outlive the terminal. After the first signal further ones are ignored, so that
    workers are stopped undisturbed. A nested context yields the same function as the outer one.

    Yields:
        A function that sets the handlers again, after a library has replaced them.
    """
    if _open_contexts:
        yield _open_contexts[-1]
        return
    handled = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handled.append(signal.SIGHUP)

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for one in handled:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    def set_handlers() -> None:
        for number in before if not received else ():
            signal.signal(number, stop)

    before: dict[signal.Signals, Any] = {}
    # Python sets handlers in the main thread alone. In other threads, the calling program handles its signals.
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in handled}
    _open_contexts.append(set_handlers)
    try:
        yield set_handlers
    finally:
        _open_contexts.pop()
        for number, handler in before.items():
            signal.signal(number, handler)
