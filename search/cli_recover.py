"""The command that trains a model under a policy, and measures it before and after."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..policies.errors import RunError, UsageError
from ..policies.metadata import Measured
from ..policies.policy import Policy
from ..policies.wording import escape_invisible

if TYPE_CHECKING:
    from ..evaluators.base import Measurement
    from ..evaluators.subject import Subject
    from ..recovery.recover import Recovered
    from ..recovery.settings import RecoverySettings
    from .workers.evaluate import PolicyEvaluator
    from .workers.training import TrainingData


def recover(options: argparse.Namespace) -> int:
    """`skipsearch recover`."""
    from ..recovery.settings import RecoverySettings
    from .signals import interruptible
    from .workers.training import describe_run

    policy, settings = Policy.load(options.policy), settings_of(options, RecoverySettings)
    refuse_used(options)
    subject, evaluator = loaded(options)
    data = training_data(options, subject, settings)
    run = describe_run(policy, settings, data, subject)
    try:
        with interruptible():
            done = train(options, policy, settings, data, subject, run)
    except KeyboardInterrupt:
        again = options.command_line if options.resume else [*options.command_line, "--resume"]
        print(f"\ninterrupted; checkpoints are kept in {options.out}\nhint: go on with `{shlex.join(again)}`",
              file=sys.stderr)  # fmt: skip
        return 130
    if done.is_main:
        figures = measured(evaluator, policy, done.policy) if evaluator is not None else {}
        write_and_print(options, done, settings, data, run, figures)
    return 0


def settings_of(options: argparse.Namespace, kind: "type[RecoverySettings]") -> "RecoverySettings":
    """The settings that the command line gives.

    Raises:
        UsageError: a value is wrong; all are listed.
    """
    from pydantic import ValidationError

    given = {name: getattr(options, name) for name in kind.model_fields if getattr(options, name) is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as cause:
        lines = [f"--{str(e['loc'][0]).replace('_', '-')}: found {e['input']!r}; {e['msg']}" for e in cause.errors()]
        raise UsageError("options of the training are wrong", lines, "`skipsearch recover --help` lists them") from None


def refuse_used(options: argparse.Namespace) -> None:
    """Refuse an output folder that has other files than an interrupted training.

    Raises:
        UsageError: it has, or it is a file.
    """
    from ..recovery.checkpoints import CHECKPOINTS

    out = options.out
    if out.exists() and (not out.is_dir() or any(entry.name != CHECKPOINTS for entry in out.iterdir())):
        raise UsageError(f"{out} is not empty", hint="name another folder with --out")


def loaded(options: argparse.Namespace) -> "tuple[Subject, PolicyEvaluator | None]":
    """The model to train, and what measures it; None where no space is given.

    Raises:
        UsageError: both a model and a space are given, or neither.
    """
    import torch

    from ..evaluators.subject import ModelSpec, load_subject
    from .evaluation_space import evaluation_space
    from .options import parse_overrides
    from .space.trust import refuse_untrusted
    from .workers.evaluate import PolicyEvaluator

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # of a run with several GPUs
    if options.model is None:
        space = evaluation_space(options)
        refuse_untrusted(space, options, parse_overrides(options.overrides))
        evaluator = PolicyEvaluator(space)
        return evaluator.subject, evaluator
    if options.space is not None or options.overrides:
        raise UsageError("--model takes the place of --space and --set", hint="give one of them")
    spec = ModelSpec(id=options.model, revision=options.revision, dtype=options.dtype,
                     trust_remote_code=options.trust_remote_code)  # fmt: skip
    return load_subject(spec), None


def training_data(options: argparse.Namespace, subject: "Subject", settings: "RecoverySettings") -> "TrainingData":
    """Read the training examples.

    Raises:
        TrainingDataError: the file has mistakes, or examples that the space measures.
        EvaluatorError: the task has mistakes.
        SpaceError: the task runs code that the command line does not allow.
    """
    from .space.search_settings import data_file
    from .space.trust import trusted_task
    from .workers.training import read_training_data

    file = data_file(options.data)
    tasks = [] if file is not None else [trusted_task(options.data, "--data", options.trust_task_code)]
    return read_training_data(subject, settings, options.data, file, options.images, tasks)


def train(
    options: argparse.Namespace,
    policy: Policy,
    settings: "RecoverySettings",
    data: "TrainingData",
    subject: "Subject",
    run: str,
) -> "Recovered":
    """Train the model under the policy."""
    from ..recovery.recover import recover as run_training

    text = f"training by {settings.method} on {len(data.examples)} examples of {data.source}"
    print(escape_invisible(text), file=sys.stderr)
    return run_training(
        subject.model, subject.processor, policy, data.examples, settings, options.out, run, options.resume
    )


def measured(evaluator: "PolicyEvaluator", policy: Policy, trained: Policy) -> "dict[str, dict[str, Measurement]]":
    """The measurements on the report split, of the dense model, and of the policy before and after training.

    Raises:
        RunError: one could not be measured.
    """
    from ..policies.trained.adapters import adapted_layers, without_adapters
    from ..policies.trained.routers import routed_layers

    # Training may have chosen among adapters, which change nothing before it.
    own = without_adapters(trained.model_copy(update={"weights": None})) if adapted_layers(trained) else policy
    found, states = {}, {"dense": Policy(), "before": own, "after": trained}
    if routed_layers(policy):
        # Routers that are not trained rank nothing.
        del states["before"]
    for name, one in states.items():
        outcome = evaluator.measure(one, list(evaluator.space.evaluate), "report")
        if outcome.failure:
            hint = "the trained weights are kept; `skipsearch eval` measures them"
            raise RunError(f"{name} could not be measured", [outcome.failure], hint)
        found[name] = dict(outcome.measurements)
    return found


def write_and_print(
    options: argparse.Namespace,
    done: "Recovered",
    settings: "RecoverySettings",
    data: "TrainingData",
    run: str,
    figures: "Mapping[str, Mapping[str, Measurement]]",
) -> None:
    """Write the record and the card of a recovery into its folder, and print its figures."""
    from ..recovery.card import Facts, write_record
    from .report.recovered import figure_rows, print_recovery

    entries = {name: of_report(entry, figures["dense"].get(name)) for name, entry in figures.get("after", {}).items()}
    policy = done.policy.model_copy(update={"measured": entries})
    policy.save(options.out / "policy.yaml")
    facts = Facts(
        settings=settings, source=data.source, sha256=data.sha256, examples=done.examples, minutes=done.minutes,
        count=done.count, curve=done.curve, run=json.loads(run), figures=plain(figures), rows=figure_rows(figures),
    )  # fmt: skip
    write_record(options.out, policy, facts)
    print_recovery(options.out, facts, options.json)


def plain(figures: "Mapping[str, Mapping[str, Measurement]]") -> dict[str, Any]:
    """The figures by metric, and in it by state, as plain data."""
    return {
        name: {
            state: {"value": entries[name].value, "stderr": entries[name].stderr, "n": entries[name].n}
            for state, entries in figures.items()
            if name in entries
        }
        for name in figures.get("after", {})
    }


def of_report(entry: "Measurement", dense: "Measurement | None") -> Measured:
    """A measurement on the report split beside the dense model's, as the policy file has it."""
    beside = dense.value if entry.dense is None and dense is not None else entry.dense
    return Measured(value=entry.value, dense=beside, stderr=entry.stderr, iqr=entry.iqr, n=entry.n, split="report")
