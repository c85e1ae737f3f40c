"""Training batches: prompts with their answers, padded on the right, and where each prompt ends."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..policies.errors import TrainingDataError
from ..policies.runtime.answers import with_answers
from .examples import Example, data_error

IGNORED = -100  # no token is learned here


class EncodedExamples(Dataset[dict[str, Any]]):
    """Examples as the inputs of a model, made when they are asked for.

    Args:
        examples: The examples.
        processor: The model's processor, or the tokenizer of a model without images.
        end_ids: The ids of tokens that end an answer, the one to add first.
        max_tokens: The longest text that the model reads, in tokens; images count one.

    Raises:
        TrainingDataError: an answer has no token, or a text is too long; all are listed.
    """

    def __init__(self, examples: Sequence[Example], processor: Any, end_ids: Sequence[int], max_tokens: int) -> None:
        self._examples, self._processor, self._end_ids = examples, processor, tuple(end_ids)
        self._tokenizer = getattr(processor, "tokenizer", processor)
        # A chat template writes the token that begins a text itself.
        begin = self._tokenizer.bos_token
        self._adds_special = not any(begin and example.prompt.startswith(begin) for example in examples)
        self._answers = [self._answer(example) for example in examples]
        problems = []
        for example, (prompt_tokens, answer) in zip(examples, self._answers, strict=True):
            where = f"line {example.line}" if example.line else f"prompt {example.prompt[:40]!r}"
            if len(answer) <= 1:
                problems.append(f"{where}: the answer {example.answer!r} has no tokens")
            if prompt_tokens + len(answer) > max_tokens:
                problems.append(f"{where}: found {prompt_tokens + len(answer)} tokens, the model reads {max_tokens}")
        if problems:
            raise data_error("the training data", problems)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: int) -> dict[str, Any]:
        example, (_, answer) = self._examples[place], self._answers[place]
        return {"prompt": example.prompt, "images": list(map(opened, example.images)), "answer": answer}

    def _answer(self, example: Example) -> tuple[int, list[int]]:
        """The number of tokens of the prompt's text, and the ids of the answer with the token that ends it.

        Where the tokens of prompt and answer together begin with those of the prompt, the answer has the rest, as the
        model would generate it; else it is encoded alone.
        """
        prompt = self._ids(example.prompt, self._adds_special)
        whole = self._ids(example.prompt + example.answer, self._adds_special)
        fits = whole[: len(prompt)] == prompt
        answer = whole[len(prompt) :] if fits else self._ids(example.answer, False)
        ends = [place for place, token in enumerate(answer) if token in self._end_ids]
        return len(prompt), answer[: ends[0] + 1] if ends else [*answer, self._end_ids[0]]

    def _ids(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        # Some tokenizers end a text with a token of their own.
        return ids[:-1] if special and ids and ids[-1] == self._end_ids[0] and not text.endswith(self._end) else ids

    @property
    def _end(self) -> str:
        return str(self._tokenizer.decode([self._end_ids[0]]))

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch.

        Returns:
            The model's inputs, with `labels` of shape (batch, tokens), which are `IGNORED` but for the answers, and
            `prompt_ends` of shape (batch,), one past the last token of each prompt.

        Raises:
            TrainingDataError: the processor cannot read a prompt with its images.
        """
        prompts = self._prompts([item["prompt"] for item in items], [item["images"] for item in items])
        answers = [item["answer"] for item in items]
        pad = self._tokenizer.pad_token_id
        inputs = with_answers(prompts, answers, self._end_ids[0] if pad is None else pad)
        ends = prompts["attention_mask"].sum(dim=1)
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for row, (end, answer) in enumerate(zip(ends.tolist(), answers, strict=True)):
            labels[row, end : end + len(answer)] = torch.tensor(answer)
        return {**inputs, "labels": labels, "prompt_ends": ends}

    def _prompts(self, texts: list[str], images: list[list[Any]]) -> dict[str, Tensor]:
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        options |= {} if self._adds_special else {"add_special_tokens": False}
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if any(images):
            nested = [pictures for pictures in images if pictures]
            options["images"] = nested if any(len(pictures) > 1 for pictures in nested) else sum(nested, [])
        try:
            return dict(self._processor(text=texts, **options))
        except (ValueError, TypeError, IndexError) as cause:
            hint = "give each prompt the placeholder of each of its images once"
            raise TrainingDataError("the processor cannot read a prompt with its images", [str(cause)], hint) from cause


def opened(image: Any) -> Any:
    """A picture, read where it is a path."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as file:
            return file.convert("RGB")
    return image.convert("RGB")
