"""What a search begins with: published rules and the space's own schedules, each at a few settings, in turn.

They give every sampler a first front to improve, and the search something to be compared with.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat, zip_longest

from ...policies.choice import KEEP
from ...policies.policy import Policy
from ..baselines.dense_stats import DenseStats
from ..baselines.registry import BASELINES, Choices
from ..space.parameters import Parameters
from ..trial.trial_result import AND

# Shares of the work that are to be left out, in turn; beyond a half hardly any model answers anything.
SAVED = (1 / 8, 1 / 4, 1 / 16, 3 / 8, 3 / 16, 1 / 2)

Setting = tuple[str, str, dict[str, str]]  # a rule's name, its setting in words, and the labels to queue


@dataclass(frozen=True)
class Start:
    """A policy to begin with.

    Attributes:
        labels: By parameter, what to queue.
        rules: The setting of every rule that comes to it, by the rule's name.
    """

    labels: Mapping[str, str]
    rules: dict[str, str]

    @property
    def baseline(self) -> str:
        """All rules in one text."""
        return AND.join(f"{name}: {setting}" for name, setting in self.rules.items())


def starts(parameters: Parameters, names: Sequence[str], limit: int, stats: DenseStats) -> list[Start]:
    """Policies to begin a search with, the rules taking turns; what the space forbids is left out.

    Args:
        parameters: Of the space.
        names: The rules.
        limit: At most so many policies.
        stats: What is known of the dense model, where a rule needs it.
    """
    schedules = parameters.schedule_settings() if "schedules" in names else {}
    turns = [of_schedule(name, settings) for name, settings in schedules.items()]
    turns += [of_rule(parameters, name, stats) for name in names if name != "schedules"]
    dense = parameters.policy(parameters.labels())
    found: dict[str, Start] = {}
    for name, setting, labels in (one for row in zip_longest(*turns) for one in row if one is not None):
        policy = parameters.policy(labels)
        if policy.fingerprint in found:
            found[policy.fingerprint].rules.setdefault(name, setting)
        elif policy != dense and parameters.allows(policy):
            if len(found) == limit:
                break
            found[policy.fingerprint] = Start(parameters.labels(labels), {name: setting})
    return [*found.values()]


def of_schedule(name: str, settings: Iterable[dict[str, str]]) -> Iterator[Setting]:
    """Every setting of one schedule, in the order of the file."""
    for labels in settings:
        keys = (f"{key.partition('.')[2]} {label}" for key, label in labels.items() if key.startswith(f"{name}."))
        yield name.split()[0], ", ".join(keys), labels


def of_rule(parameters: Parameters, name: str, stats: DenseStats) -> Iterator[Setting]:
    """Every setting of a published rule that says something in a space, those that tell most first."""
    if name == "bandit":
        policies, selection = [*stats.bandit], {}
    else:
        rule = BASELINES[name]
        policies, selection = rule.policies(parameters.domains, stats.statistics), dict(rule.selection)
    for choices in spread(policies):
        labels = parameters.encode_choices(choices, selection)
        yield name, in_words(parameters.policy(labels)), labels


def in_words(policy: Policy) -> str:
    """What a policy does in how many layers."""
    counts = Counter(choice.label for _, choice in sorted(policy.canonical().layers.items()))
    parts = [f"{label} in {number} layer{'s' if number > 1 else ''}" for label, number in counts.items()]
    return ", ".join(parts) or "nothing"


def spread(policies: Iterable[Choices]) -> Iterator[Choices]:
    """All settings of a rule, those that tell most first: each kind of choice in turn, mild but not all alike."""
    kinds: dict[frozenset[object], list[Choices]] = {}
    for policy in policies:
        changes = frozenset(policy) - {KEEP}
        kinds.setdefault(changes if len(changes) == 1 else frozenset(), []).append(policy)
    for wanted in chain(SAVED, repeat(0.0)):
        for left in kinds.values():
            if left:
                yield left.pop(min(range(len(left)), key=lambda place: abs(saved(left[place]) - wanted)))
        if not any(kinds.values()):
            return


def saved(choices: Choices) -> float:
    """About what share of the work a policy leaves out, sublayers and tokens being alike."""
    done = (((c.attention == "run") + (c.ffn == "run")) / 2 * (1 if c.token_ratio is None else c.token_ratio)
            for c in choices)  # fmt: skip
    return 1 - sum(done) / len(choices)
