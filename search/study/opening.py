"""Opens a study for a search: creates it or resumes it, checks what it was made for, and enqueues its first trials."""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage

from ...policies.errors import StudyError
from ..baselines.dense_stats import DENSE_STATS, DenseStats
from ..space.fingerprint import Digests
from ..space.parameters import Parameters
from ..space.space import Space
from .remote.address import Address, address_of, read_address, study_exists, write_address
from .remote.remote_study import open_url
from .samplers import population_size
from .storage import open_storage
from .warm_start import initial_points
from .write_through import WriteThrough

DIGESTS = "digests.json"  # beside the study: the digests of large weight files, which take long to compute

# Attributes of a study.
GUIDE = "guide"  # the metric of the loss that guides it
IDENTITY = "facts"  # what it was made for
QUEUED = "starts"  # the initial points of a guided search that wait for its probes


def exists(path: Path, address: Address | None) -> bool:
    """True where there is a study, in its folder or at its address.

    Raises:
        StudyError: the database of the address cannot be used.
    """
    return path.exists() if address is None else study_exists(address)


def check_free(path: Path, resume: bool, address: Address | None = None) -> None:
    """Check before a search that its study does not exist, or that the study to resume does.

    Args:
        path: The database in the study's folder.
        resume: True to resume a study.
        address: Where the study is, if not in its folder.

    Raises:
        StudyError: the study exists and is not to be resumed, or does not exist and is; or the folder has a study that
            is elsewhere.
    """
    check_place(path, address)
    found = exists(path, address)
    place = path.parent if address is None else address.url
    called = "" if address is None else f" called {address.name}"
    if found and not resume:
        raise StudyError(
            f"{place} already holds a study{called}",
            hint="go on with it with `--resume`, or give the new one another name with `--name`",
        )
    if resume and not found:
        expected = f"expected {path if address is None else address}"
        raise StudyError(f"{place} holds no study{called} to resume", [expected], "leave out `--resume`")


def check_place(path: Path, address: Address | None) -> None:
    """Refuse a folder whose study is at another place than the space says.

    Raises:
        StudyError: naming both places.
    """
    kept = read_address(path.parent)
    if kept == address and not (address and path.exists()):
        return
    if kept is None and not path.exists():
        return
    raise StudyError(
        f"the study of {path.parent} is at another place than the space says",
        [f"the folder: {path if kept is None or path.exists() else kept}", f"the space: {address or path}"],
        "give the same `study.storage` as when it was begun, or another `--name`; "
        "where the database has moved, correct storage.json in the folder",
    )


def open_or_create(path: Path, name: str, space: Space) -> tuple[optuna.Study, WriteThrough]:
    """Open the study of a search; create it if there is none.

    In the database of its own folder it is opened under whatever name it has there.

    Returns:
        The study and its storage.

    Raises:
        StudyError: its database cannot be used, or holds another program's study of this name.
    """
    address = address_of(space, name)
    database = open_database(path, address)
    names = optuna.get_all_study_names(database)
    if address is not None:
        names = [one for one in names if one == name]
    if not names:
        optuna.create_study(study_name=name, storage=database, directions=list(space.objectives.values()))
        names = [name]
    if address is not None:
        write_address(path.parent, address)
    storage = WriteThrough(database, names[0])
    study = optuna.load_study(study_name=names[0], storage=storage)
    if address is not None and IDENTITY not in study.user_attrs and (study.user_attrs or study.get_trials(False)):
        hint = "give this study another name with `--name`"
        raise StudyError(f"{address} is not of skipsearch", [f"it has {len(study.trials)} trials"], hint)
    return study, storage


def open_database(path: Path, address: Address | None) -> RDBStorage:
    """Open the database of a study for writing; create what is missing.

    Raises:
        StudyError: the database of the address cannot be used.
    """
    return open_storage(path) if address is None else open_url(address.url)


def study_identity(path: Path, space: Space, num_layers: int, commit: str | None) -> dict[str, Any]:
    """What a study is made for: a fingerprint of space, model and tasks, the layer count, and the model's commit.

    Args:
        path: The database.
        space: The search space.
        num_layers: The number of the model's decoder layers.
        commit: The model's commit on the hub; None for a local model.
    """
    fingerprint = space.fingerprint(Digests(path.with_name(DIGESTS)))
    return {"fingerprint": fingerprint, "num_layers": num_layers, **({} if commit is None else {"commit": commit})}


def check_identity(study: optuna.Study, identity: Mapping[str, Any], path: Path, model_id: str) -> None:
    """Check that a study was made for the same space, model and tasks; a study that has not begun passes.

    Args:
        study: The study.
        identity: See `study_identity`.
        path: The database, for messages.
        model_id: The model, for messages.

    Raises:
        StudyError: it was made for others.
    """
    kept, commit = study.user_attrs.get(IDENTITY), identity.get("commit")
    if kept is None:
        return
    if kept.get("commit", commit) != commit:
        raise StudyError(
            "the study was made for another model",
            [f"{path}: commit {kept['commit']} of {model_id}", f"the model now: commit {commit}"],
            "set `model.revision` to the study's commit, or give the new study another `--name`",
        )
    if any(kept[key] != identity[key] for key in ("fingerprint", "num_layers")):
        raise StudyError(
            "the study was made for another space, model or task",
            [f"{path}: fingerprint {kept['fingerprint']} with {kept['num_layers']} layers",
             f"the space now: fingerprint {identity['fingerprint']} with {identity['num_layers']} layers"],
            "resume with the space file and the `--set` it was begun with, or give the new study another `--name`",
        )  # fmt: skip


def begin_study(
    study: optuna.Study,
    space: Space,
    parameters: Parameters,
    identity: Mapping[str, Any],
    model_id: str,
    stats: DenseStats,
    guide: str | None,
) -> None:
    """Write a new study's attributes, and enqueue the dense model as trial 0 and then the initial points.

    In a guided search the greedy path replaces the default baselines, and the initial points that remain wait for the
    probes of that path: see `enqueue_waiting`.

    Args:
        study: The study.
        space: The search space.
        parameters: The parameters of the space.
        identity: See `study_identity`.
        model_id: The name of the model.
        stats: Statistics of the dense model, where a baseline needs them.
        guide: The metric of the loss that guides the search; None where accuracy alone does.
    """
    study.set_user_attr(GUIDE, guide)
    study.set_user_attr(IDENTITY, dict(identity))
    if stats.forwards:
        study.set_user_attr(DENSE_STATS, stats.to_dict())
    study.set_user_attr("model_id", model_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(list(space.objectives))
    study.enqueue_trial(parameters.labels())
    budget = space.search.trials
    replaced = guide is not None and space.search.start == "rules"
    baselines = [] if replaced else space.search.baselines
    points = initial_points(parameters, baselines, min(population_size(budget), budget) - 1, stats)
    plain = [{"labels": dict(point.labels), "rule": point.baseline} for point in points]
    if guide is None:
        enqueue(study, plain)
    else:
        study.set_user_attr(QUEUED, plain)


def enqueue(study: optuna.Study, points: Iterable[Mapping[str, Any]]) -> None:
    """Enqueue initial points, each with its baseline."""
    for point in points:
        study.enqueue_trial(point["labels"], user_attrs={"rule": point["rule"]})


def enqueue_waiting(study: optuna.Study) -> None:
    """Enqueue the initial points that wait for the probes of a guided search, once."""
    enqueue(study, study.user_attrs.get(QUEUED) or ())
    study.set_user_attr(QUEUED, None)
