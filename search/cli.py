"""The command `skipsearch`: results go to standard output, the log and errors to standard error."""

import argparse
import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..policies.errors import ProofError, RunError, SkipsearchError, UsageError
from ..policies.families.model_errors import is_out_of_memory
from ..policies.wording import escape_invisible, first_line
from .cli_compare import compare
from .cli_exports import export, import_policy, lm_eval, serve
from .cli_init import init
from .cli_ls import ls
from .cli_plan import plan
from .cli_rank import rank
from .cli_recover import recover
from .options import parse_options, parse_overrides
from .places import MODELS, refuse_several, study_folder, study_path

if TYPE_CHECKING:
    from .models.folder import ModelStudies
    from .space.space import LoadedSpace

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run_command(list(sys.argv[1:] if arguments is None else arguments))
    except SkipsearchError as error:
        print_error(error)
        return FAILED if isinstance(error, RunError | ProofError) else WRONG_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # The reader of the output has ended, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        where = error.filename if error.filename is not None else "a file of this run"
        hint = "free some space, then do it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        print_error(RunError(f"{where}: {error.strerror or error}", hint=hint))
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        hint = "take a smaller model or dtype, or a machine with more memory"
        print_error(RunError("there is too little memory", [first_line(error)], hint))
        return FAILED


def run_command(arguments: list[str]) -> int:
    """Run one command and flush its output.

    Returns:
        The exit code.
    """
    try:
        options = parse_options(arguments)
        options.command_line = ["skipsearch", *arguments]
        return COMMANDS[options.command](options)
    finally:
        sys.stdout.flush()


def print_error(error: SkipsearchError) -> None:
    """Print an error with its details and its hint."""
    print(escape_invisible(f"error: {error}"), file=sys.stderr)


def run(options: argparse.Namespace) -> int:
    """`skipsearch run`."""
    from .signals import interruptible
    from .space.load import load_spaces
    from .space.trust import refuse_untrusted_models

    flags = {"search.trials": options.trials, "search.seed": options.seed, "search.sampler": options.sampler,
             "workers.address": options.address}  # fmt: skip
    overrides = parse_overrides(options.overrides) | {key: value for key, value in flags.items() if value is not None}
    spaces = load_spaces(options.space, overrides)
    refuse_untrusted_models([loaded.space for loaded in spaces], options, overrides)
    name = options.name or spaces[0].name
    folder = study_folder(options.out, name)
    with interruptible():
        try:
            return run_spaces(options, spaces, folder, name)
        except KeyboardInterrupt as interrupt:
            command = shlex.join(options.command_line if options.resume else [*options.command_line, "--resume"])
            message = f"interrupted; finished trials are kept in {folder}\nhint: go on with `{command}`"
            print(f"\n{message}", file=sys.stderr)
            return int(getattr(interrupt, "exit_code", INTERRUPTED))


def run_spaces(options: argparse.Namespace, spaces: "Sequence[LoadedSpace]", folder: Path, name: str) -> int:
    """Search a space of one model, or of several one after the other, and print the result."""
    if len(spaces) > 1:
        from .models.run import run_models

        return print_studies(run_models(spaces, folder, name, options.resume, shown=not options.quiet), options.json)
    from .report.terminal import print_summary, summary_data
    from .run import run_study

    record = run_study(spaces[0], folder, name, options.resume, shown=not options.quiet)
    if options.json:
        print(json.dumps(summary_data(record, folder)))
    else:
        print_summary(record, folder)
    return DONE


def validate(options: argparse.Namespace) -> int:
    """`skipsearch validate`."""
    from .space.load import validate_file

    problems: dict[str, list[str]] = {}
    for file in options.files:
        try:
            kind = validate_file(Path(file))
        except SkipsearchError as error:
            problems[file] = [error.what, *error.details]
            if not options.json:
                print_error(error)
        else:
            problems[file] = []
            if not options.json:
                print(escape_invisible(f"ok: {file} is a {kind}"))
    if options.json:
        print(json.dumps(problems))
    return WRONG_INPUT if any(problems.values()) else DONE


def show(options: argparse.Namespace) -> int:
    """`skipsearch show`."""
    from ..policies.policy import Policy
    from .report.console import Output
    from .report.layer_map import layer_map

    policy = Policy.load(options.policy)
    if options.json:
        print(json.dumps(policy.document()))
        return DONE
    num_layers = options.num_layers or policy.num_layers
    policy.check_fits(num_layers, f"of {num_layers} layers")
    Output().print(layer_map(policy, num_layers))
    return DONE


def evaluate(options: argparse.Namespace) -> int:
    """`skipsearch eval`."""
    from ..policies.policy import Policy

    policy = Policy.load(options.policy)
    from .evaluation_space import evaluation_space
    from .space.trust import refuse_untrusted

    space = evaluation_space(options)

    refuse_untrusted(space, options, parse_overrides(options.overrides))
    from ..policies.apply import apply_policy
    from .report.terminal import print_evaluation
    from .workers.evaluate import PolicyEvaluator

    evaluator = PolicyEvaluator(space)
    # Refuse a policy of another model now, and not after minutes of measuring dense.
    apply_policy(evaluator.subject.model, policy).remove()
    names = list(space.evaluate)
    dense = evaluator.measure(Policy(), names, options.split)
    found = evaluator.measure(policy, names, options.split)
    for what, outcome in {"dense model": dense, "policy": found}.items():
        if outcome.failure:
            raise RunError(f"the {what} could not be measured", [outcome.failure])
    print_evaluation(found.measurements, dense.measurements, options.split, options.json)
    return DONE


def report(options: argparse.Namespace) -> int:
    """`skipsearch report`."""
    from .analysis.selection import select
    from .report.folder import write_folder
    from .report.selected import print_selection
    from .report.terminal import print_summary, summary_data

    folder = study_path(options.study, options.out)
    if options.unmeasured and not (options.picks or options.constraints):
        hint = "give a bound, as in --pick 'ttft_ms<=0.6*dense'"
        raise UsageError("--unmeasured needs --pick or --constraint", hint=hint)
    if options.salvage or options.picks or options.constraints:
        refuse_several(folder, "name one of these; `skipsearch compare` tests --pick between them")
    elif (folder / MODELS).exists():
        from .models.folder import write_models_folder

        return print_studies(write_models_folder(folder), options.json)
    if options.salvage:
        from .study.salvage import salvage

        folder, intact, total = salvage(folder)
        print(f"copied {intact} of {total} trials, which are intact, to {folder}", file=sys.stderr)
    if options.constraints or options.picks:
        print_selection(select(folder, options.constraints, options.picks), options.json, options.unmeasured)
        return DONE
    record = write_folder(folder)
    if options.json:
        print(json.dumps(summary_data(record, folder)))
    else:
        print_summary(record, folder)
    return DONE


def print_studies(studies: "ModelStudies", as_json: bool) -> int:
    """Print the studies of several models, as tables or as JSON."""
    from .models.folder import models_data, print_models

    if as_json:
        print(json.dumps(models_data(studies)))
    else:
        print_models(studies)
    return DONE


def completion(options: argparse.Namespace) -> int:
    """`skipsearch completion`."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["skipsearch"], shell=options.shell))
    return DONE


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "run": run,
    "plan": plan,
    "validate": validate,
    "show": show,
    "eval": evaluate,
    "report": report,
    "compare": compare,
    "ls": ls,
    "export": export,
    "serve": serve,
    "lm-eval": lm_eval,
    "import": import_policy,
    "init": init,
    "recover": recover,
    "rank": rank,
    "completion": completion,
}
