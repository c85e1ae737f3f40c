"""A plan against the search that it plans: on a planted model, whose seconds are known, and on no clock at all."""

import io
import json
import statistics
from collections import defaultdict

import pytest
import searching
from planted_times import CHANGES, LAYERS, PolicyEvaluator, share
from rich.console import Console

from skipsearch.evaluators.base import Measurement
from skipsearch.search.cli import main
from skipsearch.search.driver.costs import Costs, EvaluatorCost, JobSeconds, dense_costs
from skipsearch.search.driver.driver import Driver
from skipsearch.search.driver.forecast import Forecast, Outline, Phase
from skipsearch.search.driver.forecast_text import phase_text, span
from skipsearch.search.driver.phases import CONFIRMING, PROBING, PROMOTING, PROPOSING, RECOVERING
from skipsearch.search.driver.progress import Progress
from skipsearch.search.driver.remaining import corrected
from skipsearch.search.driver.timing import TIMING_AGAIN
from skipsearch.search.plan import run as plan_run
from skipsearch.search.plan.measure import Meter
from skipsearch.search.plan.plan import FINISH_SECONDS, most_trials, plan_search
from skipsearch.search.study.study import SearchStudy
from skipsearch.search.trial.outcome import Outcome
from skipsearch.testing.pool import LocalPool

EXAMPLES = {"accuracy": {"search": 100, "report": 300}}
MEMORY = {
    "peak_bytes": 3e9,
    "weights_bytes": 1e9,
    "batch_cache_bytes": 4e6,
    "prepared_bytes": 2e6,
    "states_bytes": 1e6,
    "caches_limit_bytes": 3e9,
}


class Timed(PolicyEvaluator):
    """A planted model with seconds: 1 to time, 0.1 to count, 0.02 an example, less for a policy that does less work."""

    def __init__(self):
        super().__init__()
        self.jobs = defaultdict(list)

    def measure(self, policy, names, split="search", **given):
        found = super().measure(policy, names, split)
        work = 0.2 + 0.8 * share(policy)
        parts = {}
        if "flops" in names:
            parts["flops"] = 0.1
        if "latency" in names:
            parts["latency"] = (0.5 + 0.5 * work) * (0.4 if split == "report" else 1.0)
        if "accuracy" in names:
            parts["accuracy"] = 0.02 * EXAMPLES["accuracy"][split] * work
        total = sum(parts.values())
        self.jobs[split, " ".join(sorted(names))].append(total)
        return Outcome(found.measurements, {**parts, "total": total, "forward": 0.75 * total})


class SlowStart(LocalPool):
    """Its clock goes with the measurements, the first of which after dense takes half a minute more."""

    now = 0.0

    def next(self, until=None):
        job, outcome = super().next(until)
        is_first = len(self.submitted) > 1 and self.now < 30
        self.now += outcome.seconds["total"] + (30 if is_first and not job.policy.is_dense else 0)
        return job, outcome


class Pool(LocalPool):
    gpus, capacity = 0.0, 2

    def memory(self):
        return [MEMORY]

    def describe(self):
        return [
            {
                "node": "here",
                "num_layers": LAYERS,
                "guide": None,
                "examples": EXAMPLES,
                "device": "cpu",
                "parameters": 1000,
            }
        ]

    def close(self):
        pass


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return searching.tiny_space(tmp_path_factory.mktemp("space"))


def planned(space, bench, workers=1, hours=None):
    pool, outline = Pool(bench), Outline.of(space, LAYERS, None, EXAMPLES)
    measured = Meter(pool, outline, LAYERS, lambda text: None).measure()
    return plan_search(outline, LAYERS, measured, 2.0, workers, 0.0, 2, hours)


def searched(space, bench, folder, console=None, seen=None):
    """A whole search; `seen` is called with the clock and the progress after each step."""
    study, pool = SearchStudy(folder / "study.db", "tiny", space, LAYERS), SlowStart(bench)
    shown = console is not None
    progress = Progress(space.search.trials, space.objectives, shown=shown, console=console, clock=lambda: pool.now)
    progress.watcher = None if seen is None else lambda: seen(pool.now, progress)
    driver = Driver(study, pool, progress, EXAMPLES)
    driver.timing.measure_noise()
    study.end(driver.search())
    driver.confirm()
    return driver


