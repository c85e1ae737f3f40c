"""Statistics of the dense model that some baselines need; they are probed once and kept in the study."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...evaluators.statistics import LayerStatistics
from ...policies.errors import StudyError
from .registry import BASELINES, Choices, Domains

DENSE_STATS = "preview"  # the attribute of a study that keeps them


@dataclass(frozen=True)
class DenseStats:
    """What the baselines of a search know of the dense model.

    Attributes:
        statistics: Statistics of each layer; None where no baseline needs them.
        bandit: The policies of the bandit, the fewest skipped attentions first.
        forwards: The number of forward passes that the statistics and the bandit took.
    """

    statistics: Sequence[LayerStatistics] | None = None
    bandit: Sequence[Choices] = ()
    forwards: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for an attribute of the study; a choice is stored by its label."""
        statistics = None if self.statistics is None else [asdict(layer) for layer in self.statistics]
        policies = [[choice.label for choice in policy] for policy in self.bandit]
        return {"statistics": statistics, "bandit": policies, "forwards": self.forwards}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], domains: Domains) -> "DenseStats":
        """Read what `to_dict` wrote.

        Args:
            data: The attribute of the study.
            domains: The choices that each layer allows.
        """
        statistics = None if data["statistics"] is None else [LayerStatistics(**layer) for layer in data["statistics"]]
        by_label = [{choice.label: choice for choice in domain} for domain in domains]
        policies = [
            [choices[label] for choices, label in zip(by_label, policy, strict=True)] for policy in data["bandit"]
        ]
        return cls(statistics, policies, data["forwards"])


def load_or_probe(
    attributes: Mapping[str, Any], names: Sequence[str], domains: Domains, probe_dense: Callable[[], DenseStats] | None
) -> DenseStats:
    """Load the statistics that a study kept, or probe the dense model where a baseline needs them.

    Args:
        attributes: The attributes of the study.
        names: The baselines that the search starts from.
        domains: The choices that each layer allows.
        probe_dense: Probes the dense model, as `workers.dense_probe` does.

    Raises:
        StudyError: a baseline needs the dense model, and there is no `probe_dense`.
    """
    if DENSE_STATS in attributes:
        return DenseStats.from_dict(attributes[DENSE_STATS], domains)
    needing = [name for name in names if name == "bandit" or any_needs_statistics([name])]
    if not needing:
        return DenseStats()
    if probe_dense is None:
        hint = "pass `probe_dense`, or leave these baselines out of `search.start`"
        raise StudyError("some baselines need statistics of the dense model", needing, hint)
    return probe_dense()


def any_needs_statistics(names: Sequence[str]) -> bool:
    """True where one of the baselines ranks layers by statistics of the dense model."""
    return any(name in BASELINES and BASELINES[name].needs_statistics for name in names)
