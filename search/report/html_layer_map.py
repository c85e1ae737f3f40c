"""The layer map of a report: what every policy of the front leaves out, as HTML."""

from html import escape

from ...policies.choice import LayerChoice
from ..analysis.study_record import StudyRecord, percent_of_dense, policy_files
from ..space.objectives import first_cost
from .layer_map import COLOURS, SCOPES, Cell, cells

RATIO_LEGEND = (0.75, 0.5, 0.25)


def map_section(record: StudyRecord) -> str:
    """One row a front policy, one column a layer."""
    cost = first_cost(record.objectives)
    rows, occurring = [], set[str]()
    for number in policy_files(record):
        trial = record.trial(number)
        share = f" · {percent_of_dense(record, trial, cost):.0f} %" if cost is not None else ""
        drawn = cells(trial.policy, record.num_layers)
        choices = trial.policy.choices(record.num_layers)
        row = "".join(_cell(index, *pair) for index, pair in enumerate(zip(drawn, choices, strict=True)))
        rows.append(f'<a href="#trial-{number}">trial {number}{share}</a>{row}')
        occurring |= {part for one in drawn for part in (one.attention, one.phase, one.tokens)}
        occurring |= {"once"} if any(one.left is not None for one in drawn) else set()
    ticks = "".join(f"<span>{index if index % 5 == 0 else ''}</span>" for index in range(record.num_layers))
    grid = f'<div class="map" style="--layers:{record.num_layers}"><span>layer</span>{ticks}{"".join(rows)}</div>'
    return f'{_legend(occurring)}<div class="scroll">{grid}</div>' if rows else ""


def _cell(index: int, drawn: Cell, choice: LayerChoice) -> str:
    tokens = "" if drawn.ratio is None else f'<u style="--r:{drawn.ratio:g}"></u>'
    tokens += "" if drawn.left is None else f'<u class="left" style="--r:{drawn.left:g}"></u>'
    scope = f"<b>{drawn.phase}{drawn.tokens}</b>" if drawn.phase or drawn.tokens else ""
    kinds = {drawn.attention, drawn.ffn} - {"keep"}
    title = f"layer {index}: {choice.label}" + ("" if drawn.left is None else f", of the {drawn.left:g} left (once)")
    return f'<i class="{" ".join(sorted(kinds))}" title="{escape(title)}">{tokens}{scope}</i>'


def _legend(occurring: set[str]) -> str:
    """The common choices, and of the others those that occur."""
    names = [name for name in ("keep", *COLOURS) if name != "token_ratio"]
    names = [name for name in names if name != "parallel_shared" or name in occurring]
    entries = [(f'<i class="{name}"></i>', name.replace("_shared", ", shared norm")) for name in names]
    entries += [(f'<i><u style="--r:{ratio:g}"></u></i>', f"token_ratio {ratio:g}") for ratio in RATIO_LEGEND]
    if "once" in occurring:
        entries.append(('<i><u class="left" style="--r:0.5"></u></i>', "left by the layers before (once)"))
    entries += [(f"<i><b>{letter}</b></i>", text) for letter, text in SCOPES.items() if letter in occurring]
    items = "".join(f"<span>{swatch}{name}</span>" for swatch, name in entries)
    return f'<div class="legend">{items}</div>'