def test_the_steps_of_a_plan_cost_what_the_search_takes(path, tmp_path):
    space = searching.loaded(path, **CHANGES, search__trials=16).space
    plan, bench = planned(space, Timed()), Timed()
    searched(space, bench, tmp_path)
    found = {kind: statistics.fmean(seconds) for kind, seconds in bench.jobs.items()}
    each = {name: phase.each.beside + phase.each.alone for name, phase in plan.forecast.phases.items()}
    assert each[PROPOSING] == pytest.approx(found["search", "accuracy flops latency"], rel=0.2)
    assert each[CONFIRMING] == pytest.approx(found["report", "accuracy"], rel=0.2)
    assert each[TIMING_AGAIN] == pytest.approx(found["report", "latency"], rel=0.2)
    # Dense against dense, and dense.
    assert plan.before - plan.load == pytest.approx(4 * 1.0 + 3.1)
    assert plan.measured.costs.forward == pytest.approx(0.75)
    assert 0.6 < plan.model_share <= 0.75
    assert plan.seconds == pytest.approx(plan.before + plan.forecast.busy + FINISH_SECONDS, rel=0.05)


def test_a_promotion_answers_whole_rungs(path):
    def rungs(total, guide, batch):
        accuracy = f"{{accuracy: {{tasks: [none], batch_size: {batch}}}, flops: }}"
        space = searching.loaded(path, evaluate=accuracy).space
        return Outline.of(space, LAYERS, guide, {"accuracy": {"search": total}}).rungs()

    assert rungs(400, "answer_loss", 50) == [50, 100, 200, 400]
    assert rungs(64, "answer_loss", 16) == [64] and rungs(64, None, 16) == [64]
    assert rungs(400, None, 50) == [100, 200, 400] and rungs(40, None, 16) == []


def test_run_says_its_forecast_once_and_ends_with_nothing_left(path, tmp_path):
    space, text = searching.loaded(path, **CHANGES, search__trials=14).space, io.StringIO()
    ends = []

    def seen(now, progress):
        if any(note.startswith("forecast: ") for note in progress.notes):
            ends.append(now + progress.state.seconds_left)

    driver = searched(space, Timed(), tmp_path, Console(file=text, width=200), seen)
    found = [line for line in text.getvalue().splitlines() if line.startswith("forecast: ")]
    assert len(found) == 2 and " in all with 1 worker, " in found[0] and "13 trials" in found[1]
    assert driver.study.budget_used() == 14
    assert driver.progress.state.seconds_left == pytest.approx(0.0, abs=1e-6)
    # A slow start is no reason to expect as much of every step: 4 minutes do not become 17 and 4 again.
    jumps = [max(one, other) / min(one, other) for one, other in zip(ends, ends[1:], strict=False)]
    assert len(ends) > 30 and max(jumps) < 1.5
    assert 0.5 * ends[-1] < min(ends) and max(ends) < 1.5 * ends[-1]


def test_workers_of_one_device_time_one_after_the_other():
    costs, each = Costs(contention=1.5), JobSeconds(beside=4.0, alone=2.0, driver=0.5)
    one, two = (Forecast({PROPOSING: Phase(10, each)}, costs, workers, 1) for workers in (1, 2))
    own = Forecast({PROPOSING: Phase(10, each)}, costs, 2, 2)
    assert [one.total, two.total, own.total] == pytest.approx([65.0, 10 * (4 * 1.5 / 2 + 2 + 0.5), 10 * 3.5])


def test_dense_tells_what_an_example_costs_also_where_the_guide_knew_its_answer():
    seconds = {"answer_loss": 4.8, "accuracy": 2.0, "flops": 0.1, "apply": 0.0, "forward": 5.0, "total": 7.0}
    guide = Measurement(0.1, n=48, detail={"layers": {"asked": 9, "run": 9}})
    scored = Measurement(0.9, n=100, detail={"layers": {"asked": 3, "run": 3}})
    for entry, each in ((scored, 0.1), (Measurement(0.9, n=100), 0.02)):
        costs = dense_costs(seconds, {"answer_loss": guide, "accuracy": entry}, "answer_loss")
        assert costs.evaluators["accuracy"].each == pytest.approx(each)
        assert costs.evaluators["flops"] == EvaluatorCost(0.1) and costs.forward == pytest.approx(5 / 7)


