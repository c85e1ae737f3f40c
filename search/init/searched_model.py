"""The space of a model that Python searches without a space file: what `skipsearch init` writes, with some keys set."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from ...evaluators.remote.bucket import is_bucket
from ...evaluators.subject import ModelSpec
from ...policies.document import Document
from ...policies.errors import SpaceError
from ..space.checks import exists
from ..space.load import only_one, read_spaces
from ..space.space import LoadedSpace

HUB_ID = r"\w[\w.-]*/\w[\w.-]*(?<!\.yaml)(?<!\.yml)"
TASKS = "evaluate.accuracy.tasks"


def names_model(given: str) -> bool:
    """True for a folder with a model, a bucket, and a hub id such as `org/model` where no file has that path."""
    path = Path(given).expanduser()
    if exists(path):
        return (path / "config.json").is_file()
    return is_bucket(given) or bool(re.fullmatch(HUB_ID, given))


def space_of_model(model: str, overrides: Mapping[str, str]) -> LoadedSpace:
    """The space that `skipsearch init` proposes for a model, named by the model.

    Args:
        model: A hub id, a folder or a bucket.
        overrides: Keys of the space, as YAML by dotted key. Those of the model say how it is read; the tasks decide
            what is proposed for them.

    Raises:
        ModelError: the model cannot be searched.
        SpaceError: an override is wrong.
        UsageError: a task file does not exist.
    """
    # Here, so that a name of a space is told from a model without torch.
    from .init import default_file, new_space
    from .proposal import Wishes

    file = Path.cwd() / default_file(model)
    how = [f"{key.removeprefix('model.')}: {text}" for key, text in overrides.items() if key.startswith("model.")]
    spec = Document("\n".join([f"id: {json.dumps(model)}", *how]), "the model", SpaceError).validate(ModelSpec)
    tasks = yaml.safe_load(overrides.get(TASKS, "[]"))
    wishes = Wishes([str(task) for task in (tasks if isinstance(tasks, list) else [tasks])])
    text = new_space(spec, wishes, file).text
    others = {key: value for key, value in overrides.items() if key != TASKS}
    return only_one(read_spaces(Document(text, str(file), SpaceError), file, others))
