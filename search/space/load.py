"""Loads a space from its file and the command line, reports every mistake at once, and makes its paths absolute."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...policies.document import Document
from ...policies.errors import PolicyError, SpaceError
from ...policies.policy import SCHEMA as POLICY_SCHEMA
from ...policies.policy import Policy
from ...policies.wording import Key, dotted, hide_passwords, nearest, short
from ..places import SPACES, shipped_spaces
from ..storage_url import absolute_url
from .checks import (
    evaluator_problems,
    exists,
    forbid_problems,
    is_explicit_path,
    metric_problems,
    ranking_problems,
    recover_problems,
    rule_problems,
    size_problems,
    start_problems,
    tied_problems,
)
from .models.checks import model_problems
from .search_settings import is_policy_file
from .space import SCHEMA, LoadedSpace, Space

SHIPPED_TASKS = "tasks/"  # the folder of task files among the shipped spaces


def space_path(given: str) -> Path:
    """The file of a space, from its path or from the name of a shipped space.

    Raises:
        SpaceError: there is neither such a file nor such a name.
    """
    path = Path(given)
    if path.suffix in (".yaml", ".yml") or exists(path):
        return path
    shipped = shipped_spaces()
    if given not in shipped:
        raise SpaceError(
            f"no space is called {short(given)}",
            [nearest(given, list(shipped))],
            "give a path to a YAML file, or one of the shipped names; `skipsearch ls` lists them",
        )
    return shipped[given]


def load_space(given: str, overrides: Mapping[str, str] | None = None) -> LoadedSpace:
    """Load a space of one model.

    Args:
        given: A path, or the name of a shipped space.
        overrides: YAML values by dotted key, such as `search.trials: 20`.

    Raises:
        SpaceError: the file has mistakes, of which the error lists each with its line and column; or several models.
    """
    return only_one(load_spaces(given, overrides))


def only_one(spaces: Sequence[LoadedSpace], instead: str | None = None) -> LoadedSpace:
    """The space of one model.

    Args:
        spaces: A space, once for each of its models.
        instead: What to do with several; None to name one.

    Raises:
        SpaceError: there are several.
    """
    if len(spaces) > 1:
        found = [f"{space.model_name}: {space.model_id}" for space in spaces]
        hint = f"name one of them: --set 'models=[{spaces[0].model_id}]'"
        what = f"the space {spaces[0].name} names {len(spaces)} models, expected one here"
        raise SpaceError(what, found, instead or hint)
    return spaces[0]


def load_spaces(given: str, overrides: Mapping[str, str] | None = None) -> list[LoadedSpace]:
    """Load a space, once for each of its models.

    Args:
        given: See `load_space`.
        overrides: See `load_space`.

    Raises:
        SpaceError: the file has mistakes.
    """
    path = space_path(given)
    return read_spaces(Document.read(path, SpaceError), path, overrides or {})


def read_spaces(document: Document, path: Path, overrides: Mapping[str, str]) -> list[LoadedSpace]:
    """Read the space of a document, once for each of its models.

    Args:
        document: The parsed file.
        path: Where the file is; paths in it are relative to its folder.
        overrides: See `load_space`.

    Raises:
        SpaceError: see `load_spaces`.
    """
    text = document.text
    for key, value in overrides.items():
        override(document, key, value)
        text += f"\n# {given_as(key, value)}"
    space = checked_space(document, path.parent)
    by_name = space.of_each_model() or {"": space}
    names = by_name if len(by_name) > 1 else ("",)
    return [
        LoadedSpace(
            space=with_absolute_paths(one, path.parent),
            name=path.stem,
            text=text,
            model_id=one.model.id,
            model_name=name,
        )
        for name, one in zip(names, by_name.values(), strict=True)
    ]


def checked_space(document: Document, folder: Path) -> Space:
    """The space of a document, as written.

    Args:
        document: The parsed file, with the overrides of the command line.
        folder: The folder of the file.

    Raises:
        SpaceError: the file has mistakes.
    """
    document.require_schema(SCHEMA)
    space, problems = document.checked(Space)
    if space is not None and (too_large := size_problems(document, space)):
        raise document.failure(too_large)
    problems += [*evaluator_problems(document), *metric_problems(document)]
    if space is not None:
        problems += [*rule_problems(document, space), *tied_problems(document, space)]
        problems += [*forbid_problems(document, space), *model_problems(document, space, folder)]
        problems += start_problems(document, space, folder)
        problems += ranking_problems(document, space, folder)
        problems += recover_problems(document, space, folder)
    if space is None or problems:
        raise document.failure(problems)
    return space


def override(document: Document, key: str, value: str) -> None:
    """Set a value from the command line in a document; a number in the key is an index into a list.

    Raises:
        SpaceError: the value is not one YAML value, or the key leads nowhere.
    """
    source = given_as(key, value)
    hint = "name a key and a value as in --set search.trials=20"
    try:
        data = Document(f"value: {value}", "value", SpaceError).check().data
        reasons = ["found several"] if len(data) > 1 else []
    except SpaceError as cause:
        reasons = [line.partition("  ")[2] for line in cause.details]
    if reasons:
        raise SpaceError(f"{source}: expected one YAML value", reasons, hint)
    target: Any = document.data
    path: tuple[Key, ...] = ()
    parts = key.split(".")
    for depth, part in enumerate(parts):
        step: Key = int(part) if isinstance(target, list) and part.isdecimal() else part
        if not (isinstance(target, dict) and part or isinstance(target, list) and step in range(len(target))):
            found = f"{dotted(path) or 'the space'} has no key {short(part)}"
            raise SpaceError(f"{source}: {found}", hint=hint)
        path = (*path, step)
        if depth < len(parts) - 1:
            if isinstance(target, dict) and target.get(step) is None:
                target[step] = {}
            target = target[step]
    document.put(path, data["value"], source)


def given_as(key: str, value: str) -> str:
    """An override as it stands on the command line, in one line and without passwords."""
    return f"--set {key}={hide_passwords(' '.join(value.splitlines()))}"


def with_absolute_paths(space: Space, folder: Path) -> Space:
    """The space with the paths of its model, tasks, policies, ranking, training data and SQLite storage made absolute.

    A model id or task that names no file under the folder is left to the hub, or to the tasks of lm-eval; a task file
    that is not there may be one of those that come with skipsearch.

    Args:
        space: The space.
        folder: The folder of the space file.
    """

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [resolved(entry) for entry in value]
        if not isinstance(value, str):
            return value
        if value.startswith(SHIPPED_TASKS) and not exists(folder / value) and exists(SPACES / value):
            return str((SPACES / value).resolve())
        return str((folder / value).resolve()) if is_path(value, folder) else value

    name = space.model.id
    model_id = str((folder / name).resolve()) if exists(folder / name) else name
    storage = absolute_url(space.study.storage) if space.study.storage else None
    start, recover = space.search.start, space.search.recover
    if recover is not None:
        named = {"data": recover.data, "images": recover.images}
        found = {key: value for key, value in named.items() if value is not None and exists(folder / value)}
        recover = recover.model_copy(update={key: str((folder / value).resolve()) for key, value in found.items()})
    if isinstance(start, list):
        start = [str((folder / entry).resolve()) if is_policy_file(entry) else entry for entry in start]
    ranking = space.width_selection.file
    if ranking is not None:
        ranking = str((folder / ranking).resolve())
    return space.model_copy(
        update={
            "model": space.model.model_copy(update={"id": model_id}),
            "width_selection": space.width_selection.model_copy(update={"file": ranking}),
            "evaluate": resolved(space.evaluate),
            "search": space.search.model_copy(update={"start": start, "recover": recover}),
            "study": space.study.model_copy(update={"storage": storage}),
        }
    )


def is_path(value: str, folder: Path) -> bool:
    """True where a string in an evaluator's options names a file or folder beside the space file."""
    return is_explicit_path(value) or (("/" in value or value.endswith((".yaml", ".yml"))) and exists(folder / value))


def validate_file(path: Path) -> str:
    """Check a space or a policy, told apart by its `schema`.

    Returns:
        `space`, `space of 2 models` or `policy`.

    Raises:
        SpaceError: a space has mistakes, or the file is neither a space nor a policy.
        PolicyError: a policy has mistakes.
    """
    document = Document.read(path, SpaceError)
    if document.require_schema(SCHEMA, POLICY_SCHEMA) == SCHEMA:
        models = len(read_spaces(document, path, {}))
        return "space" if models == 1 else f"space of {models} models"
    document.error = PolicyError
    Policy.read(document)
    return "policy"
