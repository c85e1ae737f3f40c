"""Measures what the parts of a search cost, on the workers that would search: dense first, then a few policies."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...evaluators.base import Measurement, evaluator_class
from ...policies.errors import RunError
from ...policies.policy import Policy
from ..baselines.dense_stats import any_needs_statistics
from ..driver.costs import Costs, EvaluatorCost, JobSeconds, dense_costs
from ..driver.forecast import Outline
from ..driver.phases import PROBING, PROPOSING
from ..driver.promotion import FIRST_EXAMPLES
from ..driver.timing import NOISE_MEASUREMENTS
from ..space.parameters import Parameters
from ..space.search_settings import Racing
from ..space.space import Space
from ..trial.measurements import measurements_json
from ..trial.modelled_time import is_time
from ..trial.outcome import Outcome
from ..workers.ray_pool import Pool
from ..workers.worker import Job
from .sample import sample_policies

ENOUGH_SECONDS = 60.0  # of measured policies, after which no further one is measured
MIN_POLICIES = 3  # measured of each kind whatever they take
ROW_BYTES = 2048  # of a trial in the database beside its measurements: parameters, policy, times


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        costs: Seconds of the parts of a search.
        dense: What dense measured, on a few examples.
        noise: By time, measurements of dense against dense.
        statistics: Seconds of the statistics of the dense model that baselines need; 0 where none does.
        policies: How many policies of the space were measured.
        row_bytes: Bytes of a trial in the database.
        memory: The memory of each worker; see `PolicyEvaluator.memory`.
    """

    costs: Costs
    dense: Outcome
    noise: Mapping[str, Sequence[Measurement]] = field(default_factory=dict)
    statistics: float = 0.0
    policies: int = 0
    row_bytes: int = ROW_BYTES
    memory: Sequence[Mapping[str, float]] = ()


def small_rungs(space: Space) -> Space:
    """The space, with rungs of examples also where it measures all examples at once."""
    if space.search.racing != "none":
        return space
    search = space.search.model_copy(update={"racing": Racing(), "guide": "none"})
    return space.model_copy(update={"search": search})


