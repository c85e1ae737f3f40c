"""Refusal of spaces that run code, or load weights that can run code, without consent on the command line."""

import re
import site
import sysconfig
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...policies.errors import SpaceError, UsageError
from ..places import SPACES
from .space import Space

FUNCTION = re.compile(r"!function\s+([\w.]+)")
INCLUDE = re.compile(r"^include:\s*['\"]?([^'\"\s]+)", re.MULTILINE)


def refuse_untrusted(space: Space, options: Namespace, given: Collection[str], key: str = "model") -> None:
    """Refuse a space that runs code which the command line does not allow; a space may come from anywhere.

    Args:
        space: The space, with absolute paths.
        options: The command line, with `trust_task_code`.
        given: Keys of the space that the command line sets.
        key: The key of the model, such as `models.0` for the first of several.

    Raises:
        SpaceError: the space would run code; the error lists it.
    """
    if space.model.trust_remote_code and f"{key}.trust_remote_code" not in given:
        found = f"model {space.model.id} with {key}.trust_remote_code, which runs code that comes with it"
        hint = f"read that code, then add `--set {key}.trust_remote_code=true`"
        raise SpaceError("the space runs code of its model", [found], hint)
    if space.model.weights == "any" and f"{key}.weights" not in given:
        found = f"model {space.model.id} with {key}.weights any: loading a pickle can run code"
        hint = f"convert the weights to safetensors, or add `--set {key}.weights=any`"
        raise SpaceError("the space loads weights that are not safetensors", [found], hint)
    recover = space.search.recover
    named = [space.evaluate, recover.data if recover is not None else None]
    functions = [line for task in task_files(named) for line in task_functions(task, set())]
    if functions and not options.trust_task_code:
        hint = "read these functions, then add `--trust-task-code`"
        raise SpaceError("task files run code that is not from an installed package", [*dict.fromkeys(functions)], hint)


def refuse_untrusted_models(spaces: Sequence[Space], options: Namespace, given: Collection[str]) -> None:
    """Refuse a space for any of its models; see `refuse_untrusted`.

    Args:
        spaces: The space, once for each of its models.
        options: See `refuse_untrusted`.
        given: See `refuse_untrusted`.
    """
    for place, space in enumerate(spaces):
        refuse_untrusted(space, options, given, "model" if len(spaces) == 1 else f"models.{place}")


def task_files(value: Any) -> Iterator[Path]:
    """The YAML files that the options of evaluators name."""
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from task_files(entry)
    elif isinstance(value, str) and value.endswith((".yaml", ".yml")) and Path(value).is_file():
        yield Path(value)


def task_functions(task: Path, seen: set[Path]) -> Iterator[str]:
    """One line for each function that a task file and the files it includes refer to.

    Args:
        task: The task file.
        seen: Files that were read already; is extended.
    """
    path = task.resolve()
    if path in seen or is_installed(path):
        return
    seen.add(path)
    text = path.read_text(encoding="utf-8", errors="replace")
    yield from (f"{path}: {name}" for name in FUNCTION.findall(text))
    for name in INCLUDE.findall(text):
        if (path.parent / name).is_file():
            yield from task_functions(path.parent / name, seen)


def trusted_task(name: str, option: str, trusted: bool) -> str:
    """The task that a command line names: a file, one of a shipped space, or a name that lm-eval knows.

    Args:
        name: What the command line gives.
        option: The option that gives it.
        trusted: True where the command line allows functions of the user's own task files.

    Raises:
        UsageError: a file does not exist.
        SpaceError: it runs code that the command line does not allow.
    """
    if not name.endswith((".yaml", ".yml")):
        if "/" in name or name.endswith((".json", ".jsonl")):
            raise UsageError(f"there is no file {name}", hint=f"name a file, or an lm-eval task, with {option}")
        return name
    path = next((path for path in (Path(name), SPACES / name) if path.is_file()), None)
    if path is None:
        raise UsageError(
            f"there is no file {name}", [f"looked here and in {SPACES}"], f"name a task file with {option}"
        )
    functions = list(task_functions(path, set()))
    if functions and not trusted:
        hint = "read these functions, then add `--trust-task-code`"
        raise SpaceError("task files run code that is not from an installed package", functions, hint)
    return str(path.resolve())


def is_installed(path: Path) -> bool:
    """True for a file of skipsearch or of another installed package."""
    folders = [SPACES, *map(Path, site.getsitepackages())]
    folders += [Path(sysconfig.get_paths()[key]) for key in ("purelib", "platlib")]
    return any(path.is_relative_to(folder.resolve()) for folder in folders)
