"""The initial points of a search: published baselines and the space's own schedules at several settings, in turn.

They give every sampler a first front to improve, and the search a front to be compared with.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat, zip_longest
from pathlib import Path

from ...policies.choice import KEEP, LayerChoice
from ...policies.errors import SpaceError
from ...policies.policy import Policy
from ..baselines.dense_stats import DenseStats
from ..baselines.registry import BASELINES, Choices
from ..space.parameters import Parameters
from ..space.search_settings import is_policy_file
from ..trial.trial_result import BASELINE_SEPARATOR

# Target shares of the work to skip, in the order in which settings are taken; with more than half skipped, hardly any
# model answers anything.
TARGET_SHARES = (1 / 8, 1 / 4, 1 / 16, 3 / 8, 3 / 16, 1 / 2)

Setting = tuple[str, str, dict[str, str]]  # a baseline's name, its setting in words, and the labels to enqueue


@dataclass(frozen=True)
class InitialPoint:
    """A policy that a search starts from.

    Attributes:
        labels: The labels to enqueue, by parameter.
        baseline_settings: By baseline that proposes this policy, the setting with which it does.
    """

    labels: Mapping[str, str]
    baseline_settings: dict[str, str]

    @property
    def baseline(self) -> str:
        """All baselines in one text, as a trial's attribute holds them."""
        return BASELINE_SEPARATOR.join(f"{name}: {setting}" for name, setting in self.baseline_settings.items())


def initial_points(parameters: Parameters, names: Sequence[str], limit: int, stats: DenseStats) -> list[InitialPoint]:
    """The policies that a search starts from, from each source in turn; without those of baselines that are forbidden.

    Args:
        parameters: The parameters of the space.
        names: The baselines and the policy files.
        limit: The largest number of policies.
        stats: Statistics of the dense model, where a baseline needs them.

    Raises:
        SpaceError: see `file_setting`.
    """
    schedules = parameters.schedule_settings() if "schedules" in names else {}
    sources = [iter([file_setting(parameters, name)]) for name in names if is_policy_file(name)]
    sources += [schedule_settings(name, settings) for name, settings in schedules.items()]
    published = [name for name in names if name != "schedules" and not is_policy_file(name)]
    sources += [published_settings(parameters, name, stats) for name in published]
    dense = parameters.policy(parameters.labels())
    found: dict[str, InitialPoint] = {}
    in_turn = (setting for turn in zip_longest(*sources) for setting in turn if setting is not None)
    for name, setting, labels in in_turn:
        policy = parameters.policy(labels)
        if policy.fingerprint in found:
            found[policy.fingerprint].baseline_settings.setdefault(name, setting)
        elif policy != dense and parameters.allows(policy):
            if len(found) == limit:
                break
            found[policy.fingerprint] = InitialPoint(parameters.labels(labels), {name: setting})
    return [*found.values()]


def schedule_settings(name: str, settings: Iterable[dict[str, str]]) -> Iterator[Setting]:
    """Every setting of one schedule of the space, in the order of its file."""
    for labels in settings:
        keys = (f"{key.partition('.')[2]} {label}" for key, label in labels.items() if key.startswith(f"{name}."))
        yield name.split()[0], ", ".join(keys), labels


def published_settings(parameters: Parameters, name: str, stats: DenseStats) -> Iterator[Setting]:
    """Every setting of a published baseline that the space allows, the most informative first."""
    if name == "bandit":
        policies, selection = [*stats.bandit], {}
    else:
        baseline = BASELINES[name]
        policies, selection = baseline.policies(parameters.domains, stats.statistics), dict(baseline.selection)
    for choices in order_settings(policies):
        labels = parameters.encode_choices(choices, selection)
        yield name, describe(parameters.policy(labels)), labels


def file_setting(parameters: Parameters, file: str) -> Setting:
    """The policy of a file, as a baseline with one setting; its name is that of the file.

    Raises:
        PolicyMismatch: the policy was made for another number of layers.
        SpaceError: the space does not allow the policy.
    """
    policy = Policy.load(file).canonical()
    domains = parameters.domains
    policy.check_fits(len(domains), "of this space")
    labels = parameters.encode(policy)
    if labels is None or not parameters.allows(policy):
        choices = enumerate(zip(policy.choices(len(domains)), domains, strict=True))
        beyond = [
            f"layer {index} cannot be {choice.label}" for index, (choice, domain) in choices if choice not in domain
        ]
        others = ["tied layers, `forbid`, `token_selection` or `model.quantization` of the space are against it"]
        hint = "add these choices to the space, or leave the file out of search.start"
        raise SpaceError(f"the space does not allow the policy {file}", beyond or others, hint)
    name = Path(file).name.translate({ord(mark): "_" for mark in ":;"})
    return name, describe(policy), labels


def describe(policy: Policy) -> str:
    """What a policy does in how many layers, such as `skip_ffn in 4 layers`."""
    counts = Counter(choice.label for _, choice in sorted(policy.canonical().layers.items()))
    parts = [f"{label} in {number} layer{'s' if number > 1 else ''}" for label, number in counts.items()]
    return ", ".join(parts) or "nothing"


def order_settings(policies: Iterable[Choices]) -> Iterator[Choices]:
    """All settings of a baseline, the most informative first.

    Policies that use the same single choice form a kind, all that mix choices another one. For each target share in
    turn, every kind gives the policy whose skipped share is closest to it.
    """
    kinds: dict[frozenset[object], list[Choices]] = {}
    for policy in policies:
        changes = frozenset(policy) - {KEEP}
        kinds.setdefault(changes if len(changes) == 1 else frozenset(), []).append(policy)
    for target in chain(TARGET_SHARES, repeat(0.0)):
        for left in kinds.values():
            if left:
                yield left.pop(min(range(len(left)), key=lambda index: abs(skipped_share(left[index]) - target)))
        if not any(kinds.values()):
            return


def skipped_share(choices: Choices) -> float:
    """Roughly the share of the work that a policy skips, with all sublayers and all tokens counted alike."""
    return 1 - sum(map(done_share, choices)) / len(choices)


def done_share(choice: LayerChoice) -> float:
    """Roughly the share of a layer's work that a choice does; keys alone count as half of an attention."""
    heads = 1.0 if choice.head_ratio is None else choice.head_ratio
    attention = {"skip": 0.0, "keys_only": 0.5}.get(choice.attention, heads)
    ffn = 0.0 if choice.ffn == "skip" else 1.0 if choice.ffn_ratio is None else choice.ffn_ratio
    done = (attention + ffn) / 2
    if choice.token_ratio is None or not choice.ranks_images:
        return done
    rest = {"skip": 0.0, "keys_only": 0.25}.get(choice.rest, 0.5)
    return done * choice.token_ratio + rest * (1 - choice.token_ratio)
