"""The commands that take a policy to other tools."""

import argparse
import json
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..policies.card import count_choices
from ..policies.errors import SkipsearchError, UsageError
from ..policies.policy import Policy
from ..policies.quantized.kinds import NONE
from ..policies.wording import escape_invisible

if TYPE_CHECKING:
    from ..evaluators.subject import ModelSpec, Subject
    from ..exports.export import Export
    from ..exports.target import Source

PROMPT_TOKENS = 24


def export(options: argparse.Namespace) -> int:
    """`skipsearch export`."""
    policy = Policy.load(options.policy)
    if options.to != "list" and options.out is None:
        raise UsageError("--out is missing", hint="name the folder to write, as in --out exported")
    from ..exports.registry import target_class
    from ..exports.target import Options

    chosen = Options(zero=not options.no_zero, python=options.python)
    if options.to == "list":
        print_targets(policy, load_source(options, policy), chosen, options.json)
        return 0
    target = target_class(options.to)(chosen)
    from ..evaluators.subject import no_progress_bars
    from ..exports.export import export as write

    with no_progress_bars():
        done = write(policy, load_source(options, policy), target, options.out)
    print_export(done, options.json)
    return 0


def serve(options: argparse.Namespace) -> int:
    """`skipsearch serve`."""
    from ..exports.batching import Batching
    from ..exports.serve import listen, refuse_missing
    from ..exports.serve import serve as run_server
    from .signals import interruptible

    policy = Policy.load(options.policy)
    refuse_missing()
    if options.cache_tokens is not None and not options.continuous_batching:
        raise UsageError("--cache-tokens is an option of --continuous-batching", hint="give both, or neither")
    batching = Batching(options.cache_tokens) if options.continuous_batching else None
    # The address is taken first: a mistake shows within a second, while the weights take minutes.
    with listen(options.host, options.port) as listener:
        source = served_model(options, policy)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

        def ready() -> None:
            text = f"serving {source.id} under {options.policy} at {url}; Ctrl-C ends it"
            found = {"url": url, "model": source.id, "policy": policy.fingerprint}
            print(json.dumps(found) if options.json else escape_invisible(text), flush=True)
            if getattr(source.processor, "chat_template", None) is None:
                print("the model has no chat template: requests to /v1/chat/completions will fail", file=sys.stderr)

        try:
            with interruptible():
                run_server(policy, source, listener, batching, ready)
        except KeyboardInterrupt:
            print("the server has ended", file=sys.stderr)
    return 0


def served_model(options: argparse.Namespace, policy: Policy) -> "Source":
    """Load the model to serve, quantised as the policy says.

    Raises:
        UsageError: the device has no such name, or a folder is given a revision.
        ModelError: the model cannot be loaded.
    """
    from ..evaluators.subject import DEVICE, ModelSpec, load_subject
    from ..exports.target import Source

    if not re.fullmatch(DEVICE, options.device):
        hint = "take auto, cpu, mps, cuda, or one of several such as cuda:1"
        raise UsageError("--device names no device", [f"found {options.device!r}"], hint)
    refuse_revision(options.revision, options.model)
    spec = ModelSpec(
        id=options.model,
        revision=options.revision,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
        quantization=policy.model.quantization,
    )
    subject = load_subject(spec)
    return Source(subject.model, subject.processor, spec.id, spec.revision)


def lm_eval(options: argparse.Namespace) -> int:
    """`skipsearch lm-eval`."""
    from ..evaluators.accuracy.harness import run_lm_eval

    try:
        run_lm_eval(options.arguments)
    except SkipsearchError:
        raise
    except Exception:
        # lm-eval's own errors look as they do in lm-eval.
        traceback.print_exc()
        return 1
    return 0


def load_source(options: argparse.Namespace, policy: Policy) -> "Source":
    """Load the model to export, on the CPU, where every tool can be compared with it."""
    from ..evaluators.prompts import synthetic_prompt
    from ..evaluators.subject import load_subject
    from ..exports.target import Source

    spec = model_spec(options, policy)
    subject = load_subject(spec)
    prompts = [synthetic_prompt(subject, PROMPT_TOKENS)]
    if subject.is_multimodal:
        prompts.append(text_prompt(subject))
    return Source(subject.model, subject.processor, spec.id, spec.revision, prompts)


def text_prompt(subject: "Subject") -> dict[str, Any]:
    """A prompt without an image, of a model that takes images."""
    from dataclasses import replace

    from ..evaluators.prompts import synthetic_prompt

    return synthetic_prompt(replace(subject, is_multimodal=False), PROMPT_TOKENS)


