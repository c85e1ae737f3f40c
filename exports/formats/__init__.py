"""Text formats of other tools, written and read; see `table.FORMATS`."""
