"""Writes a study's folder: its space and environment, and the files that are derived from the database."""

import hashlib
import itertools
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...evaluators.base import TRANSFER_PREFIX, UNTRAINED_PREFIX, Measurement, Split
from ...policies.errors import PolicyError
from ...policies.hub import copy_ranking
from ...policies.metadata import Measured, Provenance
from ...policies.policy import Policy
from ...policies.version import __version__
from ..analysis.load_study import ENVIRONMENT, SPACE, read_environment, read_record
from ..analysis.study_record import StudyRecord, all_files
from ..analysis.transfer import accuracy_by_task
from ..places import POLICIES
from ..space.space import Space
from ..space.units import EXAMPLE_UNITS, unit_of
from ..trial.modelled_time import ModelledTime
from ..trial.trial_result import TrialResult
from ..workers.devices import processor

DIGESTS = ".written.json"  # SHA-256 of the policy files that were written last
NOT_KEPT = ("node", "pid", "examples", "device_id")  # what a worker says of itself and no later reader needs
PACKAGES = ("torch", "torchao", "transformers", "optuna", "ray", "lm-eval", "datasets", "numpy")


def environment(workers: list[dict[str, Any]], space: Space, model_id: str) -> dict[str, Any]:
    """Versions, hardware and seed of a run."""
    return {
        "skipsearch": __version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "model": model_id,
        "revision": space.model.revision,
        "commit": workers[0].get("commit"),
        "quantization": space.model.loaded_quantization,
        "seed": space.search.seed,
        "workers": [{key: value for key, value in worker.items() if key not in NOT_KEPT} for worker in workers],
        "nodes": len({worker["node"] for worker in workers}),
    }


def package_version(name: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_folder(folder: Path) -> StudyRecord:
    """Write every file that is derived from the database: policies, table, figure and report.

    Raises:
        StudyError: see `read_record`.
    """
    from .html.page import write_report, write_trials_csv

    record = read_record(folder)
    write_policies(record, folder / POLICIES)
    write_trials_csv(record, folder / "trials.csv")
    write_report(record, folder)
    return record


def write_policies(record: StudyRecord, folder: Path) -> None:
    """Write a file per policy of the front and of its wide gaps, by falling cost, and remove those of an older front.

    A file of another origin, or one that was edited since, is kept. It is renamed where its name is needed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digests = read_digests(folder)
    files = all_files(record)
    for old in (*folder.glob("pareto-*.yaml"), *folder.glob("gap-*.yaml")):
        if is_unchanged(old, record, digests):
            old.unlink()
        elif old.name in files.values():
            old.rename(free_name(old))
    digests = {}
    for number, file in files.items():
        policy = exported(record, record.trial(number)).beside(folder.parent)
        policy.save(folder / file)
        with suppress(
            PolicyError
        ):  # Without its ranking a study can be reported, and its policies name what is missing.
            copy_ranking(policy, folder)
        digests[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / DIGESTS).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def read_digests(folder: Path) -> dict[str, str]:
    """SHA-256 by file name of the policies that were written last; empty without a readable list."""
    try:
        return dict(json.loads((folder / DIGESTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def is_unchanged(file: Path, record: StudyRecord, digests: Mapping[str, str]) -> bool:
    """True for a policy file that this study wrote and that was not edited since."""
    if file.name in digests:
        return hashlib.sha256(file.read_bytes()).hexdigest() == digests[file.name]
    try:  # Older releases wrote no digests: compare the content.
        policy = Policy.load(file)
    except PolicyError:
        return False
    return not digests and policy.provenance.study == record.name and policy.to_yaml() == file.read_text("utf-8")


def free_name(file: Path) -> Path:
    """An unused name beside a file that must make room."""
    names = (file.with_name(f"{file.stem}.kept-{number}.yaml") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def exported(record: StudyRecord, trial: TrialResult) -> Policy:
    """A trial's policy with its measurements and its provenance."""
    model = record.model_of(trial.policy)
    provenance = Provenance(study=record.name, trial=trial.number, skipsearch=__version__)
    found = measurements(trial, record.dense) | untrained(record, trial)
    update = {"model": model, "measured": found, "provenance": provenance}
    return trial.policy.model_copy(update=update)


def untrained(record: StudyRecord, trial: TrialResult) -> dict[str, Measured]:
    """What training may change, as it was before the training of a trial's policy; empty for one without weights."""
    before = record.searched.trial(trial.number)
    if trial.policy.weights is None:
        return {}
    found: dict[str, Measured] = {}
    splits: dict[Split, list[Mapping[str, Measurement]]] = {
        "search": [before.search, record.dense.search],
        "report": [before.report, record.dense.report],
    }
    for split, (entries, dense) in splits.items():
        found |= {UNTRAINED_PREFIX + name: measured(entry, dense.get(name), split) for name, entry in entries.items()
                  if name in trial.search and unit_of(name) in EXAMPLE_UNITS}  # fmt: skip
    return found


def measurements(trial: TrialResult, dense: TrialResult) -> dict[str, Measured]:
    """Every measurement beside that of dense.

    Where a metric was measured again on the report split, the value of the search is named `search_…`. The accuracy on
    a transfer task is named `transfer_…`.
    """
    found: dict[str, Measured] = {}
    for name, entry in trial.report.items():
        found[name] = measured(entry, dense.report.get(name), "report")
    for name, entry in trial.search.items():
        if isinstance(entry, ModelledTime) and entry.is_predicted:
            continue  # A policy file has nothing but measurements.
        split: Split | None = "search" if name in trial.report else None
        found[f"search_{name}" if split else name] = measured(entry, dense.search.get(name), split)
    references = accuracy_by_task(dense.transfer)
    for name, task in accuracy_by_task(trial.transfer).items():
        value = references[name].value if name in references else None
        found[TRANSFER_PREFIX + name] = Measured(
            value=task.value, dense=value, stderr=task.stderr, n=task.n, split="transfer"
        )
    return found


def measured(entry: Measurement, dense: Measurement | None, split: Split | None) -> Measured:
    """One measurement for the policy file; a time is paired with that of dense which was interleaved with it."""
    dense_value = entry.dense if entry.dense is not None else (dense.value if dense else None)
    modelled, stderr = None, entry.stderr
    if isinstance(entry, ModelledTime) and entry.dense is not None:
        modelled, stderr = entry.estimate.ratio * entry.dense, entry.estimate.error * entry.dense
    return Measured(
        value=entry.value, dense=dense_value, stderr=stderr, iqr=entry.iqr, n=entry.n, split=split, modelled=modelled
    )


def start_folder(folder: Path, text: str, facts: Mapping[str, Any], resume: bool) -> None:
    """Write the space and the environment of a run, before anything is measured.

    The environment is that of the study's first run. Each resumed run is listed in it with what differs.
    """
    (folder / SPACE).write_text(text, encoding="utf-8")
    # Without `resume`, an environment in the folder is left over from a study that was removed.
    first = read_environment(folder / ENVIRONMENT) if resume else {}
    if first:
        differences = {key: value for key, value in facts.items() if key == "started" or first.get(key) != value}
        facts = first | {"resumed": [*first.get("resumed", []), differences]}
    (folder / ENVIRONMENT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
