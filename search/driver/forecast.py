"""Forecasts how long a search takes: how many steps of each phase are to come, times what a step costs.

`skipsearch plan` makes the forecast before a search, `run` makes it after its dense trial and corrects the numbers of
steps while it runs. Both use the same outline of the search.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...evaluators.base import evaluator_class
from ...evaluators.example_options import ExampleOptions
from ..guide.guide import GUIDE_EXAMPLES
from ..space.guide_metrics import QUALITY
from ..space.objectives import greedy_cost
from ..space.parameters import Parameters
from ..space.space import Space
from ..study.expected_results import MAX_CONFIRMED
from ..workers.early_stopping import STEP
from .confirmation import MAX_RANDOM
from .costs import ASK_SECONDS, TELL_SECONDS, Costs, JobSeconds
from .phases import CONFIRMING, DRAWING, PROBING, PROMOTING, PROPOSING, RANDOMISING, RECOVERING, TRANSFERRING
from .probing import probe_budget
from .promotion import FIRST_EXAMPLES
from .timing import ROUNDS, TIMING_AGAIN

# How searches of a vision-language model of 12 layers and of a text model of 30 layers went, on average.
PROMISING, PROMISING_UNGUIDED = 0.4, 0.35  # policies that are promoted at least once, as a share of all policies
SURVIVAL = 0.8  # promoted policies that are promoted again
RACED_SHARE = 0.5  # examples that a trial answers until a race or its end stops it, as a share of all
FRONT_GROWTH = 2.0  # policies of the front over the cube root of the number of policies that are measured
BASELINE_SHARE = 0.1  # baselines that are confirmed as a share of the trials
TIMED_UNTIL_PREDICTED = 20  # policies that are timed before a counted cost predicts times
DRAWN_EXAMPLES = 4  # examples whose kept patches are drawn, each worth a forward pass of dense

ExampleCounts = Mapping[str, Mapping[str, int]]  # by evaluator and split, the number of examples


@dataclass(frozen=True)
class Phase:
    """The expected steps of one phase.

    Attributes:
        steps: How many.
        each: What a step costs.
    """

    steps: float
    each: JobSeconds


@dataclass(frozen=True)
class Outline:
    """What decides how many steps a search has, and what each of them measures.

    Attributes:
        space: The search space.
        guide: The evaluator whose loss guides the search; None where none does.
        probes: Probes of a guided search at most.
        size: How many different policies the space has.
        has_ratios: True where a policy may leave out image tokens.
        examples: By evaluator and split, the number of examples.
    """

    space: Space
    guide: str | None
    probes: int
    size: int
    has_ratios: bool
    examples: ExampleCounts

    @classmethod
    def of(cls, space: Space, num_layers: int, guide: str | None, examples: ExampleCounts) -> "Outline":
        """The outline of a search over a model of so many layers."""
        parameters = Parameters(space, num_layers)
        has_probes = guide is not None and space.search.start != "none"
        probes = probe_budget(space.search.trials, parameters) if has_probes else 0
        has_ratios = any(choice.token_ratio is not None for domain in parameters.domains for choice in domain)
        return cls(space, guide, min(probes, parameters.size), parameters.size, has_ratios, examples)

    @property
    def trials(self) -> int:
        """The budget of trials, without dense."""
        return max(min(self.space.search.trials, self.size) - 1, 0)

    @property
    def is_patient(self) -> bool:
        """True where a trial answers a few examples first, and more when it is promoted."""
        search = self.space.search
        return self.races and search.racing != "none" and search.racing.patience != "none" and search.sampler == "auto"

    @property
    def races(self) -> bool:
        """True where a trial may stop early; Ray Tune measures every policy on all examples."""
        return self.space.search.racing != "none" and self.space.workers.runner == "actors"

    def of_kind(self, splits: bool, exclusive: bool = False) -> dict[str, int]:
        """The space's evaluators of one kind, each with no examples."""
        classes = {name: evaluator_class(name) for name in self.space.evaluate}
        return {name: 0 for name, one in classes.items() if one.splits == splits and one.exclusive == exclusive}

    def count(self, split: str, at_most: int | None = None) -> dict[str, int]:
        """The space's evaluators on examples, each with its number of examples of a split.

        Args:
            split: `search`, `report` or `transfer`.
            at_most: The largest number that counts; None counts all.
        """
        found = {}
        for name in self.of_kind(splits=True):
            known = self.examples.get(name, {})
            number = known.get(split, known.get("search", 0) if split == "report" else 0)
            found[name] = number if at_most is None else min(number, at_most)
        return found

    @property
    def total(self) -> int:
        """The most examples that a promoted policy answers."""
        return max(self.count("search").values(), default=0)

    def rungs(self) -> list[int]:
        """How many examples a promoted policy has answered after each of its promotions."""
        racing, first = self.space.search.racing, FIRST_EXAMPLES if self.guide is not None else 2 * FIRST_EXAMPLES
        default = ExampleOptions.model_fields["batch_size"].default
        batch = self.space.evaluate.get(QUALITY, {}).get("batch_size", default)
        size = max(batch, 1 if racing == "none" else math.ceil(STEP * self.total))
        done, sizes = 0 if self.guide is not None else FIRST_EXAMPLES, list[int]()
        while done < self.total:
            wanted = first if not sizes else 2 * sizes[-1]
            done = min(math.ceil(wanted / size) * size, self.total)
            sizes.append(done)
        return sizes

    @property
    def confirmed(self) -> float:
        """How many policies are confirmed: dense, the front, the best baselines, and the front after trainings."""
        return 1 + self.front + min(BASELINE_SHARE * self.trials, MAX_CONFIRMED) + self.trained

    @property
    def trained(self) -> int:
        """How many policies are trained once the search has ended."""
        recover = self.space.search.recover
        return 0 if recover is None else min(recover.top, self.trials)

    @property
    def front(self) -> float:
        """How many policies the front has."""
        return FRONT_GROWTH * math.cbrt(1 + self.probes + self.trials)

    def dense_job(self) -> dict[str, int]:
        """What the dense trial measures."""
        guide = {self.guide: GUIDE_EXAMPLES} if self.guide is not None else {}
        return {**self.of_kind(False), **self.of_kind(False, True), **guide, **self.count("search")}

    def trial_job(self) -> dict[str, int]:
        """What a new policy measures: in a guided search the loss and the counted costs alone, as a probe does."""
        if self.guide is not None:
            return {**self.of_kind(False), self.guide: GUIDE_EXAMPLES}
        share = RACED_SHARE if self.races else 1.0
        answered = self.count("search", FIRST_EXAMPLES) if self.is_patient else self.count("search")
        counted = answered if self.is_patient else {name: round(share * number) for name, number in answered.items()}
        return {**self.of_kind(False), **self.of_kind(False, True), **counted}


