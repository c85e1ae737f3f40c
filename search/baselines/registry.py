"""The table of baselines: published rules for what to leave out, by name, with their papers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .bandit import bandit
from .placing import Choices, Domains
from .positional import fastv, interval, last, shifted_cosine, uniform
from .ranked import arank, block_influence, shortv, sublayer_cosine

__all__ = ["BASELINES", "SOURCES", "Choices", "Domains", "Baseline", "bandit"]


@dataclass(frozen=True)
class Baseline:
    """A published rule for what to leave out.

    Attributes:
        source: The method and its paper.
        policies: Returns the policies of the rule within the choices that each layer allows, one for each setting, the
            most expensive first. Its second argument is the statistics of the dense model's layers. A layer that does
            not allow what the rule asks for is left alone; the list is empty where no layer allows it.
        needs_statistics: True where the rule reads the statistics; else None may be passed for them.
        selection: The `token_selection` that belongs to the rule, by key.
    """

    source: str
    policies: Callable[[Domains, Any], list[Choices]]
    needs_statistics: bool = False
    selection: Mapping[str, str] = field(default_factory=dict)


BASELINES: Mapping[str, Baseline] = {
    "interval": Baseline("ima-lmms, arXiv:2410.09454", interval),
    "block_influence": Baseline("ShortGPT, arXiv:2403.03853", block_influence, needs_statistics=True),
    "sublayer_cosine": Baseline("LLM-Drop, arXiv:2406.15786", sublayer_cosine, needs_statistics=True),
    "arank": Baseline("γ-MoD, arXiv:2410.13859", arank, needs_statistics=True),
    "shortv": Baseline("ShortV, arXiv:2504.00502", shortv, needs_statistics=True),
    "shifted_cosine": Baseline("p-MoD, arXiv:2412.04449", shifted_cosine),
    "fastv": Baseline("FastV, arXiv:2403.06764", fastv, selection={"score": "attention", "reselect": "once"}),
    "uniform": Baseline("LayerDrop, arXiv:1909.11556", uniform),
    "last": Baseline("top-layer dropping, arXiv:2004.03844", last),
}

# The bandit evaluates policies while it runs, so it does not fit `Baseline.policies`; see `bandit`.
SOURCES: Mapping[str, str] = {name: baseline.source for name, baseline in BASELINES.items()} | {
    "bandit": "EAS, arXiv:2403.15226"
}
