"""The table of what works for which family: what should, what the contract suite found, and the page that says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from contract import CHOICES, Choice

from families import CASES, FAMILIES, LAYERS, REFUSED, Family, built

ORACLES = {"F": "forward", "C": "cached decode", "P": "padded batch", "B": "beam search", "T": "torch.compile"}
TEXT = ("skip_ffn", "skip_attention", "skip_layer", "parallel", "norm: shared", "phase")
IMAGES = ("tokens", "token_ratio", "reselect: once")
# Choices in which tokens take part in an attention in another way.
TEXT_ROLES, IMAGE_ROLES = ("keys_only", "queries_only"), ("roles: tokens", "rest", "evict")
TEXT_WIDTHS, IMAGE_WIDTHS = ("ffn_ratio", "head_ratio"), ("ffn_ratio: tokens", "head_ratio: tokens")
TEXT_COLUMNS = (*TEXT, *TEXT_ROLES, *TEXT_WIDTHS, "pair")
IMAGE_COLUMNS = (*IMAGES, *IMAGE_ROLES, *IMAGE_WIDTHS, "window")
PAGE = Path(__file__).parents[1] / "policies" / "README.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
Verdicts = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Refusal:
    """A choice that layers of some kind refuse.

    Attributes:
        layers: The numbers of those layers in a family.
        choice: True for such a choice.
        error: Words of the error.
        reason: What the page says.
    """

    layers: Callable[[Family], tuple[int, ...]]
    choice: Callable[[Choice], bool]
    error: str
    reason: str


def limited(choice: Choice) -> bool:
    return "phase" in choice or "tokens" in choice


def without_image_tokens(family: Family) -> tuple[int, ...]:
    return tuple(range(LAYERS)) if family.cross or not family.image_tokens else ()


def skips_images(choice: Choice) -> bool:
    """True for the choice that is another spelling of a token ratio of zero."""
    return choice.get("tokens") == "image" and choice.get("attention") == choice.get("ffn") == "skip"


def needs_keys(choice: Choice) -> bool:
    """True for a choice about the keys and values of single tokens."""
    roles = {"keys_only", "queries_only"} & {choice.get("attention"), choice.get("rest")}
    return bool(roles) or "evict" in choice or ("token_ratio" in choice and choice.get("phase") == "decode")


def with_own_function(family: Family) -> tuple[int, ...]:
    """The layers of families whose attention does not use transformers' table of attention functions."""
    return tuple(range(LAYERS)) if family.name.split("-")[0] in ("falcon", "gptj") else ()


def without_pairs(family: Family) -> tuple[int, ...]:
    """The layers that the decoder does not hand on to the next one as they are."""
    return (0, 1) if family.name == "qwen3-vl" else ()


def without_grids(family: Family) -> tuple[int, ...]:
    """The layers of families whose grid of image tokens is not known."""
    return tuple(range(LAYERS)) if family.image_tokens and not family.grids and family.name != "llava-mistral" else ()


def with_experts(family: Family) -> tuple[int, ...]:
    """The layers whose FFN is a mixture of experts."""
    if family.name == "deepseek-v3":
        return tuple(range(1, LAYERS))
    named = "moe" in family.name or family.name in ("mixtral", "gpt-oss", "qwen3-next")
    return tuple(range(LAYERS)) if named else ()


def with_biased_experts(family: Family) -> tuple[int, ...]:
    """The layers whose experts have biases, and gates and values in turn."""
    return tuple(range(LAYERS)) if family.name == "gpt-oss" else ()


def with_sinks(family: Family) -> tuple[int, ...]:
    """The layers whose heads each have a logit of their own."""
    return tuple(range(LAYERS)) if family.name == "gpt-oss" else ()


def with_joint_norms(family: Family) -> tuple[int, ...]:
    """The layers that normalise the queries of all heads together."""
    return tuple(range(LAYERS)) if family.name in ("olmo2", "olmoe") else ()


def with_one_key(family: Family) -> tuple[int, ...]:
    """The layers whose heads all have the same keys, or the same latent ones."""
    names = ("falcon", "falcon-sequential", "minicpm3", "deepseek-v3")
    return tuple(range(LAYERS)) if family.name in names else ()


def divides_heads(choice: Choice) -> bool:
    """True for a share of the heads beside tokens that have all heads."""
    return "head_ratio" in choice and (limited(choice) or choice.get("rest") == "attention")