def promotions(outline: Outline, costs: Costs) -> Phase:
    """The promotions of a whole search."""
    policies = outline.probes + outline.trials
    first = (PROMISING if outline.guide is not None else PROMISING_UNGUIDED) * policies
    if not outline.is_patient or not outline.rungs():
        return Phase(0.0, JobSeconds())
    steps, total, before = 0.0, JobSeconds(), 0 if outline.guide is not None else FIRST_EXAMPLES
    for place, size in enumerate(outline.rungs()):
        number = first * SURVIVAL**place
        answered = {name: max(0, min(size, all_) - before) for name, all_ in outline.count("search").items()}
        steps, total, before = steps + number, total + costs.job(answered) * number, size
    if outline.guide is not None:
        can_predict = greedy_cost(outline.space) in outline.space.objectives
        timed = min(first, TIMED_UNTIL_PREDICTED) if can_predict else first
        total += costs.job(outline.of_kind(False, True)) * timed
    return Phase(steps, total * (1 / steps) + JobSeconds(driver=TELL_SECONDS))


def phases(outline: Outline, costs: Costs) -> dict[str, Phase]:
    """The expected steps of every phase after the dense trial."""

    def step(job: Mapping[str, int]) -> JobSeconds:
        return costs.job(job) + JobSeconds(driver=TELL_SECONDS)

    def new_policy(name: str, driver: float) -> JobSeconds:
        return costs.measured.get(name, costs.job(trial)) + JobSeconds(driver=driver)

    trial, confirmed = outline.trial_job(), outline.confirmed
    has_times, report = bool(outline.of_kind(False, True)), outline.count("report")
    twins = min(outline.front, MAX_RANDOM) if outline.has_ratios and report else 0.0
    transfer = {QUALITY: outline.examples.get(QUALITY, {}).get("transfer", 0)}
    found = {
        PROBING: Phase(outline.probes, new_policy(PROBING, TELL_SECONDS)),
        PROPOSING: Phase(outline.trials, new_policy(PROPOSING, ASK_SECONDS)),
        PROMOTING: promotions(outline, costs),
        RECOVERING: recoveries(outline, costs),
        CONFIRMING: Phase(confirmed if report else 0.0, step(report)),
        TIMING_AGAIN: Phase(ROUNDS * (confirmed - outline.trained) if has_times else 0.0, costs.visits()),
        RANDOMISING: Phase(twins, step(report)),
        TRANSFERRING: Phase(1 + outline.front if outline.space.has_transfer else 0.0, step(transfer)),
        DRAWING: Phase(outline.front if outline.has_ratios else 0.0, step({QUALITY: DRAWN_EXAMPLES})),
    }  # fmt: skip
    return {name: phase for name, phase in found.items() if phase.steps > 0}


