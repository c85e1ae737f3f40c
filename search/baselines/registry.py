"""Published rules for what to leave out, by name: where a search may begin, and what it has to beat."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .bandit import bandit
from .placing import Choices, Domains
from .positional import fastv, interval, last, shifted_cosine, uniform
from .ranked import arank, block_influence, sublayer_cosine

__all__ = ["BASELINES", "SOURCES", "Choices", "Domains", "Baseline", "bandit"]


@dataclass(frozen=True)
class Baseline:
    """A rule.

    Attributes:
        source: Where it was published.
        policies: Gives the choices of all layers, once for each setting of the rule's knob, what leaves out the least
            first; from what every layer allows and, where it needs them, the statistics of the dense model's layers.
            It keeps a layer that does not allow what the rule wants, and gives nothing where no layer does.
        needs_statistics: True where it reads them; the others may be given None.
        selection: How it ranks image tokens, by key of `token_selection`, where that is a part of the rule.
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
    "shifted_cosine": Baseline("p-MoD, arXiv:2412.04449", shifted_cosine),
    "fastv": Baseline("FastV, arXiv:2403.06764", fastv, selection={"score": "attention", "reselect": "once"}),
    "uniform": Baseline("LayerDrop, arXiv:1909.11556", uniform),
    "last": Baseline("top-layer dropping, arXiv:2004.03844", last),
}

# The bandit measures as it goes, so it is a function of its own.
SOURCES: Mapping[str, str] = {name: one.source for name, one in BASELINES.items()} | {"bandit": "EAS, arXiv:2403.15226"}
