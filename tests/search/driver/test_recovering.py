"""Searches that train their best policies: what is trained and kept, resuming, failures, and where it is told."""

import gc
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import searching
import torch
import yaml
from made_studies import study
from tiers import soak
from torch import nn

import tiny
from skipsearch import Policy, apply_policy
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.base import Measurement
from skipsearch.evaluators.training_examples import refuse_measured
from skipsearch.policies.errors import ModelError, PolicyError, RunError, SpaceError, TrainingDataError
from skipsearch.recovery.card import RECORD
from skipsearch.recovery.checkpoints import CHECKPOINTS
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.analysis.recovery_outcome import quality_ranks
from skipsearch.search.analysis.study_record import RecoveryOutcome, policy_files
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.driver.recovering import nearest
from skipsearch.search.report.folder import write_folder
from skipsearch.search.report.recovery_rows import recovery_rows
from skipsearch.search.report.sentences import recovery_line
from skipsearch.search.report.terminal import print_summary, summary_data
from skipsearch.search.run import run_study
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.recovery import Recovery, with_recoveries
from skipsearch.search.trial.trial_result import TrialResult
from skipsearch.search.workers.evaluate import PolicyEvaluator
from skipsearch.search.workers.training import Training
from skipsearch.testing.pool import LocalPool

STEPS = 12
SPACE = f"""
schema: skipsearch/space/v1
model: {{id: ./llama, device: cpu}}
layers: [{{range: all, choices: [keep, skip_ffn, skip_attention]}}]
evaluate:
  accuracy: {{tasks: [./trained.yaml], search: {{limit: 16}}, report: {{limit: 20}}}}
  flops:
objectives: {{accuracy: maximize, prefill_flops: minimize}}
search:
  trials: 7
  seed: 3
  recover: {{method: full, steps: {STEPS}, top: 4, batch_size: 4, learning_rate: 0.003, save_every: 1}}
workers: {{count: 1}}
"""
COSTS = {"accuracy": "maximize", "prefill_flops": "minimize"}
PATIENCE = 300.0
SKIPS = Policy(layers={1: {"ffn": "skip"}, 2: {"attention": "skip"}, 3: {"ffn_ratio": 0.5, "head_ratio": 0.5}})


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A space over a tiny model, whose task has a training split."""
    folder = tmp_path_factory.mktemp("space")
    tiny.tiny_llama(folder)
    # Every right answer is the same word, which a few steps of training teach.
    rows = [row | {"choices": row["choices"][: row["label"]] + ["w7"] + row["choices"][row["label"] + 1 :]}
            for row in tiny.rows(60, seed=1)]  # fmt: skip
    for name, part in {"train": rows[:24], "test": rows[24:]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    task = tiny.write_task(folder, "trained", folder / "test.jsonl", **tiny.CHOICES)
    config = yaml.safe_load(task.read_text()) | {"training_split": "train"}
    config["dataset_kwargs"]["data_files"]["train"] = str(folder / "train.jsonl")
    task.write_text(yaml.safe_dump(config))
    (folder / "tiny.yaml").write_text(SPACE)
    return folder / "tiny.yaml"


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with searching.cluster():
        yield


def worker_of_this_process() -> int | None:
    """The process that holds the model of the search of this process; None where there is none."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout
    rows = [(int(pid), int(parent), name) for pid, parent, name, *_ in map(str.split, listed.splitlines())]
    raylets = {pid for pid, parent, name in rows if parent == os.getpid() and Path(name).name == "raylet"}
    return next((pid for pid, parent, name in rows if parent in raylets and name.startswith("ray::Worker")), None)


def kill_in_training(folder: Path, found: list[Path]) -> None:
    """Kill the worker that trains when its second checkpoint is there, and note what had not ended then."""
    deadline, worker = time.monotonic() + PATIENCE, None
    while worker is None and time.monotonic() < deadline:
        time.sleep(0.2)
        worker = worker_of_this_process()
    while not (made := [*folder.glob(f"policies/trained-*/{CHECKPOINTS}/checkpoint-2")]):
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    found += [one.parents[1] for one in made if not (one.parents[1] / RECORD).exists()]


@pytest.fixture(scope="module")
def finished(path, tmp_path_factory):
    """A search that loses its worker in the first training."""
    folder, lost = tmp_path_factory.mktemp("results") / "tiny", []
    watcher = threading.Thread(target=kill_in_training, args=(folder, lost))
    watcher.start()
    record = run_study(searching.loaded(path), folder, shown=False)
    watcher.join()
    assert lost, "the worker was not killed in a training"
    return record, folder


