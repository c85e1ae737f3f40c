"""The command `skipsearch`. Stdout is the result, stderr the log; user's mistakes show no traceback."""

import argparse
import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..policies.errors import RunError, SkipsearchError, UsageError
from ..policies.version import __version__
from ..policies.wording import visible

RESULTS = Path("results")
TRUSTED = {"model.trust_remote_code=true", "model.weights=any"}  # what `eval` lets the study of a policy do
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return carried_out(given)
    except SkipsearchError as error:
        print_error(error)
        return FAILED if isinstance(error, RunError) else WRONG_INPUT
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # The reader of our output went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        where = error.filename if error.filename is not None else "a file of this run"
        hint = "free some space, then do it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        print_error(RunError(f"{where}: {error.strerror or error}", hint=hint))
        return FAILED


def carried_out(arguments: list[str]) -> int:
    """Run one command, and see its output through to the reader."""
    try:
        options = parser().parse_args(arguments)
        options.command = ["skipsearch", *arguments]
        return int(options.verb(options))
    finally:
        sys.stdout.flush()


def print_error(error: SkipsearchError) -> None:
    """Lay out an error: what, where and found against expected, what to do."""
    print(visible(f"error: {error}"), file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints look like those about files."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        raise UsageError(message, hint=f"`{self.prog} --help` tells what it takes")


def count(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of 1 or more")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The verbs and their flags."""
    top = Parser(prog="skipsearch", description="Search what a language model can leave out.")
    top.add_argument("--version", action="version", version=f"skipsearch {__version__}")
    verbs = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(verb=run)
        made.add_argument("--json", action="store_true", help="print JSON, for programs")
        return made

    add_run_flags(verb("run", run_verb, "search a space; results go to a folder of their own"))

    validate = verb("validate", validate_verb, "check spaces and policies, and list every mistake")
    validate.add_argument("files", nargs="+", metavar="FILE")

    show = verb("show", show_verb, "draw what a policy leaves out, layer by layer")
    show.add_argument("policy", metavar="POLICY", type=Path)
    show.add_argument("--num-layers", type=count, metavar="N", help="of the model, where the policy does not say")

    evaluate = verb("eval", eval_verb, "measure a policy and the dense model side by side")
    evaluate.add_argument("policy", metavar="POLICY", type=Path)
    evaluate.add_argument("--space", help="what to measure on (default: the study that the policy lies in)")
    evaluate.add_argument("--split", choices=["search", "report"], default="report",
                          help="the examples to measure accuracy on (default: report)")  # fmt: skip
    add_set(evaluate)
    add_trust(evaluate)

    report = verb("report", report_verb, "write a study's policies, table and report anew from its database")
    report.add_argument("study", metavar="STUDY", help="a folder, or a name under --out")
    report.add_argument("--constraint", action="append", default=[], metavar="BOUND", dest="constraints",
                        help="print the front under a bound, such as 'accuracy>=0.9*dense'; repeatable")  # fmt: skip
    report.add_argument("--pick", action="append", default=[], metavar="BOUND", dest="picks",
                        help="print the best policy under a budget, such as 'ttft_ms<=0.6*dense'")  # fmt: skip
    report.add_argument("--unmeasured", action="store_true",
                        help="with these, print what is expected to be better than any measured")  # fmt: skip
    report.add_argument("--salvage", action="store_true",
                        help="write what is whole of a damaged study to a new one beside it")  # fmt: skip
    add_out(report)

    ls = verb("ls", ls_verb, "list the shipped spaces and the studies here")
    add_out(ls)
    return top


def add_run_flags(run: argparse.ArgumentParser) -> None:
    """What `run` takes."""
    run.add_argument("space", metavar="SPACE", help="a YAML file, or the name of a shipped space")
    add_set(run)
    add_out(run)
    run.add_argument("--name", help="the study's name, and that of its folder (default: the space's)")
    run.add_argument("--resume", action="store_true", help="go on with a search that was interrupted")
    run.add_argument("--trials", metavar="N", help="the same as --set search.trials=N")
    run.add_argument("--seed", metavar="N", help="the same as --set search.seed=N")
    run.add_argument("--sampler", metavar="NAME", help="the same as --set search.sampler=NAME")
    run.add_argument("--address", help="of a Ray cluster; the same as --set workers.address=ADDRESS")
    add_trust(run)
    run.add_argument("--quiet", action="store_true", help="no progress on standard error")


def add_trust(made: argparse.ArgumentParser) -> None:
    """The flag that lets a task of one's own run its functions."""
    made.add_argument("--trust-task-code", action="store_true",
                      help="run the functions that task files of one's own name (!function)")  # fmt: skip


def add_set(made: argparse.ArgumentParser) -> None:
    """The flag that changes a space."""
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                      help="override a key of the space, such as search.trials=20; can be repeated")  # fmt: skip


def add_out(made: argparse.ArgumentParser) -> None:
    """The flag that says where studies are."""
    made.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER",
                      help="where the studies are (default: results)")  # fmt: skip


def overrides(pairs: Sequence[str]) -> dict[str, str]:
    """The values of `--set`.

    Raises:
        UsageError: one has no `=`.
    """
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        hint = "write both, as in --set search.trials=20"
        raise UsageError("--set needs a key and a value", [f"found {pair!r}" for pair in wrong], hint)
    return {key.strip(): value for key, value in (pair.split("=", 1) for pair in pairs)}


