"""What may come of a way: the policies of each kind, what the dense model does not stand, and the table of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipsearch import Policy

NAMES = ("llama", "llava", "qwen2.5-vl")
PAGE = Path(__file__).parents[2] / "policies" / "README.md"
BEGIN, END = "<!-- ways -->\n", "<!-- end of ways -->\n"
HALF = {"token_ratio": 0.5}
SKIP_LAYER = {"attention": "skip", "ffn": "skip"}
KINDS: dict[str, dict[int, dict[str, Any]]] = {
    "skip": {0: {"attention": "skip"}, 2: SKIP_LAYER, 3: {"ffn": "skip"}},
    "phase": {
        0: {"ffn": "skip", "phase": "decode"},
        1: {"attention": "skip", "phase": "prefill"},
        2: {**SKIP_LAYER, "phase": "decode"},
        3: {"wiring": "parallel", "phase": "prefill"},
    },
    "ratio": {1: HALF, 2: {**HALF, "wiring": "parallel"}, 3: {"token_ratio": 0.3}},
    "scope": {
        0: {"ffn": "skip", "tokens": "image"},
        1: {"attention": "skip", "tokens": "image"},
        3: {"ffn": "skip", "tokens": "text"},
    },
    "frozen": {
        0: {"attention": "keys_only", "ffn": "skip", "tokens": "image"},
        2: {"attention": "keys_only", "tokens": "image"},
        3: {"attention": "keys_only", "phase": "prefill"},
    },
    "roles": {
        0: {"attention": "queries_only", "tokens": "image"},
        1: {**HALF, "rest": "attention", "evict": True},
        2: {**HALF, "rest": "keys_only"},
        3: {**HALF, "phase": "decode"},
    },
    "parallel": {0: {"wiring": "parallel"}, 2: {"wiring": "parallel", "norm": "shared"}, 3: {"wiring": "parallel"}},
}


# The same for a model without images.
TEXT_KINDS: dict[str, dict[int, dict[str, Any]]] = {
    "scope": {0: {"ffn": "skip", "tokens": "text"}, 1: {"attention": "skip", "tokens": "text"}},
    "frozen": {
        1: {"attention": "keys_only", "phase": "prefill"},
        3: {"attention": "keys_only", "ffn": "skip", "phase": "prefill"},
    },
    "roles": {
        0: {"attention": "queries_only", "phase": "decode"},
        2: {"attention": "queries_only", "phase": "prefill"},
    },
}


@dataclass(frozen=True)
class Outcome:
    """`right`, `refused`, or `dense` where the dense model itself does not do it; with the reason."""

    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Dense:
    """Why the dense model does not stand a way.

    Attributes:
        reason: What the page says.
        error: What it raises.
        tried: False where it fails by chance, or computes something else.
    """

    reason: str
    error: Any = Exception
    tried: bool = True


OFFLOADED = Dense("it needs a GPU", tried=False)
HUB = Dense("its code is on the hub", ValueError)
SHARED_POSITIONS = Dense("the dense model keeps the positions of its last input on itself", tried=False)
EVERYWHERE: dict[str, Dense] = {
    "contrastive search": HUB,
    "DoLa": HUB,
    "diverse beams": HUB,
    "constrained beams": HUB,
    "multi-token prediction": Dense("it has no such heads", ValueError),
    "synchronised devices": Dense("it needs a group of processes", ValueError),
    **dict.fromkeys(("offloaded cache", "offloaded_static cache", "offloaded_hybrid cache"), OFFLOADED),
    "offloaded_hybrid_chunked cache": OFFLOADED,
}
MADE_POSITIONS = Dense("the dense model needs positions that `generate` makes", (RuntimeError, IndexError))
IMAGE_LOST = Dense("healing loses the image tokens", ValueError)
WHOLE_CONFIG = Dense("it looks for the number of layers in the configuration of the whole", AttributeError)
DENSE: dict[tuple[str, str], Dense] = {(way, name): dense for way, dense in EVERYWHERE.items() for name in NAMES} | {
    ("threads", "qwen2.5-vl"): SHARED_POSITIONS,
    ("guidance", "qwen2.5-vl"): SHARED_POSITIONS,
    ("guidance without a cache", "qwen2.5-vl"): SHARED_POSITIONS,
    ("a loop by hand", "qwen2.5-vl"): MADE_POSITIONS,
    ("a prompt in two forwards by hand", "qwen2.5-vl"): MADE_POSITIONS,
    ("forward with a mask of four dimensions", "qwen2.5-vl"): Dense("its positions need a mask of two", IndexError),
    ("packed rows", "qwen2.5-vl"): Dense("it does not tell packed rows by such positions", tried=False),
    ("packed rows with lengths", "qwen2.5-vl"): Dense("it does not tell packed rows by such positions", tried=False),
    **{("healed tokens", name): IMAGE_LOST for name in NAMES[1:]},
    **{("assisted by its own first layers", name): WHOLE_CONFIG for name in NAMES[1:]},
}


def policy_for(name: str, kind: str) -> Policy | None:
    """The policy of a kind; None where the model has no images that it could be about."""
    layers = KINDS[kind]
    if name == "llama" and kind == "ratio":
        return None
    if name == "llama":
        layers = TEXT_KINDS.get(kind, layers)
    return Policy.model_validate({"layers": layers})


def committed(text: str) -> str:
    """The table as it stands in the page."""
    return text.split(BEGIN)[1].split(END)[0]


def rendered(ways: Mapping[str, Any], found: Mapping[tuple[str, str, str], Outcome]) -> str:
    """The table, and the reasons below it."""
    reasons: list[str] = []
    lines = [f"| way | {' | '.join(KINDS)} |", f"| --- | {' | '.join([':-:'] * len(KINDS))} |"]
    for way in ways:
        cells = [
            cell({name: found.get((way, name, kind), found.get((way, name, "dense"))) for name in NAMES}, reasons)
            for kind in KINDS
        ]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", *notes, ""])


def cell(outcomes: Mapping[str, Outcome | None], reasons: list[str]) -> str:
    """What holds for all families; where they differ, the families of each."""
    names: dict[str, list[str]] = {}
    for name, outcome in outcomes.items():
        if outcome is not None:
            names.setdefault(word(outcome, reasons), []).append(f"`{name}`")
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{text} {', '.join(those)}" for text, those in names.items())


def word(outcome: Outcome, reasons: list[str]) -> str:
    """A tick, `no` with the number of the error, or a dash with that of the dense model's reason."""
    if outcome.kind == "right":
        return "✓"
    reason = outcome.reason.splitlines()[0]
    if reason not in reasons:
        reasons.append(reason)
    return f"{'no' if outcome.kind == 'refused' else '–'} <sup>{reasons.index(reason) + 1}</sup>"
