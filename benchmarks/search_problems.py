"""What `search.py` searches: planted interactions with a known best front, and real models of `search_models.py`."""

import itertools

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
    """

    units = np.array([6, 4, 2, 0, 3, 5])  # what a layer costs by choice
    examples = 16

    def __init__(self, layers: int, seed: int, group: int = 4, choices: int = 5) -> None:
        draw = np.random.default_rng(seed)
        self.name, self.layers, self.choices = f"planted {layers} x {choices}", layers, choices
        importance = np.exp(draw.normal(0, 0.9, layers))
        importance[[0, -1]] *= 3
        share = np.array([0, 0.35, 0.6, 1.0, 0.35, 0.1])[:choices] * np.exp(draw.normal(0, 0.3, (layers, choices)))
        share[:, 3] = share[:, 1] + share[:, 2]
        self.alone = importance[:, None] * share
        self.alone *= min(8, layers / 4) / self.alone[:, 3].sum()
        order = draw.permutation(layers)
        self.groups = [sorted(order[i : i + group]) for i in range(0, layers, group)]
        self.pairs: dict[tuple[int, int], Codes] = {}
        for one, other in itertools.chain.from_iterable(itertools.combinations(g, 2) for g in self.groups):
            strength = max(draw.normal(0.5, 1.0), -0.6)
            jitter = np.exp(draw.normal(0, 0.3, (choices, choices)))
            self.pairs[one, other] = strength * jitter * np.sqrt(np.outer(self.alone[one], self.alone[other]))
        self.costs = np.tile(self.units[:choices] / 6 / layers, (layers, 1))
        self.work = self.units[:choices] / 6
        self._ends = np.array([*self.pairs]).T
        self._tables = np.array([*self.pairs.values()])

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
        least = np.full(6 * self.layers + 1, np.inf)
        least[0] = 0.0
        for group in self.groups:
            codes = np.array(list(itertools.product(range(self.choices), repeat=len(group))))
            of_group = np.full(6 * len(group) + 1, np.inf)
            np.minimum.at(of_group, self.units[codes].sum(1), self.losses(codes, group))
            longer = np.full_like(least, np.inf)
            for cost, loss in enumerate(of_group):
                longer[cost:] = np.minimum(longer[cost:], least[: len(least) - cost] + loss)
            least = longer
        return [(float(loss), cost / 6 / self.layers) for cost, loss in enumerate(least)]
