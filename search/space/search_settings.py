"""How a search runs and where its study is: the `search`, `workers` and `study` sections of a space."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ...policies.choice import StrictModel
from ...policies.wording import nearest, short
from ...recovery.settings import RecoverySettings, TrainingSettings
from ..baselines.registry import BASELINES, SOURCES
from ..storage_url import check_storage_url

START_NAMES = ("schedules", *SOURCES)  # the settings of the space's own schedules, and the baselines
DEFAULT_BASELINES = ("schedules", *(name for name, baseline in BASELINES.items() if not baseline.needs_statistics))

Count = Annotated[int, Field(ge=1, strict=True)]


def is_policy_file(name: str) -> bool:
    """True where an entry of `start` is a policy file, and no baseline."""
    return name.endswith((".yaml", ".yml"))


def check_start(value: Any) -> Any:
    """Check the name of a baseline before pydantic does, so that the message can name the nearest one."""
    if isinstance(value, str) and value not in START_NAMES and not is_policy_file(value):
        raise ValueError(f"unknown baseline {short(value)}; {nearest(value, [*START_NAMES])}")
    return value


START_SCHEMA: dict[str, Any] = {"anyOf": [{"enum": [*START_NAMES]}, {"pattern": r"\.ya?ml$"}]}
StartName = Annotated[str, BeforeValidator(check_start), Field(json_schema_extra=START_SCHEMA)]


class Stop(StrictModel):
    """What ends a search before its trials are spent.

    Attributes:
        stagnation: End the search when the hypervolume has not grown in this many measured trials, counted from the
            first policy that improves on dense.
        gain: The smallest growth that counts, as a share of the hypervolume before those trials.
        minutes: End the search, with the confirmation of its front, after this time. A resumed search counts the time
            of its earlier runs. No trial starts in the time that is reserved for the confirmation and the report.
    """

    stagnation: Count | None = None
    gain: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.005
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class Racing(StrictModel):
    """Early stopping: a trial answers a few examples first, and more only while it may belong to the front.

    Attributes:
        patience: A paused trial is promoted to more examples when it still looks non-dominated after the study has
            grown by this factor. At the end of the search every trial is promoted that is expected to improve the
            front. `none` lets a trial answer until a test stops it. Patience needs a sampler that learns from partial
            results, which is `auto`.
    """

    patience: Annotated[float, Field(ge=1, allow_inf_nan=False)] | Literal["none"] = 3.0


class Recover(TrainingSettings):
    """Short trainings of the best policies, once the search has ended.

    Attributes:
        method: What is trained. Routers and adapters are not: they change what a policy computes, and with it its
            times.
        top: The number of policies to train: those of the front, then those nearest to it.
        survivors: Steps of further rounds: the better half of the policies of a round is trained anew, for so many
            steps (training-aware selection as in DarwinLM). Each is longer than the one before.
        data: A file of training examples, or an lm-eval task with a training split; null takes the training split of
            the tasks that `accuracy` searches on.
        images: The folder that relative paths of a file's images begin at; null takes the file's own.
    """

    method: Literal["lora", "full", "connector"]
    top: Count = 8
    survivors: list[Count] = []
    data: Annotated[str, Field(min_length=1)] | None = None
    images: str | None = None

    @model_validator(mode="after")
    def _has_no_routers(self) -> Self:
        if self.router_loss:
            raise ValueError(f"found router_loss {self.router_loss:g}, and a search trains no routers; leave it out")
        return self

    @model_validator(mode="after")
    def _each_round_is_longer(self) -> Self:
        rounds = [self.steps, *self.survivors]
        if any(later <= earlier for earlier, later in pairwise(rounds)):
            found = ", ".join(map(str, rounds))
            raise ValueError(f"found rounds of {found} steps, expected each of `survivors` to be longer than the last")
        return self

    def training(self, steps: int) -> RecoverySettings:
        """The settings of each training of so many steps."""
        return RecoverySettings(**{**self.model_dump(include={*TrainingSettings.model_fields}), "steps": steps})

    def rounds(self, count: int) -> list[tuple[int, int]]:
        """The steps of each round, and how many policies it trains at most where the first one trains `count`."""
        found = []
        for steps in (self.steps, *self.survivors):
            found.append((steps, count))
            count = (count + 1) // 2
        return found

    @property
    def data_file(self) -> Path | None:
        """The file of training examples; None where `data` names a task, or nothing."""
        return None if self.data is None else data_file(self.data)


def data_file(data: str) -> Path | None:
    """The file that names of training data stand for; None for the name or the YAML file of a task."""
    path = Path(data)
    return path if path.is_file() and path.suffix not in (".yaml", ".yml") else None


class Search(StrictModel):
    """How the search runs.

    Attributes:
        trials: The number of policies to measure, with the dense model; duplicates do not count.
        seed: The seed of the sampler and of all random inputs.
        sampler: skipsearch's own sampler (`auto`), or Optuna's NSGA-II, NSGA-III, TPE or random sampler.
        start: The baselines that the search starts from. `rules` is the space's schedules and the baselines that depend
            on the position of a layer alone; a list names baselines and policy files; `none` leaves the start to the
            sampler.
        max_failures: End the search after this many failed trials in a row.
        stop: What else ends the search.
        racing: When a trial is stopped early; `none` measures every trial on all examples.
        guide: `auto` guides the search by the loss of the right answers, or by the divergence from dense where no right
            answers are known; `none` searches by accuracy alone.
        recover: Train the best policies once the search has ended, and measure them again; null trains none.
    """

    trials: Count = 200
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 0
    sampler: Literal["auto", "nsga2", "nsga3", "tpe", "random"] = "auto"
    start: Literal["rules", "none"] | Annotated[list[StartName], Field(min_length=1)] = "rules"
    max_failures: Count = 10
    stop: Stop = Stop()
    racing: Racing | Literal["none"] = Racing()
    guide: Annotated[Literal["auto", "none"], Field(exclude_if=lambda value: value == "auto")] = "auto"
    recover: Annotated[Recover | None, Field(exclude_if=lambda value: value is None)] = None

    @property
    def baselines(self) -> list[str]:
        """The names of the baselines that the search starts from, `schedules` among them."""
        by_word = {"rules": DEFAULT_BASELINES, "none": ()}
        return [*dict.fromkeys(by_word[self.start] if isinstance(self.start, str) else self.start)]


class Workers(StrictModel):
    """The Ray workers that measure trials.

    Attributes:
        count: The number of models that are loaded at the same time; `auto` is as many as the nodes have room for, by
            `cpus` and `gpus`, also those that join later.
        gpus: The share of a GPU that each worker has, up to 1; its model runs on one GPU.
        cpus: Cores of each worker, which is also its number of threads.
        address: The address of a Ray cluster; null starts a local one.
        timeout: Seconds that a worker may take for a policy; a trial that takes longer fails. `auto` is a minute and
            twenty times what the dense model took; the dense model may take six hours.
        runner: Ray actors under one driver, or Ray Tune.
    """

    count: Count | Literal["auto"] = "auto"
    gpus: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | Literal["auto"] = "auto"
    cpus: Count = 1
    address: str | None = None
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    runner: Literal["actors", "tune"] = "actors"


class StudySettings(StrictModel):
    """Where the study is stored.

    Attributes:
        storage: The URL of a PostgreSQL or SQLite database that holds the study beside others; null stores it as
            `study.db` in its folder. A password is written as `${NAME}`, which stands for an environment variable.
    """

    storage: Annotated[str, AfterValidator(check_storage_url)] | None = None
