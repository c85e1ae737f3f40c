"""A new space for a model: what its family allows, tried on a small model, and a proposal for the rest."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

from ...evaluators.subject import ModelSpec
from ...policies.document import Document
from ...policies.errors import ModelError, SpaceError
from ...policies.families.layers import decoder_layers
from ...policies.policy import Policy
from ..space.layer_choices import as_options
from ..space.load import only_one, read_spaces
from ..space.space import Space
from .allowed import Allowed, allowed, under_test
from .proposal import Rule, Wishes, costs, rules, tasks
from .read_model import read_model
from .small_model import SmallModel, silence, small_model
from .space_text import SpaceFile

MIXED = 4  # policies of the new space that are tried
NO_CHANGE = "it changes nothing"


@dataclass(frozen=True)
class NewSpace:
    """A new space.

    Attributes:
        text: The text of its file.
        space: The space, with absolute paths.
        found: What the family of its model allows.
        rules: The rules of its layers.
        notes: What the user should know beside it.
    """

    text: str
    space: Space
    found: Allowed
    rules: Sequence[Rule]
    notes: Sequence[str]


def default_file(model: str) -> Path:
    """The file of a new space by the name of its model: `llava-1.5-7b-hf.yaml` for `llava-hf/llava-1.5-7b-hf`."""
    name = Path(model).expanduser().resolve().name if Path(model).expanduser().is_dir() else model.rpartition("/")[2]
    return Path(f"{name or 'space'}.yaml")


def new_space(spec: ModelSpec, wishes: Wishes, file: Path) -> NewSpace:
    """Propose a space for a model.

    Args:
        spec: The model.
        wishes: What the command line asks for.
        file: The file that the space is for; its paths are relative to the file's folder.

    Raises:
        ModelError: the model cannot be searched; the message says what is missing.
        UsageError: a wish names something that does not exist.
    """
    folder = file.parent.resolve()
    chosen = tasks(wishes, False, folder) if wishes.tasks else None
    costs(wishes, False)
    with silence():
        files = read_model(spec)
        small = small_model(files.config, spec.id, spec.trust_remote_code)
        found = allowed(small, spec.id)
    sees = files.takes_images
    notes = [f"Its {'processor' if sees else 'tokenizer'} could not be read, and a search needs it: {files.unread}"]
    proposal = SpaceFile(
        source=spec.id,
        spec=spec.model_copy(update={"id": id_beside(spec.id, folder)}),
        found=found,
        rules=rules(found),
        tasks=chosen or tasks(wishes, sees, folder),
        costs=costs(wishes, sees),
        wishes=wishes,
        takes_images=sees,
        has_chat_template=files.has_chat_template,
        notes=notes if files.unread else [],
    )
    text = proposal.text()
    space = only_one(read_spaces(Document(text, str(file), SpaceError), file, {})).space
    with silence():
        try_policies(space, small, spec.id)
    return NewSpace(text, space, found, proposal.rules, proposal.notes)


def id_beside(model: str, folder: Path) -> str:
    """A model as a file in a folder names it: a hub id, or a folder, absolute or relative as it was given."""
    path = Path(model).expanduser()
    if not path.is_dir() or path.is_absolute():
        return str(path) if path.is_dir() else model
    found = relpath(path, folder)
    return found if found.startswith("..") else f"./{found}"


def try_policies(space: Space, small: SmallModel, name: str) -> None:
    """Run some policies of a new space on the small model; their combinations of keys were not tried one by one.

    Raises:
        ModelError: one of them does not run.
    """
    layers = decoder_layers(small.model)
    tested, _ = under_test(small.model, layers, name)
    for policy in mixed_policies(space, small):
        problem = tested.problem(policy)
        if problem and not problem.startswith(NO_CHANGE):
            choices = ", ".join(f"{index}: {choice.label}" for index, choice in sorted(policy.layers.items()))
            hint = "write a space with fewer choices by hand; spaces/README.md of skipsearch has every key"
            raise ModelError(f"{name} does not run under combinations of its choices", [choices, problem], hint)


def mixed_policies(space: Space, small: SmallModel) -> list[Policy]:
    """Random policies of a space for the small model: each layer has a choice of a layer that it stands for."""
    drawn = random.Random(0)
    domains = space.domains(len(small.stands_for))
    places = {place: index for index, place in enumerate(small.stands_for)}
    selection = space.token_selection
    found = []
    for _ in range(MIXED):
        chosen = {place: drawn.choice(domains[index]) for place, index in places.items()}
        keys = {key: drawn.choice(as_options(getattr(selection, key))) for key in type(selection).model_fields}
        found.append(Policy(layers=chosen, token_selection=selection.selection(keys)))
    return found
