"""How the spaces of several studies differ: what was allowed where, and which settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....policies.choice import KEEP, LayerChoice
from .axes import flattened
from .studies import ComparedStudy

# Facts of a run that say what it was run with. When it ran and on how many nodes changes no result.
ENVIRONMENT_KEYS = ("skipsearch", "python", "system", "processor", "cores", "packages")
WORKER_KEYS = ("device", "dtype", "attention")


def allowed(studies: Sequence[ComparedStudy]) -> dict[str, list[str]]:
    """By key of a layer's choice and value, the layers that each study allows it in; only where they differ.

    Args:
        studies: The studies.

    Returns:
        Such as `{"attention: skip": ["all", "2-last"]}`.
    """
    maps = [_layers_by_value(study) for study in studies]
    values = dict.fromkeys(value for one in maps for value in one)
    rows = {
        value: [_ranges(one.get(value, []), study.record.num_layers) for one, study in zip(maps, studies, strict=True)]
        for value in values
    }
    return {value: cells for value, cells in rows.items() if len(set(cells)) > 1}


def _layers_by_value(study: ComparedStudy) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for layer, choices in enumerate(study.space.domains(study.record.num_layers)):
        for value in dict.fromkeys(value for choice in choices for value in _values(choice)):
            found.setdefault(value, []).append(layer)
    return found


def _values(choice: LayerChoice) -> list[str]:
    """What a choice changes, by key."""
    dense = KEEP.model_dump()
    changed = [f"{key}: {value}" for key, value in choice.model_dump().items() if value != dense[key]]
    return changed or ["keep"]


def _ranges(layers: Sequence[int], num_layers: int) -> str:
    """Layers as ranges, such as `2-last`; `nowhere` for none."""
    if not layers:
        return "nowhere"
    if len(layers) == num_layers:
        return "all"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    last = num_layers - 1
    texts = (f"{run[0]}" if len(run) == 1 else f"{run[0]}-{'last' if run[-1] == last else run[-1]}" for run in runs)
    return ", ".join(texts)


def settings(studies: Sequence[ComparedStudy]) -> dict[str, list[str]]:
    """By key path of the space or the environment, the value in each study; only where they differ."""
    flat = [_settings(study) for study in studies]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = {key: [str(one[key]) if key in one else "–" for one in flat] for key in keys}
    return {key: cells for key, cells in rows.items() if len(set(cells)) > 1}


def _settings(study: ComparedStudy) -> dict[str, Any]:
    space = study.space.model_dump(mode="json", by_alias=True)
    space["model"]["id"] = study.record.model_id
    environment: Mapping[str, Any] = study.record.environment
    run = {key: environment[key] for key in ENVIRONMENT_KEYS if key in environment}
    workers = environment.get("workers", [])
    run["workers"] = {key: sorted({str(worker.get(key)) for worker in workers}) for key in WORKER_KEYS if workers}
    return {key: _without_folders(value) for key, value in flattened(space | {"environment": run}).items()}


def _without_folders(value: Any) -> Any:
    """A value with file names in the place of absolute paths, which differ where a study was moved."""
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
