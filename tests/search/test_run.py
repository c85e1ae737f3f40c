"""Whole searches with real Ray workers: their results, and what they survive."""

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import ray
import searching
import torch
from event_files import events
from postgres import PASSWORD
from tiers import soak

import skipsearch
from skipsearch import Policy, apply_policy, load_study
from skipsearch.evaluators.accuracy.memo import Memo
from skipsearch.evaluators.subject import load_subject
from skipsearch.policies.errors import ModelError, RunError, StudyError
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.cli import main
from skipsearch.search.places import DATABASE, STORAGE
from skipsearch.search.report.folder import start_folder, write_folder
from skipsearch.search.run import lock_study, run_study
from skipsearch.search.study.database import attribute_of
from skipsearch.search.study.expected_results import baseline_front
from skipsearch.search.study.remote.address import Address, progress_at
from skipsearch.search.study.storage import open_study
from skipsearch.search.workers.cluster import start_local
from skipsearch.search.workers.ray_pool import Pool
from skipsearch.search.workers.shared_values import RayStore, directory_here
from skipsearch.search.workers.worker import Job

PATIENCE = 300


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One local Ray for the searches of this file; those in processes of their own start theirs."""
    with searching.cluster():
        yield


@pytest.fixture(scope="module")
def finished(path, tmp_path_factory):
    """A search with two workers and with latency, which they must measure alone."""
    folder = tmp_path_factory.mktemp("results") / "tiny"
    accuracy = "accuracy: {tasks: [image_gen.yaml], search: {limit: 8}, report: {limit: 8}}"
    evaluate = f"{{{accuracy}, flops: , latency: {{new_tokens: 2, repeats: 2, warmup: 1}}, memory: }}"
    loaded = searching.loaded(
        path,
        evaluate=evaluate,
        objectives="{accuracy: maximize, prefill_flops: minimize, ttft_ms: minimize}",
        workers__count=2,
        search__trials=10,
    )
    return run_study(loaded, folder, shown=False), folder


def command(path: Path, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "skipsearch", "run", str(path), "--out", str(folder), "--quiet", *more]


def own_ray() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}


def own_address() -> str:
    """That of the Ray of this file."""
    return ray.get_runtime_context().gcs_address


@contextmanager
def begun(log: Path, path: Path, folder: Path, *more: str):
    """A search in a process of its own, which ends with the test; what it says stands in the log."""
    with log.open("w") as said:
        process = subprocess.Popen(
            command(path, folder, *more), env=own_ray(), stdout=said, stderr=said, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def trials_in(database: Path) -> int:
    """How many have finished; without Optuna, which takes longer to open a study than the search for some trials."""
    finished = "SELECT COUNT(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            return opened.execute(finished).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def wait_for_trials(process, log: Path, database: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while trials_in(database) < count:
        assert process.poll() is None, f"the search ended early, with {process.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the search took too long:\n{log.read_text()}"
        time.sleep(0.02)


def test_a_study_folder_has_everything(finished):
    record, folder = finished
    names = {file.name for file in folder.iterdir()}
    assert {"study.db", "space.yaml", "environment.json", "policies", "trials.csv", "report.html", "front.png"} <= names
    assert record.dense.number == 0 and record.dense.policy.is_dense
    own = [trial for trial in record.trials if trial.duplicate_of is None]
    assert len(own) == 10 and {trial.worker for trial in own} == {"worker-0", "worker-1"}
    assert all(set(trial.search) >= {"accuracy", "prefill_flops", "ttft_ms", "kv_cache_bytes"} for trial in own)
    assert record.summary["forward_seconds_per_trial"] < record.summary["seconds_per_trial"]


def test_every_front_policy_is_confirmed_and_its_file_carries_both_splits(finished):
    record, folder = finished
    files = sorted((folder / "policies").glob("*.yaml"))
    assert len(files) == len([number for number in (*record.front, *record.in_gaps) if number != 0])
    for file in files:
        policy = Policy.load(file)
        trial = record.trial(policy.provenance.trial)
        assert policy.fingerprint == trial.policy.fingerprint
        assert policy.measured["accuracy"].split == "report"
        assert policy.measured["accuracy"].value == pytest.approx(trial.report["accuracy"].value)
        assert policy.measured["search_accuracy"].value == pytest.approx(trial.search["accuracy"].value)
        assert policy.model.num_layers == 4 and policy.measured["ttft_ms"].dense > 0


def test_the_best_of_the_baselines_are_confirmed_beside_the_front(finished):
    record, _ = finished
    best = baseline_front(record.trials, record.objectives, lambda trial: trial.violations)
    assert best and all("accuracy" in trial.report for trial in best)
    assert record.assessment.confirmed_gain is not None


def test_the_environment_is_that_in_which_the_study_began(tmp_path):
    """A start that goes on with a study is listed with what differs from the first."""
    starts = [("a", 1, False), ("b", 2, True), ("a", 3, True)]
    for cores, started, resume in starts:
        start_folder(tmp_path, "", {"started": started, "cores": cores}, resume)
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert kept == {"started": 1, "cores": "a", "resumed": [{"started": 2, "cores": "b"}, {"started": 3}]}
    start_folder(tmp_path, "", {"started": 4}, False)
    assert json.loads((tmp_path / "environment.json").read_text()) == {"started": 4}


def test_the_folder_is_made_again_from_the_database(finished):
    _, folder = finished
    before = {file: file.read_bytes() for file in folder.rglob("*.yaml")} | {
        folder / "trials.csv": (folder / "trials.csv").read_bytes()
    }
    for file in [*folder.glob("policies/*"), folder / "report.html", folder / "trials.csv"]:
        file.unlink()
    write_folder(folder)
    assert {file: file.read_bytes() for file in before} == before


def finished_in(database: Path) -> dict:
    return {trial.number: trial.user_attrs for trial in open_study(database).trials if trial.state.is_finished()}


def figures(record) -> list:
    """What a search found, without what differs from run to run: how long it took, and on which worker."""
    kinds = ("search", "estimates", "report")
    values = [{kind: {k: m.value for k, m in getattr(t, kind).items()} for kind in kinds} for t in record.trials]
    facts = [(t.number, t.policy.fingerprint, t.baseline, t.duplicate_of, t.state) for t in record.trials]
    return list(zip(facts, values, strict=True))


def test_a_killed_driver_loses_and_repeats_nothing(path, tmp_path, capsys):
    """`kill -9` in mid-run, then `run --resume`, ends in the trials of a run that was never killed.

    So one seed and one worker propose the same. The first search has a Ray of its own, which dies with it.
    """
    trials, log, database = 12, tmp_path / "log", tmp_path / "tiny" / DATABASE
    more = ["--trials", str(trials)]
    with begun(log, path, tmp_path, *more) as process:
        wait_for_trials(process, log, database, 5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = finished_in(database)
    assert 5 <= len(before) < trials
    more += ["--resume", "--address", own_address()]
    assert main(["run", str(path), "--out", str(tmp_path), "--quiet", *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["trials"] == trials
    assert before.items() <= finished_in(database).items()
    killed = read_record(tmp_path / "tiny")
    measured = [t.policy.fingerprint for t in killed.trials if t.duplicate_of is None and t.search]
    assert len(measured) == len(set(measured)) == trials
    whole = run_study(searching.loaded(path, search__trials=trials), tmp_path / "whole", shown=False)
    assert figures(killed) == figures(whole)


def test_a_search_in_postgresql_is_killed_and_resumed(path, tmp_path, server, capsys):
    """Nothing is measured twice, every command reads the study, and the password stands nowhere."""
    log, folder, address = tmp_path / "log", tmp_path / "out" / "tiny", Address(server.new_url(), "tiny")

    def count():
        return int(re.match(r"\d*", progress_at(address))[0] or 0)

    more = ["--trials", "200", "--set", f"study.storage={address.url}"]
    with begun(log, path, folder.parent, *more, "--address", own_address()) as process:
        deadline = time.monotonic() + PATIENCE
        while count() < 3:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before, trials = finished_in(folder / DATABASE), count() + 3
    # A result is written before its trial's state; the resume below finds one that was killed between them.
    assert 2 <= len(before) < 200
    loaded = searching.loaded(path, search__trials=trials, study__storage=address.url)
    with pytest.raises(StudyError, match="already holds a study called tiny"):
        run_study(loaded, tmp_path / "other", shown=False)
    record = run_study(loaded, folder, resume=True, shown=False)
    assert before.items() <= finished_in(folder / DATABASE).items()
    measured = [trial.policy.fingerprint for trial in record.trials if trial.duplicate_of is None and trial.search]
    assert len(measured) == len({*measured}) == trials
    policy = next((folder / "policies").glob("*.yaml"))
    for words in (["ls", "--out", folder.parent], ["report", folder], ["show", policy], ["eval", policy]):
        assert main([*map(str, words)]) == 0
    said = capsys.readouterr()
    assert f"{trials} of {trials} trials" in said.out
    assert figures(load_study(folder).record) == figures(record)
    texts = [*said, *(file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file())]
    assert not any(secret in text for text in texts for secret in (PASSWORD, quote(PASSWORD, safe="")))
    assert address.url in (folder / STORAGE).read_text() and address.url in (folder / "space.yaml").read_text()


@pytest.mark.parametrize(("runner", "number"), [("actors", signal.SIGTERM), soak("tune", signal.SIGINT)])
def test_a_signal_leaves_a_study_to_resume_and_says_how(path, tmp_path, runner, number):
    database = tmp_path / "tiny" / DATABASE
    log = tmp_path / "log"
    with begun(log, path, tmp_path, "--trials", "500", "--set", f"workers.runner={runner}") as process:
        wait_for_trials(process, log, database, 1)
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
    said = log.read_text()
    assert process.returncode == 130, said
    assert f"skipsearch run {path}" in said and "--resume" in said and "Traceback" not in said
    assert trials_in(database) >= 1


def answer(pool):
    """The next job that is over, and what came of it; workers that come up meanwhile have nothing else to do."""
    while True:
        found = pool.next()
        if found is not None:
            return found


@pytest.fixture(scope="module")
def pool(path):
    pool = Pool(searching.loaded(path).space)
    yield pool
    pool.stop_workers()


def test_a_fault_of_one_policy_is_its_own(pool):
    pool.describe()
    pool.submit(Job(Policy.model_validate({"layers": {9: {"ffn": "skip"}}}), ["flops"]))
    _, outcome = answer(pool)
    assert outcome.failure.startswith("policy has a choice for layer 9, model has layers 0 to 3")
    pool.submit(Job(Policy(), ["flops"]))
    _, outcome = answer(pool)
    assert outcome.failure is None


@pytest.mark.parametrize("busy", [True, soak(False)])
def test_a_lost_worker_is_replaced_and_its_job_done_again(pool, busy):
    [described] = pool.describe()
    assert os.getpriority(os.PRIO_PROCESS, described["pid"]) == os.getpriority(os.PRIO_PROCESS, 0)
    if busy:
        pool.submit(Job(Policy(), ["accuracy", "flops"]))
        os.kill(described["pid"], signal.SIGKILL)
    else:
        os.kill(described["pid"], signal.SIGKILL)
        time.sleep(0.5)
        pool.submit(Job(Policy(), ["accuracy", "flops"]))
    job, outcome = answer(pool)
    assert outcome.failure is None and job.lost_workers == 1 and "accuracy" in outcome.measurements
    assert pool.describe()[0]["pid"] != described["pid"]


@pytest.mark.parametrize("runner", ["actors", soak("tune")])
def test_a_bound_that_dense_breaks_leaves_a_whole_report(path, tmp_path, runner):
    """Dense is measured in full; the others stop at the bound, and the report says that nothing was found."""
    changes = {
        "evaluate": "{flops: , latency: {new_tokens: 2, repeats: 1, warmup: 0}}",
        "objectives": "{prefill_flops: minimize, ttft_ms: minimize}",
        "constraints": "{prefill_flops: '<= 10'}",
    }
    loaded = searching.loaded(path, **changes, workers__runner=runner, search__trials=4)
    record = run_study(loaded, tmp_path / "tiny", shown=False)
    assert "ttft_ms" in record.dense.search and record.front == ()
    assert all("ttft_ms" not in trial.search for trial in record.trials[1:])


def test_one_search_at_a_time_writes_to_a_study(path, tmp_path):
    with lock_study(tmp_path / "tiny"), pytest.raises(StudyError, match="another search is writing"):
        run_study(searching.loaded(path), tmp_path / "tiny", shown=False)


def test_a_model_that_does_not_load_is_told_as_itself(path):
    broken = path.parent / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "no_such_model"}')
    pool = Pool(searching.loaded(path, model__id="./broken").space)
    try:
        with pytest.raises(ModelError):
            pool.describe()
    finally:
        pool.stop_workers()


def test_a_cluster_that_is_late_is_started_again(monkeypatch):
    """On a busy machine Ray's daemons may miss the half minute that it gives them."""
    tried = []

    def late(**options):
        tried.append(options)
        if len(tried) < 3:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", late)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    start_local()
    assert len(tried) == 3
    tried.clear()
    with pytest.raises(RunError, match="Ray does not start on this machine\n.*timed out during startup"):
        start_local(tries=2)


