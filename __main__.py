"""The command `skipsearch`, and what it says where only the packages for applying policies are installed."""

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done, 1 the run failed, 2 the input is wrong or a package is missing, 130 interrupted.
    """
    try:
        if "_ARGCOMPLETE" in os.environ:  # A shell asks what may stand at the cursor.
            from .search.completion import complete

            complete()
        from .search.cli import main as run

        return run(arguments)
    except ModuleNotFoundError as error:
        print(f"error: the command needs the package {error.name}, which is not installed", file=sys.stderr)
        print("hint: pip install skipsearch; applying a policy from Python does not need it", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
