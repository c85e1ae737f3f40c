"""The card of an export: a README.md with the metadata of the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..policies.card import figures_section, front_matter, load_section, policy_section
from ..policies.hub import CARD, POLICY, copy_ranking
from ..policies.policy import Policy
from ..policies.version import __version__
from .target import Source, Target, with_model

if TYPE_CHECKING:
    from .export import Export


def write_card(policy: Policy, source: Source, target: Target, done: "Export", folder: Path) -> None:
    """Write the policy and the card into the folder of an export."""
    from ..policies.pretrained import pipeline_tag

    named = with_model(policy, source)
    named.save(folder / POLICY)
    copy_ranking(named, folder)
    lines = [
        f"# {named.model.id or type(source.model).__name__} under a skipsearch policy",
        "",
        f"Written by skipsearch {__version__} for the target `{target.name}`: {target.text}.",
        "",
        *(f"- {note}" for note in done.notes),
        f"- Proof: {done.proof}.",
        "",
        *policy_section(policy),
        *figures_section(policy),
        *load_section(target.load_lines(source, done.folder.name)),
    ]
    card = "\n".join([front_matter(named.model.id, target.relation, pipeline_tag(source.model.config)), *lines])
    (folder / CARD).write_text(card, encoding="utf-8")
