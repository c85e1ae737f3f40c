"""Write the README's tables of what the model loses without its parts: `python -m skipsearch.spaces.digits.ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from skipsearch import Policy, apply_policy

from .data import KINDS
from .evaluate import Exam

HERE = Path(__file__).parent
CHOICES: dict[str, dict[str, object]] = {
    "skip layer": {"attention": "skip", "ffn": "skip"},
    "skip attention": {"attention": "skip"},
    "skip FFN": {"ffn": "skip"},
    "parallel": {"wiring": "parallel"},
}
START, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def measure(model: PreTrainedModel, exam: Exam, layers: dict[int, dict[str, object]]) -> dict[str, float]:
    """Return the accuracies of the model under a policy."""
    policy = Policy.model_validate({"schema": "skipsearch/policy/v1", "layers": layers})
    with apply_policy(model, policy):
        return exam.accuracy(model)


def dense_table(model: PreTrainedModel, exams: dict[str, Exam]) -> tuple[str, float]:
    """Return the table of the dense model's accuracies, and the one that the other tables compare with."""
    names = ["all", *KINDS]
    lines = [f"| split | questions | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for split, exam in exams.items():
        shares = exam.accuracy(model)
        lines.append(f"| {split} | {len(exam.answers)} | {' | '.join(f'{shares[name]:.3f}' for name in names)} |")
    return "\n".join(lines), shares["all"]


def single_table(model: PreTrainedModel, exam: Exam, dense: float) -> str:
    """Return the table of the changes of accuracy with one choice at one layer."""
    count = model.config.get_text_config().num_hidden_layers
    lines = [f"| layer | {' | '.join(CHOICES)} |", "|---" * (len(CHOICES) + 1) + "|"]
    for layer in range(count):
        changes = [measure(model, exam, {layer: choice})["all"] - dense for choice in CHOICES.values()]
        lines.append(f"| {layer} | {' | '.join(f'{change:+.3f}' for change in changes)} |")
    return "\n".join(lines)


def joint_table(model: PreTrainedModel, exam: Exam, dense: float) -> str:
    """Return the table of the changes of accuracy with several layers skipped, or thinned."""
    count = model.config.get_text_config().num_hidden_layers
    lines = ["| left out | accuracy | change |", "|---|---|---|"]
    cases = {
        f"the last {last} layers": dict.fromkeys(range(count - last, count), CHOICES["skip layer"])
        for last in (2, 4, 6)
    }
    for ratio in (0.5, 0.25, 0.1):
        name = f"{1 - ratio:.0%} of the image tokens in the last 6 layers"
        cases[name] = {layer: {"token_ratio": ratio} for layer in range(count - 6, count)}
    for name, layers in cases.items():
        accuracy = measure(model, exam, layers)["all"]
        lines.append(f"| {name} | {accuracy:.3f} | {accuracy - dense:+.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and put the tables between the marks in the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    parser.add_argument("--limit", type=int, help="only so many questions of each split")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model).eval()
    exams = {split: Exam(arguments.model, split, arguments.limit) for split in ("search", "report")}
    first, dense = dense_table(model, exams)
    tables = [
        f"Accuracy by greedy generation, float32:\n\n{first}",
        f"Change of accuracy on the report split, one part left out:\n\n{single_table(model, exams['report'], dense)}",
        f"Accuracy on the report split, more left out:\n\n{joint_table(model, exams['report'], dense)}",
    ]
    text = arguments.readme.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    arguments.readme.write_text("\n\n".join([before + START, *tables, END]) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