@pytest.fixture(scope="module")
def evaluator(path):
    """As in a worker, with one thread."""
    threads = torch.get_num_threads()
    yield PolicyEvaluator(searching.loaded(path).space, threads=1)
    torch.set_num_threads(threads)


def kept(study: Path) -> dict[str, dict]:
    """What a study has of its trainings, by attribute."""
    query = "SELECT key, value_json FROM study_user_attributes WHERE key LIKE 'recovery:%'"
    with closing(sqlite3.connect(study / "study.db")) as opened:
        return {key: json.loads(json.loads(value)) for key, value in opened.execute(query).fetchall()}


def scores(found: dict[str, dict]) -> dict[str, tuple]:
    """By attribute, the digest of the weights, and the score of each example."""
    return {key: (one["weights"]["sha256"], one["measurements"]["accuracy"]["detail"]["per_example"])
            for key, one in found.items()}  # fmt: skip


def curve(folder: Path) -> list[tuple[int, float]]:
    return [(step["step"], step["loss"]) for step in json.loads((folder / RECORD).read_text())["curve"]]


def searched(space, folder: Path, evaluator: PolicyEvaluator, resume: bool = False) -> SearchStudy:
    """A search without Ray."""
    study = SearchStudy(folder / "study.db", "tiny", space, 4, resume)
    driver = Driver(study, LocalPool(evaluator), Progress(space.search.trials, space.objectives, shown=False))
    driver.begin()
    study.end(driver.search())
    driver.recover()
    driver.confirm()
    return study


# What comes out


def test_the_front_and_what_is_near_it_are_trained_and_measured_again(finished, path):
    record, folder = finished
    recoveries, searched = record.recovery.recoveries, record.searched
    numbers = {one.before.number for one in recoveries}
    assert len(recoveries) == 4 and all(one.failure is None for one in recoveries)
    assert {*policy_files(searched)} <= numbers and 0 not in numbers
    evaluator = PolicyEvaluator(searching.loaded(path).space)
    for one in recoveries:
        weights = one.after.policy.weights
        assert one.after.policy.folder == folder / "policies" / weights.folder
        assert len(curve(one.after.policy.folder)) == STEPS
        found = evaluator.measure(Policy.load(one.after.policy.folder), ["accuracy", "flops"])
        assert found.measurements["accuracy"].value == one.after.search["accuracy"].value
        assert one.after.search["prefill_flops"] == one.before.search["prefill_flops"]
    assert record.dense.search == searched.dense.search


def test_files_of_the_front_name_their_weights_and_have_both_figures(finished, path, tmp_path):
    record, folder = finished
    trained = {number: file for number, file in policy_files(record).items()
               if record.trial(number).policy.weights is not None}  # fmt: skip
    assert trained, "another seed is needed"
    evaluator = PolicyEvaluator(searching.loaded(path).space)
    for number, file in trained.items():
        policy, trial = Policy.load(folder / "policies" / file), record.trial(number)
        assert policy.fingerprint == trial.policy.fingerprint != record.searched.trial(number).policy.fingerprint
        assert policy.measured["accuracy"].split == "report"
        again = evaluator.measure(policy, ["accuracy"], "report").measurements["accuracy"]
        assert again.value == pytest.approx(policy.measured["accuracy"].value)
        before = record.searched.trial(number).report["accuracy"].value
        assert policy.measured["untrained_accuracy"].value == pytest.approx(before)
        policy.save_pretrained(tmp_path / file)
        assert Policy.load(tmp_path / file).fingerprint == policy.fingerprint
    policy.save(tmp_path / "alone.yaml")
    with pytest.raises(PolicyError, match="lacks trained weights"):
        apply_policy(evaluator.subject.model, tmp_path / "alone.yaml")


def test_the_front_before_the_trainings_is_confirmed_and_assessed_as_ever(finished):
    record, _ = finished
    searched = record.searched
    assert all("accuracy" in searched.trial(number).report for number in searched.front)
    assert all("accuracy" in record.trial(number).report for number in record.front)
    assert all(trial.policy.weights is None for trial in searched.trials)
    assert record.assessment.gain == searched.assessment.gain and searched.hypervolume == record.hypervolume
    before, after = record.recovery.hypervolume
    assert before == pytest.approx(searched.hypervolume[-1]) and after >= before