def model_spec(options: argparse.Namespace, policy: Policy) -> "ModelSpec":
    """The model to export: as the options say, else that of the study which holds the policy, else as it names it.

    A policy that asks for quantised weights is applied to the model as its checkpoint has it.

    Raises:
        UsageError: none of them names a model; or see `refuse_revision`.
    """
    from ..evaluators.subject import ModelSpec
    from .places import DATABASE, holds_study
    from .study.storage import space_of

    folder = options.policy.resolve().parent.parent
    given = {"dtype": options.dtype, "trust_remote_code": options.trust_remote_code, "device": "cpu"}
    if options.model is None and holds_study(folder):
        spec = space_of(folder / DATABASE).model
        changed = given if options.dtype != "auto" else {**given, "dtype": spec.dtype}
        changed["quantization"] = NONE
        return spec.model_copy(update={**changed, "revision": options.revision or spec.revision})
    name = options.model or policy.model.id
    if name is None:
        hint = "name it, as in --model llava-hf/llava-1.5-7b-hf"
        raise UsageError("no model is given", [f"{options.policy} names none and is in no study's folder"], hint)
    own = policy.model.revision if name == policy.model.id else None
    refuse_revision(options.revision, name, own)
    return ModelSpec(id=name, revision=options.revision or own, **given)


def refuse_revision(given: str | None, name: str, own: str | None = None) -> None:
    """Refuse a revision of a folder, and one that is not the policy's.

    Args:
        given: The revision of the command line; None where there is none.
        name: The model.
        own: The revision that the policy was made for, where it names one of this model.

    Raises:
        UsageError: see above.
    """
    if given is not None and Path(name).expanduser().is_dir():
        hint = "leave --revision out, or name a model of the hub"
        raise UsageError(f"{name} is a folder on this machine", [f"found --revision {given}"], hint)
    if given is not None and own not in (None, given):
        hint = "leave --revision out, or search again at the other one"
        found = f"found --revision {given}, expected {own}"
        raise UsageError(f"the policy was made for another revision of {name}", [found], hint)


def print_targets(policy: Policy, source: "Source", chosen: Any, as_json: bool) -> None:
    """Print which targets can represent which choices of the policy, the reasons why not, and flags of runtimes."""
    from ..exports.export import compatibility
    from ..exports.registry import target_class, target_names
    from ..exports.token_flags import MEANING, flags

    targets = [target_class(name)(chosen) for name in target_names()]
    found, by_share = compatibility(policy, source, targets), flags(policy)
    if as_json:
        written = {name: {"flag": flag.text, "reasons": flag.reasons} for name, flag in by_share.items()}
        print(json.dumps({"choices": count_choices(policy), "targets": found, "flags": written}))
        return
    from rich.table import Table

    from .report.console import Output

    table = Table("target", *(f"{label} x{count}" for label, count in count_choices(policy).items()))
    for name, choices in found.items():
        table.add_row(name, *("no" if reasons else "yes" for reasons in choices.values()))
    Output().print_table(table)
    for target in targets:
        print(f"{target.name}: {target.text}")
    for name, choices in found.items():
        for reason in dict.fromkeys(reason for reasons in choices.values() for reason in reasons):
            print(escape_invisible(f"not {name}: {reason}"))
    for name, flag in by_share.items():
        print(
            f"flag of {name}: {flag.text} ({MEANING})" if flag.text else f"no flag of {name}: {'; '.join(flag.reasons)}"
        )


def print_export(done: "Export", as_json: bool) -> None:
    """Print where an export is, how near it is to the policy, and what it saves."""
    if as_json:
        found = {"target": done.target, "folder": str(done.folder), "difference": done.difference,
                 "tolerance": done.tolerance, "proof": done.proof, "notes": done.notes,
                 "size_bytes": done.size_bytes}  # fmt: skip
        print(json.dumps(found))
        return
    for note in done.notes:
        print(escape_invisible(note))
    print(escape_invisible(done.proof))
    print(escape_invisible(f"wrote {done.folder}, {done.size_bytes / 2**20:.1f} MiB, for {done.target}"))


def import_policy(options: argparse.Namespace) -> int:
    """`skipsearch import`."""
    from ..exports.formats.table import read_file

    name, policy = read_file(options.file, options.format, options.num_layers, options.entry)
    if options.out is not None:
        if options.out.exists():
            raise UsageError(f"{options.out} exists", hint="name another file with --out")
        policy.save(options.out)
    if options.json:
        print(json.dumps({"format": name, "policy": policy.document()}))
    elif options.out is None:
        print(policy.to_yaml(), end="")
    else:
        counts = ", ".join(f"{label} in {count} layers" for label, count in count_choices(policy).items())
        print(escape_invisible(f"wrote {options.out}, from {name}: {counts or 'nothing is left out'}"))
    return 0
