"""The card of a policy: a README.md with the metadata that the Hugging Face hub reads."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from .version import __version__

if TYPE_CHECKING:
    from .policy import Policy
from .metadata import Measured

LIBRARY = "skipsearch"
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def is_hub_id(name: str | None) -> bool:
    """True for a name that is no path on this machine and may be a repository of the hub."""
    return name is not None and HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def card_of(policy: "Policy") -> str:
    """The card of a repository that holds a policy alone."""
    base = policy.model.id or "a model without an id"
    load = f'skipsearch.from_pretrained("REPOSITORY"{"" if is_hub_id(policy.model.id) else ", base=MODEL"})'
    lines = [
        f"# {base} under a skipsearch policy",
        "",
        f"`policy.yaml` names the computations of {base} that are left out at inference; there are no weights here.",
        f"Written by skipsearch {__version__}.",
        "",
        *model_section(policy),
        *policy_section(policy),
        *figures_section(policy),
        *load_section(["import skipsearch", f"model = {load}  # the base model, with the policy applied"], "python"),
    ]
    return "\n".join([front_matter(policy.model.id, "adapter", pipeline_of(policy)), *lines])


def front_matter(base: str | None, relation: str, pipeline: str | None) -> str:
    """The metadata that the hub reads.

    Args:
        base: The base model; left out where it is no repository of the hub.
        relation: What the repository is to the base model: `adapter`, `finetune`, `quantized` or `merge`.
        pipeline: The task that the model is for, as the hub names it; None where it is not known.
    """
    data: dict[str, object] = {"library_name": LIBRARY, "tags": [LIBRARY, "layer-skipping"]}
    if is_hub_id(base):
        data |= {"base_model": base, "base_model_relation": relation}
    if pipeline is not None:
        data["pipeline_tag"] = pipeline
    return f"---\n{yaml.safe_dump(data, sort_keys=False)}---\n"


def pipeline_of(policy: "Policy") -> str | None:
    """The task of the model, where the policy tells it: only models that take images have image tokens."""
    choices = policy.canonical().layers.values()
    sees = any(choice.token_ratio is not None or choice.tokens != "all" for choice in choices)
    return "image-text-to-text" if sees else None


def count_choices(policy: "Policy") -> dict[str, int]:
    """How many layers have each kind of choice, by label."""
    return dict(Counter(choice.label for choice in policy.canonical().layers.values()))


def model_section(policy: "Policy") -> list[str]:
    """The model that the policy was made for."""
    facts = {"model": policy.model.id, "revision": policy.model.revision, "layers": policy.model.num_layers}
    rows = [f"- {name}: {value}" for name, value in facts.items() if value is not None]
    return ["## Base model", "", *(rows or ["- not named"]), ""]


def policy_section(policy: "Policy") -> list[str]:
    """What the policy leaves out."""
    counts = [
        f"- {label}: {count} {'layer' if count == 1 else 'layers'}" for label, count in count_choices(policy).items()
    ]
    return ["## Policy", "", *(counts or ["- nothing is left out"]), f"- fingerprint {policy.fingerprint}", ""]


def figures_section(policy: "Policy") -> list[str]:
    """A table of what a search measured."""
    if not policy.measured:
        return []
    rows = [figure_row(name, entry) for name, entry in policy.measured.items()]
    return ["## Figures", "", "| metric | value | dense | split |", "|---|---|---|---|", *rows, ""]


def figure_row(name: str, entry: "Measured") -> str:
    """One row of the table of figures."""
    cells = [name, f"{entry.value:.12g}", "" if entry.dense is None else f"{entry.dense:.12g}", entry.split or ""]
    return f"| {' | '.join(cells)} |"


def load_section(lines: list[str], language: str = "") -> list[str]:
    """How to load what the card describes."""
    return ["## Load it", "", f"```{language}", *lines, "```", ""] if lines else []
