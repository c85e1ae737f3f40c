"""What a new space proposes: its tasks, objectives and bound, and which layers may do what."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from os.path import relpath
from pathlib import Path

from ...evaluators.base import Metric, declared_metrics
from ...policies.errors import UsageError
from ...policies.wording import nearest
from ..places import SPACES
from .allowed import PAIR, Allowed

IMAGE_TASKS = ("tasks/pope.yaml", "tasks/gqa.yaml", "tasks/textvqa.yaml")
TEXT_TASKS = ("arc_easy", "hellaswag")
IMAGE_COSTS, TEXT_COSTS = ("prefill_flops", "ttft_ms"), ("decode_flops", "tpot_ms")
SMALL_DEPTH = 8  # layers; in a model of fewer the first layers are not left alone
QUALITY = "accuracy"


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for.

    Attributes:
        tasks: Names of tasks, task files and folders of them; empty for those that the kind of model suggests.
        keep: The share of the dense accuracy that a policy must keep.
        minimize: The costs to minimise; empty for those that the kind of model suggests.
        trials: The number of policies to measure.
        limit: How many examples of each task guide the search; None leaves it to the tasks.
    """

    tasks: Sequence[str] = ()
    keep: float = 0.9
    minimize: Sequence[str] = ()
    trials: int = 200
    limit: int | None = None


@dataclass(frozen=True)
class Rule:
    """A range of layers that allow the same keys.

    Attributes:
        first: The first layer.
        last: The last layer.
        keys: The keys of `OFFERED` that they allow, in its order.
        optional: The keys of `OPTIONAL` that all of them allow.
    """

    first: int
    last: int
    keys: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The range as a space has it."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def costs(wishes: Wishes, with_images: bool) -> list[str]:
    """The metrics to minimise.

    Raises:
        UsageError: a wish is no metric, or one of which more is better.
    """
    known = declared_metrics()
    for name in wishes.minimize:
        metric: Metric | None = known.get(name)
        if metric is None:
            costs_of_all = [name for name, one in known.items() if one.direction == "minimize"]
            hint = f"known costs are {', '.join(costs_of_all)}"
            raise UsageError(f"no evaluator measures {name!r}", [nearest(name, [*known])], hint)
        if metric.direction != "minimize":
            hint = "its bound is set with --keep" if name == QUALITY else "leave it out, or write it into the space"
            raise UsageError(f"--minimize {name}: more of it is better", hint=hint)
    return [*dict.fromkeys(wishes.minimize)] or [*(IMAGE_COSTS if with_images else TEXT_COSTS)]


def tasks(wishes: Wishes, with_images: bool, folder: Path) -> list[str]:
    """The tasks, as a space in a folder names them.

    Raises:
        UsageError: a file or a folder does not exist, or holds no task.
    """
    if not wishes.tasks:
        return [*(IMAGE_TASKS if with_images else TEXT_TASKS)]
    return [*dict.fromkeys(found for wish in wishes.tasks for found in tasks_of(wish, folder))]


def tasks_of(wish: str, folder: Path) -> list[str]:
    """The tasks that a wish stands for: the files of a folder, a file, or a name of lm-eval.

    Raises:
        UsageError: see `tasks`.
    """
    path = Path(wish).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if is_task_file(file))
        if not files:
            raise UsageError(f"no task is in the folder {wish}", ["expected YAML files with a key `task`"])
        return [from_folder(file, folder) for file in files]
    if path.suffix not in (".yaml", ".yml"):
        return [wish]
    if not path.is_file() and (SPACES / wish).is_file():
        return [wish]  # one that comes with skipsearch
    if not path.is_file():
        raise UsageError(f"task file {wish} does not exist", hint="paths of --tasks are relative to this folder")
    if not is_task_file(path):
        raise UsageError(f"{wish} is no task of lm-eval", ["expected a key `task`"], "name a task file")
    return [from_folder(path, folder)]


def is_task_file(path: Path) -> bool:
    """True for a YAML file with lm-eval's key `task`."""
    named = path.suffix in (".yaml", ".yml") and path.is_file()
    return named and bool(re.search(r"^task:", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))


def from_folder(path: Path, folder: Path) -> str:
    """A path as a file in a folder names it: absolute where it was given so, else relative to the folder."""
    return str(path) if path.is_absolute() else relpath(path, folder)


def rules(found: Allowed) -> list[Rule]:
    """The rules of the layers, first to last: the first layers are kept, and neighbours that allow the same are one."""
    kept = 0 if found.num_layers < SMALL_DEPTH else 1 + bool(found.selections)
    keys = [() if index < kept else keys_of(found, index) for index in range(found.num_layers)]
    runs = [(allowed, [*members]) for allowed, members in groupby(range(found.num_layers), keys.__getitem__)]
    return [Rule(members[0], members[-1], allowed, optional_keys(found, members)) for allowed, members in runs]


def optional_keys(found: Allowed, layers: Sequence[int]) -> tuple[str, ...]:
    """The keys of `OPTIONAL` that all of some layers allow; the last layer of the model begins no pair."""
    begins = [index for index in layers if index < found.num_layers - 1] or layers
    needed = {key: begins if key == PAIR else layers for key in found.optional}
    return tuple(key for key, one in found.optional.items() if {*needed[key]} <= one.layers)


def keys_of(found: Allowed, layer: int) -> tuple[str, ...]:
    """The keys that a layer allows; skipping the whole layer is part of skipping either sublayer."""
    keys = tuple(key for key, support in found.offered.items() if layer in support.layers)
    usable = keys if found.selections else tuple(key for key in keys if key != "token_ratio")
    return tuple(key for key in usable if key != "skip_layer" or not {"attention", "ffn"} <= {*usable})