def test_before_and_after_are_told_everywhere(finished, capsys):
    record, folder = finished
    print_summary(record, folder)
    said = capsys.readouterr().out
    assert "Recovery: 4 policies were trained by full for 12 steps each" in said
    assert re.search(r"trained +accuracy, search split", said)
    page = (folder / "report.html").read_text()
    assert "<h2>After a short training</h2>" in page and "the training split of the searched tasks" in page
    found = json.loads(json.dumps(summary_data(record, folder)))["recovery"]
    assert len(found["policies"]) == 4 and found["hypervolume"] == list(record.recovery.hypervolume)
    for one in record.recovery.recoveries:
        row = next(row for row in found["policies"] if row["trial"] == one.before.number)
        assert row["measured"][0] == {
            "metric": "accuracy", "split": "search",
            "before": one.before.search["accuracy"].value, "after": one.after.search["accuracy"].value,
        }  # fmt: skip
    (folder / "report.html").unlink()
    write_folder(folder)
    assert (folder / "report.html").read_text() == page


# Resuming


@pytest.mark.soak
def test_a_search_that_was_killed_while_it_trained_goes_on(finished, evaluator, path, tmp_path):
    _, whole = finished
    command = [sys.executable, "-m", "skipsearch", "run", str(path), "--out", str(tmp_path), "--quiet"]
    free = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=free, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "tiny"
    while not [*folder.glob(f"policies/trained-*/{CHECKPOINTS}/checkpoint-*")]:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ended = {file: file.stat().st_mtime_ns for file in folder.glob(f"policies/trained-*/{RECORD}")}
    assert len(ended) < 4
    searched(evaluator.space, folder, evaluator, resume=True)
    assert scores(kept(folder)) == scores(kept(whole))
    assert {file: file.stat().st_mtime_ns for file in ended} == ended
    records = [*folder.glob(f"policies/trained-*/{RECORD}")]
    assert len(records) == 4
    for file in records:
        assert curve(file.parent) == curve(whole / "policies" / file.parent.name)
        assert not (file.parent / CHECKPOINTS).exists()


# What a worker leaves behind


@pytest.mark.parametrize("method", ["lora", soak("full")])
def test_a_worker_that_trained_measures_dense_bit_for_bit_and_keeps_no_module(method, evaluator, path, tmp_path):
    settings = searching.loaded(path, search__recover__method=method).space.search.recover
    model, names = evaluator.subject.model, ["accuracy", "flops"]

    def modules() -> int:
        gc.collect()
        return sum(isinstance(one, nn.Module) for one in gc.get_objects())

    def answers(policy: Policy) -> dict:
        found = evaluator.measure(policy, names).measurements
        return {name: (entry.value, entry.detail.get("per_example")) for name, entry in found.items()}

    tokens = torch.arange(5, 25)[None]
    dense, first, untrained = model(tokens).logits, answers(Policy()), answers(SKIPS)
    training = Training(evaluator, settings)
    (tmp_path / "a").mkdir()
    before, bits = modules(), {name: value.clone() for name, value in model.state_dict().items()}
    outcome = training.recover(SKIPS, names, tmp_path / "a", STEPS)
    assert outcome.failure is None and outcome.seconds["training"] > 0
    assert modules() == before
    assert list(model.state_dict()) == list(bits)
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())
    assert not any(one.requires_grad or one.grad is not None for one in model.parameters())
    assert torch.equal(model(tokens).logits, dense)
    assert answers(Policy()) == first and answers(SKIPS) == untrained
    trained = {name: (entry.value, entry.detail.get("per_example")) for name, entry in outcome.measurements.items()}
    assert answers(Policy.load(tmp_path / "a")) == trained
    # A training that had ended is measured again, and not repeated.
    stamp = (tmp_path / "a" / RECORD).stat().st_mtime_ns
    assert training.recover(SKIPS, names, tmp_path / "a", STEPS).measurements.keys() == outcome.measurements.keys()
    assert (tmp_path / "a" / RECORD).stat().st_mtime_ns == stamp


# Failures