REFUSALS = (
    Refusal(
        lambda family: family.linear,
        lambda choice: "window" in choice,
        "its attention does not take its attention function from transformers' table",
        "layers without attention refuse a window",
    ),
    Refusal(
        lambda family: tuple(range(LAYERS)) if family.name == "llava-mistral" else (),
        lambda choice: "window" in choice,
        "its attention is not causal over the whole sequence",
        "layers with a sliding window refuse another window",
    ),
    Refusal(
        without_grids,
        lambda choice: "window" in choice,
        "is not known",
        "the rows and columns of its image tokens are not known, so `window` is refused",
    ),
    Refusal(
        without_pairs,
        lambda choice: choice.get("wiring") == "pair",
        "the decoder changes the hidden states between them",
        "what the vision tower saw is added after its first layers, so these begin no pair",
    ),
    Refusal(
        lambda family: tuple(layer - 1 for layer in family.cross),
        lambda choice: choice.get("wiring") == "pair",
        "one of them attends to an image",
        "layers that attend to the image are in no pair: the decoder leaves them out where there is none",
    ),
    Refusal(
        lambda family: tuple(range(LAYERS)),
        lambda choice: "head_ratio" in choice and needs_keys(choice),
        "take part with all heads",
        "`head_ratio` goes with neither `keys_only`, `queries_only` nor evictions",
    ),
    Refusal(
        lambda family: family.linear + family.cross,
        lambda choice: "head_ratio" in choice,
        "it has no attention between tokens",
        "layers without attention between tokens refuse `head_ratio`",
    ),
    Refusal(
        with_sinks,
        lambda choice: "head_ratio" in choice,
        "no plain projections: sinks",
        "its heads have attention sinks, so `head_ratio` is refused",
    ),
    Refusal(
        with_joint_norms,
        lambda choice: "head_ratio" in choice,
        "not one norm that each head has alone",
        "it normalises the queries of all heads together, so `head_ratio` is refused",
    ),
    Refusal(
        with_one_key,
        divides_heads,
        "all its heads have the same keys",
        "all heads have the same keys, so `head_ratio` is for all tokens and both phases",
    ),
    Refusal(
        with_biased_experts,
        lambda choice: "ffn_ratio" in choice,
        "its mixture of experts has a part of another build",
        "its experts have biases, so `ffn_ratio` is refused",
    ),
    Refusal(
        lambda family: family.linear + family.cross,
        needs_keys,
        "it does not store a key for each token",
        "layers without a key for each token refuse `keys_only`, `queries_only` and evictions",
    ),
    Refusal(
        with_own_function,
        lambda choice: choice.get("attention") == "queries_only",
        "does not take its attention function from transformers' table",
        "its attention is written out and takes no other attention function, so `queries_only` is refused",
    ),
    Refusal(
        without_image_tokens,
        lambda choice: bool({"token_ratio", "window"} & {*choice}) or choice.get("tokens") == "image",
        "so no choice can be about them",
        "the image is not among the tokens, so choices about image tokens are refused",
    ),
    Refusal(
        lambda family: family.linear,
        lambda choice: (
            choice.get("attention") == "skip"
            and (limited(choice) or choice.get("rest") == "attention")
            and not skips_images(choice)
        ),
        "a recurrence that some tokens skip has no state for the others",
        "layers with a recurrence instead of attention refuse to skip it in one phase, or for some tokens: "
        "it would have no state for the others",
    ),
    Refusal(
        lambda family: family.cross,
        lambda choice: limited(choice) and not skips_images(choice) and choice.get("wiring") != "pair",
        "attention to the image is for all tokens and both phases",
        "layers that attend to the image refuse choices for one phase",
    ),
    Refusal(
        lambda family: family.cross,
        lambda choice: choice.get("attention") == "skip" and "ffn" not in choice,
        "a decode step leaves the layer out where nothing of the image is stored",
        "layers that attend to the image refuse to skip the attention alone: transformers leaves such a layer out of a "
        "decode step when it stored nothing",
    ),
)


def refused(name: str, layer: int, choice: Choice) -> list[Refusal]:
    """Why a layer refuses a choice; nothing where it takes it."""
    family = FAMILIES[name]
    return [refusal for refusal in REFUSALS if layer in refusal.layers(family) and refusal.choice(choice)]


def columns_of(name: str) -> tuple[str, ...]:
    """The columns of a family."""
    return TEXT_COLUMNS + IMAGE_COLUMNS if FAMILIES[name].image_tokens else TEXT_COLUMNS


def refusals_of(name: str, column: str) -> list[list[Refusal]]:
    """Why each choice of a column is refused in each layer; nothing where it is taken."""
    return [refused(name, layer, choice) for layer in range(LAYERS) for choice in CHOICES[column]]


def works(name: str, column: str) -> bool:
    """True where some layer of the family takes some choice of the column."""
    return column in columns_of(name) and [] in refusals_of(name, column)


def declared() -> Verdicts:
    """The oracles that should hold."""
    return {
        (name, column): oracles_of(name, column) if works(name, column) else ""
        for name in FAMILIES
        for column in columns_of(name)
    }


