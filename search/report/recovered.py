"""What `recover` prints: the figures of dense, and of the policy before and after training."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from ...evaluators.base import Measurement
from ...recovery.card import Facts
from ..space.units import amount, unit_of, with_error
from .console import Output


def figure_rows(figures: Mapping[str, Mapping[str, Measurement]]) -> list[list[str]]:
    """A row for each metric: its name, and its values of `dense`, `before` and `after`, where known, with units."""
    rows = []
    for name, after in figures.get("after", {}).items():
        unit, before = unit_of(name), figures.get("before", {}).get(name)
        dense = figures["dense"].get(name)
        value = dense.value if dense is not None else after.dense
        cells = ["" if one is None else with_error(one.value, one.stderr, unit) for one in (before, after)]
        rows.append([name, "" if value is None else amount(value, unit), *cells])
    return rows


def print_recovery(folder: Path, facts: Facts, as_json: bool) -> None:
    """Print the figures, and where the weights are."""
    if as_json:
        print(json.dumps({"folder": str(folder), **facts.document()}))
        return
    console = Output()
    if facts.rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("metric", "dense", "before", "after"):
            table.add_column(heading, justify="left" if heading == "metric" else "right")
        for row in facts.rows:
            table.add_row(*row)
        console.print(table)
    text = (
        f"trained {facts.count:,} numbers by {facts.settings.method} in {facts.minutes:.1f} minutes; all is in {folder}"
    )
    console.print(text, highlight=False, soft_wrap=True)
