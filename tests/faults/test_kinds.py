"""Whose fault a failure is, how long a worker may take, and what a metric declares of itself."""

import errno
import json
import pickle

import pytest
import torch
import yaml

from skipsearch.evaluators import base
from skipsearch.evaluators.base import KIND_OF_UNIT, Measurement, Metric
from skipsearch.policies.errors import ModelError, PolicyError
from skipsearch.policies.metadata import ModelRef, Provenance
from skipsearch.policies.policy import Policy
from skipsearch.policies.wording import escape_invisible
from skipsearch.search.cli import main
from skipsearch.search.places import study_folder
from skipsearch.search.space.search_settings import Workers
from skipsearch.search.space.space import Space
from skipsearch.search.space.units import amount, unit_of
from skipsearch.search.trial.failures import fault_of
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.trial.pareto import objective_value
from skipsearch.search.workers.time_limits import DENSE_SECONDS, TimeLimits

DENSE, OTHER = Policy(), Policy.model_validate({"layers": {1: {"ffn": "skip"}}})


def raised(cause, other):
    """An exception that was raised while another one was handled."""
    cause.__context__ = other
    return cause


FAULTS = {
    "machine": [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later"),
        RuntimeError("cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED when calling"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ESTALE, "Stale file handle"),
        torch.AcceleratorError("unspecified launch failure"),
        ModelError("model x does not load on cuda", ["RuntimeError: CUDA driver error: unknown"]),
        raised(ValueError("while it was put back"), RuntimeError("CUDA error: unspecified launch failure")),
    ],
    "memory": [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        raised(KeyError("x"), torch.OutOfMemoryError("CUDA out of memory.")),
    ],
    "policy": [
        ValueError("CUDA error is a word in a message of mine"),
        RuntimeError("shape '[2, 3]' is invalid for input of size 5"),
        FileNotFoundError(errno.ENOENT, "no such file"),
        PolicyError("a choice is refused"),
        ZeroDivisionError("division by zero"),
    ],
}


@pytest.mark.parametrize(("fault", "cause"), [(fault, cause) for fault, causes in FAULTS.items() for cause in causes])
def test_whose_fault_a_failure_is(fault, cause):
    assert fault_of(cause) == fault


def test_an_outcome_crosses_processes_with_all_that_is_known_of_its_failure():
    outcome = Outcome(failure="ValueError: x", fault="machine", traceback="Traceback …")
    assert pickle.loads(pickle.dumps(outcome)) == outcome
    both = Outcome({"a": Measurement(1.0)}, {"total": 1.0}).then(outcome)
    assert both.failure == outcome.failure and both.traceback == outcome.traceback and both.measurements == {}


def space(timeout):
    return Space.model_construct(workers=Workers(timeout=timeout))


def test_a_worker_may_take_twenty_times_what_dense_took():
    limits = TimeLimits(space("auto"), None)
    assert limits.of("search", OTHER) == limits.of("search", DENSE) == DENSE_SECONDS
    limits.learn("search", Outcome(seconds={"total": 2.0}))
    limits.learn("search", Outcome(seconds={"total": 3.0}))  # Another stage of its trial.
    assert limits.of("search", OTHER) == 160.0 and limits.of("search", DENSE) == DENSE_SECONDS
    assert limits.of("report", OTHER) == DENSE_SECONDS
    assert TimeLimits(space("auto"), 1.0).of("search", OTHER) == 80.0
    assert TimeLimits(space(7.0), 1.0).of("report", DENSE) == 7.0


class Odd:
    """An evaluator whose metrics have the names of other things."""

    metrics = {
        "warmth_bytes": Metric("K", "minimize", "a temperature"),
        "wall": Metric("s", "minimize", "seconds"),
        "speed_ms": Metric("m/s", "maximize", "a speed"),
        "wait": Metric("ticks", "minimize", "a time in units of its own", "time"),
    }


@pytest.fixture
def odd(monkeypatch):
    before = base.evaluator_class
    monkeypatch.setattr(base, "available", lambda: (*base.BUILT_IN, "odd"))
    monkeypatch.setattr(base, "evaluator_class", lambda name: Odd if name == "odd" else before(name))
    base.declared_metrics.cache_clear()
    yield
    base.declared_metrics.cache_clear()


def test_units_are_as_declared(odd):
    assert [unit_of(name) for name in Odd.metrics] == ["K", "s", "m/s", "ticks"]
    assert [unit_of(name) for name in ("accuracy", "search_accuracy", "ttft_ms", "prefill_flops", "divergence")] == [
        "fraction", "fraction", "ms", "flops", "nats",
    ]  # fmt: skip
    assert unit_of("of_a_plug_in_that_is_gone_ms") == ""
    assert amount(293.15, "K") == "293 K" and amount(0.5, "") == "0.500"


def test_the_drift_of_a_machine_is_taken_off_times_alone(odd):
    interleaved, dense = Measurement(3.0, dense=2.0), Measurement(10.0, dense=10.5)
    assert {name: objective_value(name, interleaved, dense) for name in (*Odd.metrics, "ttft_ms")} == {
        "warmth_bytes": 3.0, "wall": 15.0, "speed_ms": 3.0, "wait": 15.0, "ttft_ms": 15.0,
    }  # fmt: skip
    assert {KIND_OF_UNIT.get(metric.unit) for metric in Odd.metrics.values()} == {None, "time"}


def test_what_cannot_be_seen_is_written_out(tmp_path, capsys):
    hidden = "a\x1b]0;title\x07\u202eb"
    assert escape_invisible(hidden) == "a\\x1b]0;title\\x07\\u202eb" and escape_invisible("é\n\tx") == "é\n\tx"
    policy = Policy(model=ModelRef(id=hidden), provenance=Provenance(study=hidden))
    policy.save(tmp_path / "policy.yaml")
    text = (tmp_path / "policy.yaml").read_text()
    assert escape_invisible(text) == text and yaml.safe_load(text)["model"]["id"] == hidden
    assert Policy.load(tmp_path / "policy.yaml").model.id == hidden
    assert main(["show", str(tmp_path / "policy.yaml")]) == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"schema: skipsearch/policy/v1\nmodel: {{id: x, {json.dumps(hidden)}: 1}}\n")
    assert main(["validate", str(bad)]) == 2
    said = capsys.readouterr()
    assert escape_invisible(said.out + said.err) == said.out + said.err and "\\u202e" in said.err


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_study_has_the_name_of_a_folder(tmp_path, name):
    with pytest.raises(Exception, match="--name takes one folder's name"):
        study_folder(tmp_path, name)
