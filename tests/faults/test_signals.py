"""What ends a search from outside: it says how to go on, and leaves nothing of Ray behind."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import failing
import pytest

from skipsearch.search.signals import Stopped, interruptible
from skipsearch.search.study.database import progress_of

PATIENCE = 300.0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return failing.space(failing.plugged(tmp_path_factory.mktemp("space")))


def descendants(mark):
    """Processes that have a mark in their environment; not those that have ended and are not waited for."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "comm").read_text().strip())
        except OSError:
            continue
    return found


def wait_until(holds, process):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


CASES = {
    "TERM while policies are measured": ([signal.SIGTERM], 3, 130),
    "HUP": ([signal.SIGHUP], 2, 129),
    "INT twice": ([signal.SIGINT, signal.SIGINT], 2, 130),
    "TERM while it loads": ([signal.SIGTERM], 0, 130),
    "TERM to the whole group": ("group", 2, 130),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_a_signal_ends_the_search_with_its_hint(path, tmp_path, name):
    signals, calls, code = CASES[name]
    words, mark = tmp_path / "words", str(uuid.uuid4())
    failing.loaded(path, words)
    command = [
        *(sys.executable, "-m", "skipsearch", "run", str(path), "--out", str(tmp_path), "--name", "s"),
        *("--set", f"evaluate.faulty.folder='at:{words}'", "--set", "evaluate.faulty.pause=0.2", "--trials", "60"),
    ]
    given = failing.own_ray() | {"MARK": mark}
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=given, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # The tests themselves may run under nohup.
    )  # fmt: skip
    if calls:
        wait_until(lambda: len(failing.measured(words)) >= calls, run)
    else:
        wait_until(lambda: "raylet" in descendants(mark), run)
    for number in [signal.SIGTERM] if signals == "group" else signals:
        os.killpg(run.pid, number) if signals == "group" else run.send_signal(number)
        time.sleep(0.2)
    said = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode == code, said
    assert "hint: go on with" in said and "--resume" in said
    assert not any(word in said for word in ("Traceback", "Aborted", "stack"))
    deadline = time.monotonic() + 60  # An agent of Ray's looks after its raylet now and then.
    while descendants(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert descendants(mark) == []
    if calls:
        assert "of 60 trials" in progress_of(tmp_path / "s" / "study.db")


def test_signals_are_handled_once_and_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Stopped) as stopped, interruptible() as outer, interruptible() as heed:
        assert outer is heed
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # As Ray does while it starts.
        heed()
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            heed()
            signal.raise_signal(signal.SIGTERM)
    assert stopped.value.exit_code == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert Stopped(signal.SIGHUP).exit_code == 129


def test_a_search_under_nohup_outlives_the_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