def recoveries(outline: Outline, costs: Costs) -> Phase:
    """The trainings of all rounds, at the seconds of a step of dense, each with the measurement that follows."""
    recover = outline.space.search.recover
    rounds = [] if recover is None else recover.rounds(outline.trained)
    count = sum(policies for _, policies in rounds)
    seconds = sum(steps * policies for steps, policies in rounds) * costs.training_step / max(count, 1)
    measured = costs.job({**outline.of_kind(False), **outline.count("search")})
    return Phase(count, JobSeconds(beside=seconds, driver=TELL_SECONDS) + measured)


@dataclass(frozen=True)
class Forecast:
    """How long the phases of a search take.

    Attributes:
        phases: By name, what comes after the dense trial.
        costs: What a measurement costs.
        workers: How many workers measure.
        devices: How many devices they measure on; times are measured by one worker of a device at a time.
    """

    phases: Mapping[str, Phase]
    costs: Costs
    workers: int
    devices: int

    @classmethod
    def of(cls, outline: Outline, costs: Costs, workers: int, devices: int) -> "Forecast":
        """The forecast of a search."""
        return cls(phases(outline, costs), costs, workers, devices)

    @property
    def contention(self) -> float:
        """How much longer a measurement takes beside those of other workers."""
        return self.costs.contention if self.devices < self.workers else 1.0

    def wall(self, each: JobSeconds) -> float:
        """Seconds between the ends of two steps that cost so much."""
        return each.beside * self.contention / self.workers + each.alone / self.devices + each.driver

    def pace(self, name: str) -> float:
        """Seconds between the ends of two steps of a phase; 0 for a phase that the search does not have."""
        return self.wall(self.phases[name].each) if name in self.phases else 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each phase."""
        return {name: phase.steps * self.pace(name) for name, phase in self.phases.items()}

    @property
    def total(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    @property
    def busy(self) -> float:
        """Seconds that all workers together measure."""
        jobs = (phase.each * phase.steps for phase in self.phases.values())
        return sum(job.beside * self.contention + job.alone for job in jobs)
