"""The card of an export: a README.md with the metadata of the Hugging Face hub."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ..policies.policy import Measured, Policy
from ..policies.version import __version__
from .target import Source, Target, count_choices

if TYPE_CHECKING:
    from .export import Export

CARD, POLICY = "README.md", "policy.yaml"


def write_card(policy: Policy, source: Source, target: Target, done: "Export", folder: Path) -> None:
    """Write the policy and the card into the folder of an export."""
    policy.save(folder / POLICY)
    lines = [
        f"# {source.id or type(source.model).__name__} under a skipsearch policy",
        "",
        f"Written by skipsearch {__version__} for the target `{target.name}`: {target.text}.",
        "",
        *(f"- {note}" for note in done.notes),
        f"- Compared with the model under the policy in {str(source.model.dtype).removeprefix('torch.')}: the largest "
        f"difference of logits is {done.difference:.1e} (accepted: {done.tolerance:.0e}).",
        "",
        *policy_section(policy),
        *figures_section(policy),
    ]
    if load := target.load_lines(source, done.folder.name):
        lines += ["## Load it", "", "```", *load, "```", ""]
    (folder / CARD).write_text("\n".join([front_matter(policy, source), *lines]), encoding="utf-8")


def front_matter(policy: Policy, source: Source) -> str:
    """The metadata that the hub reads."""
    data: dict[str, object] = {"library_name": "skipsearch", "tags": ["skipsearch", "layer-skipping"]}
    base = source.id or policy.model.id
    if base and not Path(base).exists():
        data |= {"base_model": base, "base_model_relation": "finetune"}
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"


def policy_section(policy: Policy) -> list[str]:
    """What the policy leaves out."""
    counts = [f"- {label}: {count} layers" for label, count in count_choices(policy).items()]
    return ["## Policy", "", *(counts or ["- nothing is left out"]), f"- fingerprint {policy.fingerprint}", ""]


def figures_section(policy: Policy) -> list[str]:
    """A table of what a search measured."""
    if not policy.measured:
        return []
    rows = [figure_row(name, entry) for name, entry in policy.measured.items()]
    return ["## Figures", "", "| metric | value | dense | split |", "|---|---|---|---|", *rows, ""]


def figure_row(name: str, entry: Measured) -> str:
    """One row of the table of figures."""
    cells = [name, json.dumps(entry.value), "" if entry.dense is None else json.dumps(entry.dense), entry.split or ""]
    return f"| {' | '.join(cells)} |"
