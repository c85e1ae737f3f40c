"""Flags of runtimes that leave out a share of the image tokens before the first layer.

A flag is no export: the runtime keeps as many tokens as the policy, chosen by a score of its own, so there is no output
that could be compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..policies.choice import LayerChoice
from ..policies.policy import Policy
from .target import named_choices

SCORE: Final = "diverse"
MEANING: Final = "keeps as many image tokens, which it chooses itself; measure its accuracy there"


@dataclass(frozen=True)
class Flag:
    """What a runtime has for a policy.

    Attributes:
        text: The flag; None where there is none.
        reasons: Why there is none.
    """

    text: str | None = None
    reasons: list[str] = field(default_factory=list)


def openvino_genai(ratio: float) -> Flag:
    """Fields of OpenVINO GenAI's `GenerationConfig`.

    It chooses by a determinantal point process over cosines (CDPruner, arXiv:2506.10967), in two halves of the tokens.
    """
    percent = round(100 * (1 - ratio), 6)
    if not percent.is_integer():
        return Flag(reasons=[f"pruning_ratio is a whole percentage, and this policy leaves out {percent:g} %"])
    return Flag(f"pruning_ratio={percent:.0f}, relevance_weight=0")


def tensorrt_edge_llm(ratio: float) -> Flag:
    """Options of TensorRT-Edge-LLM's `llm_inference`.

    It chooses the tokens least similar to pivots, which are those with the largest norms (DART, arXiv:2502.11494).
    """
    return Flag(f"--visualPrune --dartReductionRatio={1 - ratio:g}")


RUNTIMES: Final[Mapping[str, Callable[[float], Flag]]] = {
    "openvino-genai": openvino_genai,
    "tensorrt-edge-llm": tensorrt_edge_llm,
}


def flags(policy: Policy) -> dict[str, Flag]:
    """By runtime, the flag that leaves out as many image tokens as a policy, or why there is none."""
    reasons = more_than_a_share(policy)
    return {
        name: Flag(reasons=reasons) if reasons else flag_of(policy.canonical().layers[0].token_ratio or 0.0)
        for name, flag_of in RUNTIMES.items()
    }


def more_than_a_share(policy: Policy) -> list[str]:
    """What a policy does beyond leaving out a share of the image tokens, for good, before the first layer."""
    policy = policy.canonical()
    found = "; ".join(named_choices(policy, ())) or "a dense model"
    ratio = policy.layers[0].token_ratio if 0 in policy.layers else None
    if policy.layers != {0: LayerChoice(token_ratio=ratio)}:
        return [f"it leaves out image tokens before layer 0 and nothing else; found {found}"]
    if ratio == 0:
        return [f"it keeps some image tokens; found {found}"]
    selection = policy.token_selection
    reasons = []
    if selection.reselect != "once":
        reasons.append(
            f"what it leaves out is gone for all layers; found reselect: {selection.reselect}, expected once"
        )
    if selection.label != SCORE:
        reasons.append(
            f"it keeps tokens that differ from each other; found the score {selection.label}, expected {SCORE}"
        )
    if policy.weights is not None:
        reasons.append("it has the weights of the base model, and this policy was trained with its own")
    return reasons
