"""The commands of `skipsearch` and their options."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..policies.errors import UsageError
from ..policies.version import __version__
from .cli_compare import add_compare_options
from .cli_init import add_init_options
from .cli_rank import add_rank_options
from .examples import add_examples
from .places import RESULTS


class Parser(argparse.ArgumentParser):
    """A parser that raises errors of the same form as those about files."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line."""
        raise UsageError(message, hint=f"`{self.prog} --help` lists its arguments")


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; `command` is the name of the command.

    Raises:
        UsageError: the command line is wrong.
    """
    return command_parser().parse_args(arguments)


def command_parser() -> Parser:
    """The parser of the command line, with one parser for each command."""
    top = Parser(prog="skipsearch", description="Search what a language model can leave out.")
    add_examples(top)
    top.add_argument("--version", action="version", version=f"skipsearch {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")

    def command(name: str, text: str) -> Any:
        added = commands.add_parser(name, help=text, description=text)
        add_examples(added, name)
        added.add_argument("--json", action="store_true", help="print JSON, for programs")
        return added

    add_init_options(command("init", "write a space for a model, from its configuration alone"))
    _add_run_options(command("run", "search a space; results go to a folder of their own"))
    _add_plan_options(command("plan", "measure what a search will take: hours, memory, disk, and what times can tell"))
    validate = command("validate", "check spaces and policies, and list every mistake")
    validate.add_argument("files", nargs="+", metavar="FILE")
    show = command("show", "draw what a policy leaves out, layer by layer")
    show.add_argument("policy", metavar="POLICY", type=Path)
    show.add_argument("--num-layers", type=_positive, metavar="N", help="of the model, where the policy does not say")
    _add_eval_options(command("eval", "measure a policy and the dense model side by side"))
    _add_report_options(command("report", "write a study's policies, table and report again from its database"))
    comparing = command("compare", "put the fronts of several studies side by side, with tests and what differs")
    add_compare_options(comparing)
    _add_out(comparing)
    _add_out(command("ls", "list the shipped spaces and the studies here"))
    _add_export_options(command("export", "take a policy to another tool, and prove that it computes the same there"))
    _add_serve_options(command("serve", "answer requests over HTTP (OpenAI's API) with a model under a policy"))
    _add_lm_eval(commands)
    _add_import_options(command("import", "read what another tool leaves out, as a policy"))
    _add_recover_options(command("recover", "train a model to live with a policy, and measure it before and after"))
    ranking = command(
        "rank", "rank the channels of a model by what they add on examples, for policies with `ffn_ratio`"
    )
    add_rank_options(ranking)
    _add_loading(ranking)
    _add_trust(ranking)
    _add_completion(commands)
    return top


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of 1 or more")
    return int(text)


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("space", metavar="SPACE", help="a YAML file, or the name of a shipped space")
    _add_set(run)
    _add_out(run)
    run.add_argument("--name", help="the study's name, and that of its folder (default: the space's)")
    run.add_argument("--resume", action="store_true", help="go on with a search that was interrupted")
    run.add_argument("--trials", metavar="N", help="the same as --set search.trials=N")
    run.add_argument("--seed", metavar="N", help="the same as --set search.seed=N")
    run.add_argument("--sampler", metavar="NAME", help="the same as --set search.sampler=NAME")
    run.add_argument("--address", help="of a Ray cluster; the same as --set workers.address=ADDRESS")
    _add_trust(run)
    run.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _add_plan_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("space", metavar="SPACE", help="a YAML file, or the name of a shipped space")
    _add_set(plan)
    plan.add_argument("--hours", type=_positive_number, metavar="H", help="say how many trials fit so many hours")
    _add_trust(plan)
    plan.add_argument("--quiet", action="store_true", help="do not say on standard error what is being measured")


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return number


def _add_eval_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("policy", metavar="POLICY", type=Path)
    evaluate.add_argument("--space", help="what to measure on (default: the space of the study that holds the policy)")
    evaluate.add_argument("--split", choices=["search", "report"], default="report",
                          help="the examples to measure accuracy on (default: report)")  # fmt: skip
    _add_set(evaluate)
    _add_trust(evaluate)


def _add_report_options(report: argparse.ArgumentParser) -> None:
    report.add_argument("study", metavar="STUDY", help="a folder, or a name under --out")
    report.add_argument("--constraint", action="append", default=[], metavar="BOUND", dest="constraints",
                        help="print the front under a bound, such as 'accuracy>=0.9*dense'; repeatable")  # fmt: skip
    report.add_argument("--pick", action="append", default=[], metavar="BOUND", dest="picks",
                        help="print the best policy within a budget, such as 'ttft_ms<=0.6*dense'")  # fmt: skip
    report.add_argument("--unmeasured", action="store_true",
                        help="with these, print a policy that is expected to beat all measured ones")  # fmt: skip
    report.add_argument("--salvage", action="store_true",
                        help="copy the intact trials of a damaged study to a new one beside it")  # fmt: skip
    _add_out(report)


def _add_export_options(export: argparse.ArgumentParser) -> None:
    export.add_argument("policy", metavar="POLICY", type=Path)
    export.add_argument("--to", required=True, metavar="TARGET",
                        help="the tool; `list` prints which can represent the policy")  # fmt: skip
    export.add_argument("--out", type=Path, metavar="FOLDER", help="where to write it; must not exist, or be empty")
    _add_model(export)
    export.add_argument("--no-zero", action="store_true",
                        help="refuse a format that must write a skipped sublayer with weights of 0")  # fmt: skip
    export.add_argument("--python", type=Path, metavar="PYTHON",
                        help="the interpreter that has the tool, for the proof (default: this one)")  # fmt: skip


def _add_serve_options(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("model", metavar="MODEL", help="a hub id or folder")
    serve.add_argument("--policy", type=Path, required=True, metavar="POLICY", help="what to leave out")
    serve.add_argument("--host", default="localhost", help="the address to listen on (default: localhost)")
    serve.add_argument("--port", type=int, default=8000, help="the port; 0 takes a free one (default: 8000)")
    serve.add_argument("--device", default="auto", help="such as cpu or cuda:1 (default: the first GPU, else the CPU)")
    _add_loading(serve)
    serve.add_argument("--continuous-batching", action="store_true",
                       help="answer requests together, in one paged cache")  # fmt: skip
    serve.add_argument("--cache-tokens", type=_positive, metavar="N",
                       help="tokens in that cache (default: what fits on a GPU, 32768 on the CPU)")  # fmt: skip


def _add_recover_options(recover: argparse.ArgumentParser) -> None:
    recover.add_argument("policy", metavar="POLICY", type=Path)
    recover.add_argument("--space", help="what to train and measure on (default: the space of the policy's study)")
    recover.add_argument("--model", help="a hub id or folder to train, in place of a space; then nothing is measured")
    _add_loading(recover)
    recover.add_argument("--method", required=True, choices=["lora", "full", "connector", "router", "adapter"],
                         help="what is trained: LoRA, the decoder, what maps images to it, routers, or adapters in "
                         "place of skipped attentions")  # fmt: skip
    recover.add_argument("--data", required=True, metavar="DATA",
                         help="a file (JSON lines of prompt and answer, or LLaVA's conversations), or an lm-eval task "
                         "with a training split")  # fmt: skip
    recover.add_argument("--images", type=Path, metavar="FOLDER",
                         help="where paths of images begin (default: the file's folder)")  # fmt: skip
    recover.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    recover.add_argument("--resume", action="store_true", help="go on with a training that was interrupted")
    for name, text in {
        "steps": "optimiser steps (default: 200)",
        "batch-size": "examples in a forward, on each device (default: 8)",
        "accumulate": "forwards in a step (default: 1)",
        "learning-rate": "the highest (default: 2e-4 for lora, 2e-5 for full, 1e-3 for all others)",
        "warmup": "share of the steps in which it rises (default: 0.05)",
        "weight-decay": "of AdamW (default: 0)",
        "lora-rank": "of the LoRA adapter (default: 16)",
        "router-loss": "weight of the loss that lets routers foresee what is kept (default: 0; γ-MoD: 0.01)",
        "adapter-rank": "width in between of an adapter in place of an attention (default: 32)",
        "skip": "how many of the policy's skipped attentions stay skipped, with adapter (default: all)",
        "seed": "of the order of the examples (default: 0)",
        "save-every": "steps between checkpoints (default: a tenth of the steps)",
    }.items():
        recover.add_argument(f"--{name}", metavar="N", help=text)
    recover.add_argument("--freeze", action="store_true", default=None,
                         help="freeze the mean and the gate of adapters, so that an FFN takes them in")  # fmt: skip
    recover.add_argument("--distil", choices=["kl"], help="train on the dense model's predictions, not on the answers")
    recover.add_argument("--precision", choices=["auto", "bf16", "fp32"], help="(default: auto, as the weights are)")
    recover.add_argument("--gradient-checkpointing", action="store_true", default=None,
                         help="less memory, more time")  # fmt: skip
    _add_set(recover)
    _add_trust(recover)


def _add_lm_eval(commands: Any) -> None:
    text = "run lm-eval with the model `skipsearch` (--model_args pretrained=MODEL,policy=POLICY)"
    # Every argument is lm-eval's, so none begins with a character that makes it an option of this parser.
    added = commands.add_parser("lm-eval", help=text, description=text, prefix_chars="\0", add_help=False)
    added.add_argument("arguments", nargs=argparse.REMAINDER)


def _add_completion(commands: Any) -> None:
    text = "print the code with which a shell completes commands, and names of spaces, studies and policies"
    added = commands.add_parser("completion", help=text, description=text)
    add_examples(added, "completion")
    added.add_argument("shell", choices=["bash", "zsh", "fish"])


def _add_import_options(given: argparse.ArgumentParser) -> None:
    given.add_argument("file", metavar="FILE", type=Path)
    given.add_argument("--format", choices=["auto", "mergekit", "llm-drop", "evopress", "swift"], default="auto",
                       help="of the file (default: found out)")  # fmt: skip
    given.add_argument("--num-layers", type=_positive, metavar="N", help="of the model, where the file does not say")
    given.add_argument("--entry", metavar="NAME", help="which policy of a file that has several")
    given.add_argument("--out", type=Path, metavar="POLICY", help="where to write it (default: printed)")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="MODEL",
                         help="a hub id or folder (default: that of the policy's study)")  # fmt: skip
    _add_loading(command)


def _add_loading(command: argparse.ArgumentParser) -> None:
    command.add_argument("--revision", help="a branch, tag or commit of the model on the hub")
    command.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
                         help="of the weights (default: as they were saved)")  # fmt: skip
    command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def _add_trust(command: argparse.ArgumentParser) -> None:
    command.add_argument("--trust-task-code", action="store_true",
                         help="run the functions that your own task files name (!function)")  # fmt: skip


def _add_set(command: argparse.ArgumentParser) -> None:
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                         help="override a key of the space, such as search.trials=20; can be repeated")  # fmt: skip


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER",
                         help="where the studies are (default: results)")  # fmt: skip


def parse_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """The values of `--set` by key.

    Raises:
        UsageError: one has no `=`.
    """
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        hint = "write both, as in --set search.trials=20"
        raise UsageError("--set needs a key and a value", [f"found {pair!r}" for pair in wrong], hint)
    return {key.strip(): value for key, value in (pair.split("=", 1) for pair in pairs)}
