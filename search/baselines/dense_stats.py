"""What rules need to know of the dense model: found out once, before the search begins, and kept in its study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...evaluators.statistics import LayerStatistics
from ...policies.choice import LayerChoice
from ...policies.errors import StudyError
from .registry import BASELINES, Choices, Domains

DENSE_STATS = "preview"  # where a study keeps it


@dataclass(frozen=True)
class DenseStats:
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
    def of(cls, plain: Mapping[str, Any], domains: Domains) -> "DenseStats":
        """Back from there, given what every layer allows."""
        found = None if plain["statistics"] is None else [LayerStatistics(**layer) for layer in plain["statistics"]]
        known: list[dict[str, LayerChoice]] = [{choice.label: choice for choice in domain} for domain in domains]
        policies = [[by[label] for by, label in zip(known, row, strict=True)] for row in plain["bandit"]]
        return cls(found, policies, plain["forwards"])


def dense_stats(
    kept: Mapping[str, Any], names: Sequence[str], domains: Domains, probe_dense: Callable[[], DenseStats] | None
) -> DenseStats:
    """What some rules need: what a study has kept, or else what is found out now.

    Args:
        kept: The attributes of the study.
        names: The rules.
        domains: What every layer allows.
        probe_dense: Finds it out, as `workers.dense_probe` does.

    Raises:
        StudyError: a rule needs what nobody can find out.
    """
    needing = [name for name in names if is_needed([name])]
    if DENSE_STATS in kept:
        return DenseStats.of(kept[DENSE_STATS], domains)
    if needing and probe_dense is None:
        hint = "give the study a `probe_dense`, which asks a loaded model"
        raise StudyError("rules to begin with need to see the model first", needing, hint)
    return probe_dense() if needing and probe_dense else DenseStats()


def any_needs_statistics(names: Sequence[str]) -> bool:
    """True where one of some rules ranks layers by what the dense model does in them."""
    return any(name in BASELINES and BASELINES[name].needs_statistics for name in names)


def is_needed(names: Sequence[str]) -> bool:
    """True where one of some rules needs the model before the search."""
    return "bandit" in names or any_needs_statistics(names)
