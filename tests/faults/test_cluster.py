"""Clusters that are not there, or fall apart: every wait has an end, and says what to do."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import failing
import pytest
import ray
from ray.cluster_utils import Cluster

from skipsearch.policies.errors import RunError, StudyError
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.run import run_study
from skipsearch.search.space.search_settings import Workers
from skipsearch.search.workers import cluster as cluster
from skipsearch.search.workers.cluster import start_local, start_ray, unreachable


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return failing.space(failing.plugged(tmp_path_factory.mktemp("space")))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:FREE", "Connection refused"),
        ("ray://127.0.0.1:FREE", "Connection refused"),
        ("nowhere.invalid:6379", "no connection to nowhere.invalid"),
        ("127.0.0.1", "expected a host and a port"),
        ("127.0.0.1:no", "found '127.0.0.1:no'"),
    ],
)
def test_an_address_where_nothing_answers_is_refused_at_once(address, told):
    address = address.replace("FREE", str(free_port()))
    with pytest.raises(StudyError, match=f"no Ray cluster answers at {address}") as error:
        start_ray(Workers(address=address))
    assert told in error.value.details[0] and "ray start --head" in error.value.hint


def test_a_cluster_that_has_gone_is_not_waited_for(monkeypatch):
    """Ray keeps the address of the last one in a file."""
    gone = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr(cluster.services, "find_bootstrap_address", lambda folder: gone)
    assert "Connection refused" in unreachable("auto")
    monkeypatch.setattr(cluster.services, "find_bootstrap_address", lambda folder: None)
    monkeypatch.setattr(cluster.services, "find_gcs_addresses", lambda: set())
    assert "has started none" in unreachable("auto")


def test_what_listens_and_does_not_answer_is_refused(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 5.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        assert unreachable(f"127.0.0.1:{port}") == f"what listens at port {port} does not answer as Ray in 5 s"


def test_a_path_that_is_too_long_for_rays_sockets_is_told(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "long" * 20)
    with pytest.raises(RunError, match="too long a path for Ray's sockets\n  found /tmp/long.*85 characters"):
        start_local()


@pytest.mark.soak
@pytest.mark.parametrize("when", ["loading", "measuring"])
def test_a_node_that_is_lost_costs_no_policy(path, tmp_path, when):
    """Of two nodes one goes, with its worker; the search ends on the other."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = made.add_node(num_cpus=1)
    try:
        made.wait_for_nodes()
        words = tmp_path / "words"
        loaded = failing.loaded(path, words, workers__address=made.address, search__trials=16)

        def lose():
            while when == "measuring" and len(failing.measured(words)) < 4:
                time.sleep(0.05)
            time.sleep(1.0 if when == "loading" else 0.0)
            made.remove_node(node, allow_graceful=False)

        losing = threading.Timer(0.0 if when == "measuring" else 3.0, lose)
        losing.start()
        record = run_study(loaded, tmp_path / "study", shown=False)
        losing.join()
        assert [trial.state for trial in record.trials] == ["complete"] * len(record.trials)
        assert len({trial.policy.fingerprint for trial in record.trials}) == 16
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.soak
@pytest.mark.parametrize("daemon", ["raylet", "gcs_server"])
def test_a_search_whose_ray_dies_says_so_and_can_be_resumed(path, tmp_path, daemon):
    words = tmp_path / "words"
    failing.loaded(path, words)
    command = [
        *(sys.executable, "-m", "skipsearch", "run", str(path), "--out", str(tmp_path), "--name", "s"),
        *("--set", f"evaluate.faulty.folder='at:{words}'", "--trials", "20", "--set", "evaluate.faulty.pause=0.3"),
    ]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=failing.own_ray())
    while len(failing.measured(words)) < 4:
        assert run.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
    [place] = [int(line.split()[0]) for line in children.splitlines() if line.split()[1] == daemon]
    os.kill(place, signal.SIGKILL)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 1, said
    assert "error: Ray has died on this machine" in said and "--resume" in said and "Traceback" not in said
    before = read_record(tmp_path / "s")
    assert len(before.trials) >= 4 and all(trial.state != "failed" for trial in before.trials)
    assert subprocess.run([*command, "--resume"], capture_output=True, env=failing.own_ray()).returncode == 0
    after = read_record(tmp_path / "s")
    assert [trial.state for trial in after.trials] == ["complete"] * 20
