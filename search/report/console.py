"""Console for drawing results on standard output."""

from rich.console import Console


class Output(Console):
    """A rich console that raises `BrokenPipeError` where rich would exit with code 1."""

    def on_broken_pipe(self) -> None:
        """Let the command line end normally, as it does for output that rich did not draw."""
        raise BrokenPipeError
