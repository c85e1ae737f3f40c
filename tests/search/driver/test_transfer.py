"""The front on tasks that the search did not use: a short search on one kind of question about digits."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import searching
from made_studies import study

from skipsearch import Policy
from skipsearch.evaluators.accuracy.accuracy import AccuracyEvaluator, AccuracyOptions
from skipsearch.evaluators.base import Measurement
from skipsearch.evaluators.patches.kept_patches import drawn_layers
from skipsearch.evaluators.subject import ModelSpec, load_subject
from skipsearch.policies.apply import apply_policy
from skipsearch.policies.errors import EvaluatorError
from skipsearch.search.analysis.assessment import assess
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.analysis.study_record import policy_files
from skipsearch.search.analysis.transfer import kept_share, transfer, whole
from skipsearch.search.baselines.random_twin import random_twin
from skipsearch.search.report.folder import write_folder
from skipsearch.search.report.html.page import page
from skipsearch.search.report.terminal import print_summary, summary_data
from skipsearch.search.run import run_study

DIGITS = Path(__file__).parents[3] / "spaces" / "digits"
KINDS = "\n".join(
    f"def {kind}(docs):\n    return docs.filter(lambda one: one == {kind!r}, input_columns='kind')\n"
    for kind in ("which", "exists", "count")
)
TASKS = {"which_search": ("search", "which"), "which_report": ("report", "which"), "exists": ("report", "exists"),
         "count": ("report", "count")}  # fmt: skip
EXAMPLES = 24
SPACE = f"""
schema: skipsearch/space/v1
model: {{id: {DIGITS / "model"}, dtype: float32}}
layers: [{{range: 2-last, ffn: [run, skip], attention: [run, skip], token_ratio: [1, 0.5, 0.1]}}]
evaluate:
  accuracy:
    search: {{tasks: [which_search.yaml], limit: {EXAMPLES}}}
    report: {{tasks: [which_report.yaml], limit: {EXAMPLES}}}
    transfer: [exists.yaml, count.yaml]
    batch_size: 20
  flops:
