"""The command line, as `--help` prints it."""

import contextlib
import io
import os
import re

from skipsearch.search.cli import COMMANDS, main

NOT_OURS = "lm-eval"  # Its arguments are lm-eval's, and so is what it prints for `--help`.


def command_line() -> str:
    """What the command itself says, and a section for each of its commands."""
    sections = [f"## `{name}`\n\n```text\n{help_of(name)}```\n" for name in COMMANDS if name != NOT_OURS]
    return "\n".join([f"```text\n{help_of()}```\n", *sections])


def help_of(*command: str) -> str:
    """What `skipsearch COMMAND --help` prints on a terminal of 84 columns, without colours."""
    out = io.StringIO()
    before = dict(os.environ)
    os.environ |= {"COLUMNS": "84", "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main([*command, "--help"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
