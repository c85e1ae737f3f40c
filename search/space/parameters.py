"""The choices of a space as named parameters with labels, and back.

Every parameter is a label out of a list that never changes: one for each layer or group of tied layers, one that names
the schedule, one for each key of each schedule, two for the token selection. Parameters of schedules that were not
taken have no effect; policies that come out equal are measured once.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any

from ...policies.choice import KEEP, LayerChoice
from ...policies.policy import Policy, TokenSelection
from .layer_choices import LayerRule, combined, expanded, options
from .schedules import Pattern
from .space import Space
from .ties_and_bans import Forbidden

LAYER = "layer_"  # how the names of all parameters of layers begin
NONE = "none"
ENUMERABLE = 1024  # up to so many combinations it is counted how many of them differ
DRAWS = 1000  # so often a random policy is drawn anew because the space forbids it


class Parameters:
    """What a sampler draws in a space, for a model of some number of layers.

    Args:
        space: The space.
        num_layers: The model's decoder layers.

    Raises:
        SpaceError: a rule reaches beyond the last layer.
    """

    def __init__(self, space: Space, num_layers: int) -> None:
        self.domains = space.domains(num_layers)
        self.groups = space.groups(num_layers)
        self._forbidden = Forbidden(space.forbid)
        self._patterns = named(space.schedules)
        rules = space.rules(num_layers)
        self._variables = {group: LayerVariables(group[0], rules[group[0]]) for group in self.groups}
        # By parameter and label, what the label stands for; studies rely on the names and on the order.
        self._values: dict[str, dict[str, Any]] = {}
        self._defaults: dict[str, str] = {}
        for variables in self._variables.values():
            self._values |= variables.values
            self._defaults |= variables.defaults
        self._values["schedule"] = {NONE: None, **self._patterns}
        for name, pattern in self._patterns.items():
            for key, values in pattern.options().items():
                self._values[f"{name}.{key}"] = {str(value): value for value in values}
        for key, values in space.token_selection:
            self._values[key] = {value: value for value in options(values)}
        self._defaults |= {
            name: next(iter(known)) for name, known in self._values.items() if name not in self._defaults
        }

    @property
    def options(self) -> dict[str, list[str]]:
        """The labels of each parameter that leaves a choice."""
        return {name: [*values] for name, values in self._values.items() if len(values) > 1}

    @cached_property
    def size(self) -> int:
        """How many different policies may occur; at most so many where there are too many to look at each."""
        if math.prod(map(len, self._values.values())) > ENUMERABLE:
            others = [len(known) for name, known in self._values.items() if not name.startswith(LAYER)]
            return math.prod([*others, *(len(self.domains[first]) for first, *_ in self.groups)])
        combinations = (zip(self._values, labels, strict=True) for labels in product(*self._values.values()))
        policies = (self.policy(dict(combination)) for combination in combinations)
        return len({policy.fingerprint for policy in policies if self.allows(policy)})

    def policy(self, labels: Mapping[str, str]) -> Policy:
        """The policy that labels stand for; a parameter without a choice may be left out."""
        values = {name: known[labels.get(name, self._defaults[name])] for name, known in self._values.items()}
        own = [KEEP] * len(self.domains)
        for group, variables in self._variables.items():
            choice = variables.choice(labels)
            for layer in group:
                own[layer] = choice
        pattern: Pattern | None = values["schedule"]
        if pattern is not None:
            prefix = f"{labels['schedule']}."
            setting = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
            base = pattern.schedule(setting).choices(len(own))
            own = [given if choice == KEEP else choice for choice, given in zip(own, base, strict=True)]
        return Policy.of(own, TokenSelection(score=values["score"], reselect=values["reselect"]))

    def allows(self, policy: Policy) -> bool:
        """False where the space forbids what a policy in canonical form does."""
        return not self._forbidden.holds(policy.choices(len(self.domains)))

    def labels(self, given: Mapping[str, str] | None = None) -> dict[str, str]:
        """What to queue: the labels given and otherwise dense, without the parameters that leave no choice."""
        every = self._defaults | dict(given or {})
        return {name: label for name, label in every.items() if len(self._values[name]) > 1}

    def random(self, draw: random.Random) -> dict[str, str]:
        """Labels drawn at random from those that are allowed; where these are hard to hit, dense ones."""
        for _ in range(DRAWS):
            drawn = self.labels({name: draw.choice([*known]) for name, known in self._values.items()})
            if self.allows(self.policy(drawn)):
                return drawn
        return self.labels()

    def encode_choices(self, choices: Sequence[LayerChoice], selection: Mapping[str, str]) -> dict[str, str]:
        """The labels of one choice a layer, of which a group of tied layers does what its first does.

        Args:
            choices: What each layer allows.
            selection: How image tokens are ranked, by key; a word that the space does not offer is left out.
        """
        ranked = {key: word for key, word in selection.items() if word in self._values[key]}
        found: dict[str, str] = {}
        for group, variables in self._variables.items():
            found |= variables.labels(choices[group[0]])
        return found | ranked

    def deletions(self, labels: Mapping[str, str]) -> dict[tuple[int, str], dict[str, str]]:
        """What a policy becomes when one more sublayer is skipped, by the first of its layers and the sublayer.

        A layer that cannot skip it beside a token ratio gives the ratio up.
        """
        found = {}
        for group, variables in self._variables.items():
            choice = variables.choice(labels)
            for sublayer in ("attention", "ffn"):
                if getattr(choice, sublayer) == "skip":
                    continue
                wanted = choice.model_copy(update={sublayer: "skip", "wiring": "sequential", "norm": "own"})
                spellings = (wanted.canonical(), wanted.model_copy(update={"token_ratio": None}).canonical())
                allowed = [one for one in spellings if one in self.domains[group[0]]]
                if allowed:
                    after = {**labels, **variables.labels(allowed[0])}
                    if self.allows(self.policy(after)):
                        found[group[0], sublayer] = after
        return found

    def spelled(self, policy: Policy) -> dict[str, str] | None:
        """The labels of the layers that stand for a policy; None for one that they do not come to."""
        choices = policy.canonical().choices(len(self.domains))
        if not all(choice in domain for choice, domain in zip(choices, self.domains, strict=True)):
            return None
        labels = self.encode_choices(choices, dict(policy.token_selection))
        return labels if self.policy(labels).fingerprint == policy.fingerprint else None

    @cached_property
    def layers(self) -> dict[str, int]:
        """The first layer that each parameter of layers is about."""
        return {name: group[0] for group, variables in self._variables.items() for name in variables.values}

    def schedule_settings(self) -> dict[str, Iterator[dict[str, str]]]:
        """Every setting of each schedule, in the order of the file."""
        return {name: self._settings(name) for name in self._patterns}

    def _settings(self, name: str) -> Iterator[dict[str, str]]:
        keys = [key for key in self._values if key.startswith(f"{name}.")]
        for combination in product(*(self._values[key] for key in keys)):
            yield {"schedule": name, **dict(zip(keys, combination, strict=True))}


class LayerVariables:
    """What a sampler draws for one layer, or for a group of tied ones.

    A rule of `choices` alone is one parameter. Each key that a rule gives is a parameter of its own, so that what
    skipping an FFN loses is learned once for all token ratios.

    Args:
        layer: The first layer of the group.
        baseline: What may happen there; None keeps the layer.

    Attributes:
        values: By parameter and label, the choice or the key's value.
        defaults: By parameter, the label of what dense does, or the first.
    """

    def __init__(self, layer: int, rule: LayerRule | None) -> None:
        choices = [KEEP] if rule is None else expanded(rule.choices)
        keys = {} if rule is None else rule.keys()
        self._base = f"{LAYER}{layer:02d}"
        self._keys = {f"{self._base}.{key}": key for key in keys}
        self.values: dict[str, dict[str, Any]] = {self._base: {choice.label: choice for choice in choices}}
        self.values |= {f"{self._base}.{key}": {label(key, one): one for one in given} for key, given in keys.items()}
        dense = {self._base: [KEEP]} | {name: [getattr(KEEP, key), 1.0] for name, key in self._keys.items()}
        self.defaults = {
            name: next((word for word, value in known.items() if value in dense[name]), next(iter(known)))
            for name, known in self.values.items()
        }
        self._made: dict[tuple[str, ...], LayerChoice] = {}

    def choice(self, labels: Mapping[str, str]) -> LayerChoice:
        """What labels stand for, in canonical form; a parameter that is missing does what dense does."""
        taken = tuple(labels.get(name, word) for name, word in self.defaults.items())
        if taken not in self._made:
            base, *values = (known[word] for known, word in zip(self.values.values(), taken, strict=True))
            self._made[taken] = combined(base, zip(self._keys.values(), values, strict=True)) if self._keys else base
        return self._made[taken]

    def labels(self, choice: LayerChoice) -> dict[str, str]:
        """The labels that stand for a choice which the layer allows; of several spellings the first."""
        return dict(zip(self.values, self._spelled[choice], strict=True))

    @cached_property
    def _spelled(self) -> dict[LayerChoice, tuple[str, ...]]:
        # The default of each parameter comes first, so that what has no effect stays as dense has it.
        ordered = [sorted(known, key=lambda word: word != self.defaults[name]) for name, known in self.values.items()]
        found: dict[LayerChoice, tuple[str, ...]] = {}
        for taken in product(*ordered):
            found.setdefault(self.choice(dict(zip(self.values, taken, strict=True))), taken)
        return found


def label(key: str, value: Any) -> str:
    """The value of a key in words that say what it does, the same in all layers."""
    if key == "token_ratio":
        return f"token_ratio {value:g}"
    return f"skip_{key}" if value == "skip" else str(value)


def named(patterns: list[Pattern]) -> dict[str, Pattern]:
    """Patterns by the name of their generator, numbered from the second of a kind on."""
    seen: Counter[str] = Counter()
    found = {}
    for pattern in patterns:
        seen[pattern.generator] += 1
        number = seen[pattern.generator]
        found[pattern.generator if number == 1 else f"{pattern.generator} {number}"] = pattern
    return found