objectives: {{accuracy: maximize, prefill_flops: minimize}}
search: {{trials: 7, seed: 1}}
workers: {{count: 1}}
"""


def write_tasks(folder: Path) -> None:
    (folder / "kinds.py").write_text(KINDS)
    for name, (split, kind) in TASKS.items():
        include = f"include: {DIGITS / 'tasks' / f'digits_{split}.yaml'}"
        (folder / f"{name}.yaml").write_text(f"{include}\ntask: {name}\nprocess_docs: !function kinds.{kind}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    write_tasks(folder)
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    with searching.cluster():
        record = run_study(searching.loaded(folder / "space.yaml"), folder / "study", shown=False)
        yield record, folder / "study"


def test_the_front_is_measured_beside_random_choices_of_tokens(finished):
    record, _ = finished
    twins = {number: random_twin(record.trial(number).policy) for number in record.front}
    assert {*record.random} == {number for number, twin in twins.items() if twin is not None}
    assert all(measured["accuracy"].n == EXAMPLES for measured in record.random.values())


def stored(study: Path) -> dict[str, str]:
    """The attributes of the study that hold measurements on transfer tasks."""
    with closing(sqlite3.connect(study / "study.db")) as opened:
        found = opened.execute("SELECT key, value_json FROM study_user_attributes WHERE key LIKE 'transfer:%'")
        return dict(found.fetchall())


def test_the_front_and_dense_are_measured_on_the_transfer_tasks(finished):
    record, study = finished
    front = [record.trial(number) for number in policy_files(record)]
    assert front
    for trial in (record.dense, *front):
        entry = trial.transfer["accuracy"]
        assert [*entry.detail["tasks"]] == ["exists", "count"]
        assert entry.n == len(entry.detail["per_example"]) == 2 * EXAMPLES
    others = {trial.number for trial in record.trials} - {0, *record.front}
    assert not any(record.trial(number).transfer for number in others)
    floors = record.dense.transfer["accuracy"].detail["floors"]
    assert floors["exists"] >= 0.5 and 0 < floors["count"] < 1


def test_what_was_measured_is_what_the_evaluator_measures(finished, folder):
    record, _ = finished
    number = [*policy_files(record)][-1]
    tasks = {"tasks": [str(folder / "which_search.yaml")], "search": {"limit": 4}, "report": {"limit": 4}}
    transfer = {"tasks": [str(folder / "count.yaml")], "limit": EXAMPLES}
    subject = load_subject(ModelSpec(id=str(DIGITS / "model"), dtype="float32", device="cpu"))
    evaluator = AccuracyEvaluator(AccuracyOptions(**tasks, transfer=transfer, batch_size=20), subject)
    with apply_policy(subject.model, record.trial(number).policy) as handle:
        alone = evaluator.measure(handle, "transfer")["accuracy"]
    ours = record.trial(number).transfer["accuracy"]
    assert alone.detail["per_example"] == ours.detail["per_example"][EXAMPLES:]
    assert alone.value == ours.detail["tasks"]["count"]["value"]


def test_the_transfer_is_told_everywhere(finished, capsys):
    record, study = finished
    files = policy_files(record)
    for number, file in files.items():
        measured = Policy.load(study / "policies" / file).measured["transfer_exists"]
        theirs = record.dense.transfer["accuracy"].detail["tasks"]["exists"]
        ours = record.trial(number).transfer["accuracy"].detail["tasks"]["exists"]
        assert (measured.value, measured.dense, measured.n) == (ours["value"], theirs["value"], EXAMPLES)
        assert measured.split == "transfer"
    text = page(record)
    assert "On tasks that the search did not use" in text
    assert "<th>exists<small>exact_match, n 24</small></th>" in text
    print_summary(record, study)
    said = capsys.readouterr().out
    heading = next(line for line in said.splitlines() if line.startswith("kept, % of dense"))
    assert heading.split() == ["kept,", "%", "of", "dense", "searched", "tasks", "exists", "count"]
    assert json.loads(json.dumps(summary_data(record, study)))["transfer"]["tasks"] == ["exists", "count"]


def test_the_patches_that_the_front_keeps_are_recorded(finished):
    record, study = finished
    front = [record.trial(number) for number in policy_files(record)]
    drawn = [trial for trial in front if drawn_layers(trial.policy, record.num_layers)]
    assert drawn, "another seed is needed"
    for trial in drawn:
        kept = trial.patches["kept_patches"].detail["kept"]
        assert [{*map(int, example)} for example in kept] == [{*drawn_layers(trial.policy, record.num_layers)}] * 3
        ratio = trial.policy.choices(record.num_layers)[int(min(kept[0], key=int))].token_ratio
        assert sum(length for _, length in kept[0][min(kept[0], key=int)]) == int(49 * ratio)
    assert len(record.dense.patches["kept_patches"].detail["pictures"]) == 3
    assert not any(trial.patches for trial in record.trials if trial not in [record.dense, *drawn])
    assert page(record).count("data:image/jpeg") == 3


def test_a_search_that_was_interrupted_measures_what_is_missing(finished, folder):
    record, study = finished
    before = stored(study)
    lost = f"transfer:{record.trial([*policy_files(record)][0]).policy.fingerprint}"
    with closing(sqlite3.connect(study / "study.db")) as opened, opened:
        opened.execute("DELETE FROM study_user_attributes WHERE key = ?", (lost,))
    assert read_record(study).assessment.transfer.policies == len(policy_files(record)) - 1
    run_study(searching.loaded(folder / "space.yaml"), study, resume=True, shown=False)
    after = stored(study)
    assert {**after, lost: ""} == {**before, lost: ""}
    scores = [json.loads(json.loads(one[lost]))["accuracy"]["detail"]["per_example"] for one in (before, after)]
    assert scores[0] == scores[1]


def test_the_report_is_made_again_without_a_model(finished):
    record, study = finished
    text = (study / "report.html").read_text()
    (study / "report.html").unlink()
    write_folder(study)
    assert (study / "report.html").read_text() == text


def entry(*tasks, floor=0.0):
    scores = [score for task in tasks for score in task]
    detail = {
        "tasks": {f"task{place}": {"metric": "acc,none", "value": float(np.mean(task)), "stderr": None, "n": len(task)}
                  for place, task in enumerate(tasks)},
        "per_example": scores, "floors": {f"task{place}": floor for place in range(len(tasks))}, "floor": floor,
    }  # fmt: skip
    return {"accuracy": Measurement(float(np.mean([np.mean(task) for task in tasks])), len(scores), detail=detail)}


def test_a_kept_share_counts_from_the_chance_level_with_an_interval_by_hand():
    dense, ours = [1.0] * 80 + [0.0] * 20, [1.0] * 60 + [0.0] * 40
    share = kept_share(*(whole(entry(scores, floor=0.3)["accuracy"]) for scores in (ours, dense)))
    assert share.value == pytest.approx((0.6 - 0.3) / (0.8 - 0.3))
    draws = np.random.default_rng(5).integers(0, 100, (4000, 100))
    ratios = (np.array(ours)[draws].mean(axis=1) - 0.3) / (np.array(dense)[draws].mean(axis=1) - 0.3)
    assert (share.low, share.high) == pytest.approx(tuple(np.percentile(ratios, (2.5, 97.5))), abs=0.02)
    assert kept_share(*(whole(entry(scores, floor=0.8)["accuracy"]) for scores in (ours, dense))) is None


def test_ranks_compare_the_searched_tasks_with_each_transfer_task():
    record = study()
    files = policy_files(record)
    scores = {number: round(place / len(files), 2) for place, number in enumerate(files)}
    trials = []
    for trial in record.trials:
        place = scores.get(trial.number, 0.95)
        report = {"accuracy": Measurement(place, 1000)}
        same, turned = ([1.0] * round(100 * share) + [0.0] * round(100 - 100 * share) for share in (place, 1 - place))
        measured = trial.number in {0, *scores}
        trials.append(replace(trial, report=report, transfer=entry(same, turned) if measured else {}))
    record = assess(replace(record, trials=tuple(trials)))
    found = record.assessment.transfer
    assert [found.ranks[name].value for name in found.tasks] == pytest.approx([1, -1])
    assert found.policies == len(scores) >= 3
    text = page(record)
    assert "task0 1.00" in text and "task1 −1.00" in text
    mean = np.mean([found.kept[number]["task0"].value for number in scores])
    assert f"{100 * mean:.0f} % on task0" in text
    two = transfer(record.dense, [record.trial(number) for number in [*scores][:2]])
    assert [*two.ranks.values()] == [None, None]


@pytest.mark.parametrize("name, found", [("which_search", "24 examples in both"), ("gone", "does not exist")])
def test_a_transfer_task_that_was_searched_or_is_missing_is_refused(folder, name, found):
    subject = load_subject(ModelSpec(id=str(DIGITS / "model"), dtype="float32", device="cpu"))
    task = str(folder / "which_search.yaml")
    options = AccuracyOptions(tasks=[task], search={"limit": EXAMPLES}, transfer=[str(folder / f"{name}.yaml")])
    with pytest.raises(EvaluatorError) as caught:
        AccuracyEvaluator(options, subject)
    assert found in str(caught.value)


def test_other_metrics_of_the_tasks_are_reported():
    record = study()
    others = {"pope": {"f1": 0.87654321, "yes_ratio": 0.5}}

    def with_others(measured, changed):
        found = {task: {name: value + changed for name, value in metrics.items()} for task, metrics in others.items()}
        return {"accuracy": replace(measured["accuracy"], detail={"other_metrics": found})}

    assert "Other metrics of the tasks" not in page(record)
    trials = [replace(trial, report=with_others(trial.report, trial.number)) if trial.report else trial
              for trial in record.trials]  # fmt: skip
    number = [*policy_files(record)][0]
    text = page(replace(record, trials=tuple(trials)))
    assert "<th>yes ratio<small>pope</small></th>" in text
    assert "<td>0.8765<small></small></td>" in text and f"<td>{number + 0.5:.4g}<small></small></td>" in text


def test_a_transfer_is_a_list_or_has_a_limit():
    shared = {"tasks": ["a"], "report": {"limit": 7}}
    for given, limit in ((["b"], 7), ({"tasks": ["b"]}, 7), ({"tasks": ["b"], "limit": 3}, 3)):
        options = AccuracyOptions(**shared, transfer=given)
        assert (options.transfer_tasks, options.transfer_limit) == (["b"], limit)
    assert AccuracyOptions(**shared).transfer_tasks == []