def test_no_room_in_the_cluster_is_told(path):
    with pytest.raises(StudyError, match="no room for 1 worker"):
        Pool(searching.loaded(path, workers__gpus=1).space)
    with pytest.raises(StudyError, match="no room for 99 workers"):
        Pool(searching.loaded(path, workers__count=99).space)


def test_ray_tune_runs_the_same_search(path, tmp_path):
    given = {"search__trials": 8, "search__start": "[block_influence, bandit, last]"}
    ours = run_study(searching.loaded(path, **given), tmp_path / "ours", shown=False)
    tune = searching.loaded(path, **given, workers__runner="tune", log__tensorboard=tmp_path / "log")
    theirs = run_study(tune, tmp_path / "tune", shown=False)
    mine, tunes = (
        {trial.policy.fingerprint: trial.search["accuracy"].value for trial in record.trials}
        for record in (ours, theirs)
    )
    assert mine == tunes
    assert theirs.front == ours.front and all(theirs.trial(number).report for number in theirs.front)
    for record in (ours, theirs):
        assert {result.name for result in record.assessment.baseline_results} == {"block_influence", "bandit", "last"}
        assert record.summary["forward_passes_for_rules"] > 60
    logged = events(tmp_path / "log" / "tiny")
    scores = {trial.number: trial.search["accuracy"].value for trial in theirs.trials}
    front = {place: scores[number] for place, number in enumerate(theirs.front)}
    for kind, expected in (("dense", {0: scores.pop(0)}), ("trial", scores), ("front", front)):
        assert {step: value for tag, step, value in logged if tag == f"{kind}/accuracy"} == expected


