"""Clusters of several nodes: nodes that join and leave during a search, on machines with different devices."""

import itertools
import os
import threading
import time
from collections import Counter
from contextlib import contextmanager

import failing
import postgres
import pytest
import ray
from ray.cluster_utils import Cluster

from skipsearch.search.driver.progress import Progress
from skipsearch.search.places import DATABASE
from skipsearch.search.run import run_study
from skipsearch.search.study.storage import open_study
from skipsearch.search.workers import cluster

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return failing.space(failing.plugged(tmp_path_factory.mktemp("space")))


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch):
    """A new cluster may take long to answer."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 120.0)


@pytest.fixture
def url(monkeypatch):
    server = postgres.Postgres()
    monkeypatch.setenv("PG_SECRET", postgres.PASSWORD)
    server.start()
    yield server.new_url()
    server.remove()


@pytest.fixture
def notes(monkeypatch):
    """What searches tell of their progress."""
    found = []
    monkeypatch.setattr(Progress, "note", lambda self, text: found.append(text))
    return found


@contextmanager
def nodes(*each):
    """A cluster with a node for each mapping of Ray's settings; the first one cannot leave."""
    # With Ray's own priority, workers wait for all other work of the machine.
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"})
    # Ray sets handlers of signals where it is to end nodes at the exit, which only the main thread may do.
    made = Cluster(initialize_head=True, head_node_args=each[0], shutdown_at_exit=False)
    try:
        others = [made.add_node(**one) for one in each[1:]]
        made.wait_for_nodes()
        yield made, others
    finally:
        ray.shutdown()
        made.shutdown()


@contextmanager
def meanwhile(function):
    """Run a function in another thread."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    yield
    thread.join()


def wait_for(words, count):
    while len(failing.measured(words)) < count:
        time.sleep(0.05)


def wait_for_processes(words, count):
    while len(failing.processes(words)) < count:
        time.sleep(0.05)


def test_nothing_is_lost_or_doubled_when_a_node_is_killed_and_others_are_added(path, tmp_path, url):
    """Three nodes and a study in PostgreSQL; with two further nodes there are four workers."""
    words, trials = tmp_path / "words", 30
    given = {
        "study__storage": url, "workers__count": "auto", "workers__timeout": 600, "search__trials": trials,
        "evaluate__faulty__pause": 0.3,
    }  # fmt: skip
    with nodes(*[{"num_cpus": 1}] * 3) as (made, (_, other)):

        def change():
            wait_for_processes(words, 3)
            made.remove_node(other, allow_graceful=False)
            wait_for(words, 10)
            (words / "hold").touch()
            made.add_node(num_cpus=1)
            made.add_node(num_cpus=1)
            wait_for_processes(words, 5)
            (words / "hold").unlink()

        loaded = failing.loaded(path, words, workers__address=made.address, **given)
        with meanwhile(change):
            record = run_study(loaded, tmp_path / "study", shown=False)
    kept = open_study(tmp_path / "study" / DATABASE).trials
    assert [trial.number for trial in kept] == [trial.number for trial in record.trials] == [*range(len(kept))]
    assert {trial.state for trial in record.trials} == {"complete"}
    own = [trial.policy.fingerprint for trial in record.trials if trial.duplicate_of is None]
    assert len(own) == len({*own}) == trials
    calls = Counter(failing.measured(words))
    assert {*calls} == {*own} and calls.total() <= trials + 1
    assert {trial.worker for trial in record.trials} == {f"worker-{number}" for number in range(4)}
    assert len(failing.processes(words)) == 5


def test_a_node_that_comes_and_goes_while_its_worker_loads_ends_nothing(path, tmp_path, notes):
    words = tmp_path / "words"
    given = {"workers__count": "auto", "search__trials": 30, "evaluate__faulty__pause": 0.5}
    with nodes({"num_cpus": 1}) as (made, _):

        def change():
            wait_for(words, 2)
            node = made.add_node(num_cpus=1)
            time.sleep(4.0)
            made.remove_node(node, allow_graceful=False)

        loaded = failing.loaded(path, words, workers__address=made.address, **given)
        with meanwhile(change):
            record = run_study(loaded, tmp_path / "study", shown=False)
    assert {trial.state for trial in record.trials} == {"complete"} and len(failing.measured(words)) == 30
    assert {trial.worker for trial in record.trials} == {"worker-0"}
    assert not any("has joined" in note for note in notes)


def test_times_are_measured_on_one_kind_of_device_and_alone_on_each(path, tmp_path, notes):
    """Two machines with two workers each have the same processor, a third one has another."""
    words = tmp_path / "words"
    made_of = [("A one", 2), ("A two", 2), ("B three", 1)]
    settings = [{"num_cpus": cpus, "env_vars": {"PRETENDED_DEVICE": device}} for device, cpus in made_of]
    given = {
        "evaluate__timed__folder": f"'at:{words}'", "evaluate__timed__pause": 0.3, "evaluate__faulty__pause": 0.1,
        "objectives": "{kept: maximize, timed: minimize}", "workers__count": "auto", "search__trials": 24,
        "search__racing": "none",
    }  # fmt: skip
    with nodes(*settings) as (made, _):
        loaded = failing.loaded(path, words, workers__address=made.address, **given)
        record = run_study(loaded, tmp_path / "study", shown=False)
    assert {trial.state for trial in record.trials} == {"complete"}
    assert len({trial.worker for trial in record.trials}) == 4
    [left_out] = [note for note in notes if "is left out" in note]
    assert "it has cpu B, and times are measured on one kind of device, cpu A" in left_out
    spans = failing.words_of(words)
    assert {one["device"] for one in spans} == {"one", "two"}
    overlapping = [(a, b) for a, b in itertools.combinations(spans, 2)
                   if a["span"][0] < b["span"][1] and b["span"][0] < a["span"][1]]  # fmt: skip
    assert not [pair for pair in overlapping
                if pair[0]["device"] == pair[1]["device"] and (pair[0]["timed"] or pair[1]["timed"])]  # fmt: skip
    # Of two devices each measures times while the other one does.
    assert any(a["timed"] and b["timed"] for a, b in overlapping)
    assert any(not a["timed"] and not b["timed"] and a["device"] == b["device"] for a, b in overlapping)
