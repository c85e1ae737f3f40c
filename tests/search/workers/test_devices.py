"""Workers on several devices and nodes: which take part, what runs beside what, and which get a node that joins."""

import random
from types import SimpleNamespace

import pytest
import searching
from searching import LAYERS, tiny_space

from skipsearch.evaluators.base import Measurement
from skipsearch.policies.errors import StudyError
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.progress import Progress
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome
from skipsearch.search.workers import worker_slots
from skipsearch.search.workers.admission import Admission
from skipsearch.search.workers.worker_slots import WorkerSlots
from skipsearch.testing.pool import LocalPool

TIMED = {"evaluate": "{accuracy: {tasks: [image_gen.yaml]}, flops: , latency: }",
         "objectives": "{accuracy: maximize, ttft_ms: minimize}"}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_space(tmp_path_factory.mktemp("space"))


class Known:
    """An evaluator whose measurements are known beforehand."""

    def measure(self, policy, names, split, **given):
        made = {"flops": "prefill_flops", "latency": "ttft_ms", "accuracy": "accuracy"}
        return Outcome({made[name]: Measurement(1.0) for name in names if name in made}, {"total": 0.1})


class Watched(LocalPool):
    """Ends its jobs in any order, and notes which devices measure times at once, and what runs beside them."""

    def __init__(self, size, devices):
        super().__init__(Known(), size, devices)
        self.timed_at_once, self.beside_timed, self.at_once = 0, 0, 0
        self.loading = 1
        self._random = random.Random(0)

    def submit(self, job):
        super().submit(job)
        timed = {self._device(self.worker_of(one)) for one in self.running if "latency" in one.names}
        on_these = sum(self._device(self.worker_of(one)) in timed for one in self.running)
        self.timed_at_once = max(self.timed_at_once, len(timed))
        self.beside_timed += on_these - len(timed)
        self.at_once = max(self.at_once, len(self.running))

    @property
    def has_quiet(self):
        return super().has_quiet and not (self.loading and self.submitted)

    def next(self, until=None):
        if not self.running:  # The machine loads a model for another worker, which ends in the end.
            self.loading = 0
            return None
        self.running.rotate(-self._random.randrange(len(self.running)))
        return super().next(until)


@pytest.mark.parametrize(
    ("size", "devices", "racing"), [(1, 1, "{}"), (4, 1, "none"), (5, 2, "{}"), (4, 2, "none"), (3, 3, "{}")]
)
def test_each_device_measures_times_alone_and_all_at_once(path, tmp_path, size, devices, racing):
    space = searching.loaded(path, **TIMED, search__trials=10, search__racing=racing, search__sampler="random").space
    pool = Watched(size, devices)
    progress = Progress(space.search.trials, space.objectives, shown=False)
    driver = Driver(SearchStudy(tmp_path / "study.db", "tiny", space, LAYERS), pool, progress)
    driver.search()
    results = driver.study.results()
    assert len(results) >= 10 and {one.state for one in results} == {"complete"}
    assert (pool.beside_timed, pool.timed_at_once, pool.at_once) == (0, devices, size)


def description(device="cpu", processor="a processor", **given):
    common = {"num_layers": 4, "parameters": 10, "dtype": "float32", "guide": None, "examples": {}, "commit": None}
    return {**common, "device": device, "processor": processor, **given}


OTHER = {"device": "GPU B"}


@pytest.mark.parametrize(
    ("changes", "first", "later", "left_out"),
    [
        (TIMED, [{}, OTHER, {}], OTHER, [1, 3]),
        (TIMED, [OTHER, {}], {}, [1, 3]),
        (TIMED, [{}, {"processor": "another processor"}, {}], {"num_layers": 5}, [1, 3]),
        ({}, [{}, OTHER, {}], OTHER, []),
        ({}, [{}, {"dtype": "bfloat16"}, {}], {"commit": "abc"}, [1, 3]),
    ],
)
def test_workers_that_differ_are_left_out(path, changes, first, later, left_out):
    """Times are compared on one kind of device; accuracies need the same model."""
    admission = Admission(searching.loaded(path, **changes).space)
    descriptions = [description(**one) for one in first]
    admission.decide(descriptions)
    found = [admission.refusal(one, joins=False) for one in descriptions]
    found += [None] * (3 - len(found)) + [admission.refusal(description(**later), joins=True)]
    assert [place for place, reason in enumerate(found) if reason is not None] == left_out
    if changes and left_out[0] == 1 and OTHER in first:
        assert all(kind in found[1] for kind in ("GPU B", "a processor"))


def test_a_study_of_times_goes_on_on_the_same_kind_of_device(path):
    space = searching.loaded(path, **TIMED).space
    resumed = Admission(space, "GPU B")
    resumed.decide([description(), description(**OTHER), description()])
    assert resumed.kind == "GPU B" and "GPU B" in resumed.refusal(description(), joins=False)
    with pytest.raises(StudyError, match="were measured on GPU C\n  found workers on GPU B, cpu a processor"):
        Admission(space, "GPU C").decide([description(), description(**OTHER)])
    tune = searching.loaded(path, **TIMED, workers__runner="tune").space
    with pytest.raises(StudyError, match="Ray Tune would measure times on several kinds of device"):
        Admission(tune).decide([description(), description(**OTHER)])
    assert Admission(searching.loaded(path).space, "GPU C").kind is None


@pytest.fixture
def nodes(monkeypatch):
    """A cluster without Ray: how many workers it has room for, and how many processes were started."""
    cluster = SimpleNamespace(room=2, started=0)

    def start(self, slot):
        slot.actor, cluster.started = object(), cluster.started + 1
        self.loading[slot.actor] = slot

    monkeypatch.setattr(worker_slots, "worker_capacity", lambda cpus, gpus, left_out=(): cluster.room)
    monkeypatch.setattr(worker_slots, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(WorkerSlots, "_start", start)
    return cluster


@pytest.mark.parametrize(("limit", "workers"), [(None, [2, 4, 4, 4, 5]), (3, [2, 3, 3, 3, 3])])
def test_nodes_that_join_get_workers_within_the_number_asked_for(path, nodes, limit, workers):
    space = searching.loaded(path).space
    slots = WorkerSlots(space, 2, limit, 0.0, 1, 60.0, Admission(space), None)
    slots.start_all()
    found = []
    # Two join, one leaves, another one takes its place, and one more joins.
    for room in (2, 4, 3, 4, 5):
        nodes.room = room
        slots.look_for_nodes()
        found.append(len(slots.live))
    assert found == workers and nodes.started == workers[-1]
    assert len({slot.index for slot in slots.live}) == workers[-1]
