"""Many kills of everything that a search consists of: no trial is lost, none measured twice, no policy blamed."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import failing
import pytest

from skipsearch.search.analysis.load_study import read_record

KILLS = int(os.environ.get("KILLS", "50"))
TRIALS = 600
WORKERS = int(os.environ.get("WORKERS", "2"))
PATIENCE = 300.0


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return failing.space(failing.plugged(tmp_path_factory.mktemp("space")))


def finished(study):
    """Trials that have ended, by number, with what they measured."""
    try:
        with closing(sqlite3.connect(f"file:{study}/study.db?mode=ro", uri=True)) as opened:
            rows = opened.execute(
                "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) "
                "WHERE state IN ('COMPLETE', 'FAIL') AND key = 'measurements'"
            ).fetchall()
    except sqlite3.OperationalError:
        return {}
    return dict(rows)


def processes(run):
    """What belongs to a search, by kind: the driver, Ray's two daemons, and the workers."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [(int(pid), int(parent), name) for pid, parent, name, *_ in map(str.split, listed.splitlines())]
    found = {kind: [pid for pid, parent, name in rows if parent == run.pid and Path(name).name == kind]
             for kind in ("raylet", "gcs_server")}  # fmt: skip
    workers = [pid for pid, parent, name in rows if parent in found["raylet"] and name.startswith("ray::Worker")]
    return {"driver": [run.pid], "worker": workers, **found}


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_random_kills_lose_double_and_fail_no_trial(path, tmp_path):
    draw, words, study = random.Random(os.environ.get("SEED", "0")), tmp_path / "words", tmp_path / "s"
    failing.loaded(path, words)
    command = [
        *(sys.executable, "-m", "skipsearch", "run", str(path), "--out", str(tmp_path), "--name", "s", "--quiet"),
        *("--set", f"evaluate.faulty.folder='at:{words}'", "--set", "evaluate.faulty.pause=0.3"),
        *("--set", "layers=[{range: all, choices: [keep, skip_ffn, skip_attention, skip_layer, parallel]}]"),
        *("--trials", str(TRIALS), "--set", "search.sampler=random", "--set", f"workers.count={WORKERS}"),
    ]
    killed, lost, before, run = Counter(), 0, {}, None
    while sum(killed.values()) < KILLS:
        if run is None or run.poll() is not None:
            again = ["--resume"] if (study / "study.db").exists() else []
            run = subprocess.Popen([*command, *again], env=failing.own_ray(), stderr=subprocess.PIPE, text=True)
        started, wanted = time.monotonic(), len(before) + draw.randint(1, 4)
        while run.poll() is None and len(finished(study)) < wanted and time.monotonic() - started < PATIENCE:
            time.sleep(0.05)
        time.sleep(draw.random() * 0.3)
        now = finished(study)
        lost += sum(now.get(number) != told for number, told in before.items())
        before = now
        if run.poll() is not None:
            assert run.returncode in (0, 1), run.stderr.read()
            if run.returncode == 0:
                break
            continue
        kind = draw.choice(["driver", "worker", "worker", "raylet", "gcs_server"])
        places = processes(run)[kind]
        if places:
            os.kill(draw.choice(places), signal.SIGKILL)
            killed[kind] += 1
            print(sum(killed.values()), kind, len(before), file=sys.stderr, flush=True)
        if places and kind != "worker":
            run.wait(timeout=PATIENCE)
    if run.poll() is None:
        run.send_signal(signal.SIGINT)
        run.wait(timeout=PATIENCE)
    now = finished(study)
    lost += sum(now.get(number) != told for number, told in before.items())
    record = read_record(study)
    own = Counter(trial.policy.fingerprint for trial in record.trials if trial.duplicate_of is None and trial.search)
    doubled = sum(count - 1 for count in own.values())
    blamed = sum(trial.state == "failed" for trial in record.trials)
    told = {"killed": killed, "trials": len(own), "lost": lost, "doubled": doubled, "blamed": blamed}
    print(json.dumps(told))
    assert (lost, doubled, blamed) == (0, 0, 0) and sum(killed.values()) >= KILLS, told
