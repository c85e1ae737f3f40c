"""Accuracy by greedy generation on the shipped questions: `python -m skipsearch.spaces.digits.evaluate`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature, PreTrainedModel

from .architecture import PROMPT
from .data import KINDS
from .tasks.utils import load

HERE = Path(__file__).parent


class Exam:
    """The questions of one split, ready for the model.

    Args:
        model_folder: Where the processor lies.
        split: `search` or `report`.
        limit: How many questions; all when not given.
        batch_size: How many questions go through the model at once.
    """

    def __init__(self, model_folder: Path, split: str, limit: int | None = None, batch_size: int = 50) -> None:
        self.processor = AutoProcessor.from_pretrained(model_folder, backend="pil")
        rows = load()[split]
        rows = list(rows)[:limit]
        self.kinds = [row["kind"] for row in rows]
        self.answers = [row["answer"] for row in rows]
        # Alike prompts side by side need the least padding.
        self.order = sorted(range(len(rows)), key=lambda row: (self.kinds[row], row))
        self.batches = [
            (places, self._inputs([rows[place] for place in places]))
            for places in (self.order[i : i + batch_size] for i in range(0, len(rows), batch_size))
        ]

    def _inputs(self, rows: list[dict]) -> BatchFeature:
        return self.processor(
            images=[row["image"] for row in rows],
            text=[PROMPT.format(question=row["question"]) for row in rows],
            padding=True,
            return_tensors="pt",
        )

    @torch.inference_mode()
    def right(self, model: PreTrainedModel) -> list[bool]:
        """Tell for each question whether the model's answer is right."""
        result = [False] * len(self.answers)
        for places, inputs in self.batches:
            found = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            texts = self.processor.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                result[place] = text.strip() == self.answers[place]
        return result

    def accuracy(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the share of right answers, `all` and of each kind."""
        right = self.right(model)
        shares = {"all": sum(right) / len(right)}
        for kind in KINDS:
            of_kind = [ok for ok, what in zip(right, self.kinds, strict=True) if what == kind]
            shares[kind] = sum(of_kind) / max(1, len(of_kind))
        return shares


def main() -> None:
    """Print accuracy and time for both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--limit", type=int, help="only so many questions of each split")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model).eval()
    for split in ("search", "report"):
        exam = Exam(arguments.model, split, arguments.limit)
        started = time.monotonic()
        shares = exam.accuracy(model)
        took = time.monotonic() - started
        print(split, len(exam.answers), f"{took:.1f} s", {name: round(share, 4) for name, share in shares.items()})


if __name__ == "__main__":
    main()
