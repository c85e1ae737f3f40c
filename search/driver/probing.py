"""The probes that a guided search begins with: the greedy path from dense, and from the best token schedules.

A probe measures the guide's loss on a few dozen examples, and what costs next to nothing; it is no trial of the budget.
Probes stand in the study, so a search that was interrupted repeats none of them.
"""

import math
from collections import deque
from collections.abc import Generator, Iterator

from ...policies.choice import KEEP
from ..baselines.placing import place, token_ratio_choices
from ..baselines.registry import BASELINES
from ..guide.greedy import Labels, Move, Probed, evenly, lazy_greedy
from ..space.parameters import Parameters
from ..study.study import Proposal, SearchStudy

PER_TRIAL = 2  # probes for each trial of the budget, at most
FAR = 0.6  # of the way from the loss of dense to that of guessing, a path ends
PATHS = 3  # token schedules that a path begins with

Steps = Generator[list[Labels], list[Probed], None]


class Probing:
    """Hands out probes, one at a time, until the paths have ended or the probes are spent.

    Args:
        study: Where they are noted.
        width: How many policies are measured at the same time.
    """

    def __init__(self, study: SearchStudy, width: int) -> None:
        self._study = study
        self._steps: Steps | None = None
        self._width = width
        self._wanted: deque[Labels] = deque()
        self._batch: list[Labels] = []
        self._most = PER_TRIAL * study.space.search.trials
        self._running: set[str] = set()
        self._asked: set[str] = set()
        self._left_out: set[str] = set()
        self.is_over = study.guide is None or study.space.search.start == "none"

    @property
    def left(self) -> int:
        """How many probes are to come at most."""
        return 0 if self.is_over else max(0, self._most - len(self._asked)) + len(self._running)

    def next(self) -> Proposal | None:
        """A policy to probe; None while others must be measured first, and when there are no more."""
        while not self.is_over:
            if self._wanted:
                labels = self._wanted.popleft()
                fingerprint = self._study.parameters.policy(labels).fingerprint
                self._asked.add(fingerprint)
                if self._study.is_known(fingerprint) or fingerprint in self._left_out:
                    continue
                if len(self._asked) > self._most:
                    self.is_over = True
                    break
                self._running.add(fingerprint)
                return self._study.ask_probe(labels, self._rule)
            if self._running:
                return None
            self._advance()
        return None

    def finish(self, proposal: Proposal) -> None:
        """Note that a probe was measured, or failed."""
        self._running.discard(proposal.policy.fingerprint)

    def leave(self, proposal: Proposal) -> None:
        """Do without a probe that the machine could not measure; the next start of the search measures it."""
        self._running.discard(proposal.policy.fingerprint)
        self._left_out.add(proposal.policy.fingerprint)

    def _advance(self) -> None:
        """Tell the walk what its last policies measured, and take the next ones."""
        try:
            if self._steps is None:
                self._steps = self._walk()
                self._batch = next(self._steps)
            else:
                self._batch = self._steps.send([self._study.probed(labels) for labels in self._batch])
        except StopIteration:
            self.is_over = True
        self._wanted = deque(self._batch if not self.is_over else ())

    def _walk(self) -> Steps:
        """All that can be skipped, token schedules, then paths: from the best schedule, from dense, from the others."""
        parameters, stale = self._study.parameters, dict[Move, float]()
        self._rule = "greedy: all that can be skipped"
        (empty,) = yield [emptiest(parameters)]
        worst = self._worst(empty)
        schedules = token_schedules(parameters)
        self._rule = "token schedules: image tokens alone"
        found = (yield [*schedules.values()]) if schedules else []
        known = {name: probe for name, probe in zip(schedules, found, strict=True) if probe and probe.loss < worst}
        starts = {name: schedules[name] for name in evenly(known, PATHS)[::-1]}
        order = [*[*starts][:1], "dense", *[*starts][1:]]
        for name in order:
            self._rule = f"greedy: from {name}"
            start = starts.get(name, parameters.labels())
            yield from lazy_greedy(start, parameters.deletions, stale, worst, self._width)

    def _worst(self, empty: Probed) -> float:
        """The loss at which a path ends: well on the way from dense to guessing."""
        guessing = min(self._study.guessing_loss(), math.inf if empty is None else empty.loss)
        dense = self._study.probed(self._study.parameters.labels())
        least = 0.0 if dense is None else dense.loss
        return least + FAR * (guessing - least)


def emptiest(parameters: Parameters) -> Labels:
    """The policy that skips every sublayer which may be skipped: hardly more than guessing is left."""
    labels: Labels = parameters.labels()
    while options := parameters.deletions(labels):
        labels = next(iter(options.values()))
    return labels


def token_schedules(parameters: Parameters) -> dict[str, Labels]:
    """Policies that leave out image tokens and nothing else, by what they are: the space's schedules, and rules.

    A ratio from an early, a middle or the half layer on (FastV), and falling shares (p-MoD), as far as the space has
    them.
    """
    return {name: labels for name, labels in candidates(parameters) if is_schedule(parameters, labels)}


def candidates(parameters: Parameters) -> Iterator[tuple[str, Labels]]:
    """Every schedule that is tried, with repetitions and with some that do nothing."""
    depth = len(parameters.domains)
    for name, settings in parameters.schedule_settings().items():
        for number, labels in enumerate(settings):
            yield f"{name} {number}", parameters.labels(labels)
    for kind in token_ratio_choices(parameters.domains):
        for first in sorted({0, 2, depth // 4, depth // 2}):
            choices = place(kind, range(first, depth), parameters.domains)
            yield f"{kind.label} from layer {first} on", parameters.labels(parameters.encode_choices(choices, {}))
    for choices in BASELINES["shifted_cosine"].policies(parameters.domains, None)[1::3]:
        yield f"shifted_cosine {choices[-1].label}", parameters.labels(parameters.encode_choices(choices, {}))


def is_schedule(parameters: Parameters, labels: Labels) -> bool:
    """True for an allowed policy of which every layer is kept or has a token ratio alone, and some has one."""
    policy = parameters.policy(labels)
    chosen = [choice for choice in policy.layers.values() if choice != KEEP]
    pure = all(choice == KEEP.model_copy(update={"token_ratio": choice.token_ratio}) for choice in chosen)
    return bool(chosen) and pure and parameters.allows(policy)
