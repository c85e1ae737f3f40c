"""The layer map of a report: what every policy of the front leaves out, as values for `layer_map.html`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....policies.choice import LayerChoice
from ...analysis.study_record import StudyRecord, percent_of_dense
from ...space.objectives import first_cost
from ..cells import Cell, cells
from ..layer_map import COLOURS, PAIRS, RESTS, SCOPES, describe

RARE = ("parallel_shared", "keys_only", "queries_only", "adapter")
LEGEND_RATIOS = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Swatch:
    """One cell of the map or of its legend.

    Attributes:
        classes: CSS classes that colour it.
        title: The tooltip; empty in the legend.
        ratio: The layer's own token ratio; None where it has none.
        left: The share of image tokens that earlier layers left over; None where all are left.
        channels: The share of the FFN's channels that run; None where all do.
        heads: The share of the attention's heads that run; None where all do.
        scope: A sign of a pair, letters of the phase and the tokens that the choice is limited to, and of what tokens
            beyond a ratio do.
    """

    classes: str = ""
    title: str = ""
    ratio: str | None = None
    left: str | None = None
    channels: str | None = None
    heads: str | None = None
    scope: str = ""


@dataclass(frozen=True)
class Row:
    """One policy; `name` is that of its row in the table, `text` says in words what it leaves out."""

    name: str
    label: str
    text: str
    cells: list[Swatch]


@dataclass(frozen=True)
class FrontMap:
    """One row per policy, one column per layer, and the legend of what occurs."""

    num_layers: int
    rows: list[Row]
    legend: list[tuple[Swatch, str]]


def front_map(record: StudyRecord, numbers: Iterable[int], prefix: str = "") -> FrontMap:
    """The layer map of some policies.

    Args:
        record: The study.
        numbers: Their trials.
        prefix: Of the names of rows, where a page shows several studies.
    """
    cost = first_cost(record.objectives)
    rows, drawn_cells = [], list[Cell]()
    for number in numbers:
        trial = record.trial(number)
        share = f" · {percent_of_dense(record, trial, cost):.0f} %" if cost is not None else ""
        drawn = cells(trial.policy, record.num_layers)
        pairs = zip(drawn, trial.policy.choices(record.num_layers), strict=True)
        row = [_swatch(index, cell, choice) for index, (cell, choice) in enumerate(pairs)]
        rows.append(Row(f"{prefix}{number}", f"trial {number}{share}", ", ".join(describe(trial.policy)), row))
        drawn_cells += drawn
    return FrontMap(record.num_layers, rows, _legend(drawn_cells))


def _swatch(index: int, cell: Cell, choice: LayerChoice) -> Swatch:
    classes = " ".join(sorted({cell.attention, cell.ffn} - {"keep"}))
    title = f"layer {index}: {choice.label}" + ("" if cell.left is None else f", of the {cell.left:g} left (once)")
    shares = (_ratio(cell.ratio), _ratio(cell.left), _ratio(cell.channels), _ratio(cell.heads))
    return Swatch(classes, title, *shares, cell.pair + cell.phase + cell.tokens + cell.rest)


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


def _legend(drawn: Sequence[Cell]) -> list[tuple[Swatch, str]]:
    """The common choices always, the rare ones where they occur."""
    occurring = {part for cell in drawn for part in (cell.attention, cell.pair, cell.phase, cell.tokens, *cell.rest)}
    names = [name for name in ("keep", *COLOURS) if not name.endswith("_ratio")]
    names = [name for name in names if name not in RARE or name in occurring]
    entries = [(Swatch(name), name.replace("_shared", ", shared norm")) for name in names]
    entries += [(Swatch(ratio=f"{ratio:g}"), f"token_ratio {ratio:g}") for ratio in LEGEND_RATIOS]
    if any(cell.left is not None for cell in drawn):
        entries.append((Swatch(left="0.5"), "left by the layers before (once)"))
    if any(cell.channels is not None for cell in drawn):
        entries.append((Swatch(channels="0.5"), "ffn_ratio 0.5"))
    if any(cell.heads is not None for cell in drawn):
        entries.append((Swatch(heads="0.5"), "head_ratio 0.5"))
    letters = PAIRS | SCOPES | RESTS
    return entries + [(Swatch(scope=letter), text) for letter, text in letters.items() if letter in occurring]
