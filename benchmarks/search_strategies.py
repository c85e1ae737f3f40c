"""What `search.py` compares: our sampler and the same without each part, Optuna's samplers, and published methods."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from search_ledger import Ledger
from search_problems import CORNER, DIRECTIONS, Codes

from skipsearch.search.baselines.registry import BASELINES
from skipsearch.search.sampler.candidates import Strategy
from skipsearch.search.sampler.knapsack import additive_front
from skipsearch.search.sampler.skip_sampler import SkipSampler

Way = Callable[[Ledger, int], None]
Begin = Callable[[Any], list[Codes]]


@dataclass(frozen=True)
class Search:
    """A way to search.

    Attributes:
        run: Measures policies, given a seed.
        seeded: False where every seed gives the same.
        whole: True where it runs to its own end, whatever it takes.
        most_layers: It is tried up to so many.
        of_models: True where it needs a problem that has a model.
        of_scales: True where it needs a problem with ordered scales.
    """

    run: Way
    seeded: bool = True
    whole: bool = False
    most_layers: int = 1000
    of_models: bool = False
    of_scales: bool = False

    def fits(self, problem: Any) -> bool:
        """Whether it can be tried on a problem."""
        has_parts = hasattr(problem, "heuristics") or not self.of_models, problem.scales or not self.of_scales
        return problem.layers <= self.most_layers and all(has_parts)


def asked(sampler: Callable[[Any, int], Any], begin: Begin = lambda problem: []) -> Way:
    """A search by an Optuna sampler; repeated policies are told and not counted, but not for ever.

    Args:
        sampler: Made for a problem and a seed.
        begin: Gives policies that are measured first.
    """

    def search(ledger: Ledger, seed: int) -> None:
        problem = ledger.problem
        names = [f"layer_{layer:02}" for layer in range(problem.layers)]
        space = {name: optuna.distributions.CategoricalDistribution(list(range(problem.choices))) for name in names}
        study = optuna.create_study(directions=DIRECTIONS, sampler=sampler(problem, seed))
        for code in begin(problem):
            study.enqueue_trial(dict(zip(names, code.tolist(), strict=True)))
        for _ in range(3 * ledger.budget):
            trial = study.ask(space)
            study.tell(trial, ledger(np.array([trial.params[name] for name in names])))

    return search


def ours(strategy: type[Strategy] = Strategy, begin: Begin = lambda problem: [], **options: Any) -> Way:
    """Our sampler, with its own strategy or another one."""
    kind = type("OtherSampler", (SkipSampler,), {"strategy": strategy})

    def sampler(problem: Any, seed: int) -> SkipSampler:
        neutral = {f"layer_{layer:02}": 0 for layer in range(problem.layers)}
        return kind(neutral, seed=seed, **({"reference": CORNER, "scales": problem.scales} | options))

    return asked(sampler, begin)


def without(source: str) -> type[Strategy]:
    """Our strategy without one source of candidates, a method of `Strategy`."""

    def nothing(strategy: Strategy, *arguments: Any) -> Codes:
        return np.zeros((0, strategy._space.num_variables), np.int16)

    return type("Ablated", (Strategy,), {source: nothing})


def our_design(problem: Any) -> list[Codes]:
    """Dense, and each choice on every third layer: the policies with which our sampler begins."""
    codes = [np.zeros(problem.layers, int) for _ in range(problem.choices)]
    for kind in range(1, problem.choices):
        codes[kind][1::3] = kind
    return codes


def spread(problem: Any, each: int = 8) -> list[Codes]:
    """Some policies of every heuristic, evenly spread over what it gives."""
    found = []
    for policies in filter(None, problem.heuristics.values()):
        found += [policies[place] for place in np.unique(np.linspace(0, len(policies) - 1, each).round().astype(int))]
    return found


def heuristic(name: str) -> Way:
    """All policies of a published rule."""

    def search(ledger: Ledger, seed: int) -> None:
        for code in ledger.problem.heuristics[name]:
            ledger(code)

    return search


def stratified(ledger: Ledger, seed: int) -> None:
    """Random policies, evenly over how many layers differ from dense."""
    draw, problem = np.random.default_rng(seed), ledger.problem
    for _ in range(10 * ledger.budget):
        other = draw.integers(1, problem.choices, problem.layers)
        ledger(np.where(draw.random(problem.layers) < draw.random(), other, 0))


def uniform(ledger: Ledger, seed: int) -> None:
    """Each choice on every n-th layer, from the middle of the first n on."""
    layers = ledger.problem.layers
    for step, kind in itertools.product(range(1, layers + 1), range(1, ledger.problem.choices)):
        code = np.zeros(layers, int)
        code[step // 2 :: step] = kind
        ledger(code)


def with_one(ledger: Ledger, layer: int, kind: int) -> float:
    """What a choice loses alone."""
    code = np.zeros(ledger.problem.layers, int)
    code[layer] = kind
    return ledger(code)[0]


def puzzle(ledger: Ledger, seed: int) -> None:
    """What every choice loses alone, and the best sums of that (Puzzle's integer program, solved exactly)."""
    problem = ledger.problem
    table = [
        [with_one(ledger, layer, kind) if kind else 0.0 for kind in range(problem.choices)]
        for layer in range(problem.layers)
    ]
    for code in additive_front(np.array(table), problem.costs, 400):
        ledger(code)


# Choice 1 leaves out the attention, 2 the FFN, 3 both: the sum of the parts.
SUBLAYERS, LAYERS = (1, 2), (3,)


def one_shot(parts: tuple[int, ...]) -> Way:
    """Parts ranked by what they lose alone, left out one after the other: the perplexity of Shortened LLaMA."""

    def search(ledger: Ledger, seed: int) -> None:
        places = [*itertools.product(range(ledger.problem.layers), parts)]
        code = np.zeros(ledger.problem.layers, int)
        for layer, part in sorted(places, key=lambda place: with_one(ledger, *place)):
            code[layer] += part
            ledger(code)

    return search


def deletion(parts: tuple[int, ...]) -> Way:
    """The part that loses least is left out, then the next, all tried each time: SLEB, BlockPruner."""

    def search(ledger: Ledger, seed: int) -> None:
        code = np.zeros(ledger.problem.layers, int)
        left = [*itertools.product(range(len(code)), parts)]
        while left:
            children = [code + part * (np.arange(len(code)) == layer) for layer, part in left]
            best = int(np.argmin([ledger(child)[0] for child in children]))
            code = children[best]
            del left[best]

    return search


def greedy(ledger: Ledger, seed: int) -> None:
    """From dense, always the step of least loss for its saving, of all choices that there are."""
    costs = ledger.problem.costs
    code = np.zeros(ledger.problem.layers, int)
    while steps := [s for s in zip(*np.nonzero(costs < costs[np.arange(len(code)), code, None] - 1e-9), strict=True)]:
        loss, cost = ledger(code)
        ratios = []
        for layer, kind in steps:
            after = code.copy()
            after[layer] = kind
            found = ledger(after)
            ratios.append((found[0] - loss) / (cost - found[1]))
        layer, kind = steps[int(np.argmin(ratios))]
        code[layer] = kind


def evopress(ledger: Ledger, seed: int) -> None:
    """EvoPress with the settings that it ships: a run for each of 8 budgets, from 1/16 to 1/2 of the layers.

    All runs advance together, so that there is a front at every time.
    """
    draw, layers = np.random.default_rng(seed), ledger.problem.layers
    counts = sorted({max(1, round(share * layers / 16)) for share in range(1, 9)})
    runs = [generations(ledger, count, draw) for count in counts]
    lengths = [max(1, int(count * (layers - count) / 1.5)) for count in counts]
    for run in runs:
        next(run)
    steps = [((step + 1) / length, place) for place, length in enumerate(lengths) for step in range(length)]
    for _, place in sorted(steps):
        next(runs[place])


def generations(ledger: Ledger, count: int, draw: np.random.Generator) -> Iterator[None]:
    """EvoPress for one budget: `count` attentions and as many FFNs left out.

    The best of 64 random ones begins. A generation is 32 offspring on 1/16 of the examples, drawn anew; the best two of
    them and the parent on all. Nothing is remembered from one generation to the next.
    """
    layers = ledger.problem.layers
    out = [draw.permuted(np.tile(np.arange(layers) < count, (64, 1)), axis=1) for _ in range(2)]
    rows = some(ledger, draw)
    parent = min(out[0] + 2 * out[1], key=lambda code: ledger.part(code, rows))
    while True:
        yield
        rows = some(ledger, draw)
        brood = sorted(offspring(parent, 32, draw), key=lambda code: ledger.part(code, rows))
        parent = min([*brood[:2], parent], key=lambda code: ledger(code, again=True)[0])


def some(ledger: Ledger, draw: np.random.Generator) -> tuple[int, ...]:
    """A sixteenth of the examples."""
    examples = ledger.problem.examples
    return tuple(sorted(draw.choice(examples, max(1, examples // 16), replace=False).tolist()))


def offspring(parent: Codes, count: int, draw: np.random.Generator) -> list[Codes]:
    """Different policies, each some switches away; a switch leaves a sublayer out for another of its kind."""
    found = {parent.tobytes(): parent}
    for _ in range(100 * count):
        child = parent.copy()
        for _ in range(min(draw.integers(1, 4, 2))):  # EvoPress draws the number so
            part = int(draw.choice(SUBLAYERS))
            out = child & part > 0
            child[draw.choice(np.flatnonzero(out))] -= part
            child[draw.choice(np.flatnonzero(~out))] += part
        found.setdefault(child.tobytes(), child)
        if len(found) > count:
            break
    return [*found.values()][1:]


def optunas(kind: Callable[..., Any], begin: Begin = lambda problem: [], **options: Any) -> Way:
    """A sampler of Optuna's."""
    return asked(lambda problem, seed: kind(seed=seed, **options), begin)


OURS = {
    "SkipSampler": Search(ours()),
    "+ starts": Search(ours(begin=spread), of_models=True),
    "- reference": Search(ours(reference=None)),
    "- scales": Search(ours(scales={}), of_scales=True),
    "- additive": Search(ours(without("_additive"))),
    "- moves": Search(ours(without("_moves"))),
    "- mutation": Search(ours(without("_offspring"))),
}
SAMPLERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "NSGA-II": (optuna.samplers.NSGAIISampler, {"population_size": 50}),
    "NSGA-III": (optuna.samplers.NSGAIIISampler, {"population_size": 50}),
    "TPE": (optuna.samplers.TPESampler, {}),
    "TPE, multivariate": (optuna.samplers.TPESampler, {"multivariate": True}),
    "GP": (optuna.samplers.GPSampler, {"deterministic_objective": True}),
}
OPTUNA = {
    name + more: Search(optunas(kind, begin, **options), most_layers=24 if name == "GP" else 1000)
    for name, (kind, options) in SAMPLERS.items()
    for more, begin in {"": lambda problem: [], " + our design": our_design}.items()
}
HEURISTIC = {
    f"{name} ({rule.source.partition(',')[0]})": Search(heuristic(name), seeded=False, of_models=True)
    for name, rule in BASELINES.items()
}
OTHERS = {
    "EvoPress": Search(evopress, whole=True),
    "greedy": Search(greedy, seeded=False, whole=True),
    "BlockPruner": Search(deletion(SUBLAYERS), seeded=False, whole=True),
    "SLEB": Search(deletion(LAYERS), seeded=False, whole=True),
    "Puzzle": Search(puzzle, seeded=False, whole=True),
    "one-shot, sublayers": Search(one_shot(SUBLAYERS), seeded=False, whole=True),
    "one-shot, layers": Search(one_shot(LAYERS), seeded=False, whole=True),
    **HEURISTIC,
    "uniform": Search(uniform, seeded=False),
    "stratified random": Search(stratified),
    "random": Search(optunas(optuna.samplers.RandomSampler)),
}
SEARCHES = OURS | OTHERS | OPTUNA
GROUPS = {
    "ours": OURS, "optuna": OPTUNA, "heuristics": HEURISTIC, "others": OTHERS,
    "greedy": ["greedy", "BlockPruner", "SLEB"],
}  # fmt: skip