def test_python_searches_goes_on_and_reads(path, tmp_path):
    """A cell of a notebook that is interrupted, and then run again; each time with the same arguments."""
    options = {"name": "mine", "out": tmp_path, "trials": 6, "quiet": True, "search__seed": 1}
    database = tmp_path / "mine" / DATABASE

    def interrupt():
        while trials_in(database) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    stopping = threading.Thread(target=interrupt, daemon=True)
    stopping.start()
    with pytest.raises(KeyboardInterrupt):
        skipsearch.search(path, **options)
    stopping.join(PATIENCE)
    before = trials_in(database)
    assert 2 <= before < 6
    study = skipsearch.search(path, **options)
    assert len([trial for trial in study.trials if trial.duplicate_of is None]) == 6
    assert study.trials[0].seconds == skipsearch.load_study("mine", out=tmp_path).trials[0].seconds
    files = sorted((study.folder / "policies").glob("pareto-*.yaml"))
    assert [Policy.load(file).fingerprint for file in files] == [policy.fingerprint for policy in study.front]
    assert (study.folder / "report.html").exists() and len(study.to_dataframe()) == len(study.trials)


def test_channels_are_ranked_once_and_found_policies_have_the_ranking_beside_them(path, tmp_path):
    folder = tmp_path / "narrow"
    loaded = searching.loaded(
        path, layers="[{range: all, ffn_ratio: [1, 0.5, 0.25]}]", width_selection="{ranking: energy}", search__trials=3
    )
    record = run_study(loaded, folder, shown=False)
    ranking = (folder / "energy.safetensors").read_bytes()
    assert (folder / "policies" / "energy.safetensors").read_bytes() == ranking
    narrow = [trial for trial in record.trials if trial.policy.layers]
    assert narrow and not any(trial.failure for trial in record.trials)
    assert {trial.policy.width_selection.sha256 for trial in narrow} == {hashlib.sha256(ranking).hexdigest()}
    model = load_subject(loaded.space.model).model
    files = sorted((folder / "policies").glob("*.yaml"))
    front = [*skipsearch.load_study(folder).front]
    assert len(files) == len(front) + len(record.in_gaps) and front
    found = [*map(Policy.load, files), *front]
    for policy in found:
        with apply_policy(model, policy):
            pass
    assert (
        json.loads(attribute_of(folder / DATABASE, "space"))["width_selection"]["sha256"]
        == hashlib.sha256(ranking).hexdigest()
    )
    (folder / "energy.safetensors").unlink()
    assert write_folder(folder).front == record.front
    with pytest.raises(StudyError, match="lacks the ranking that it was begun with"):
        run_study(loaded, folder, resume=True, shown=False)
    (folder / "energy.safetensors").write_bytes(ranking)
    space = loaded.space.model_copy(update={"search": loaded.space.search.model_copy(update={"trials": 4})})
    again = run_study(loaded.model_copy(update={"space": space}), folder, resume=True, shown=False)
    assert len(again.trials) == 4 and (folder / "energy.safetensors").read_bytes() == ranking


