"""What `search.py` searches: planted interactions with a known best front, and real models of `search_models.py`."""

import itertools
from typing import ClassVar

import numpy as np

Codes = np.ndarray
DIRECTIONS = ("minimize", "minimize")
CORNER = (1.0, 1.0)  # where the hypervolume counts from: a loss of 1 above that of dense, and the cost of dense


class Planted:
    """Losses of single choices and of pairs within random groups of layers, so that the best front can be computed.

    Args:
        layers: How many; a multiple of `group`.
        seed: Of everything.
        group: So many layers interact with each other, pair by pair.
        choices: Of each layer, dense first.

    Attributes:
        name: What it is.
        costs: (layers, choices): what each choice costs, of a whole dense model's 1.
        work: By choice, the share of the layer that runs.
        examples: What a policy is measured on; here each tells all.
        scales: By choice, the scale that it is on and its position there: see `SkipSampler`.
    """

    units = np.array([6, 4, 2, 0, 3, 5])  # what a layer costs by choice
    jitter = 0.3  # how much the interactions of two layers differ by choice
    scales: ClassVar[dict[int, tuple[str, float]]] = {}
    examples = 16

    def __init__(self, layers: int, seed: int, group: int = 4, choices: int = 5) -> None:
        draw = np.random.default_rng(seed)
        self.name, self.layers, self.choices = f"planted {layers} x {choices}", layers, choices
        self.alone = self._losses_alone(draw)
        order = draw.permutation(layers)
        self.groups = [sorted(order[i : i + group]) for i in range(0, layers, group)]
        self.pairs: dict[tuple[int, int], Codes] = {}
        for one, other in itertools.chain.from_iterable(itertools.combinations(g, 2) for g in self.groups):
            strength = max(draw.normal(0.5, 1.0), -0.6)
            jitter = np.exp(draw.normal(0, self.jitter, (choices, choices)))
            self.pairs[one, other] = strength * jitter * np.sqrt(np.outer(self.alone[one], self.alone[other]))
        self.work = self.units[:choices] / self.units[0]
        self.costs = np.tile(self.work / layers, (layers, 1))
        self._ends = np.array([*self.pairs]).T
        self._tables = np.array([*self.pairs.values()])

    def _losses_alone(self, draw: np.random.Generator) -> Codes:
        """(layers, choices): what each choice loses alone; all layers together a quarter of their number, at most 8."""
        layers, choices = self.layers, self.choices
        importance = np.exp(draw.normal(0, 0.9, layers))
        importance[[0, -1]] *= 3
        share = np.array([0, 0.35, 0.6, 1.0, 0.35, 0.1])[:choices] * np.exp(draw.normal(0, 0.3, (layers, choices)))
        share[:, 3] = share[:, 1] + share[:, 2]
        alone = importance[:, None] * share
        return alone * (min(8, layers / 4) / alone[:, 3].sum())

    def measure(self, code: Codes, rows: tuple[int, ...] = ()) -> float:
        """The loss of one policy; the same on any examples."""
        one, other = code[self._ends]
        interacting = self._tables[np.arange(len(one)), one, other].sum()
        return float(self.alone[np.arange(self.layers), code].sum() + interacting)

    held_out = measure

    def losses(self, codes: Codes, among: list[int] | None = None) -> Codes:
        """The losses of policies; of a group of layers alone where `codes` has only those."""
        places = {layer: column for column, layer in enumerate(among or range(self.layers))}
        total = sum((self.alone[layer][codes[:, column]] for layer, column in places.items()), np.zeros(len(codes)))
        for (one, other), pair in self.pairs.items():
            if one in places and other in places:
                total = total + pair[codes[:, places[one]], codes[:, places[other]]]
        return total

    def best(self) -> list[tuple[float, float]]:
        """The true front: every combination of each group, and a dynamic program over the groups."""
        least = np.full(self.units[0] * self.layers + 1, np.inf)
        least[0] = 0.0
        for group in self.groups:
            codes = np.array(list(itertools.product(range(self.choices), repeat=len(group))))
            of_group = np.full(self.units[0] * len(group) + 1, np.inf)
            np.minimum.at(of_group, self.units[codes].sum(1), self.losses(codes, group))
            longer = np.full_like(least, np.inf)
            for cost, loss in enumerate(of_group):
                longer[cost:] = np.minimum(longer[cost:], least[: len(least) - cost] + loss)
            least = longer
        reached = [(float(loss), cost) for cost, loss in enumerate(least) if np.isfinite(loss)]
        return [(loss, cost / self.units[0] / self.layers) for loss, cost in reached]


class PlantedRatios(Planted):
    """Layers that leave out their attention, their FFN, or a share of their tokens, channels or heads.

    What a share loses grows with it, along a curve of each layer's own.

    Args:
        layers: How many; a multiple of 4.
        seed: Of everything.
    """

    # Dense, without attention, without FFN; 3/4, 1/2 and 1/4 of the tokens, of the channels and of the heads.
    units = np.array([12, 8, 4, 9, 6, 3, 10, 8, 6, 11, 10, 9])
    jitter = 0.1
    scales: ClassVar[dict[int, tuple[str, float]]] = {
        3 + 3 * number + step: (name, 0.25 * (step + 1))
        for number, name in enumerate(("tokens", "channels", "heads"))
        for step in range(3)
    }

    def __init__(self, layers: int, seed: int) -> None:
        super().__init__(layers, seed, choices=12)
        self.name = f"planted ratios {layers} x 12"

    def _losses_alone(self, draw: np.random.Generator) -> Codes:
        importance = np.exp(draw.normal(0, 0.9, (self.layers, 1)))
        importance[[0, -1]] *= 3
        attention, ffn, tokens = (share * np.exp(draw.normal(0, 0.3, (self.layers, 1))) for share in (0.35, 0.6, 0.9))
        left_out = np.array([0.25, 0.5, 0.75])
        curves = [
            whole * left_out ** draw.uniform(1.2, 3.0, (self.layers, 1)) * np.exp(draw.normal(0, 0.1, (self.layers, 3)))
            for whole in (tokens, ffn, attention)
        ]
        steps = [np.maximum.accumulate(curve, axis=1) for curve in curves]
        alone = importance * np.hstack([np.zeros_like(ffn), attention, ffn, *steps])
        return alone * (min(8, self.layers / 4) / alone[:, 1:3].sum())
