"""Policies of a space that stand for those of its search: greedy deletion at several depths, and random ones."""

import random

from ...policies.policy import Policy
from ..driver.probing import token_schedules
from ..space.parameters import Parameters

DEPTHS = (0.3, 0.0, 0.6)  # shares of the sublayers that are deleted when a probe deletes one more
PROBES_PER_DEPTH = 2


def sample_policies(parameters: Parameters, seed: int) -> tuple[list[Policy], list[Policy]]:
    """Policies as a search measures them: new ones, and probes that change one sublayer of these.

    Args:
        parameters: Of the space.
        seed: Of the random deletions.

    Returns:
        New policies, and as many probes for each of them.
    """
    rng = random.Random(seed)
    schedules = [*token_schedules(parameters).values()]
    starts = [parameters.labels(), *schedules[:: max(1, len(schedules) // 2)]]
    trials, probes = [], []
    for place, depth in enumerate(DEPTHS):
        labels = parameters.labels(starts[place % len(starts)])
        for _ in range(round(depth * len(parameters.deletions(labels)))):
            labels = rng.choice([*parameters.deletions(labels).values()])
        after = [*parameters.deletions(labels).values()]
        drawn = rng.sample(after, min(PROBES_PER_DEPTH, len(after)))
        if not after:  # Nothing can be skipped: other choices stand for it.
            labels, drawn = parameters.random(rng), [parameters.random(rng) for _ in range(PROBES_PER_DEPTH)]
        trials.append(parameters.policy(labels))
        probes += [parameters.policy(one) for one in drawn]
    return trials, probes
