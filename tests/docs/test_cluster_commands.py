"""The page about clusters: its batch script, with Ray as that leaves it, and its commands on that cluster."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from pages import LESS, LESS_TIME, blocks, clone, is_script

PAGE = "docs/tutorial/cluster.md"
PATIENCE = 400
# What the script calls of Slurm, which starts what it is given on this machine. The ports are free ones, because other
# tests may have a Ray of theirs; a busy machine may be too slow for Ray's own patience, so it may start again.
STAND_INS = {
    "scontrol": "echo 127.0.0.1",
    "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done\n'
    'until "$@" --num-cpus=2 --dashboard-agent-listen-port=AGENT --dashboard-port=DASHBOARD; do sleep 1; done',
}


def free_ports(count):
    with contextlib.ExitStack() as held:
        taken = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in taken]


@pytest.fixture(scope="module")
def ports():
    return dict(zip(("6379", "8265", "AGENT"), free_ports(3), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, ports):
    """A clone, with a command `skipsearch` of this very environment that searches on fewer examples."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    (folder / "bin").mkdir()
    fewer = " ".join(f"--set {key}={value}" for key, value in {**LESS, **LESS_TIME}.items())
    scripts = {"skipsearch": f'exec "{sys.executable}" -m skipsearch "$@" {fewer}', **STAND_INS}
    for name, body in scripts.items():
        text = body.replace("AGENT", ports["AGENT"]).replace("DASHBOARD", ports["8265"])
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    """Of a job: no terminal, one node, and a place of its own where Ray notes which cluster is the current one."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    here = os.path.dirname(sys.executable)
    place = tempfile.mkdtemp(prefix="ray")  # Ray's sockets need a short path.
    yield {
        **kept,
        "PATH": f"{folder / 'bin'}:{here}:{kept['PATH']}",
        "HOME": str(folder),
        "COLUMNS": "100",
        "RAY_TMPDIR": place,
        "RAY_worker_niceness": "0",  # Else workers of `ray start` wait for all other tests.
        "SLURM_JOB_NODELIST": "n",
        "SLURM_NNODES": "1",
    }
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def batch(folder, environment, ports):
    """The output of the batch script, which leaves its Ray behind."""
    [script] = [block.text for block in blocks(PAGE, "bash") if is_script(block)]
    assert "run llava " in script and "results/llava/" in script
    small = script.replace("run llava ", "run digits --name batch --trials 3 ").replace(
        "results/llava", "results/batch"
    )
    log = folder / "batch.log"
    with log.open("w") as out:
        started = subprocess.Popen(
            ["bash", "-c", small.replace("6379", ports["6379"])],
            cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        assert started.wait(PATIENCE) == 0, log.read_text()
        yield log.read_text()
    finally:
        end(started)


def end(process):
    """End a session with all that it started: Ray's daemons go with their leader, given a moment."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(3)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def run(command, folder, environment):
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def command_of(program):
    [found] = [one for block in blocks(PAGE, "bash") if not is_script(block)
               for one in block.commands if one.startswith(program)]  # fmt: skip
    return found


def test_the_batch_script_runs(batch, folder):
    assert "report results/batch/report.html" in batch
    assert (folder / "results/batch/report.html").exists()


@pytest.mark.soak
def test_a_search_finds_the_cluster(batch, folder, environment):
    run(command_of("skipsearch"), folder, environment)
    assert (folder / "results/cluster/report.html").exists()


def test_a_job_runs(batch, folder, environment, ports):
    """Given again while a fresh cluster answers that it has no agent for jobs yet."""
    job = command_of("ray").replace("8265", ports["8265"])
    again = "grep -q 'No available agent' out || break; sleep 8"
    submitted = run(f"for turn in 1 2 3 4 5 6 7 8 9; do {job} >out 2>&1 && break; {again}; done; cat out",
                    folder, environment)  # fmt: skip
    assert "succeeded" in submitted
    assert (folder / "results/job/report.html").exists()
