"""Console for drawing results on standard output."""

import os
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

PIPE_WIDTH = 160  # A pipe and a file have no edge; rich takes 80 columns for them.


class Output(Console):
    """A rich console that raises `BrokenPipeError` where rich would exit with code 1.

    Args:
        options: The options of rich's console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = PIPE_WIDTH

    def on_broken_pipe(self) -> None:
        """Let the command line end normally, as it does for output that rich did not draw."""
        raise BrokenPipeError

    def print_table(self, table: Table) -> None:
        """Print a table; where the terminal is too narrow for it, the cells of each row one below the other."""
        needed = Measurement.get(self, self.options.update(max_width=10_000), table).maximum
        if needed <= self.width:
            self.print(table)
            return
        others = table.columns[1:]
        cells = zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
        for name, *values in cells:
            self.print(name, style="bold", markup=False, highlight=False)
            for column, value in zip(others, values, strict=True):
                if value:
                    self.print(f"  {column.header}: {value}", markup=False, highlight=False)