def oracles_of(name: str, column: str) -> str:
    """What the choices of a column are held against.

    Choices about tokens do not compile to one graph, nor do experts of different widths.
    """
    of_widths = column in TEXT_WIDTHS and with_experts(FAMILIES[name])
    return "FCPBT" if column in TEXT_COLUMNS and not of_widths else "FCPB"


def notes_of(name: str) -> list[str]:
    """What transformers itself cannot do with a family."""
    notes = [f"eager attention alone: {why}" for (other, _), why in REFUSED.items() if other == name]
    if FAMILIES[name].one_image:
        notes.append("beam search with one image a row: transformers confuses the images of a row that has several")
    return notes


class Recorder:
    """A plugin of pytest that collects what the tests found, and writes it when they all passed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[tuple[str, str, str], set[str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Tests say what works as a property, so that it comes from the workers of xdist too."""
        if report.when != "call" or not report.passed:
            return
        for name, value in report.user_properties:
            if name == "works":
                family, attention, columns, oracles = value
                for column in columns:
                    self.found.setdefault((family, attention, column), set()).update(oracles)

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        """Write the table; nothing is written where a test failed or the tests show something else than is declared."""
        verdicts = self.verdicts()
        differing = {key: (found, declared()[key]) for key, found in verdicts.items() if found != declared()[key]}
        for (name, column), (found, wanted) in differing.items():
            terminalreporter.write_line(f"{name}, {column}: found {found or 'nothing'}, declared {wanted or 'refused'}")
        if exitstatus == 0 and not differing:
            page = self.path.read_text()
            head, rest = page.split(BEGIN)
            made = f"Made with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}.\n"
            self.path.write_text(head + BEGIN + rendered(verdicts) + "\n" + made + END + rest.split(END)[1])
            terminalreporter.write_line(f"wrote {self.path}")
        else:
            terminalreporter.write_line(f"{self.path} is left as it was")

    def verdicts(self) -> Verdicts:
        """The oracles that hold under every attention implementation the family has."""
        found = {}
        for name, column in declared():
            kinds = [self.found.get((name, kind, column), set()) for family, kind in CASES if family == name]
            # A model is compiled under one of them.
            holds = set.intersection(*kinds) | (set.union(*kinds) & {"T"})
            found[name, column] = "".join(letter for letter in ORACLES if letter in holds)
        return found


def rendered(verdicts: Verdicts) -> str:
    """The tables, and the reasons of what does not work."""
    reasons: list[str] = []
    lines = []
    for title, columns in (
        ("Text models", TEXT_COLUMNS),
        ("Models that see images", TEXT_COLUMNS + IMAGE_COLUMNS),
    ):
        names = [name for name in FAMILIES if columns_of(name) == columns]
        lines += [f"### {title}", "", line(["family", "class", *columns])]
        lines += [line(["---"] * 2 + [":-:"] * len(columns))]
        for name in names:
            cells = [cell(name, column, verdicts[name, column], reasons) for column in columns]
            lines.append(line([numbered(f"`{name}`", notes_of(name), reasons), class_of(name), *cells]))
        lines.append("")
    return "\n".join(lines + [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]) + "\n"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(name: str, column: str, holds: str, reasons: list[str]) -> str:
    """A tick or the letters that hold, and the numbers of the reasons."""
    why = [refusals[0].reason for refusals in refusals_of(name, column) if refusals]
    return numbered("✓" if holds == ("FCPBT" if column in TEXT_COLUMNS else "FCPB") else holds or "no", why, reasons)


def numbered(text: str, why: list[str], reasons: list[str]) -> str:
    """The text with the numbers of its reasons, which join the list of all."""
    reasons += [reason for reason in dict.fromkeys(why) if reason not in reasons]
    numbers = sorted({reasons.index(reason) + 1 for reason in why})
    return f"{text} <sup>{', '.join(map(str, numbers))}</sup>" if numbers else text


def class_of(name: str) -> str:
    """The name of the model's class, and of its language model's kind where that is another."""
    model = built(name, "eager")
    title = f"`{type(model).__name__}`"
    kind = model.config.get_text_config().model_type
    return title if kind.startswith(model.config.model_type) else f"{title}, {kind}"


def committed(page: str) -> str:
    """The tables as they stand in the page."""
    return re.sub(r"\nMade with .*\n", "", page.split(BEGIN)[1].split(END)[0])


def taken(name, layers):
    """The choices, without those that the layers of the family refuse, and without pairs that cannot be."""
    taken = {number: choice for number, choice in layers.items() if not refused(name, number, choice)}
    for number in sorted(taken):
        paired = taken[number].get("wiring") == "pair"
        if paired and (number == LAYERS - 1 or taken.get(number - 1, {}).get("wiring") == "pair"):
            alone = {key: value for key, value in taken[number].items() if key != "wiring"}
            taken |= {number: {} if refused(name, number, alone) else alone}
    return taken
