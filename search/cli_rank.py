"""`skipsearch rank MODEL`: a ranking of a model's channels by energy, for policies and spaces with `ffn_ratio`."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..policies.errors import ModelError, UsageError
from ..policies.rankings.files import ALPHA, EXAMPLES, digest
from ..policies.wording import escape_invisible
from .cli_init import count, parts, refuse_existing
from .places import RANKING

if TYPE_CHECKING:
    from ..evaluators.subject import Subject
    from ..policies.rankings.energy import Energies


def add_rank_options(rank: argparse.ArgumentParser) -> None:
    """Add the options of the command, beside those of loading a model."""
    rank.add_argument("model", metavar="MODEL", help="a hub id or folder")
    rank.add_argument("--tasks", action="append", required=True, metavar="TASKS",
                      help="lm-eval's names and task files, with commas between; repeatable")  # fmt: skip
    rank.add_argument("--limit", type=count, default=EXAMPLES, metavar="N",
                      help="examples to run, of the half of each task that guides a search "
                      f"(default: {EXAMPLES})")  # fmt: skip
    rank.add_argument("--alpha", type=weight, default=ALPHA, metavar="A",
                      help="weight of a channel's highest energy against the sum over all tokens, "
                      f"0 to 1 (default: {ALPHA})")  # fmt: skip
    rank.add_argument("--out", type=Path, default=Path(RANKING), metavar="FILE",
                      help=f"the file to write (default: {RANKING})")  # fmt: skip


def weight(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number from 0 to 1, such as 0.9")
    return value


def rank(options: argparse.Namespace) -> int:
    """`skipsearch rank`."""
    from .space.trust import trusted_task

    refuse_existing(options.out, "--out")
    if options.out.name.startswith("."):
        raise UsageError(
            f"{options.out} is a hidden file", hint="give a name that a policy can have: --out energy.safetensors"
        )
    tasks = [trusted_task(name, "--tasks", options.trust_task_code) for name in parts(options.tasks)]
    if not tasks:
        raise UsageError("--tasks names no task", hint="name one, as in `--tasks arc_easy`")
    from ..evaluators.subject import ModelSpec, load_subject
    from ..policies.rankings.energy import why_not_ranked
    from ..policies.rankings.scores import ranking_file

    spec = ModelSpec(id=options.model, revision=options.revision, dtype=options.dtype,
                     trust_remote_code=options.trust_remote_code)  # fmt: skip
    subject = load_subject(spec)
    refused = why_not_ranked(subject.model)
    found = energies(subject, tasks, options.limit, options.alpha, refused)
    facts = {"alpha": options.alpha, "examples": found.examples, "tokens": found.tokens}
    content = ranking_file(found.scores, facts)
    options.out.write_bytes(content)
    selection = {"ranking": "energy", "file": options.out.name, "sha256": digest(content)}
    print_ranking(options, found, refused, facts, selection)
    return 0


def energies(subject: "Subject", tasks: list[str], limit: int, alpha: float, refused: dict[int, str]) -> "Energies":
    """Rank all layers but those that are refused, on examples that a search of these tasks would be guided by.

    Raises:
        ModelError: no layer is left.
        EvaluatorError: a task cannot be used, or has no prompts.
    """
    from ..evaluators.example_options import ExampleOptions
    from ..evaluators.loaded_examples import LoadedExamples
    from ..evaluators.statistics import on_device
    from ..policies.families.layers import decoder_layers
    from ..policies.rankings.energy import channel_energies

    layers = {layer.index for layer in decoder_layers(subject.model)} - {*refused}
    if not layers:
        lines = [f"layer {index}: {reason}" for index, reason in refused.items()]
        hint = "rank by `weights` or `first`, where `ffn_ratio` works"
        raise ModelError(f"no layer of {type(subject.model).__name__} can be ranked", lines[:5], hint)
    examples = LoadedExamples(ExampleOptions(tasks=tasks), subject)
    inputs = (on_device(prompt, subject.model) for prompt in examples.calibration_prompts(limit))
    return channel_energies(subject.model, inputs, layers, alpha)


def print_ranking(
    options: argparse.Namespace,
    found: "Energies",
    refused: dict[int, str],
    facts: dict[str, Any],
    selection: dict[str, str],
) -> None:
    """Print what was written, and the lines of a policy and a space that use it."""
    channels = {index: len(scores) for index, scores in sorted(found.scores.items())}
    if options.json:
        print(json.dumps({"out": str(options.out), "model": options.model, **facts, "channels": channels,
                          "refused": refused, "width_selection": selection}))  # fmt: skip
        return
    for index, reason in refused.items():
        print(escape_invisible(f"left out: layer {index}: {reason}"), file=sys.stderr)
    ranked = f"ranked {sum(channels.values()):,} channels of {len(channels)} layers"
    lines = [
        f"{ranked} on {found.examples} examples of {found.tokens:,} tokens",
        f"wrote {options.out}",
        f"in a policy beside it: width_selection: {flow(selection)}",
        f"in a space beside it: width_selection: {flow({key: selection[key] for key in ('ranking', 'file')})}",
    ]
    print(escape_invisible("\n".join(lines)))


def flow(mapping: dict[str, str]) -> str:
    """A mapping as YAML in one line."""
    import yaml

    text: str = yaml.safe_dump(mapping, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.strip()