def test_trainings_cost_their_steps_and_are_confirmed_but_not_timed(path):
    trainings = "{method: full, steps: 50, top: 3, data: tiny.yaml}"
    plain, trained = (searching.loaded(path, **CHANGES, **more).space for more in ({}, {"search__recover": trainings}))
    parts = {"accuracy": EvaluatorCost(0.0, 0.02, 0.5), "flops": EvaluatorCost(0.1), "latency": EvaluatorCost(1.0)}
    costs = Costs(parts, training_step=0.3)
    found = [Forecast.of(Outline.of(space, LAYERS, None, EXAMPLES), costs, 1, 1) for space in (plain, trained)]
    assert RECOVERING not in found[0].phases
    phase = found[1].phases[RECOVERING]
    assert phase.steps == 3 and phase.each.beside == pytest.approx(50 * 0.3 + 0.02 * 100 * 0.5 + 0.1)
    assert found[1].phases[CONFIRMING].steps == found[0].phases[CONFIRMING].steps + 3
    assert found[1].phases[TIMING_AGAIN].steps == found[0].phases[TIMING_AGAIN].steps
    assert "3 recoveries 48 s" in phase_text(found[1])
    more = searching.loaded(path, **CHANGES, search__recover=trainings.replace("top", "survivors: [80], top")).space
    rounds = Forecast.of(Outline.of(more, LAYERS, None, EXAMPLES), costs, 1, 1).phases[RECOVERING]
    assert rounds.steps == 3 + 2
    assert rounds.steps * rounds.each.beside == pytest.approx((3 * 50 + 2 * 80) * 0.3 + 5 * 1.1)


def test_trials_take_over_from_the_forecast():
    expected = {PROMOTING: Phase(40.0, JobSeconds()), PROBING: Phase(9.0, JobSeconds())}
    found = {PROMOTING: 8.0, CONFIRMING: 6}
    assert corrected(expected, found, 0.0) == {PROMOTING: 40, CONFIRMING: 0}
    assert corrected(expected, found, 0.5) == {PROMOTING: 24, CONFIRMING: 3}
    assert corrected(expected, found, 1.0) == found


def test_cheaper_policies_and_second_timings_count_with_their_share():
    cost = EvaluatorCost(2.0, 0.0, 0.5, 0.25, is_alone=True)
    costs = Costs({"latency": cost, "flops": EvaluatorCost(0.5)})
    assert costs.job({"latency": 0, "flops": 0, "unknown": 9}) == JobSeconds(beside=0.5, alone=1.0)
    assert costs.visits() == JobSeconds(alone=0.25)


@pytest.mark.parametrize(("per_trial", "limit", "fits"), [(2.0, 21.0, 10), (2.0, 1.0, 0), (2.0, 2.0, 1)])
def test_the_most_trials_that_fit(per_trial, limit, fits):
    assert most_trials(lambda trials: per_trial * trials, limit) == fits


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.05, "0.05 s"), (9.4, "9.4 s"), (59.6, "1 min"), (250, "4 min 10 s"), (7199, "1 h 60 min"), (180000, "2 d 2 h")],
)
def test_durations(seconds, text):
    assert span(seconds) == text.replace("1 h 60 min", "2 h")


@pytest.fixture
def planted(monkeypatch):
    """The command, over a planted model instead of Ray's workers."""
    monkeypatch.setattr(plan_run, "start_pool", lambda space, set_handlers: Pool(Timed(), 1))
    return lambda path, *more: main(["plan", str(path), *[f"--set={key.replace('__', '.')}={value}" for key, value
                                                          in CHANGES.items()], *more])  # fmt: skip


def test_the_command_says_hours_memory_disk_and_noise(path, planted, capsys):
    assert planted(path, "--hours", "0.05", "--quiet") == 0
    found, said = capsys.readouterr()
    assert not said
    for words in ("one trial: every ", "the search: ", "1 worker ", "8 workers", "trials fit", "more than this cluster",
                  "forward passes", "2.79 GiB peak so far, 954 MiB weights, 3.81 MiB keys and values of a batch, ",
                  "disk: ", "Noise of this machine: TTFT",
                  "cannot be told apart"):  # fmt: skip
        assert words in found, words
    assert planted(path, "--hours", "0.05", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["trials"] == 12 and data["workers"] == 1 and data["by_workers"][0]["trials"] > 12
    assert data["seconds"] == pytest.approx(data["by_workers"][0]["seconds"])
    assert data["memory"] == [MEMORY] and 0 < data["smallest_difference"]["ttft_ms"] < 1


def test_what_run_refuses_is_refused(path, planted, capsys, monkeypatch):
    assert main(["plan", "no-such-space"]) == 2 and "no space is called 'no-such-space'" in capsys.readouterr().err
    assert main(["plan", str(path), "--hours", "-1"]) == 2 and "expected a number above 0" in capsys.readouterr().err
    assert planted(path, "--set", "model.weights=any") == 0  # The command line allows it, as with `run`.
    beyond = "[{range: 0-99, choices: [keep, skip_ffn]}]"
    assert planted(path, f"--set=layers={beyond}") == 2 and "names layer 99" in capsys.readouterr().err
    monkeypatch.setattr(Timed, "measure", lambda *given, **more: Outcome(failure="it is broken"))
    assert planted(path) == 1 and "the dense model could not be measured\n  it is broken" in capsys.readouterr().err
