"""Encodes the policies of a space as named categorical parameters with labels, and decodes them.

The labels of a parameter are a fixed list. There is one parameter for each layer or group of tied layers (or one for
each key of their rule), one for the schedule, one for each key of each schedule, one for each key of the token
selection, one for the ranking of channels, and one for what weights are quantised to. The parameters of a schedule have
no effect unless that schedule is chosen. Labels that decode to the same policy share one measurement.
"""

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

from ...policies.choice import KEEP, LayerChoice
from ...policies.policy import Policy
from ...policies.quantized.kinds import NONE
from ...policies.wiring.pairs import without_overlaps
from .layer_choices import LayerRule, as_options, expanded, with_keys
from .schedules import ScheduleOptions
from .space import Space
from .ties_and_bans import ForbiddenChoices

LAYER = "layer_"  # prefix of the names of all layer parameters
NO_SCHEDULE, QUANTIZATION = "none", "quantization"
MAX_ENUMERATED = 1024  # the distinct policies of a space are counted up to this many combinations of labels
RATIOS = ("token_ratio", "ffn_ratio", "head_ratio")
MAX_DRAWS = 1000  # redraws of a random policy that the space forbids

Scale: TypeAlias = tuple[tuple[str, LayerChoice], float]


class Parameters:
    """The parameters that a sampler draws in a space, for a model of some number of layers.

    Args:
        space: The space.
        num_layers: The number of decoder layers of the model.

    Attributes:
        domains: The choices that each layer allows.
        groups: The groups of tied layers; an untied layer is a group of its own.

    Raises:
        SpaceError: a rule names a layer beyond the last one.
    """

    def __init__(self, space: Space, num_layers: int) -> None:
        self.domains = space.domains(num_layers)
        self.groups = space.groups(num_layers)
        self._forbidden = ForbiddenChoices(space.forbid)
        self._schedules = numbered_schedules(space.schedules)
        self._loaded = space.model.loaded_quantization
        self._selection, self._width = space.token_selection, space.width_selection
        rules = space.rules(num_layers)
        self._of_group = {group: LayerParameters(group[0], rules[group[0]]) for group in self.groups}
        # By parameter and label, the value; the database of a study relies on the names and on the order.
        self._values: dict[str, dict[str, Any]] = {}
        self._defaults: dict[str, str] = {}
        for parameters in self._of_group.values():
            self._values |= parameters.values
            self._defaults |= parameters.defaults
        self._values["schedule"] = {NO_SCHEDULE: None, **self._schedules}
        for name, schedule in self._schedules.items():
            for key, values in schedule.options().items():
                self._values[f"{name}.{key}"] = {str(value): value for value in values}
        for key, values in (*space.token_selection, ("ranking", space.width_selection.ranking)):
            self._values[key] = {selection_label(key, value): value for value in as_options(values)}
        # Where every policy has the same weights, the model is loaded with them, and no policy says so.
        chosen = space.model.quantization if isinstance(space.model.quantization, list) else [NONE]
        self._values[QUANTIZATION] = {kind: kind for kind in (NONE, *(kind for kind in chosen if kind != NONE))}
        self._defaults |= {
            name: next(iter(values)) for name, values in self._values.items() if name not in self._defaults
        }

    @property
    def options(self) -> dict[str, list[str]]:
        """The labels of each parameter that has more than one."""
        return {name: [*values] for name, values in self._values.items() if len(values) > 1}

    @cached_property
    def size(self) -> int:
        """The number of distinct policies; an upper bound where there are too many to enumerate."""
        if math.prod(map(len, self._values.values())) > MAX_ENUMERATED:
            others = [len(values) for name, values in self._values.items() if not name.startswith(LAYER)]
            return math.prod([*others, *(len(self.domains[first]) for first, *_ in self.groups)])
        combinations = (zip(self._values, labels, strict=True) for labels in product(*self._values.values()))
        policies = (self.policy(dict(combination)) for combination in combinations)
        return len({policy.fingerprint for policy in policies if self.allows(policy)})

    def policy(self, labels: Mapping[str, str]) -> Policy:
        """Decode labels; a missing parameter has its default, which is dense where dense is allowed."""
        values = {name: by_label[labels.get(name, self._defaults[name])] for name, by_label in self._values.items()}
        choices = [KEEP] * len(self.domains)
        for group, parameters in self._of_group.items():
            choice = parameters.choice(labels)
            for layer in group:
                choices[layer] = choice
        schedule: ScheduleOptions | None = values["schedule"]
        if schedule is not None:
            prefix = f"{labels['schedule']}."
            setting = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            pattern = schedule.schedule(setting)
            scheduled = pattern.choices(len(choices))
            values |= pattern.selection
            choices = [below if choice == KEEP else choice for choice, below in zip(choices, scheduled, strict=True)]
        selection, width = self._selection.selection(values), self._width.selection(values["ranking"])
        return Policy.of(without_overlaps(choices), selection, width, values[QUANTIZATION])

    def allows(self, policy: Policy) -> bool:
        """False where the space forbids a policy, which must be in canonical form."""
        return not self._forbidden.match(policy.choices(len(self.domains)))

    def labels(self, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """Labels to enqueue: the given ones, and the defaults of all other parameters with more than one label."""
        complete = self._defaults | dict(given or {})
        return {name: label for name, label in complete.items() if len(self._values[name]) > 1}

    def random(self, rng: random.Random) -> dict[str, str]:
        """Labels of a random allowed policy; those of dense where almost all draws are forbidden."""
        for _ in range(MAX_DRAWS):
            labels = self.labels({name: rng.choice([*values]) for name, values in self._values.items()})
            if self.allows(self.policy(labels)):
                return labels
        return self.labels()

    def encode_choices(self, choices: Sequence[LayerChoice], selection: Mapping[str, Any]) -> dict[str, str]:
        """Labels of one choice a layer; a group of tied layers takes the choice of its first layer.

        Args:
            choices: An allowed choice for each layer.
            selection: The `token_selection`, the `ranking` of channels, and the `quantization` of weights, by key; a
                value that the space does not offer is left out.
        """
        labels: dict[str, str] = {}
        for group, parameters in self._of_group.items():
            labels |= parameters.labels(choices[group[0]])
        given = {key: selection_label(key, value) for key, value in selection.items()}
        return labels | {key: label for key, label in given.items() if label in self._values.get(key, {})}

    def encode(self, policy: Policy) -> dict[str, str] | None:
        """Labels that decode to a policy without a schedule; None where there are none.

        What weights are quantised to is no part of it where the model is loaded so.
        """
        if policy.model.quantization == self._loaded:
            policy = policy.model_copy(update={"model": policy.model.model_copy(update={"quantization": NONE})})
        choices = policy.canonical().choices(len(self.domains))
        if not all(choice in domain for choice, domain in zip(choices, self.domains, strict=True)):
            return None
        selection = {**dict(policy.token_selection), "ranking": policy.width_selection.ranking}
        selection[QUANTIZATION] = policy.model.quantization
        labels = self.encode_choices(choices, selection)
        return labels if self.policy(labels).fingerprint == policy.fingerprint else None

    def deletions(self, labels: Mapping[str, str]) -> dict[tuple[int, str], dict[str, str]]:
        """Labels of a policy with one more sublayer skipped, by the first layer of the group and the sublayer.

        Where a layer does not allow to skip the sublayer beside its token ratio, the ratio is dropped.
        """
        deletions = {}
        for group, parameters in self._of_group.items():
            choice = parameters.choice(labels)
            for sublayer in ("attention", "ffn"):
                if getattr(choice, sublayer) == "skip":
                    continue
                without = choice.model_copy(update={sublayer: "skip", "wiring": "sequential", "norm": "own"})
                candidates = (without.canonical(), without.model_copy(update={"token_ratio": None}).canonical())
                allowed = [candidate for candidate in candidates if candidate in self.domains[group[0]]]
                if allowed:
                    after = {**labels, **parameters.labels(allowed[0])}
                    if self.allows(self.policy(after)):
                        deletions[group[0], sublayer] = after
        return deletions

    @cached_property
    def layers(self) -> dict[str, int]:
        """The first layer of each layer parameter."""
        return {name: group[0] for group, parameters in self._of_group.items() for name in parameters.values}

    @cached_property
    def scales(self) -> Mapping[Hashable, Scale]:
        """By label of a layer parameter that stands for a ratio, see `scale_of`."""
        return {label: scale for one in self._of_group.values() for label, scale in one.scales()}

    def schedule_settings(self) -> dict[str, Iterator[dict[str, str]]]:
        """The labels of every setting of each schedule, in the order of the file."""
        return {name: self._settings(name) for name in self._schedules}

    def _settings(self, name: str) -> Iterator[dict[str, str]]:
        keys = [key for key in self._values if key.startswith(f"{name}.")]
        for combination in product(*(self._values[key] for key in keys)):
            yield {"schedule": name, **dict(zip(keys, combination, strict=True))}


class LayerParameters:
    """The parameters of one layer, or of a group of tied layers.

    A rule with `choices` alone is one parameter. Each key of a rule is a parameter of its own, so that a sampler learns
    the loss of skipping an FFN once for all token ratios.

    Args:
        layer: The first layer of the group.
        rule: The rule of that layer; None keeps the layer.

    Attributes:
        values: By parameter and label, the choice or the value of the key.
        defaults: By parameter, the label of the dense model, or the first label where dense is not among them.
    """

    def __init__(self, layer: int, rule: LayerRule | None) -> None:
        choices = [KEEP] if rule is None else expanded(rule.choices)
        keys = {} if rule is None else rule.keys()
        base = f"{LAYER}{layer:02d}"
        self._keys = {f"{base}.{key}": key for key in keys}
        self.values: dict[str, dict[str, Any]] = {base: {choice.label: choice for choice in choices}}
        self.values |= {f"{base}.{key}": {key_label(key, one): one for one in given} for key, given in keys.items()}
        # A ratio of 1 is dense, as no ratio is; a window of 1 is not.
        dense = {base: [KEEP]} | {
            name: [getattr(KEEP, key)] + [1.0] * (key != "window") for name, key in self._keys.items()
        }
        self.defaults = {
            name: next((label for label, value in by_label.items() if value in dense[name]), next(iter(by_label)))
            for name, by_label in self.values.items()
        }
        self._decoded: dict[tuple[str, ...], LayerChoice] = {}

    def scales(self) -> Iterator[tuple[str, Scale]]:
        """The labels that stand for ratios, with their scales."""
        for name, by_label in self.values.items():
            key = self._keys.get(name)
            for label, value in by_label.items() if key is None or key in RATIOS else ():
                scale = scale_of(value if key is None else with_keys(KEEP, [(key, value)]))
                if scale is not None:
                    yield label, scale

    def choice(self, labels: Mapping[str, str]) -> LayerChoice:
        """The choice that labels stand for, in canonical form; a missing parameter has its default."""
        own = tuple(labels.get(name, label) for name, label in self.defaults.items())
        if own not in self._decoded:
            base, *values = (by_label[label] for by_label, label in zip(self.values.values(), own, strict=True))
            self._decoded[own] = with_keys(base, zip(self._keys.values(), values, strict=True)) if values else base
        return self._decoded[own]

    def labels(self, choice: LayerChoice) -> dict[str, str]:
        """The labels of an allowed choice; of several, those with the most defaults first."""
        return dict(zip(self.values, self._encoded[choice], strict=True))

    @cached_property
    def _encoded(self) -> dict[LayerChoice, tuple[str, ...]]:
        # The default of each parameter comes first, so that a parameter without an effect keeps its default.
        ordered = [
            sorted(values, key=lambda label: label != self.defaults[name]) for name, values in self.values.items()
        ]
        encoded: dict[LayerChoice, tuple[str, ...]] = {}
        for own in product(*ordered):
            encoded.setdefault(self.choice(dict(zip(self.values, own, strict=True))), own)
        return encoded


def scale_of(choice: LayerChoice) -> Scale | None:
    """The scale that a choice is on: all choices that differ from it in one ratio alone; None without a ratio.

    Returns:
        What identifies the scale, and the position on it: the share that the ratio leaves out.
    """
    key = next((key for key in RATIOS if getattr(choice, key) is not None), None)
    return None if key is None else ((key, choice.model_copy(update={key: None})), 1 - getattr(choice, key))


def selection_label(key: str, value: Any) -> str:
    """The label of a value of `token_selection`."""
    return f"diversity {value:g}" if key == "diversity" else str(value)


def key_label(key: str, value: Any) -> str:
    """The label of a key's value, which says what the value does and is the same in all layers."""
    if key in ("token_ratio", "ffn_ratio", "head_ratio"):
        return f"{key} {value:g}"
    if key == "window":
        return "no window" if value is None else f"window {value}"
    if key == "rest":
        return f"rest {value}"
    if key == "evict":
        return "evict" if value else "evict nothing"
    return f"skip_{key}" if value == "skip" else str(value)


def numbered_schedules(schedules: list[ScheduleOptions]) -> dict[str, ScheduleOptions]:
    """Schedules by name; a second `fastv` is named `fastv 2`."""
    counts: Counter[str] = Counter()
    found = {}
    for schedule in schedules:
        counts[schedule.name] += 1
        number = counts[schedule.name]
        found[schedule.name if number == 1 else f"{schedule.name} {number}"] = schedule
    return found
