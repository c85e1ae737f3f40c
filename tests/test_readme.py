"""Every command and every piece of code in the README, run as it stands there."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skipsearch import Policy

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PATIENCE = 400
PRIORITY = {"RAY_worker_niceness": "0"}  # Else workers of `ray start` wait for all other tests.


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.S | re.M)


def commands(program: str) -> list[str]:
    shell = [block for block in blocks("bash") if not block.startswith("#!")]
    return [line for block in shell for line in block.splitlines() if line.startswith(f"{program} ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what a clone has at hand, and the command `skipsearch` of this very environment."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("spaces", "Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "results").mkdir()
    (folder / "results" / "example").symlink_to(ROOT / "results" / "example")
    (folder / "bin").mkdir()
    script = folder / "bin" / "skipsearch"
    # What a search finds is not looked at here, so it measures less.
    less = {"accuracy.search.limit": 50, "accuracy.report.limit": 50, "latency.repeats": 2}
    fewer = " ".join(f"--set evaluate.{key}={value}" for key, value in less.items())
    run = f'exec "{sys.executable}" -m skipsearch "$@"'
    script.write_text(f'#!/bin/sh\n[ "$1" = run ] && {run} {fewer}\n{run}\n')
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    here = Path(sys.executable).parent
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    return {
        **kept,
        "PATH": f"{folder / 'bin'}:{here}:{kept['PATH']}",
        "HOME": str(folder),
        "COLUMNS": "100",
        **PRIORITY,
    }


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def end(process: subprocess.Popen) -> None:
    """End a session with all that it started: Ray's daemons go with their leader, given a moment."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(5)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def cluster(folder, environment):
    """What `ray start --head` starts, in a session of its own so that it goes without a trace."""
    log = (folder / "ray.log").open("w")
    ray = shutil.which("ray", path=environment["PATH"]) or "ray"
    # A port of its own for the agent that takes jobs: other tests may have a Ray of theirs on this machine.
    start = [ray, "start", "--head", "--num-cpus=2", "--block", f"--dashboard-agent-listen-port={free_port()}"]
    deadline = time.monotonic() + PATIENCE
    process = None
    while "Ray runtime started" not in (folder / "ray.log").read_text():
        if process is None or process.poll() is not None:  # A busy machine may be too slow for Ray's own patience.
            process = subprocess.Popen(
                start, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        assert time.monotonic() < deadline, (folder / "ray.log").read_text()
        time.sleep(0.5)
    yield
    end(process)


def test_the_commands_for_one_machine_run_in_their_order(folder, environment):
    local = [command for command in commands("skipsearch") if "--address" not in command]
    assert len(local) >= 7
    for command in local:
        run(command, folder, environment)
    assert (folder / "results/first/report.html").exists()


def until_ready(job: str) -> str:
    """The command, given again while a fresh cluster answers that it has no agent for jobs yet."""
    again = "grep -q 'No available agent' out || break; sleep 8"
    return f"for turn in 1 2 3 4 5 6 7 8 9; do {job} >out 2>&1 && break; {again}; done; cat out"


def test_the_commands_for_a_cluster_run(folder, environment, cluster):
    [direct] = [command for command in commands("skipsearch") if "--address" in command]
    run(direct, folder, environment)
    [job] = commands("ray")
    submitted = run(until_ready(job), folder, environment)
    assert "succeeded" in submitted
    assert (folder / "results/job/report.html").exists()


def test_the_batch_script_runs(folder, environment):
    """With stand-ins for Slurm's own commands, which start what they are given on this machine."""
    [script] = [block for block in blocks("bash") if block.startswith("#!")]
    tools = {
        "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done\nexec "$@"',
        "scontrol": "echo 127.0.0.1",
    }
    for name, body in tools.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / "bin" / name).chmod(0o755)
    small = script.replace("run llava", "run digits --name batch --trials 3").replace("results/llava", "results/batch")
    process = subprocess.Popen(
        ["bash", "-c", small],
        cwd=folder,
        env={**environment, "SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        process.wait(PATIENCE)
        assert process.returncode == 0, process.stdout.read()
    finally:
        end(process)
    assert (folder / "results/batch/report.html").exists()


def test_make_targets_exist(folder, environment):
    for command in commands("make"):
        assert run(f"{command} --dry-run PYTHON={sys.executable}", folder, environment)


def test_the_python_code_runs(folder, monkeypatch):
    from PIL import Image
    from transformers import AutoProcessor

    monkeypatch.chdir(folder)
    processor = AutoProcessor.from_pretrained("spaces/digits/model")
    prompt = "USER: <image> Which digit is at the top left? ASSISTANT:"
    inputs = processor(text=prompt, images=Image.new("RGB", (56, 56)), return_tensors="pt")
    [code] = blocks("python")
    exec(code, {"inputs": {**inputs, "max_new_tokens": 2}})


def test_the_policy_is_one():
    [text] = blocks("yaml")
    path = ROOT / "README.md"
    from skipsearch.policies.document import Document
    from skipsearch.policies.errors import PolicyError

    assert Document(text, str(path), PolicyError).validate(Policy).choice(21).label == "parallel"


def test_every_file_that_is_linked_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
