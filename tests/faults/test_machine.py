"""The machine's faults are not the policy's: workers leave, and jobs go elsewhere."""

import failing
import pytest
import searching

from skipsearch.policies.errors import RunError
from skipsearch.search.analysis.load_study import read_record
from skipsearch.search.run import run_study


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return failing.space(failing.plugged(tmp_path_factory.mktemp("space")))


@pytest.fixture(scope="module", autouse=True)
def cluster(path):
    with searching.cluster():
        yield


def search(path, tmp_path, *args, resume=False, **given):
    loaded = failing.loaded(path, tmp_path / "words", *args, **given)
    return run_study(loaded, tmp_path / "study", resume=resume, shown=False)


@pytest.mark.soak
def test_a_dead_context_costs_no_policy(path, tmp_path):
    """One process is broken from its third call on, and answers everything with an error at once."""
    record = search(path, tmp_path, "context", after=4, once=True)
    assert [trial.state for trial in record.trials] == ["complete"] * len(record.trials)
    assert len({trial.policy.fingerprint for trial in record.trials}) == 10
    # The policy that the broken one was asked for was measured once more, and nothing else was.
    assert len(failing.measured(tmp_path / "words")) == 11


def test_without_a_healthy_worker_the_search_stops_and_can_be_resumed(path, tmp_path):
    with pytest.raises(RunError, match="no healthy worker is left") as told:
        search(path, tmp_path, "context", after=4, workers__count=1)
    assert "CUDA error: an illegal memory access" in str(told.value) and "--resume" in str(told.value)
    before = read_record(tmp_path / "study")
    assert before.trials and all(trial.state != "failed" for trial in before.trials)
    record = search(path, tmp_path, resume=True, workers__count=1)
    assert [trial.state for trial in record.trials] == ["complete"] * 10


@pytest.mark.soak
def test_an_evaluator_that_ends_its_process_blames_no_policy(path, tmp_path, capfd):
    """Policies that change layer 3 take their process with them; they are left, the others are measured."""
    few = {"search__trials": 3, "search__start": "[last]", "workers__count": 1}
    loaded = failing.loaded(path, tmp_path / "words", "exit", layer=3, **few)
    record = run_study(loaded, tmp_path / "study")
    states = {trial.policy.fingerprint: trial.state for trial in record.trials}
    left = [trial for trial in record.trials if trial.state == "running"]
    assert left and "failed" not in states.values()
    assert all(3 in trial.policy.layers for trial in left)
    assert all(trial.state == "complete" for trial in record.trials if 3 not in trial.policy.layers)
    said = capfd.readouterr()
    assert "its process ended while the evaluator 'faulty' measured" in " ".join(said.err.split())
    assert "state-dump" not in said.err + said.out and "rpc" not in (said.err + said.out).lower()
    record = search(path, tmp_path, resume=True, **few)
    assert {trial.state for trial in record.trials} == {"complete"} and len(record.trials) >= 3


@pytest.mark.soak
def test_a_hung_evaluator_costs_one_trial(path, tmp_path):
    record = search(path, tmp_path, "hang", layer=1, once=True, workers__timeout=8, workers__count=1)
    [failed] = [trial for trial in record.trials if trial.state == "failed"]
    assert "no answer for 8 s (workers.timeout) while the evaluator 'faulty' measured" in failed.failure
    assert "1: skip" in failed.failure and 1 in failed.policy.layers
    assert sum(trial.state == "complete" for trial in record.trials) == 9


@pytest.mark.soak
@pytest.mark.parametrize("once", [True, False])
def test_a_device_that_is_too_small_counts_the_second_time(path, tmp_path, once):
    record = search(path, tmp_path, "memory", layer=3, once=once, search__trials=6, workers__count=1)
    failed = [trial for trial in record.trials if trial.state == "failed"]
    asked = failing.measured(tmp_path / "words")
    if once:
        assert not failed and len(asked) == 7
    else:
        assert failed and all(3 in trial.policy.layers for trial in failed)
        assert {asked.count(trial.policy.fingerprint) for trial in failed} == {2}


def test_a_plug_ins_exception_is_kept_whole_and_shown(path, tmp_path):
    record = search(path, tmp_path, "raise", layer=3, search__trials=5, workers__count=1)
    failed = [trial for trial in record.trials if trial.state == "failed"]
    assert failed and all(trial.failure == "ValueError: the plug-in's own mistake" for trial in failed)
    assert all("in own_mistake" in trial.traceback and "its second line" in trial.traceback for trial in failed)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "in own_mistake" in page and "its second line" in page