def test_a_policy_that_cannot_be_trained_is_told_and_no_training_is_repeated(path, tmp_path):
    layers = "[{range: all, choices: [keep, skip_ffn, skip_attention, skip_layer]}]"
    space = searching.loaded(
        path, layers=layers, tied="{every: 4}", search__trials=4, search__recover__method="lora", search__recover__top=3
    ).space
    evaluator = PolicyEvaluator(space)
    study = searched(space, tmp_path, evaluator)
    failed = [one for one in study.recoveries() if one.after is None]
    assert len(study.recoveries()) == 3 and len(failed) == 1
    assert "no linear layers to adapt" in failed[0].failure
    assert len([*tmp_path.glob("policies/trained-*")]) == 2
    before = kept(tmp_path)
    searched(space, tmp_path, evaluator, resume=True)
    assert kept(tmp_path) == before
    write_folder(tmp_path)
    assert "failed: LlamaForCausalLM has no linear layers" in (tmp_path / "report.html").read_text()
    # Other settings are another training.
    recover = space.search.recover.model_copy(update={"steps": 5, "top": 2})
    search = space.search.model_copy(update={"recover": recover})
    other = searched(space.model_copy(update={"search": search}), tmp_path, evaluator, resume=True)
    assert len(kept(tmp_path)) == 5 and len(other.recoveries()) == 2


@pytest.mark.soak
def test_the_better_half_trains_longer(path, tmp_path):
    given = "{method: full, steps: 3, top: 4, survivors: [6, 9], batch_size: 4, learning_rate: 0.003}"
    space = searching.loaded(path, search__recover=given).space
    found = searched(space, tmp_path, PolicyEvaluator(space)).recoveries()
    assert sorted(one.steps for one in found) == [3, 3, 6, 9] and len(kept(tmp_path)) == 4 + 2 + 1
    for one in found:
        assert len(curve(one.after.policy.folder)) == one.steps
    # Half of four survive a round: those on the front of dense and the trained policies of that round first.
    write_folder(tmp_path)
    record = read_record(tmp_path)
    assert "for 3 steps each, and the better half for 6, then 9" in recovery_line(record)
    assert space.search.recover.rounds(5) == [(3, 5), (6, 3), (9, 2)]
    with pytest.raises(SpaceError, match="rounds of 6, 6 steps"):
        searching.loaded(path, search__recover="{method: full, steps: 6, survivors: [6]}")


def test_without_time_nothing_is_trained_and_a_worker_must_see_the_study(evaluator, tmp_path):
    space, progress = evaluator.space, Progress(7, COSTS, shown=False)
    study = SearchStudy(tmp_path / "study.db", "tiny", space, 4)
    driver = Driver(study, LocalPool(evaluator), progress)
    driver.search()
    driver.recovering.recover(time.monotonic() - 1)
    assert not study.recoveries() and not (tmp_path / "policies").exists()
    assert "time is up with 4 policies left in recovering" in progress.notes[-1]
    with pytest.raises(OSError, match="need one file system"):
        Training(evaluator, space.search.recover).step_seconds(tmp_path / "gone")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"search__recover__learning_rate": 1e30}, RunError, "the training diverged"),
        ({"search__recover__method": "connector"}, ModelError, "no connector to train"),
        ({"search__recover__data": "same.jsonl"}, TrainingDataError, "2 examples that a split measures"),
    ],
)
def test_a_mistake_of_the_trainings_shows_before_the_search(given, error, message, path, evaluator, tmp_path):
    rows = [json.loads(line) for line in (path.parent / "test.jsonl").read_text().splitlines()]
    lines = [{"prompt": f" {row['question']}\n", "answer": " w3"} for row in (rows[1], rows[30], rows[1])]
    (path.parent / "same.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = searching.loaded(path, **given).space.search.recover
    with pytest.raises(error, match=message):
        Training(evaluator, settings).step_seconds()


def test_examples_are_the_same_where_prompt_and_images_are(tmp_path):
    world = tiny.world(tmp_path)
    task = world.tasks["image_gen"]
    options = AccuracyOptions(tasks=[task], search={"limit": 4}, report={"limit": 4})
    evaluator = AccuracyEvaluator(options, world.llava)
    documents = evaluator._tasks("report")["image_gen"].eval_docs
    one, other = documents[5], documents[6]
    loaded = [*world.llava.examples.values()]
    refuse_measured([(one["question"], (other["image"],)), ("w1", (one["image"],))], loaded, "<image>")
    refuse_measured([(documents[9]["question"], (documents[9]["image"],))], loaded, "<image>")  # of neither split
    with pytest.raises(TrainingDataError, match="1 example that a split measures") as error:
        refuse_measured([(f"  {one['question']} ", (one["image"],))], loaded, "<image>")
    assert "image_gen, document 5 of the report split" in error.value.details[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"search__recover__method": "router"}, "search.recover.method"),
        ({"search__recover__data": "gone.jsonl"}, "search.recover.data: there is no"),
        ({"search__recover__steps": 0}, "search.recover.steps"),
        ({"search__recover__method": "magic"}, "search.recover.method"),
        ({"evaluate__speculative": "{}"}, "speculative cannot measure a policy with trained weights"),
    ],
)
def test_a_space_that_cannot_be_trained_is_refused(given, message, path):
    with pytest.raises(SpaceError) as error:
        searching.loaded(path, **given)
    assert message in str(error.value)


