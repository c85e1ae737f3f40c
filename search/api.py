"""For notebooks and programs: runs a search and reads a study, as the commands `run` and `report` do."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import yaml

from ..policies.document import Document
from ..policies.errors import SpaceError, UsageError
from .init.searched_model import names_model, space_of_model
from .places import DATABASE, RESULTS, refuse_several, study_folder, study_path
from .report.notebook import Study
from .space.load import load_spaces, only_one, read_spaces
from .space.space import SCHEMA, LoadedSpace, Space
from .space.trust import refuse_untrusted, refuse_untrusted_models


def search(
    space: str | Path | Space | Mapping[str, Any],
    *,
    name: str | None = None,
    out: str | Path = RESULTS,
    resume: bool = True,
    quiet: bool = False,
    trust_task_code: bool = False,
    trials: int | None = None,
    seed: int | None = None,
    sampler: str | None = None,
    address: str | None = None,
    **overrides: Any,
) -> Study:
    """Search a space, and write what `skipsearch run` writes.

    Run again with the same arguments, it goes on with a search that was interrupted, and reads one that has ended.

    Args:
        space: The path of a space file, the name of a shipped space, a space, or its keys as a mapping. Or a model: a
            folder, a hub id such as `org/model`, or `s3://bucket/folder`; its space is the one that `skipsearch init`
            writes. Paths in a mapping, and of tasks of a model, are relative to the working directory.
        name: The study's name, and that of its folder; None for the space's, or for that of the model where no file
            gives the space a name.
        out: The folder above the study's.
        resume: Go on with the study in the folder where there is one; False refuses one that exists.
        quiet: Show no progress.
        trust_task_code: Run the functions that your own task files name.
        trials: How many trials to spend, `search.trials` of the space.
        seed: `search.seed` of the space.
        sampler: `search.sampler` of the space.
        address: Of a Ray cluster, `workers.address` of the space.
        overrides: Other keys of the space; two underscores stand for the dot of `--set`, as in
            `evaluate__accuracy__search__limit=50`.

    Raises:
        SkipsearchError: what the command refuses, as the same exception.
    """
    from .run import run_study
    from .study.opening import exists
    from .study.remote.address import address_of

    flags = {"search.trials": trials, "search.seed": seed, "search.sampler": sampler, "workers.address": address}
    given = {key: value for key, value in flags.items() if value is not None} | dotted_keys(overrides)
    loaded = only_one(
        load(space, as_texts(given)), "search it with `skipsearch.search_models`, or name one in `models`"
    )
    refuse_untrusted(loaded.space, Namespace(trust_task_code=trust_task_code), given)
    name = loaded.name if name is None else name
    folder = study_folder(Path(out), name)
    with saying_what_is_kept(folder):
        begun = exists(folder / DATABASE, address_of(loaded.space, name))
        record = run_study(loaded, folder, name, resume and begun, shown=not quiet)
    return Study(record, folder)


def search_models(
    space: str | Path | Space | Mapping[str, Any],
    *,
    name: str | None = None,
    out: str | Path = RESULTS,
    resume: bool = True,
    quiet: bool = False,
    trust_task_code: bool = False,
    **overrides: Any,
) -> dict[str, Study]:
    """Search a space with each of its `models`, and write what `skipsearch run` writes.

    Args:
        space: See `search`.
        name: The name of the folder above those of the studies; None for the space's, or for those of the models.
        out: See `search`.
        resume: See `search`.
        quiet: See `search`.
        trust_task_code: See `search`.
        overrides: Keys of the space, as in `search__trials=20`.

    Returns:
        By the name of a model, its study.

    Raises:
        SkipsearchError: what the command refuses, as the same exception.
    """
    from .models.run import has_begun, run_models, study_of

    given = dotted_keys(overrides)
    spaces = load(space, as_texts(given))
    if len(spaces) == 1:
        found = [f"found {spaces[0].model_id}"]
        raise UsageError("search_models takes a space of several `models`", found, "use `search` for one model")
    refuse_untrusted_models([loaded.space for loaded in spaces], Namespace(trust_task_code=trust_task_code), given)
    name = spaces[0].name if name is None else name
    folder = study_folder(Path(out), name)
    with saying_what_is_kept(folder):
        begun = any(has_begun(*study_of(loaded, folder, name)) for loaded in spaces)
        studies = run_models(spaces, folder, name, resume and begun, shown=not quiet)
    return {model: Study(record, folder / model) for model, record in studies.records.items()}


def dotted_keys(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a space as `--set` has them: two underscores stand for the dot."""
    return {key.replace("__", "."): value for key, value in overrides.items()}


def as_texts(given: Mapping[str, Any]) -> dict[str, str]:
    """Values of Python as YAML, by key."""
    return {key: as_yaml(key, value) for key, value in given.items()}


@contextmanager
def saying_what_is_kept(folder: Path) -> Iterator[None]:
    """Say where the trials are when the search is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; finished trials are kept in {folder}: run this again to go on", file=sys.stderr)
        raise


def load_study(study: str | Path, out: str | Path = RESULTS) -> Study:
    """Read a study, also while its search runs.

    Args:
        study: Its folder, or its name under `out`.
        out: The folder above the studies.

    Raises:
        StudyError: there is no study, its dense trial has not finished, or it is damaged.
    """
    from .analysis.load_study import read_record

    folder = study_path(str(study), Path(out))
    refuse_several(folder, "read one of these")
    return Study(read_record(folder), folder)


def load(space: str | Path | Space | Mapping[str, Any], overrides: Mapping[str, str]) -> list[LoadedSpace]:
    """Load a space from whatever describes it, once for each of its models.

    Args:
        space: See `search`.
        overrides: Other values of its keys, as YAML by dotted key.

    Raises:
        SpaceError: it has mistakes.
        ModelError: it is a model that cannot be searched.
        UsageError: it is none of these, or holds a value that YAML has no form for.
    """
    if isinstance(space, str | Path) and names_model(str(space)):
        return [space_of_model(str(space), overrides)]
    if isinstance(space, str | Path):
        return load_spaces(str(space), overrides)
    if not isinstance(space, Space | Mapping):
        found = f"found {type(space).__name__}, expected a path, a name, a Space or a mapping"
        raise UsageError("this is no space", [found], "`skipsearch ls` lists the shipped spaces")
    keys = space.model_dump(mode="json", by_alias=True) if isinstance(space, Space) else {"schema": SCHEMA, **space}
    if isinstance(space, Space) and space.models:
        del keys["model"]
    text = as_yaml("the space", keys, flow=False)
    spaces = read_spaces(Document(text, "the space", SpaceError), Path.cwd() / "space.yaml", overrides)
    name = "-".join(loaded.model_name or PurePath(loaded.model_id).name for loaded in spaces)
    return [loaded.model_copy(update={"name": name}) for loaded in spaces]


def as_yaml(key: str, value: Any, flow: bool = True) -> str:
    """A value of Python as YAML, in one line where it is in flow style.

    Raises:
        UsageError: YAML has no form for it.
    """
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": float("inf")}
    try:
        text: str = yaml.safe_dump(plain(value), default_flow_style=flow, **options)
    except yaml.YAMLError:
        hint = "give numbers, text, lists and mappings"
        raise UsageError(f"{key} cannot be written as YAML", [f"found {value!r}"], hint) from None
    return text.removesuffix("...\n").rstrip("\n")


def plain(value: Any) -> Any:
    """A value with paths as text and tuples as lists, inside lists and mappings too."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, PurePath) else value
