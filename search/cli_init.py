"""`skipsearch init MODEL`: a space file for a model, from its configuration alone."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..policies.errors import UsageError
from ..policies.wording import escape_invisible

if TYPE_CHECKING:
    from .init.init import NewSpace

PRINTED = Path("-")


def add_init_options(init: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    init.add_argument("model", metavar="MODEL", help="a hub id or folder; its weights are not read")
    init.add_argument("-o", "--output", type=Path, metavar="FILE",
                      help="the new file; - prints it (default: by the model's name)")  # fmt: skip
    init.add_argument("--tasks", action="append", default=[], metavar="TASKS",
                      help="lm-eval's names, task files and folders, with commas between; repeatable")  # fmt: skip
    init.add_argument("--keep", type=share, default=0.9, metavar="SHARE",
                      help="the share of the dense accuracy that a policy must keep (default: 0.9)")  # fmt: skip
    init.add_argument("--minimize", action="append", default=[], metavar="METRICS",
                      help="the costs to minimise, such as ttft_ms, with commas between; repeatable")  # fmt: skip
    init.add_argument("--trials", type=count, default=200, metavar="N", help="policies to measure (default: 200)")
    init.add_argument("--limit", type=count, metavar="N",
                      help="examples of each task that guide the search; five times as many report")  # fmt: skip
    init.add_argument("--revision", help="a branch, tag or commit of the model on the hub")
    init.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
                      help="of the weights (default: as they were saved)")  # fmt: skip
    init.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a share above 0 and up to 1, such as 0.95")
    return value


def count(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of 1 or more")
    return int(text)


def init(options: argparse.Namespace) -> int:
    """`skipsearch init`."""
    from ..evaluators.subject import ModelSpec
    from .init.init import default_file, new_space
    from .init.proposal import Wishes

    file = default_file(options.model) if options.output is None else options.output
    if options.json and file == PRINTED:
        raise UsageError("-o - prints the file, and --json something else", hint="name a file, or leave out --json")
    refuse_existing(file)
    spec = ModelSpec(id=options.model, revision=options.revision, dtype=options.dtype,
                     trust_remote_code=options.trust_remote_code)  # fmt: skip
    wishes = Wishes(parts(options.tasks), options.keep, parts(options.minimize), options.trials, options.limit)
    new = new_space(spec, wishes, Path("space.yaml") if file == PRINTED else file)
    if file == PRINTED:
        print(new.text, end="")
    else:
        write(file, new.text)
    tell(new, options, file)
    return 0


def parts(given: list[str]) -> list[str]:
    """The names in lists with commas."""
    return [name.strip() for names in given for name in names.split(",") if name.strip()]


def refuse_existing(file: Path, option: str = "-o") -> None:
    """Refuse a file that exists, or whose folder does not.

    Args:
        file: The file.
        option: Which names it.

    Raises:
        UsageError: naming it.
    """
    if file != PRINTED and (file.exists() or file.is_symlink()):
        printed = ", or print it with -o -" if option == "-o" else ""
        raise UsageError(f"{file} exists", hint=f"name another file with {option}{printed}")
    if not file.parent.is_dir():
        raise UsageError(
            f"the folder {file.parent} does not exist", hint=f"make it, or name another file with {option}"
        )


def write(file: Path, text: str) -> None:
    """Write a new file.

    Raises:
        UsageError: it exists by now.
    """
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        refuse_existing(file)
        raise


def tell(new: "NewSpace", options: argparse.Namespace, file: Path) -> None:
    """Print what was found out about the family, and what to do next."""
    named = Path("FILE") if file == PRINTED else file
    commands = [shlex.join(["skipsearch", command, str(named), *trusts(new, options)]) for command in ("plan", "run")]
    refused = {key: support.reason for key, support in new.found.offered.items() if support.reason}
    if options.json:
        keys = {rule.range: list(rule.keys) for rule in new.rules}
        found = {"file": str(file), "model": options.model, "num_layers": new.found.num_layers, "layers": keys,
                 "refused": refused, "no_images": new.found.no_images, "next": commands}  # fmt: skip
        print(json.dumps(found))
        return
    to = sys.stderr if file == PRINTED else sys.stdout
    for note in new.notes:
        print(escape_invisible(f"note: {note}"), file=sys.stderr)
    for key, reason in refused.items():
        print(escape_invisible(f"left out: {key.replace('_', ' ')}: {reason}"), file=sys.stderr)
    if file != PRINTED:
        print(escape_invisible(f"wrote {file}, for a model of {new.found.num_layers} layers"), file=to)
    print(escape_invisible(f"next: {commands[1]}\n  or: {commands[0]}, which says first how long it takes"), file=to)


def trusts(new: "NewSpace", options: argparse.Namespace) -> list[str]:
    """The arguments without which a search of the space would be refused."""
    from .space.trust import task_files, task_functions

    found = ["--set", "model.trust_remote_code=true"] if options.trust_remote_code else []
    seen: set[Path] = set()
    has_functions = any(True for task in task_files(new.space.evaluate) for _ in task_functions(task, seen))
    return [*found, *(["--trust-task-code"] if has_functions else [])]
