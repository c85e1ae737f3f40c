"""What is drawn of each layer of a policy."""

from dataclasses import dataclass, replace

from ...policies.choice import LayerChoice
from ...policies.policy import Policy


@dataclass(frozen=True)
class Cell:
    """One layer as it is drawn.

    Attributes:
        attention: `keep`, or the name of the choice that changes the attention.
        ffn: `keep`, or the name of the choice that changes the FFN.
        ratio: The layer's own token ratio; None where it has none.
        left: The token ratio of an earlier layer whose dropped tokens do not come back; None where there is none.
        phase: `p` or `d` where the choice holds in prefill or decode only.
        tokens: `i` or `t` where the choice holds for image or text tokens only.
        rest: Letters for what the image tokens beyond the ratio do, see `layer_map.RESTS`.
        channels: The share of the FFN's channels that run; None where all do.
        heads: The share of the attention's heads that run; None where all do.
        window: How many rows and columns away image tokens see others; None where there is no such window.
        pair: `┌` in the first layer of a pair, `┐` in the second.
    """

    attention: str
    ffn: str
    ratio: float | None = None
    left: float | None = None
    phase: str = ""
    tokens: str = ""
    rest: str = ""
    channels: float | None = None
    heads: float | None = None
    pair: str = ""
    window: int | None = None


def cell(choice: LayerChoice) -> Cell:
    """One layer's choice, without what earlier layers left over."""
    choice = choice.canonical()
    attention = {"run": "keep", "skip": "skip_attention"}.get(choice.attention, choice.attention)
    ffn = "skip_ffn" if choice.ffn == "skip" else "keep"
    if choice.skips_layer:
        attention = ffn = "skip_layer"
    elif choice.wiring == "parallel":
        attention = ffn = "parallel" if choice.norm == "own" else "parallel_shared"
    phase = "" if choice.phase == "both" else choice.phase[0]
    tokens = "" if choice.tokens == "all" else choice.tokens[0]
    rest = "" if choice.rest == "skip" else choice.rest[0]
    rest += "e" if choice.evicts else ""
    pair = "┌" if choice.wiring == "pair" else ""
    shares = (choice.ffn_ratio, choice.head_ratio)
    return Cell(attention, ffn, choice.token_ratio, None, phase, tokens, rest, *shares, pair, choice.window)


def cells(policy: Policy, num_layers: int) -> list[Cell]:
    """All layers of a policy, first to last."""
    policy = policy.canonical()
    drawn: list[Cell] = []
    left = None
    for choice in policy.choices(num_layers):
        own = cell(choice)
        if drawn and drawn[-1].pair == "┌":
            own = replace(own, pair="┐")
        drawn.append(replace(own, left=left) if own.ratio is None else own)
        if policy.token_selection.reselect == "once" and choice.ranks_images:
            left = own.ratio
    return drawn
