"""Probes of a guided search: the paths of a greedy walk from dense and from the best token schedules.

A probe measures the guide's loss on a few dozen examples and the counted costs. It does not count towards the budget of
trials. Probes are stored in the study, so a resumed search repeats none of them.
"""

import math
from collections import deque
from collections.abc import Iterator

from ...policies.choice import KEEP
from ..baselines.placing import place, token_ratio_choices
from ..baselines.registry import BASELINES
from ..guide.greedy import GreedyPath, Labels, Move, Probed, Probes, race_paths, spread_over_front
from ..space.parameters import Parameters
from ..study.asking import Proposal
from ..study.study import SearchStudy

# Probes at most for each trial: two, and up to four where these do not suffice for the paths. A first path
# probes each deletion alone and then walks on; further paths need some more.
PROBES_PER_TRIAL, MAX_PROBES_PER_TRIAL, PROBES_PER_DELETION = 2, 4, 6
MAX_LOSS_SHARE = 0.6  # A path ends at this share of the way from the loss of dense to that at chance level.
MAX_PATHS = 6  # token schedules that a path starts from


class Probing:
    """Hands out probes one at a time, until all paths have ended or the budget of probes is used.

    Args:
        study: Where the probes are stored.
        width: How many policies are measured at the same time.

    Attributes:
        is_over: True when no probe is to come.
    """

    def __init__(self, study: SearchStudy, width: int) -> None:
        self._study = study
        self._steps: Probes[None] | None = None
        self._width = width
        self._queue: deque[Labels] = deque()
        self._batch: list[Labels] = []
        self._budget = probe_budget(study.space.search.trials, study.parameters)
        self._running: set[str] = set()
        self._requested: set[str] = set()
        self._deferred: set[str] = set()
        self._baseline = ""
        self.is_over = study.guide is None or study.space.search.start == "none"

    @property
    def left(self) -> int:
        """How many probes are to come at most."""
        return 0 if self.is_over else max(0, self._budget - len(self._requested)) + len(self._running)

    def next(self) -> Proposal | None:
        """A policy to probe; None while running probes must finish first, and when there are no more."""
        while not self.is_over:
            if self._queue:
                labels = self._queue.popleft()
                fingerprint = self._study.parameters.policy(labels).fingerprint
                self._requested.add(fingerprint)
                if self._study.has_result(fingerprint) or fingerprint in self._deferred:
                    continue
                if len(self._requested) > self._budget:
                    self.is_over = True
                    break
                self._running.add(fingerprint)
                return self._study.ask_probe(labels, self._baseline)
            if self._running:
                return None
            self._advance()
        return None

    def finish(self, proposal: Proposal) -> None:
        """Record that a probe was measured, or failed."""
        self._running.discard(proposal.policy.fingerprint)

    def defer(self, proposal: Proposal) -> None:
        """Continue without a probe that the machine could not measure; a resumed search measures it."""
        self._running.discard(proposal.policy.fingerprint)
        self._deferred.add(proposal.policy.fingerprint)

    def _advance(self) -> None:
        """Send the results of the last batch to the walk, and take its next batch."""
        try:
            if self._steps is None:
                self._steps = self._walk()
                self._batch = next(self._steps)
            else:
                self._batch = self._steps.send([self._study.probe_result(labels) for labels in self._batch])
        except StopIteration:
            self.is_over = True
        self._queue = deque(self._batch if not self.is_over else ())

    def _walk(self) -> Probes[None]:
        """Yields batches of probes: the emptiest policy, token schedules, greedy paths from dense and from these."""
        parameters, stale = self._study.parameters, dict[Move, float]()
        self._baseline = "greedy: all that can be skipped"
        (empty,) = yield [emptiest(parameters)]
        max_loss = self._max_loss(empty)
        schedules = token_schedules(parameters)
        self._baseline = "token schedules: image tokens alone"
        probes = (yield [*schedules.values()]) if schedules else []
        useful = {name: probe for name, probe in zip(schedules, probes, strict=True) if probe and probe.loss < max_loss}
        starts: dict[str, Labels] = {"dense": parameters.labels()}
        starts |= {name: schedules[name] for name in spread_over_front(useful, MAX_PATHS)}
        paths = [
            GreedyPath(name, start, parameters.deletions, stale, max_loss, self._width)
            for name, start in starts.items()
        ]
        yield from race_paths(paths, self._take_turn)

    def _take_turn(self, path: GreedyPath) -> None:
        self._baseline = f"greedy: from {path.name}"

    def _max_loss(self, empty: Probed) -> float:
        """The loss at which a path ends, between those of dense and of chance level."""
        chance = min(self._study.chance_loss(), math.inf if empty is None else empty.loss)
        dense = self._study.probe_result(self._study.parameters.labels())
        dense_loss = 0.0 if dense is None else dense.loss
        return dense_loss + MAX_LOSS_SHARE * (chance - dense_loss)


def probe_budget(trials: int, parameters: Parameters) -> int:
    """How many policies are probed at most, for a budget of trials."""
    for_paths = PROBES_PER_DELETION * len(parameters.deletions(parameters.labels()))
    return min(max(PROBES_PER_TRIAL * trials, for_paths), MAX_PROBES_PER_TRIAL * trials)


def emptiest(parameters: Parameters) -> Labels:
    """The policy that skips every sublayer that may be skipped; its loss is close to that at chance level."""
    labels: Labels = parameters.labels()
    while options := parameters.deletions(labels):
        labels = next(iter(options.values()))
    return labels


def token_schedules(parameters: Parameters) -> dict[str, Labels]:
    """By description, policies that only leave out image tokens: schedules of the space and published ones.

    The published ones are a constant ratio from an early, a middle or the half layer on (FastV), and falling ratios
    (p-MoD), where the space has them.
    """
    return {name: labels for name, labels in schedule_candidates(parameters) if is_schedule(parameters, labels)}


def schedule_candidates(parameters: Parameters) -> Iterator[tuple[str, Labels]]:
    """Candidates for `token_schedules`, among them repetitions and policies that are no schedules."""
    depth = len(parameters.domains)
    for name, settings in parameters.schedule_settings().items():
        for number, labels in enumerate(settings):
            yield f"{name} {number}", parameters.labels(labels)
    for choice in token_ratio_choices(parameters.domains):
        for first in sorted({0, 2, depth // 4, depth // 2}):
            choices = place(choice, range(first, depth), parameters.domains)
            labels = parameters.labels(parameters.encode_choices(choices, {}))
            yield f"{choice.label} from layer {first} on", labels
    for choices in BASELINES["shifted_cosine"].policies(parameters.domains, None)[1::3]:
        yield f"shifted_cosine {choices[-1].label}", parameters.labels(parameters.encode_choices(choices, {}))


def is_schedule(parameters: Parameters, labels: Labels) -> bool:
    """True for an allowed policy that changes some layers, each by a token ratio alone."""
    policy = parameters.policy(labels)
    changed = [choice for choice in policy.layers.values() if choice != KEEP]
    only_ratios = all(choice == KEEP.model_copy(update={"token_ratio": choice.token_ratio}) for choice in changed)
    return bool(changed) and only_ratios and parameters.allows(policy)
