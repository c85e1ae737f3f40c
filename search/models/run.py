"""Searches a space with each of several models, one after the other."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ...evaluators.subject import ModelSpec, load_failure, no_progress_bars, read_config
from ...policies.errors import SkipsearchError, StudyError
from ...policies.families.model_errors import is_of_model
from ...policies.wording import escape_invisible
from ..analysis.load_study import SPACE
from ..places import DATABASE, MODELS, holds_study
from ..run import check_folder, run_study
from ..space.space import LoadedSpace
from ..study.opening import exists
from ..study.remote.address import address_of
from .folder import ModelStudies, write_models_folder


def run_models(
    spaces: Sequence[LoadedSpace], folder: Path, name: str, resume: bool = False, shown: bool = True
) -> ModelStudies:
    """Search a space with each of its models, and write what compares them.

    Each model has a study of its own in a folder of its name, which starts from the same seed.

    Args:
        spaces: The space, once for each model.
        folder: The folder above those of the studies; it is created where it does not exist.
        name: What the studies are called before the names of the models.
        resume: Go on with the studies that have begun, and begin the others.
        shown: Show the progress on standard error.

    Raises:
        SkipsearchError: see `run_study`; a model that is not there and a layer that one lacks, before any search.
    """
    studies = [study_of(loaded, folder, name) for loaded in spaces]
    check_models(studies, folder, resume)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPACE).write_text(spaces[0].text, encoding="utf-8")
    (folder / MODELS).write_text(json.dumps({"models": [one.model_name for one in spaces]}) + "\n", encoding="utf-8")
    for place, (loaded, own, own_name) in enumerate(studies, 1):
        if shown:
            text = f"model {place} of {len(spaces)}: {loaded.model_name} ({loaded.model_id})"
            print(escape_invisible(text), file=sys.stderr)
        marked = loaded.model_copy(update={"text": f"{loaded.text}\n# the study of the model {loaded.model_name}\n"})
        run_study(marked, own, own_name, has_begun(loaded, own, own_name), shown)
    return write_models_folder(folder)


def study_of(loaded: LoadedSpace, folder: Path, name: str) -> tuple[LoadedSpace, Path, str]:
    """The space of one model, with the folder and the name of its study."""
    return loaded, folder / loaded.model_name, f"{name}/{loaded.model_name}"


def has_begun(loaded: LoadedSpace, folder: Path, name: str) -> bool:
    """True where the study of one model exists."""
    return exists(folder / DATABASE, address_of(loaded.space, name))


def check_models(studies: Sequence[tuple[LoadedSpace, Path, str]], folder: Path, resume: bool) -> None:
    """Check that every model can be searched, before the search of the first one.

    Raises:
        StudyError: the folder has a study of one model, a study exists, or there is none to resume, see `check_folder`;
            or several models have mistakes.
        ModelError: a model cannot be read.
        SpaceError: the space names a layer that a model does not have.
    """
    if holds_study(folder):
        hint = "give the studies of several models another name with `--name`"
        raise StudyError(f"{folder} holds the study of one model", [f"the space names {len(studies)}"], hint)
    begun = [has_begun(*one) for one in studies]
    if resume and not any(begun):
        expected = [f"expected one in {own}" for _, own, _ in studies]
        raise StudyError(f"{folder} holds no study to resume", expected, "leave out `--resume`")
    failures = []
    for (loaded, own, own_name), exists_already in zip(studies, begun, strict=True):
        try:
            check_folder(own, resume and exists_already, address_of(loaded.space, own_name))
            check_layers(loaded)
        except SkipsearchError as failure:
            failures.append((loaded.model_name, failure))
    if len(failures) == 1:
        raise failures[0][1]
    if failures:
        details = [line for name, one in failures for line in (f"{name}: {one.what}", *(f"  {d}" for d in one.details))]
        hints = dict.fromkeys(one.hint for _, one in failures if one.hint)
        raise StudyError(f"{len(failures)} of {len(studies)} models cannot be searched", details, "; ".join(hints))


def check_layers(loaded: LoadedSpace) -> None:
    """Check the layers that a space names against the configuration of its model, where that counts them.

    Raises:
        ModelError: the configuration cannot be read.
        SpaceError: see `Space.domains`.
    """
    layers = configured_layers(loaded.space.model)
    if layers is not None:
        loaded.space.domains(layers)


def configured_layers(spec: ModelSpec) -> int | None:
    """How many decoder layers a model's configuration names; None where it has no such key.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        with no_progress_bars():
            found = read_config(spec).get_text_config(decoder=True)
    except Exception as cause:
        if not is_of_model(cause):
            raise
        # Reading runs code of the family, which can fail in any way on a configuration that is wrong.
        raise load_failure(spec, cause) from cause
    layers = getattr(found, "num_hidden_layers", None)
    return layers if isinstance(layers, int) else None
