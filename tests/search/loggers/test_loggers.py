"""Loggers: what each library reads back from its local store, and that none of them ever costs a search anything."""

import json
import threading
import time

import planted_times
import pytest
import searching
from event_files import events
from planted_times import PolicyEvaluator

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.errors import LoggerError
from skipsearch.policies.policy import Policy
from skipsearch.search.cli import main
from skipsearch.search.driver import driver as driver_module
from skipsearch.search.loggers import loggers as loggers_module
from skipsearch.search.loggers.background import BackgroundLogger
from skipsearch.search.loggers.entry import Entry
from skipsearch.search.loggers.loggers import Kind, Loggers, check_loggers
from skipsearch.search.space.log import Log
from skipsearch.search.trial.trial_result import TrialResult

SKIP = Policy.model_validate({"layers": {1: {"ffn": "skip"}}})
RESULTS = [
    TrialResult(0, "complete", Policy(), {"accuracy": Measurement(0.9), "prefill_flops": Measurement(100.0)}),
    TrialResult(1, "complete", SKIP, {"prefill_flops": Measurement(80.0)}, baseline="greedy: from dense",
                estimates={"accuracy": Measurement(0.7)}),
    TrialResult(2, "failed", SKIP, failure="RuntimeError: broken"),
    TrialResult(3, "complete", SKIP, {"accuracy": Measurement(0.8), "prefill_flops": Measurement(80.0)},
                promoted_from=1, report={"accuracy": Measurement(0.78)}),
]  # fmt: skip
FRONT = [RESULTS[0], RESULTS[3]]


def written(log):
    """Send everything to the loggers; gives their warnings."""
    warnings = []
    loggers = Loggers(log, "study", warnings.append)
    loggers.update(lambda: RESULTS[:2])
    loggers.update(lambda: RESULTS)
    loggers.log_front(FRONT)
    loggers.close(seconds=300)
    return warnings


def test_an_entry_says_what_a_trial_is():
    dense, paused, failed, promoted = map(Entry.of, RESULTS)
    assert [one.kind for one in (dense, paused, failed, promoted)] == ["dense", "trial", "trial", "promotion"]
    assert [one.state for one in (dense, paused, failed, promoted)] == ["complete", "paused", "failed", "complete"]
    assert paused.metrics == {"prefill_flops": 80.0, "accuracy_estimate": 0.7} and promoted.number == 1
    assert paused.parameters == {
        "fingerprint": SKIP.fingerprint, "policy": "1: skip_ffn", "baseline": "greedy: from dense"
    }  # fmt: skip
    assert failed.failure == "RuntimeError: broken" and dense.parameters["policy"] == "dense"


def test_tensorboard_files_have_trials_and_front(tmp_path):
    assert written(Log(tensorboard=str(tmp_path / "tb"))) == []
    found = events(tmp_path / "tb" / "study")
    for expected in (("dense/accuracy", 0, 0.9), ("trial/accuracy_estimate", 1, 0.7), ("promotion/accuracy", 1, 0.8),
                     ("front/prefill_flops", 1, 80.0), ("front/report_accuracy", 1, 0.78)):  # fmt: skip
        assert expected in found, expected
    texts = {(tag, step): value for tag, step, value in found if isinstance(value, str)}
    assert "failure: RuntimeError: broken" in texts["trial/policy/text_summary", 2]
    assert "| 1 | 1: skip_ffn | 0.8 | 80 | 0.78 |" in texts["front/policies/text_summary", 0]


