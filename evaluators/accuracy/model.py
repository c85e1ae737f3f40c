"""lm-eval's model classes around a loaded model that runs under a policy: log-likelihoods of prompts with images."""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.hf_vlms import HFMultimodalLM
from torch import Tensor

from ...policies.errors import EvaluatorError
from ...policies.runtime.answers import with_answers
from ...policies.runtime.prefix import PrefixStates
from ..engine.prompt import Prompt
from ..prompts import image_placeholder
from .memo import Memo
from .text_model import LogLikelihood, TextModel

if TYPE_CHECKING:
    from ..subject import Subject


@dataclass
class ImageRow:
    """One row of a batch that scores answers: a prompt with images, and the part of the answer that is fed after it.

    Attributes:
        context: The prompt's text.
        images: The prompt's images.
        fed: Token ids after the prompt: the answer without its last token, which is only predicted.
        length: Number of text tokens, by which rows are sorted into batches.
        answers: The places of the requests that it answers, each with the answer's token ids; one-token answers to one
            prompt share a row.
    """

    context: str
    images: list[Any]
    fed: tuple[int, ...]
    length: int
    answers: list[tuple[int, list[int]]] = field(default_factory=list)


class ImageModel(TextModel, HFMultimodalLM):
    """A model that takes images; requests with and without images may be mixed."""

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        # lm-eval would load the processor from the model's path a second time.
        self.processor = tokenizer
        self.tokenizer = tokenizer.tokenizer

    def tok_batch_multimodal_encode(
        self, strings: list[str], images: list[list[Any]], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """The model's input for padded texts with images."""
        image_ids = tuple(tuple(map(id, group)) for group in images)
        key = ("multimodal", tuple(strings), image_ids, self.chat_applied, args, tuple(sorted(kwargs.items())))
        make = super().tok_batch_multimodal_encode
        options = (self.chat_applied, args, sorted(kwargs.items()))
        return dict(
            self.memo.get(
                key,
                lambda: dict(make(strings, images, *args, **kwargs)),
                pinned=images,
                content=lambda: ("pixels", strings, [[*map(picture, group)] for group in images], options),
            )
        )

    def encode_prompt(self, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
        """The model's input for the prompt of one request, with its images where it has any."""
        if len(arguments) < 3:
            return super().encode_prompt(arguments)
        return self.tok_batch_multimodal_encode([arguments[0]], [arguments[2]["visual"]])

    def _model_multimodal_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.timed():
            return super()._model_multimodal_generate(*args, **kwargs)

    def _generate_by_batches(self, requests: list[Instance]) -> list[str]:
        """`generate_until` in lm-eval's batches, each until its last row has ended."""
        return run_separately(requests, *[super()._generate_by_batches] * 2)

    def _score_by_rows(self, requests: list[Instance]) -> list[LogLikelihood]:
        """`loglikelihood` with a row for each answer, as in lm-eval."""
        return run_separately(requests, super()._score_by_rows, self._loglikelihood_with_images)

    def prompt_length(self, prompt: Prompt) -> int:
        """Number of tokens of a prompt, those of images included."""
        if prompt.images is None:
            return super().prompt_length(prompt)
        key = ("prompt_length", prompt.text, tuple(map(id, prompt.images)), self.chat_applied)
        return int(self.memo.get(key, lambda: self._length_of(prompt), pinned=prompt.images))

    def _length_of(self, prompt: Prompt) -> int:
        # The pixels are not kept: the prompt is encoded again with its batch.
        encode = super().tok_batch_multimodal_encode
        return int(encode([prompt.text], [list(prompt.images or ())])["attention_mask"].sum())

    def _loglikelihood_with_images(self, requests: list[Instance]) -> list[LogLikelihood]:
        rows = sorted(self._rows(requests), key=lambda row: -row.length)
        scored: dict[int, LogLikelihood] = {}
        for start in range(0, len(rows), self.batch_size):
            scored.update(self._score(rows[start : start + self.batch_size]))
        return [scored[index] for index in range(len(requests))]

    def _rows(self, requests: list[Instance]) -> list[ImageRow]:
        rows: dict[tuple[Any, ...], ImageRow] = {}
        for index, request in enumerate(requests):
            context, continuation, extra = request.args
            if not context:
                raise EvaluatorError(
                    f"task {request.task_name} scores an answer without a prompt, but with an image",
                    hint="choose a metric other than acc_mutual_info, or leave the task out",
                )
            before, answer = self._encode_pair(context, continuation)
            # `_encode_pair` moves spaces at the end of the prompt to the answer.
            context, fed, images = context.rstrip(), tuple(answer[:-1]), extra["visual"]
            row = ImageRow(context, images, fed, len(before) + len(fed))
            rows.setdefault((context, tuple(map(id, images)), fed), row).answers.append((index, answer))
        return list(rows.values())

    def _score(self, rows: Sequence[ImageRow]) -> Iterator[tuple[int, LogLikelihood]]:
        prompts = self.tok_batch_multimodal_encode([row.context for row in rows], [row.images for row in rows])
        ends = prompts["attention_mask"].sum(dim=1)
        inputs = with_answers(prompts, [row.fed for row in rows], self.tokenizer.pad_token_id)
        # The tasks keep the images alive, so that no others get the same ids.
        batch = tuple((row.context, tuple(map(id, row.images)), row.fed) for row in rows)
        with torch.no_grad(), self.timed(), self.scoring(batch, ends):
            logits = self.model(**inputs, use_cache=False).logits
        for row, row_logits, end in zip(rows, logits, ends.tolist(), strict=True):
            predicted = row_logits[end - 1 : end + len(row.fed)].log_softmax(dim=-1, dtype=self.softmax_dtype)
            greedy = predicted.argmax(dim=-1)
            for index, answer in row.answers:
                target = torch.tensor(answer, device=predicted.device)
                chosen = predicted.gather(1, target[:, None])
                yield index, (float(chosen.sum()), bool((greedy == target).all()))


def picture(image: Any) -> Hashable:
    """Equal for images of equal pixels; of another kind than PIL's, for one image alone."""
    if not hasattr(image, "tobytes"):
        return repr(image)
    return image.mode, image.size, hashlib.blake2b(image.tobytes()).hexdigest()


def run_separately(
    requests: list[Instance], on_text: Callable[[Any], Any], on_images: Callable[[Any], Any]
) -> list[Any]:
    """Answer requests without and with images separately: lm-eval decides by the first request for all of them."""
    has_images = [len(request.args) > 2 for request in requests]
    parts = []
    for wanted, run in ((False, on_text), (True, on_images)):
        part = [request for request, has in zip(requests, has_images, strict=True) if has == wanted]
        parts.append(iter(run(part) if part else []))
    return [next(parts[has]) for has in has_images]


def lm_eval_model(
    subject: "Subject", batch_size: int, memo: Memo, states: PrefixStates | None = None, **more: Any
) -> TextModel:
    """lm-eval's view of a loaded model; see `TextModel` for the arguments.

    Raises:
        EvaluatorError: the model takes images, but neither processor nor configuration names their placeholder.
    """
    if not subject.is_multimodal:
        return TextModel(subject, batch_size, memo, states, **more)
    return ImageModel(subject, batch_size, memo, states, image_string=image_placeholder(subject), **more)
