"""`skipsearch rank MODEL`: channels and heads ranked by energy, or layers by the rank of their attention (ARank)."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..policies.errors import ModelError, UsageError
from ..policies.rankings.files import ALPHA, EXAMPLES, Noun, digest
from ..policies.wording import escape_invisible
from .cli_init import count, parts, refuse_existing
from .places import RANKING

ARANK = "arank.yaml"  # the policy of the layers with the lowest ranks
# By what `--of` says, what is ranked by energy; and what a score belongs to.
NOUNS: Final[dict[str, tuple[Noun, ...]]] = {
    "channels": ("channels",),
    "heads": ("heads",),
    "both": ("channels", "heads"),
}
UNITS: Final = {"channels": "channels", "heads": "groups of heads"}

if TYPE_CHECKING:
    from ..evaluators.subject import Subject
    from ..policies.rankings.energy import Energies
    from ..policies.rankings.scores import Scores


def add_rank_options(rank: argparse.ArgumentParser) -> None:
    """Add the options of the command, beside those of loading a model."""
    rank.add_argument("model", metavar="MODEL", help="a hub id or folder")
    rank.add_argument("--tasks", action="append", required=True, metavar="TASKS",
                      help="lm-eval's names and task files, with commas between; repeatable")  # fmt: skip
    rank.add_argument("--limit", type=count, default=EXAMPLES, metavar="N",
                      help="examples to run, of the half of each task that guides a search "
                      f"(default: {EXAMPLES})")  # fmt: skip
    rank.add_argument("--of", choices=[*NOUNS, "layers"], default="channels",
                      help="what `ffn_ratio` ranks, what `head_ratio` ranks, or both in one file; `layers` writes a "
                      "policy: the layers whose attention maps have the lowest rank leave out image tokens (ARank of "
                      "γ-MoD), by a router to be trained (default: channels)")  # fmt: skip
    rank.add_argument("--count", type=count, metavar="N", help="with --of layers, how many (default: half of them)")
    rank.add_argument("--token-ratio", type=weight, default=0.5, metavar="R",
                      help="with --of layers, the share of image tokens that they keep (default: 0.5)")  # fmt: skip
    rank.add_argument("--alpha", type=weight, default=ALPHA, metavar="A",
                      help="weight of the highest energy against the sum over all tokens, "
                      f"0 to 1 (default: {ALPHA})")  # fmt: skip
    rank.add_argument("--out", type=Path, metavar="FILE",
                      help=f"the file to write (default: {RANKING}, or {ARANK} with --of layers)")  # fmt: skip


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

    options.out = options.out or Path(ARANK if options.of == "layers" else RANKING)
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
    if options.of == "layers":
        rank_layers(options, subject, tasks)
        return 0
    nouns = NOUNS[options.of]
    refused = {noun: why_not_ranked(subject.model, noun) for noun in nouns}
    found = energies(subject, tasks, options.limit, options.alpha, refused)
    facts = {"alpha": options.alpha, "examples": found.examples, "tokens": found.tokens}
    content = ranking_file(found.scores, facts)
    options.out.write_bytes(content)
    selection = {"ranking": "energy", "file": options.out.name, "sha256": digest(content)}
    print_ranking(options, found, refused, facts, selection)
    return 0


def energies(
    subject: "Subject", tasks: list[str], limit: int, alpha: float, refused: dict[Noun, dict[int, str]]
) -> "Energies":
    """Rank the layers that are not refused, on examples that a search of these tasks would be guided by.

    Args:
        subject: The model.
        tasks: The tasks.
        limit: The number of examples.
        alpha: See `ChannelEnergy`.
        refused: By what is ranked, the reasons why that of some layers cannot be.

    Raises:
        ModelError: of one kind no layer is left.
        EvaluatorError: a task cannot be used, or has no prompts.
    """
    from ..evaluators.example_options import ExampleOptions
    from ..evaluators.loaded_examples import LoadedExamples
    from ..evaluators.statistics import on_device
    from ..policies.families.layers import decoder_layers
    from ..policies.rankings.energy import find_energies

    every = {layer.index for layer in decoder_layers(subject.model)}
    ranked = {noun: every - {*reasons} for noun, reasons in refused.items()}
    for noun, reasons in refused.items():
        if not ranked[noun]:
            lines = [f"layer {index}: {reason}" for index, reason in reasons.items()]
            hint = "rank by `weights` or `first`, where a share of them works"
            raise ModelError(f"the {noun} of no layer of {type(subject.model).__name__} can be ranked", lines[:5], hint)
    examples = LoadedExamples(ExampleOptions(tasks=tasks), subject)
    inputs = (on_device(prompt, subject.model) for prompt in examples.calibration_prompts(limit))
    return find_energies(subject.model, inputs, **ranked, alpha=alpha)


def rank_layers(options: argparse.Namespace, subject: "Subject", tasks: list[str]) -> None:
    """Rank layers by the rank of their attention maps, write a policy of the lowest ones, and print both.

    Raises:
        UsageError: there are fewer layers than `--count`, or the share is 0 or 1.
        ModelError: the model sees no images.
        EvaluatorError: a task cannot be used, or has no prompts.
    """
    from ..policies.choice import LayerChoice
    from ..policies.metadata import ModelRef
    from ..policies.policy import Policy
    from ..policies.scores.router import GAMMA_MOD
    from ..policies.scores.table import ROUTER
    from ..policies.scores.token_selection import TokenSelection

    if not 0 < options.token_ratio < 1:
        raise UsageError("--token-ratio is between 0 and 1", [f"found {options.token_ratio:g}"], "take 0.5")
    if not subject.is_multimodal:
        hint = "rank channels, as in `--of channels`"
        raise ModelError(f"model {options.model} sees no images", ["a router leaves out image tokens"], hint)
    ranks, examples = attention_ranks(subject, tasks, options.limit)
    order = [index for _, index in sorted((rank, index) for index, rank in enumerate(ranks) if rank is not None)]
    number = options.count or len(order) // 2
    if number > len(order):
        raise UsageError(f"--count is {number}", [f"expected at most {len(order)}, the layers with attention"])
    policy = Policy(
        model=ModelRef(id=options.model, revision=options.revision, num_layers=len(ranks)),
        layers={index: LayerChoice(token_ratio=options.token_ratio) for index in sorted(order[:number])},
        token_selection=TokenSelection(score=ROUTER, router=GAMMA_MOD),
    )
    policy.save(options.out)
    if options.json:
        facts = {"out": str(options.out), "model": options.model, "examples": examples}
        print(json.dumps({**facts, "ranks": ranks, "layers": [*policy.layers]}))
        return
    lines = [f"layer {index}: {ranks[index]:.1f}{'  chosen' if index in policy.layers else ''}" for index in order]
    lines.append(f"attention ranks on {examples} examples, the lowest first; wrote {options.out}")
    print(escape_invisible("\n".join(lines)))


def attention_ranks(subject: "Subject", tasks: list[str], limit: int) -> tuple[list[float | None], int]:
    """The rank of each layer's attention maps, None for a layer without attention; and on how many examples.

    Raises:
        EvaluatorError: a task cannot be used, or has no prompts.
    """
    from ..evaluators.example_options import ExampleOptions
    from ..evaluators.loaded_examples import LoadedExamples
    from ..evaluators.statistics import layer_statistics

    prompts = [*LoadedExamples(ExampleOptions(tasks=tasks), subject).calibration_prompts(limit)]
    return [layer.attention_rank for layer in layer_statistics(subject.model, prompts)], len(prompts)


def print_ranking(
    options: argparse.Namespace,
    found: "Energies",
    refused: dict[Noun, dict[int, str]],
    facts: dict[str, Any],
    selection: dict[str, str],
) -> None:
    """Print what was written, and the lines of a policy and a space that use it."""
    counts = {noun: ranked_counts(found.scores, noun) for noun in refused}
    if options.json:
        print(json.dumps({"out": str(options.out), "model": options.model, **facts, **counts,
                          "refused": refused, "width_selection": selection}))  # fmt: skip
        return
    for noun, reasons in refused.items():
        for index, reason in reasons.items():
            print(escape_invisible(f"left out: {noun} of layer {index}: {reason}"), file=sys.stderr)
    ranked = [f"{sum(each.values()):,} {UNITS[noun]} of {len(each)} layers" for noun, each in counts.items()]
    lines = [
        f"ranked {' and '.join(ranked)} on {found.examples} examples of {found.tokens:,} tokens",
        f"wrote {options.out}",
        f"in a policy beside it: width_selection: {flow(selection)}",
        f"in a space beside it: width_selection: {flow({key: selection[key] for key in ('ranking', 'file')})}",
    ]
    print(escape_invisible("\n".join(lines)))


def ranked_counts(scores: "Scores", noun: Noun) -> dict[int, int]:
    """How many channels, or groups of heads, of each layer are ranked."""
    of_layers = scores.channels if noun == "channels" else scores.heads
    return {index: len(of_layer) for index, of_layer in sorted(of_layers.items())}


def flow(mapping: dict[str, str]) -> str:
    """A mapping as YAML in one line."""
    import yaml

    text: str = yaml.safe_dump(mapping, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.strip()
