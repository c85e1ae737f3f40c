"""Trains a worker's model under a policy with the settings of `search.recover`, and measures the trained policy."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from ...policies.errors import PolicyError, RunError
from ...policies.policy import Policy
from ...recovery.settings import RecoverySettings
from ..space.guide_metrics import QUALITY
from ..space.search_settings import Recover
from ..trial.outcome import Outcome
from .evaluate import PolicyEvaluator, failed

if TYPE_CHECKING:
    from ...evaluators.subject import Subject
    from ...recovery.examples import Example
    from ...recovery.recover import Recovered

TIMED_STEPS = 4  # of which the first is slower than the others and does not count
NO_FIGURES = "The policy file that names these weights has the figures, measured by the search that trained them."


@dataclass(frozen=True)
class TrainingData:
    """The examples that a model is trained on, and where they come from.

    Attributes:
        examples: The examples.
        source: The file or the tasks.
        sha256: Of the file, or of the prompts, answers and pixels of a task's examples.
    """

    examples: "list[Example]"
    source: str
    sha256: str


def read_training_data(
    subject: "Subject", settings: RecoverySettings, source: str, file: Path | None, images: Path | None,
    tasks: Sequence[str],
) -> TrainingData:  # fmt: skip
    """Read the training examples, of a file or of tasks' training splits.

    Args:
        subject: The model, with what is measured of it.
        settings: How many examples are needed, and their order.
        source: What the record of the training calls the data.
        file: The file; None for tasks.
        images: The folder that relative paths of a file's images begin at; None takes the file's own.
        tasks: lm-eval's names of the tasks, or their files.

    Raises:
        TrainingDataError: the data has mistakes, or examples that a split of the subject measures.
        EvaluatorError: a task is unknown, or malformed, or has no training split of its own.
    """
    from ...evaluators.prompts import image_placeholder
    from ...evaluators.training_examples import refuse_measured, training_examples
    from ...recovery.chat import chat_template
    from ...recovery.examples import Example, read_examples, with_placeholder

    placeholder = image_placeholder(subject) if subject.is_multimodal else None
    if file is not None:
        examples = read_examples(file, images or file.parent, placeholder, chat_template(subject.processor))
        data = TrainingData(examples, source, hashlib.sha256(file.read_bytes()).hexdigest())
    else:
        devices = int(os.environ.get("WORLD_SIZE", "1"))
        count = settings.steps * settings.batch_size * settings.accumulate * devices
        found = training_examples(tasks, count, settings.seed)
        digest = hashlib.sha256()
        for example in found:
            digest.update(repr((example.prompt, example.answer)).encode())
            for image in example.images:
                digest.update(image.tobytes())
        examples = [Example(with_placeholder(e.prompt, placeholder), e.answer, e.images) for e in found]
        data = TrainingData(examples, source, digest.hexdigest())
    refuse_measured(((one.prompt, one.images) for one in examples), subject.examples.values(), placeholder)
    return data


def describe_run(policy: Policy, settings: RecoverySettings, data: TrainingData, subject: "Subject") -> str:
    """What is trained on what, by which an interrupted training is known."""
    facts = {
        "policy": policy.fingerprint,
        "model": subject.spec.model_dump(exclude={"device"}),
        "settings": settings.model_dump(exclude={"save_every"}),
        "data": data.sha256,
        "devices": int(os.environ.get("WORLD_SIZE", "1")),
    }
    return json.dumps(facts, sort_keys=True)


class Training:
    """The trainings of one worker, which read their data once.

    Args:
        evaluator: The worker's model and evaluators.
        settings: The settings.

    Raises:
        TrainingDataError: the data has mistakes, or examples that a split of the space measures.
        EvaluatorError: a task is unknown, or malformed, or has no training split of its own.
    """

    def __init__(self, evaluator: PolicyEvaluator, settings: Recover) -> None:
        self._evaluator, self._settings, self._subject = evaluator, settings, evaluator.subject
        tasks = [settings.data] if settings.data is not None else searched_tasks(evaluator)
        images = None if settings.images is None else Path(settings.images)
        source = settings.data or f"the training split of {', '.join(tasks)}"
        longest = settings.training(settings.rounds(1)[-1][0])
        self._data = read_training_data(self._subject, longest, source, settings.data_file, images, tasks)

    def step_seconds(self, study: Path | None = None) -> float:
        """The seconds of an optimiser step of the dense model, which is more work than that of a policy.

        Args:
            study: The folder of the study, whose weights this worker is to write; None without a study.

        Raises:
            SkipsearchError: the model cannot be trained.
            OSError: this worker does not see the folder of the study.
        """
        from ...recovery.recover import recover

        if study is not None:
            refuse_unseen(study)
        settings = self._settings.training(TIMED_STEPS).model_copy(update={"save_every": TIMED_STEPS})
        with tempfile.TemporaryDirectory() as folder:
            curve = recover(
                self._subject.model, self._subject.processor, Policy(), self._data.examples, settings, Path(folder), ""
            ).curve
        return (curve[-1].seconds - curve[0].seconds) / (curve[-1].step - curve[0].step)

    def recover(self, policy: Policy, names: Sequence[str], folder: Path, steps: int) -> Outcome:
        """Train the model under a policy, and measure the trained policy on all examples of the search split.

        A training that was interrupted goes on from its last checkpoint, and one that had ended is not repeated.

        Args:
            policy: The policy, without trained weights.
            names: The evaluators that measure it.
            folder: The folder for the weights, which the driver has made.
            steps: Of the training.

        Returns:
            The measurements, with the seconds of the training in `training`; an error becomes the outcome's failure.
        """
        started = time.perf_counter()
        try:
            trained, seconds = self._trained(policy, folder, self._settings.training(steps))
            outcome = self._evaluator.measure(trained, names)
        except Exception as cause:  # Whatever a policy does to a training is the result of its recovery.
            outcome, seconds = failed(cause), time.perf_counter() - started
        total = time.perf_counter() - started
        if outcome.fault == "memory":
            self._evaluator.free_memory()
        elif outcome.failure and outcome.fault == "policy":
            shutil.rmtree(folder, ignore_errors=True)
        return replace(outcome, seconds={**outcome.seconds, "training": seconds, "total": total})

    def _trained(self, policy: Policy, folder: Path, settings: RecoverySettings) -> tuple[Policy, float]:
        """The policy with its trained weights, and the seconds of their training."""
        from ...recovery.checkpoints import CHECKPOINTS
        from ...recovery.recover import recover

        refuse_unseen(folder)
        run = describe_run(policy, settings, self._data, self._subject)

        def keep(done: "Recovered") -> None:
            write_record_of(done, settings, self._data, run, folder)

        # A worker whose driver was killed may still train for a moment.
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if (minutes := finished_minutes(folder, run)) is not None:
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
                return Policy.load(folder), 60 * minutes
            model, processor = self._subject.model, self._subject.processor
            done = recover(model, processor, policy, self._data.examples, settings, folder, run, True, keep)
        return done.policy, 60 * done.minutes


def searched_tasks(evaluator: PolicyEvaluator) -> list[str]:
    """The tasks that the accuracy of a search is measured on."""
    from ...evaluators.accuracy.accuracy import AccuracyOptions

    return AccuracyOptions.model_validate(evaluator.space.evaluate[QUALITY]).tasks_of("search")


def refuse_unseen(folder: Path) -> None:
    """Refuse a folder that the driver has made and this worker does not see.

    Raises:
        OSError: with an errno that counts as a fault of the machine.
    """
    if not folder.is_dir():
        raise OSError(errno.ENODEV, f"{folder} is not there: the nodes of a search that trains need one file system")


def finished_minutes(folder: Path, run: str) -> float | None:
    """The minutes of a training that has ended; None where the folder has none, or that of other settings or data."""
    from ...recovery.card import RECORD

    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        trained = Policy.load(folder)
        if trained.weights is None or record["run"] != json.loads(run):
            return None
        trained.weights.check(folder)
    except (OSError, ValueError, KeyError, PolicyError):
        return None
    return float(record["minutes"])


def write_record_of(
    done: "Recovered", settings: RecoverySettings, data: TrainingData, run: str, folder: Path
) -> None:  # fmt: skip
    """Write the record and the card of a training into its folder."""
    from ...recovery.card import Facts, write_record

    facts = Facts(
        settings=settings, source=data.source, sha256=data.sha256, examples=done.examples, minutes=done.minutes,
        count=done.count, curve=done.curve, run=json.loads(run), figures={}, rows=[], no_rows=NO_FIGURES,
    )  # fmt: skip
    write_record(folder, done.policy, facts)


def require(settings: Recover | None) -> Recover:
    """The settings of the trainings.

    Raises:
        RunError: the space has none.
    """
    if settings is None:
        raise RunError("the space trains no policy", ["found no `search.recover`"])
    return settings