def test_workers_of_a_machine_hold_a_value_once(path):
    """Two caches, as of two workers, on the real store: the second makes nothing, and neither counts what is shared."""
    made = []

    def make():
        made.append(1)
        return {
            "pixels": torch.arange(40_000.0).reshape(2, -1),
            "half": torch.ones(3, dtype=torch.bfloat16),
            "ids": [7],
        }

    memos = [Memo(1 << 20, RayStore("model")) for _ in range(2)]
    one, other = (memo.get("key", make, content=lambda: "content") for memo in memos)
    assert len(made) == 1 and [memo.used_bytes for memo in memos] == [0, 0]
    for found in (one, other):
        assert {key: str(value) for key, value in found.items()} == {key: str(value) for key, value in make().items()}
    assert one["pixels"].data_ptr() == other["pixels"].data_ptr()
    made.clear()
    Memo(1 << 20, RayStore("another model")).get("key", make, content=lambda: "content")
    assert made
    # A value that is small, or that no key names for all processes, stays with its process.
    assert memos[0].get("small", lambda: torch.ones(2), content=lambda: "small").tolist() == [1, 1]
    assert memos[0].get("own", make)["ids"] == [7] and memos[0].used_bytes > 160_000
    ray.kill(directory_here())
    again = Memo(1 << 20, RayStore("model")).get("key", make, content=lambda: "content")
    assert again["ids"] == [7]
