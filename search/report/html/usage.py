"""How a policy of the front is used: commands that a reader can copy, as values for `policies.html`."""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """One policy.

    Attributes:
        file: Where its file is, or is to be written.
        shell: The command that measures it.
        python: The line that puts it into a model.
        document: The policy itself, where it has no file yet; else empty.
    """

    file: str
    shell: str
    python: str
    document: str = ""


def usage(folder: Path, file: str, document: str = "") -> Usage:
    """The commands that use a policy.

    Args:
        folder: The study's folder, as given on the command line.
        file: The name of its file among the study's policies.
        document: The policy itself, where it has no file yet.
    """
    path = str(folder / "policies" / file)
    python = f"skipsearch.apply_policy(model, skipsearch.Policy.load({path!r}))"
    return Usage(path, shlex.join(["skipsearch", "eval", path]), python, document)
