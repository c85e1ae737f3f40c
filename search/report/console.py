"""Drawing results on standard output."""

from rich.console import Console


class Output(Console):
    """A console that leaves a reader who went away to the command line, where rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """Let the command end as it does for output that rich did not draw."""
        raise BrokenPipeError