class Meter:
    """Measures on the workers of a search.

    Args:
        pool: The workers; they have loaded the model.
        outline: The outline of the search.
        num_layers: The number of the model's decoder layers.
        note: Shows what is being measured.
    """

    def __init__(self, pool: Pool, outline: Outline, num_layers: int, note: Callable[[str], None]) -> None:
        self._pool, self._outline, self._note = pool, outline, note
        self._parameters = Parameters(outline.space, num_layers)
        self._alone = [*outline.of_kind(False, True)]
        self._others = [*outline.of_kind(False), *outline.of_kind(True)]
        if outline.guide is not None and outline.guide not in self._others:
            self._others.append(outline.guide)

    def measure(self) -> Measured:
        """Measure everything.

        Raises:
            RunError: dense cannot be measured.
        """
        note, space = self._note, self._outline.space
        note("timing dense")
        [first] = self._run([self._job(Policy(), self._others, FIRST_EXAMPLES)])
        dense, costs = self._with_second_rung(first)
        noise, costs = self._noise(costs)
        started = time.monotonic()
        if space.search.baselines and self._needs_statistics():
            note("measuring the statistics of the dense model that the baselines need")
            self._pool.probe_dense()
        spent = time.monotonic() - started if self._needs_statistics() else 0.0
        if space.search.recover is not None:
            note("timing a step of the trainings that follow the search")
            costs = replace(costs, training_step=self._pool.step_seconds())
        note("timing policies of the space")
        costs, policies = self._policies(costs, dense)
        rows = [len(measurements_json(one)) for one in (dense.measurements, dense.estimates)]
        return Measured(costs, dense, noise, spent, policies, ROW_BYTES + sum(rows), self._pool.memory())

    def _needs_statistics(self) -> bool:
        names = self._outline.space.search.baselines
        return "bandit" in names or any_needs_statistics(names)

    def _job(self, policy: Policy, names: Sequence[str], at_most: int | None = None, **more: object) -> Job:
        return Job(policy, names, max_examples=at_most, **more)  # type: ignore[arg-type]

    def _run(self, jobs: Sequence[Job], width: int = 1) -> list[Outcome]:
        """The outcomes of jobs that succeed, so many at a time; dense must succeed.

        Raises:
            RunError: dense failed.
        """
        waiting, found = [*jobs], []
        while waiting or self._pool.busy:
            while waiting and self._pool.has_idle and self._pool.busy < width:
                self._pool.submit(waiting.pop(0))
            finished = self._pool.next()
            if finished is None:
                continue
            job, outcome = finished
            if outcome.failure and job.policy.is_dense:
                raise RunError("the dense model could not be measured", [outcome.failure])
            found += [] if outcome.failure else [outcome]
        return found

    def _with_second_rung(self, first: Outcome) -> tuple[Outcome, Costs]:
        """Dense on further examples, whose seconds have no fixed part: what dense measured, and what it costs."""
        costs = dense_costs(first.seconds, {**first.measurements, **first.estimates}, self._outline.guide)
        names = [name for name in self._outline.of_kind(True) if self._answered(name, first.estimates)]
        if not names:
            return first, costs
        most = max(self._answered(name, first.estimates) for name in names)
        [second] = self._run([self._job(Policy(), names, most + FIRST_EXAMPLES, previous=first.estimates)])
        both = {**second.estimates, **second.measurements}
        changed = {}
        for name in names:
            before, after = self._answered(name, first.estimates), self._answered(name, both)
            each = second.seconds[name] / max(after - before, 1)
            fixed = max(0.0, first.seconds[name] - each * before)
            changed[name] = replace(costs.evaluators[name], fixed=fixed, each=each)
        return first.then(second), replace(costs, evaluators={**costs.evaluators, **changed})

    def _answered(self, name: str, found: Mapping[str, Measurement]) -> int:
        """How many examples an evaluator has answered; 0 where it has no measurement among these."""
        return max((found[metric].n for metric in evaluator_class(name).metrics if metric in found), default=0)

    def _noise(self, costs: Costs) -> tuple[dict[str, list[Measurement]], Costs]:
        """Dense timed against dense: the measurements by time, and what they cost."""
        found: defaultdict[str, list[Measurement]] = defaultdict(list)
        if not self._alone:
            return found, costs
        self._note("timing dense against dense")
        outcomes = self._run([self._job(Policy(), self._alone) for _ in range(NOISE_MEASUREMENTS)])
        for outcome in outcomes:
            for name, entry in outcome.measurements.items():
                if is_time(name, entry):
                    found[name].append(entry)
        timed: dict[str, EvaluatorCost] = {}
        for name in self._alone:
            seconds = statistics.median(outcome.seconds[name] for outcome in outcomes)
            timed |= dense_costs({name: seconds}, {}).evaluators
        return found, replace(costs, evaluators={**costs.evaluators, **timed})

    def _policies(self, costs: Costs, dense: Outcome) -> tuple[Costs, int]:
        """Costs with the seconds of policies of the space, and how many were measured."""
        trials, probes = sample_policies(self._parameters, self._outline.space.search.seed)
        is_guided, size = self._outline.guide is not None, self._pool.size
        names = [*self._outline.of_kind(False)] + ([self._outline.guide] if self._outline.guide else [])
        if size > 1:  # Each worker answers once what later answers need, such as image features.
            self._run([self._job(Policy(), self._others, FIRST_EXAMPLES) for _ in range(size)], size)
        if not is_guided:
            names += [*self._outline.of_kind(True)]
        jobs = [self._job(policy, names, FIRST_EXAMPLES) for policy in trials]
        single = self._run(jobs[:1])
        started, outcomes = time.monotonic(), dict[str, list[Outcome]]()
        outcomes[PROPOSING] = [*self._until_enough(jobs[1:], size, started)]
        near = [self._job(policy, names, FIRST_EXAMPLES) for policy in probes] if is_guided else []
        outcomes[PROBING] = [*self._until_enough(near, size, started)]
        every = [*single, *outcomes[PROPOSING], *outcomes[PROBING]]
        measured = {name: JobSeconds(beside=mean_seconds(found)) for name, found in outcomes.items() if found}
        costs = with_shares(costs, every, self._outline)
        if is_guided:
            costs = replace(costs, measured={**costs.measured, **measured})
            answers = [self._job(policy, [*self._outline.of_kind(True)], FIRST_EXAMPLES) for policy in trials]
            promoted = [*self._until_enough(answers, size, started)]
            costs, every = with_shares(costs, promoted, self._outline), [*every, *promoted]
        costs = self._visits(costs, trials)
        total, forward = (sum(one.seconds.get(key, 0.0) for one in every) for key in ("total", "forward"))
        # What was measured beside other workers holds their contention already.
        return replace(costs, contention=1.0, forward=forward / total if total else costs.forward), len(every)

    def _until_enough(self, jobs: Sequence[Job], width: int, started: float) -> Iterator[Outcome]:
        """The outcomes of jobs, until some were measured and that took long enough."""
        for place in range(0, len(jobs), width):
            if place >= MIN_POLICIES and time.monotonic() - started > ENOUGH_SECONDS:
                return
            yield from self._run(jobs[place : place + width], width)

    def _visits(self, costs: Costs, policies: Sequence[Policy]) -> Costs:
        """Costs with the seconds of a policy's times, and of a second timing of it."""
        if not self._alone:
            return costs
        whole = self._run([self._job(policies[0], self._alone)])
        brief = self._run([self._job(policies[0], self._alone, split="report")])
        if not (whole and brief):
            return costs
        timed = {}
        for name in self._alone:
            cost, ours = costs.evaluators[name], whole[0].seconds[name]
            timed[name] = replace(cost, share=ours / cost.fixed, visit=brief[0].seconds[name] / ours)
        return replace(costs, evaluators={**costs.evaluators, **timed})


def mean_seconds(outcomes: Sequence[Outcome]) -> float:
    """The mean seconds of some measurements."""
    return statistics.fmean(outcome.seconds["total"] for outcome in outcomes)


def with_shares(costs: Costs, outcomes: Sequence[Outcome], outline: Outline) -> Costs:
    """Costs with what policies take of the seconds of dense, by evaluator that they measured.

    Args:
        costs: Of dense.
        outcomes: What policies of the space measured.
        outline: The outline of the search.
    """
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        found = {**outcome.measurements, **outcome.estimates}
        for name in outcome.seconds.keys() & costs.evaluators.keys():
            metrics = evaluator_class(name).metrics
            answered = max((found[metric].n for metric in metrics if metric in found), default=0)
            one = replace(costs.evaluators[name], share=1.0)
            job = one.seconds(answered if one.each else 0)
            if job.beside:
                shares[name].append(outcome.seconds[name] / job.beside)
    changed = {name: replace(costs.evaluators[name], share=statistics.fmean(found)) for name, found in shares.items()}
    return replace(costs, evaluators={**costs.evaluators, **changed})