# Which policies are trained, and which of the two versions of one counts


def result(number: int, accuracy: float, flops: float, **more) -> TrialResult:
    search = {"accuracy": Measurement(accuracy, 100), "prefill_flops": Measurement(flops)}
    return TrialResult(number, "complete", Policy(layers={number: {"ffn": "skip"}} if number else {}), search, **more)


def test_the_nearest_policies_would_have_to_improve_least():
    dense = result(0, 1.0, 100.0)
    front = [dense, result(1, 0.8, 50.0), result(2, 0.5, 20.0)]
    # By hand: accuracies range over 0.5, FLOPs over 80. The smaller of the two gaps to the policy that dominates.
    others = [result(3, 0.5, 60.0), result(4, 0.75, 54.0), result(5, 0.75, 52.0), result(6, 0.78, 90.0)]
    found = nearest(others, front, dense, COSTS)
    assert [one.number for one in found] == [5, 6, 4, 3]
    assert nearest(others[::-1], front, dense, COSTS) == found


def test_a_policy_counts_with_trained_weights_unless_they_are_no_better():
    dense, before = result(0, 1.0, 100.0), result(1, 0.6, 50.0)
    pairs = {"better": (0.7, {}), "equal": (0.6, {}), "worse": (0.5, {}), "broken": (0.9, {"violations": {"x": 1.0}})}
    for name, (accuracy, more) in pairs.items():
        after = replace(result(1, accuracy, 50.0), **more)
        found = with_recoveries([dense, before], [Recovery(before, after, None, 1.0)], COSTS)
        assert found == [dense, after if name == "better" else before], name
    infeasible = replace(before, violations={"accuracy": 0.1})
    after = result(1, 0.6, 50.0)
    assert with_recoveries([dense, infeasible], [Recovery(infeasible, after, None, 1.0)], COSTS)[1] is after
    assert with_recoveries([dense, before], [Recovery(before, None, "NaN", 1.0)], COSTS) == [dense, before]


def test_ranks_compare_the_quality_before_with_that_after():
    before, after = (0.5, 0.6, 0.7, 0.8), (0.6, 0.5, 0.7, 0.8)
    pairs = [(result(number, own, 90.0 - number), result(number, other, 90.0 - number))
             for number, (own, other) in enumerate(zip(before, after, strict=True), 1)]  # fmt: skip
    recoveries = [Recovery(*pair, None, 60.0) for pair in pairs] + [Recovery(result(5, 0.9, 1.0), None, "NaN", 6.0)]
    record = study(objectives=("accuracy", "prefill_flops"))
    found = quality_ranks(record, recoveries, on_report=False)
    assert found.value == pytest.approx((5 - 1) / 6) and found.low < found.value < found.high
    assert quality_ranks(record, recoveries, on_report=True) is None
    assert quality_ranks(record, recoveries[2:], on_report=False) is None
    outcome = RecoveryOutcome(tuple(recoveries), {"method": "lora", "steps": 9}, found, None, (0.1, 0.2), None, record)
    trained = replace(record, recovery=outcome)
    assert [(row.trial, row.ranks) for row in recovery_rows(trained)] == [
        (1, (4, 3)), (2, (3, 4)), (3, (2, 2)), (4, (1, 1)), (5, None),
    ]  # fmt: skip
    torn = replace(recoveries[0], failure="the loss is NaN", steps=9)
    row = recovery_rows(replace(trained, recovery=replace(outcome, recoveries=(torn,))))[0]
    assert (row.failure, row.longer_failed, row.steps) == (None, "the loss is NaN", 9)
    line = recovery_line(trained)
    assert "Recovery: 4 policies were trained by lora for 9 steps each, 4.1 minutes in all; 1 failed." in line
    assert "went from 0.1000 to 0.2000 on the search split. Kendall tau of accuracy before with accuracy" in line


def test_a_study_that_was_moved_still_finds_the_weights(finished):
    _, folder = finished
    moved = folder.rename(folder.with_name("moved"))
    try:
        for one in read_record(moved).recovery.recoveries:
            assert one.after.policy.folder == moved / "policies" / one.after.policy.weights.folder
            one.after.policy.weights.check(one.after.policy.folder)
    finally:
        moved.rename(folder)