def test_mlflow_reads_back_from_sqlite(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert written(Log(mlflow=uri)) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    assert by_name.keys() == {"trial-0", "trial-1", "trial-2"}
    best = by_name["trial-1"]
    assert best.data.metrics == pytest.approx(
        {"accuracy": 0.8, "accuracy_estimate": 0.7, "prefill_flops": 80.0, "report_accuracy": 0.78}
    )
    assert best.data.params["policy"] == "1: skip_ffn" and best.data.params["fingerprint"] == SKIP.fingerprint
    assert best.data.tags["front"] == "1" and best.info.status == "FINISHED"
    assert by_name["trial-2"].info.status == "FAILED" and by_name["trial-2"].data.tags["failure"].endswith("broken")
    assert by_name["trial-0"].data.tags["kind"] == "front" and "front" not in by_name["trial-2"].data.tags


def test_wandb_reads_back_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert written(Log(wandb="project")) == []
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = tmp_path.rglob("run-*.wandb")
    rows, summary = [], {}
    # A process of its own writes the file, and may go on after the run has ended.
    for _ in range(240):
        records = [Record.FromString(data) for data in stored_records(file.read_bytes())]
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.5)
    for record in records:
        if record.HasField("history"):
            rows.append(
                {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            )
        if record.HasField("summary"):
            summary |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("project", "study")
    trials = [row for row in rows if "trial" in row]
    assert [(row["trial"], row["state"]) for row in trials] == [
        (0, "complete"), (1, "paused"), (2, "failed"), (1, "complete")
    ]  # fmt: skip
    assert trials[1]["trial/accuracy_estimate"] == 0.7 and trials[2]["failure"] == "RuntimeError: broken"
    assert summary["front_size"] == 2 and any(row.get("front._type") == "table-file" for row in rows)


def stored_records(data):
    """The records of a run's file: LevelDB's log format, in blocks of 32 KiB after a header of 7 bytes."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # The rest of a block that is too short for a record is padding.
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts, place = parts + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # A whole record, or its last part.
            yield parts
            parts = b""


class Broken:
    """A logger that fails or hangs at its second trial."""

    def __init__(self, hangs):
        self.hangs, self.seen = hangs, []

    def log(self, entry):
        self.seen.append(entry.number)
        if len(self.seen) == 2:
            if self.hangs:
                threading.Event().wait(30)
            raise SystemExit("no network\nand more")

    def log_front(self, front):
        self.seen.append("front")

    def close(self):
        pass


@pytest.mark.parametrize(("hangs", "reason"), [(False, "SystemExit: no network"), (True, "has not answered for 0.2 s")])
def test_a_logger_that_fails_or_hangs_is_switched_off_and_warned_about_once(hangs, reason):
    warnings, broken = [], Broken(hangs)
    logger = BackgroundLogger("tensorboard", lambda: broken, warnings.append, hung_seconds=0.2)
    for result in RESULTS:
        logger.log(Entry.of(result))
    deadline = time.monotonic() + 20
    while not warnings and time.monotonic() < deadline:
        time.sleep(0.05)
        logger.log(Entry.of(RESULTS[0]))
    logger.log_front([])
    logger.close(seconds=0.1)
    assert warnings == [f"warning: the logger tensorboard is switched off, the search goes on: {reason}"]
    assert broken.seen == [0, 1]


def test_a_search_ends_whatever_its_logger_does(tmp_path, monkeypatch):
    """A whole search, whose logger cannot even be made; the study has every trial, and the log one warning."""
    path, warnings = searching.tiny_space(tmp_path / "space"), []

    def unusable(value, study):
        raise ConnectionError(f"{value} does not answer")

    monkeypatch.setitem(loggers_module.KINDS, "wandb", Kind("json", unusable))
    loggers = Loggers(Log(wandb="project"), "tiny", warnings.append)
    made = driver_module.Driver

    def logged(study, pool, progress):
        return made(study, pool, progress, {}, lambda: loggers.update(study.finished_trials))

    monkeypatch.setattr(planted_times, "Driver", logged)
    driver = planted_times.search(path, tmp_path, PolicyEvaluator(), search__trials=6, confirm=False)
    loggers.close()
    assert driver.study.budget_used() == 6
    assert warnings == [
        "warning: the logger wandb is switched off, the search goes on: ConnectionError: project does not answer"
    ]


def test_only_new_trials_are_sent_when_a_search_goes_on(tmp_path):
    loggers = Loggers(Log(tensorboard=str(tmp_path)), "study", pytest.fail, finished=3)
    loggers.update(lambda: RESULTS)
    loggers.close()
    assert {(tag, step) for tag, step, _ in events(tmp_path)} == {
        ("promotion/accuracy", 1), ("promotion/prefill_flops", 1), ("promotion/policy/text_summary", 1)
    }  # fmt: skip


def test_a_missing_package_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loggers_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoggerError, match="log.mlflow needs the package mlflow"):
        check_loggers(Log(mlflow="sqlite:///x.db", wandb="project"))
    path = searching.tiny_space(tmp_path / "space")
    for command in ("run", "plan"):
        assert main([command, str(path), "--set", "log.wandb=project"]) == 2
        assert "pip install 'skipsearch[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_where_a_search_logs_is_no_part_of_what_it_searches(tmp_path):
    path = searching.tiny_space(tmp_path / "space")
    plain, logged = searching.loaded(path).space, searching.loaded(path, log__tensorboard="runs").space
    assert logged.log.settings == {"tensorboard": "runs"} and plain.fingerprint() == logged.fingerprint()
    assert "log" not in plain.model_dump(mode="json")
    assert main(["validate", str(path)]) == 0
    path.write_text(path.read_text() + "log: {tensorbord: runs}\n")
    assert main(["validate", str(path)]) == 2
