"""Exporting a policy: refuse what the target cannot represent, write it, prove it, describe it."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..policies.errors import ExportError, ProofError, UsageError
from ..policies.policy import Policy
from ..policies.quantized.kinds import QUANTIZED
from ..policies.quantized.weights import quantization_of
from .card import write_card
from .reference import Reference
from .target import Source, Target, count_choices


@dataclass(frozen=True)
class Export:
    """An export that was written and proven.

    Attributes:
        target: The target's name.
        folder: Where it is.
        difference: The largest difference from the model under the policy; see `Reference.difference`.
        tolerance: The largest difference that was accepted.
        proof: What was compared, in one line.
        notes: What is saved and what is not, one line each.
        size_bytes: The size of all files.
    """

    target: str
    folder: Path
    difference: float
    tolerance: float
    proof: str
    notes: list[str]
    size_bytes: int


def export(policy: Policy, source: Source, target: Target, folder: Path) -> Export:
    """Write a policy for another tool, and compare what that tool computes with the model under the policy.

    The folder appears only when the proof holds.

    Raises:
        PolicyMismatch: the policy was made for another model.
        ExportError: the target cannot represent the policy, or its tool does not load the export.
        ProofError: the export computes something else.
        UsageError: the folder exists and is not empty.
    """
    refuse_used(folder)
    if policy.weights is not None:
        reason = "exports take the weights of the base model, and this policy was trained with its own"
        hint = "`skipsearch serve` and `apply_policy` run it from its folder"
        raise ExportError("a policy with trained weights cannot be exported yet", [reason], hint)
    policy.check_fits(source.model.config.get_text_config().num_hidden_layers, type(source.model).__name__)
    if reasons := why_not(policy, source, target):
        hint = "`--to list` shows the targets that can; `skipsearch serve` and `apply_policy` run every policy"
        raise ExportError(f"{target.name} cannot represent this policy", reasons, hint)
    folder.parent.mkdir(parents=True, exist_ok=True)
    reference = Reference.of(policy, source)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        written = Path(place) / folder.name
        written.mkdir()
        notes = target.write(policy, source, written)
        difference = target.check(written, reference)
        if not difference <= reference.tolerance:
            found = f"found a difference of {difference:.2g}, accepted are {reference.tolerance:.0e}; nothing was kept"
            hint = "take another target; where the weights are in half precision, try --dtype float32"
            raise ProofError(f"the export to {target.name} computes something else than the policy", [found], hint)
        size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
        proof = target.proof_line(difference, reference)
        done = Export(target.name, folder, difference, reference.tolerance, proof, notes, size)
        write_card(policy, source, target, done, written)
        if folder.exists():
            folder.rmdir()
        shutil.move(str(written), str(folder))
    return done


def refuse_used(folder: Path) -> None:
    """Refuse a folder that has files, or that cannot be made.

    Raises:
        UsageError: it has, or it or a folder above it is a file.
    """
    if file := next((parent for parent in folder.parents if parent.exists() and not parent.is_dir()), None):
        raise UsageError(f"{folder} cannot be made", [f"{file} is a file"], "name another folder with --out")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists", ["an export needs a folder of its own"], "name another one with --out")


def compatibility(policy: Policy, source: Source, targets: list[Target]) -> dict[str, dict[str, list[str]]]:
    """For each target and each kind of choice in the policy, the reasons why the target cannot represent it."""
    parts = {label: only(policy, label) for label in count_choices(policy)}
    return {target.name: {label: why_not(part, source, target) for label, part in parts.items()} for target in targets}


def why_not(policy: Policy, source: Source, target: Target) -> list[str]:
    """The reasons why a target cannot represent a policy of a model; empty where it can."""
    kinds = {policy.model.quantization, quantization_of(source.model)} & QUANTIZED
    own = [f"the weights are quantised to {kind}, and it writes those of the checkpoint" for kind in sorted(kinds)]
    return target.can(policy, source) + ([] if target.quantizes else own)


def only(policy: Policy, label: str) -> Policy:
    """The policy with one kind of its choices alone."""
    layers = {index: choice for index, choice in policy.canonical().layers.items() if choice.label == label}
    return policy.model_copy(update={"layers": layers})
