"""The record and the card of a recovery: what was trained on what, for how long, and the figures before and after."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ..policies.card import front_matter, load_section, model_section, pipeline_of, policy_section
from ..policies.policy import Policy
from ..policies.version import __version__
from .recover import Step
from .settings import RecoverySettings

RECORD: Final = "recovery.json"


@dataclass(frozen=True)
class Facts:
    """What is known of a recovery.

    Attributes:
        settings: How the model was trained.
        source: The file or the task with the training data.
        sha256: Of the training data.
        examples: The number of training examples.
        minutes: The time of training.
        count: How many numbers were trained.
        curve: The loss curve.
        run: What is trained on what, with the model and the policy.
        figures: By metric, the values of `dense`, `before` and `after`; empty where nothing was measured.
        rows: The same with units, for the card: metric, dense, before, after.
        no_rows: Why there are none.
    """

    settings: RecoverySettings
    source: str
    sha256: str
    examples: int
    minutes: float
    count: int
    curve: Sequence[Step]
    run: Mapping[str, Any]
    figures: Mapping[str, Any]
    rows: Sequence[Sequence[str]]
    no_rows: str = "None: no space was given, which would say what to measure."

    def document(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "skipsearch": __version__,
            "method": self.settings.method,
            "settings": {**self.settings.model_dump(), "learning_rate": self.settings.rate},
            "data": {"source": self.source, "sha256": self.sha256, "examples": self.examples},
            "minutes": round(self.minutes, 3),
            "trained": self.count,
            "figures": dict(self.figures),
            "run": dict(self.run),
            "curve": [asdict(step) for step in self.curve],
        }


def write_record(folder: Path, policy: Policy, facts: Facts) -> None:
    """Write the card, `README.md`, and then `recovery.json` at once, which shows that the folder is whole."""
    (folder / "README.md").write_text(card_of(policy, facts), encoding="utf-8")
    part = folder / f".{RECORD}.part"
    part.write_text(json.dumps(facts.document(), indent=1) + "\n", encoding="utf-8")
    os.replace(part, folder / RECORD)


def card_of(policy: Policy, facts: Facts) -> str:
    """The card of a folder with a policy and its trained weights."""
    base = policy.model.id or "a model without an id"
    lines = [
        f"# {base} under a skipsearch policy, trained to live with it",
        "",
        f"`policy.yaml` names the computations of {base} that are left out at inference. The other files are weights",
        "that were trained with them left out; they replace the model's own while the policy is applied.",
        f"Written by skipsearch {__version__}.",
        "",
        *model_section(policy),
        *policy_section(policy),
        *training_section(facts),
        *table(facts),
        *load_section(
            [
                "import skipsearch",
                'handle = skipsearch.apply_policy(model, "FOLDER")  # the base model, and this folder',
            ],
            "python",
        ),
    ]
    return "\n".join([front_matter(policy.model.id, "adapter", pipeline_of(policy)), *lines])


def training_section(facts: Facts) -> list[str]:
    """What was trained, and on what."""
    settings, last = facts.settings, facts.curve[-1]
    loss = "KL(dense || policy)" if settings.distil else "cross-entropy of the answers"
    rows = {
        "method": f"{settings.method}, {facts.count:,} numbers",
        "data": f"{facts.source}, {facts.examples:,} examples, SHA-256 `{facts.sha256}`",
        "steps": f"{settings.steps} of {settings.batch_size * settings.accumulate} examples on each device",
        "learning rate": f"{settings.rate:g}, cosine",
        "loss": f"{loss}; {last.loss:.4f} nats a token in the end",
        "seed": settings.seed,
        "time": f"{facts.minutes:.1f} minutes",
    }
    return ["## Training", "", *(f"- {name}: {value}" for name, value in rows.items()), ""]


def table(facts: Facts) -> list[str]:
    """The figures before and after."""
    if not facts.rows:
        return ["## Figures", "", facts.no_rows, ""]
    head = ["| metric | dense | before | after |", "|---|---|---|---|"]
    note = ["", "Accuracy, and what else depends on examples, is of the report split."]
    return ["## Figures", "", *head, *(f"| {' | '.join(row)} |" for row in facts.rows), *note, ""]
