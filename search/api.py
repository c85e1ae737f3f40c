"""For notebooks and programs: runs a search and reads a study, as the commands `run` and `report` do."""

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from ..policies.document import Document
from ..policies.errors import SpaceError, UsageError
from .places import DATABASE, RESULTS, study_folder, study_path
from .report.notebook import Study
from .space.load import load_space, read_space
from .space.space import SCHEMA, LoadedSpace, Space
from .space.trust import refuse_untrusted


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
        space: The path of a space file, the name of a shipped space, a space, or its keys as a mapping. Paths in a
            mapping are relative to the working directory.
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
    given = {key: value for key, value in flags.items() if value is not None}
    given |= {key.replace("__", "."): value for key, value in overrides.items()}
    loaded = load(space, {key: as_yaml(key, value) for key, value in given.items()})
    refuse_untrusted(loaded.space, Namespace(trust_task_code=trust_task_code), given)
    name = loaded.name if name is None else name
    folder = study_folder(Path(out), name)
    try:
        begun = exists(folder / DATABASE, address_of(loaded.space, name))
        record = run_study(loaded, folder, name, resume and begun, shown=not quiet)
    except KeyboardInterrupt:
        print(f"interrupted; finished trials are kept in {folder}: run this again to go on", file=sys.stderr)
        raise
    return Study(record, folder)


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
    return Study(read_record(folder), folder)


def load(space: str | Path | Space | Mapping[str, Any], overrides: Mapping[str, str]) -> LoadedSpace:
    """Load a space from whatever describes it.

    Raises:
        SpaceError: it has mistakes.
        UsageError: it is none of these, or holds a value that YAML has no form for.
    """
    if isinstance(space, str | Path):
        return load_space(str(space), overrides)
    if not isinstance(space, Space | Mapping):
        found = f"found {type(space).__name__}, expected a path, a name, a Space or a mapping"
        raise UsageError("this is no space", [found], "`skipsearch ls` lists the shipped spaces")
    keys = space.model_dump(mode="json", by_alias=True) if isinstance(space, Space) else {"schema": SCHEMA, **space}
    text = as_yaml("the space", keys, flow=False)
    loaded = read_space(Document(text, "the space", SpaceError), Path.cwd() / "space.yaml", overrides)
    return loaded.model_copy(update={"name": PurePath(loaded.model_id).name})


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