def run_verb(options: argparse.Namespace) -> int:
    """`skipsearch run`."""
    from .signals import interruptible
    from .space.load import load_space
    from .space.trust import refuse_untrusted

    flags = {"search.trials": options.trials, "search.seed": options.seed, "search.sampler": options.sampler,
             "workers.address": options.address}  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    loaded = load_space(options.space, overrides(options.overrides) | given)
    refuse_untrusted(loaded.space, options, {**given, **overrides(options.overrides)})
    name = options.name or loaded.name
    folder = study_folder(options.out, name)
    with interruptible():
        try:
            from .report.terminal import print_summary, summary_data
            from .run import run_study

            record = run_study(loaded, folder, name, options.resume, shown=not options.quiet)
        except KeyboardInterrupt as stopped:
            again = shlex.join(options.command if options.resume else [*options.command, "--resume"])
            print(f"\ninterrupted; finished trials are kept in {folder}\nhint: go on with `{again}`", file=sys.stderr)
            return int(getattr(stopped, "exit_code", INTERRUPTED))
    if options.json:
        print(json.dumps(summary_data(record, folder)))
    else:
        print_summary(record, folder)
    return DONE


def study_folder(out: Path, name: str) -> Path:
    """Where a study goes.

    Raises:
        UsageError: no folder can have that name, or a file stands in its way.
    """
    if Path(name).name != name or name in ("", ".."):
        raise UsageError("--name takes one folder's name", [f"found {name!r}"], "use --out for the folder above it")
    folder = out / name
    for above in (folder, *folder.parents):
        if above.exists() and not above.is_dir():
            raise UsageError(f"{above} is a file", [f"expected a folder, for {folder}"], "give another one with --out")
    return folder


def validate_verb(options: argparse.Namespace) -> int:
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
                print(visible(f"ok: {file} is a {kind}"))
    if options.json:
        print(json.dumps(problems))
    return WRONG_INPUT if any(problems.values()) else DONE


def show_verb(options: argparse.Namespace) -> int:
    """`skipsearch show`."""
    from ..policies.policy import Policy
    from .report.console import Output
    from .report.layer_map import layer_map

    policy = Policy.load(options.policy)
    if options.json:
        print(json.dumps(policy.document()))
        return DONE
    known = options.num_layers or policy.model.num_layers or max(policy.layers, default=0) + 1
    policy.check_fits(known, f"of {known} layers")
    Output().print(layer_map(policy, known))
    return DONE


def eval_verb(options: argparse.Namespace) -> int:
    """`skipsearch eval`."""
    from ..policies.policy import Policy

    policy = Policy.load(options.policy)
    space = evaluation_space(options)
    from .space.trust import refuse_untrusted

    refuse_untrusted(space, options, overrides(options.overrides))
    from ..policies.apply import apply_policy
    from .report.terminal import print_evaluation
    from .workers.evaluate import PolicyEvaluator

    bench = PolicyEvaluator(space)
    apply_policy(bench.subject.model, policy).remove()  # Refuses a policy for another model before minutes go by.
    names = list(space.evaluate)
    dense = bench.measure(Policy(), names, options.split)
    found = bench.measure(policy, names, options.split)
    for what, outcome in {"dense model": dense, "policy": found}.items():
        if outcome.failure:
            raise RunError(f"the {what} could not be measured", [outcome.failure])
    print_evaluation(found.measurements, dense.measurements, options.split, options.json)
    return DONE


def evaluation_space(options: argparse.Namespace) -> Any:
    """The space to measure on: the one given, or that of the study which the policy's file lies in."""
    from .space.load import load_space
    from .study.storage import DATABASE, space_of

    if options.space:
        return load_space(options.space, overrides(options.overrides)).space
    if {*options.overrides} - TRUSTED:
        raise UsageError("--set changes a space, and none is given", hint="name the space with --space")
    database = options.policy.resolve().parent.parent / DATABASE
    if not database.exists():
        hint = f"name a space, as in `skipsearch eval {options.policy} --space digits`"
        raise UsageError("it is not known what to measure on", [f"{options.policy} lies in no study's folder"], hint)
    return space_of(database)


def report_verb(options: argparse.Namespace) -> int:
    """`skipsearch report`."""
    from .analysis.selection import select
    from .report.folder import write_folder
    from .report.selected import print_selection
    from .report.terminal import print_summary, summary_data
    from .study.storage import DATABASE

    given, named = Path(options.study), options.out / options.study
    folder = given if (given / DATABASE).exists() or (given.is_dir() and not named.is_dir()) else named
    if options.unmeasured and not (options.picks or options.constraints):
        raise UsageError(
            "--unmeasured goes with --pick or --constraint",
            hint="say what is looked for, as in --pick 'ttft_ms<=0.6*dense'",
        )
    if options.salvage:
        from .study.salvage import salvage

        folder, whole, every = salvage(folder)
        print(f"{whole} of {every} trials are whole; they are in {folder}", file=sys.stderr)
    if options.constraints or options.picks:
        print_selection(select(folder, options.constraints, options.picks), options.json, options.unmeasured)
        return DONE
    record = write_folder(folder)
    if options.json:
        print(json.dumps(summary_data(record, folder)))
    else:
        print_summary(record, folder)
    return DONE


def ls_verb(options: argparse.Namespace) -> int:
    """`skipsearch ls`."""
    from .space.load import load_space, shipped_spaces
    from .study.storage import DATABASE, progress_of

    spaces = {name: load_space(str(file)).space.model.id for name, file in shipped_spaces().items()}
    studies = {str(file.parent): progress_of(file) for file in sorted(options.out.glob(f"*/{DATABASE}"))}
    if options.json:
        print(json.dumps({"spaces": spaces, "studies": studies}))
        return DONE
    print("spaces")
    for name, model in spaces.items():
        print(f"  {name:<12} {model}")
    print("studies")
    for folder, state in studies.items():
        print(visible(f"  {folder:<24} {state}"))
    if not studies:
        print(f"  none under {options.out}")
    return DONE
