"""What rules need to know of the dense model: found out once, before the search begins, and kept in its study."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...evaluators.base import ExamplesFirst
from ...evaluators.statistics import LayerStatistics, layer_statistics, on_device
from ...policies.choice import LayerChoice
from ...policies.errors import StudyError
from ...policies.policy import Policy
from ..racing import shares
from ..space.space import Racing
from .bandit import bandit
from .registry import HEURISTICS, Choices, Domains

if TYPE_CHECKING:
    from ..bench import Bench

PREVIEW = "preview"  # where a study keeps it


@dataclass(frozen=True)
class Preview:
    """What was found out.

    Attributes:
        statistics: Of each layer; None where no rule needs them.
        bandit: The policies that the bandit came to, the mildest first.
        forwards: Forward passes of the model that it took.
    """

    statistics: Sequence[LayerStatistics] | None = None
    bandit: Sequence[Choices] = ()
    forwards: int = 0

    def plain(self) -> dict[str, Any]:
        """As a study keeps it."""
        found = None if self.statistics is None else [asdict(layer) for layer in self.statistics]
        policies = [[choice.label for choice in policy] for policy in self.bandit]
        return {"statistics": found, "bandit": policies, "forwards": self.forwards}

    @classmethod
    def of(cls, plain: Mapping[str, Any], domains: Domains) -> "Preview":
        """Back from there, given what every layer allows."""
        found = None if plain["statistics"] is None else [LayerStatistics(**layer) for layer in plain["statistics"]]
        known: list[dict[str, LayerChoice]] = [{choice.label: choice for choice in domain} for domain in domains]
        policies = [[by[label] for by, label in zip(known, row, strict=True)] for row in plain["bandit"]]
        return cls(found, policies, plain["forwards"])


def previewed(
    kept: Mapping[str, Any], names: Sequence[str], domains: Domains, preview: Callable[[], Preview] | None
) -> Preview:
    """What some rules need: what a study has kept, or else what is found out now.

    Args:
        kept: The attributes of the study.
        names: The rules.
        domains: What every layer allows.
        preview: Finds it out, as `Bench.preview` does.

    Raises:
        StudyError: a rule needs what nobody can find out.
    """
    needing = [name for name in names if is_needed([name])]
    if PREVIEW in kept:
        return Preview.of(kept[PREVIEW], domains)
    if needing and preview is None:
        hint = "give the study a `preview`, such as `Bench(space).preview`"
        raise StudyError("rules to begin with need to see the model first", needing, hint)
    return preview() if needing and preview else Preview()


def reads_statistics(names: Sequence[str]) -> bool:
    """True where one of some rules ranks layers by what the dense model does in them."""
    return any(name in HEURISTICS and HEURISTICS[name].needs_statistics for name in names)


def is_needed(names: Sequence[str]) -> bool:
    """True where one of some rules needs the model before the search."""
    return "bandit" in names or reads_statistics(names)


def look(bench: "Bench", names: Sequence[str]) -> Preview:
    """Find out what some rules need, on examples of the search split.

    Raises:
        SkipsearchError: the layers of the model cannot be taken apart, or a policy cannot be measured.
    """
    from ...evaluators.prompts import made_up_prompt

    subject, domains = bench.subject, bench.space.domains(bench.num_layers)
    prompts = subject.prompts or [made_up_prompt(subject, prompt_tokens=64)]
    found, policies = None, []
    with counted(subject.model) as forwards:
        if reads_statistics(names):
            found = layer_statistics(subject.model, prompts, ranks="arank" in names)
        if "bandit" in names:
            policies = bandit(domains, divergence_on(bench, prompts), seed=bench.space.search.seed)
    return Preview(found, policies, len(forwards))


def divergence_on(bench: "Bench", prompts: Sequence[Mapping[str, Any]]) -> Callable[[Choices], float]:
    """What tells the bandit how far a policy is from the dense model, in nats a token.

    The space's own divergence on the first share of its examples; where it has none, that of the first token of the
    answer to each of some prompts.
    """
    own = next((one for one in bench.evaluators if isinstance(one, ExamplesFirst) and one.name == "divergence"), None)
    if own is None:
        return on_prompts(bench, prompts)
    racing = bench.space.search.racing
    parts = shares(Racing() if racing == "none" else racing)

    def on_examples(choices: Choices) -> float:
        with bench.applied(Policy.of(choices)) as handle, closing(own.rungs(handle, "search", parts)) as rungs:
            return next(rungs)["divergence"].value

    return on_examples


def on_prompts(bench: "Bench", prompts: Sequence[Mapping[str, Any]]) -> Callable[[Choices], float]:
    """KL(dense || policy) of the token that comes after each prompt; the mean, in nats."""
    import torch

    from ...evaluators.predictions import divergence

    def predicted(policy: Policy) -> torch.Tensor:
        with bench.applied(policy) as handle:
            model = handle.model
            rows = [model(**on_device(prompt, model), use_cache=False).logits[0, -1] for prompt in prompts]
            return torch.stack(rows).float().log_softmax(dim=-1)

    dense = predicted(Policy())
    return lambda choices: statistics.fmean(divergence(dense, predicted(Policy.of(choices))).tolist())


@contextmanager
def counted(model: Any) -> Iterator[list[None]]:
    """One entry for each forward pass of a model while the context is open."""
    passes: list[None] = []
    hook = model.register_forward_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        hook.remove()
