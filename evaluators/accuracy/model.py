"""lm-eval's model classes around a loaded model that runs under a policy.

They add three things to lm-eval: a cache of values that do not depend on the policy, the time spent inside the model,
and log-likelihoods for prompts with images.
"""

import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.hf_vlms import HFMultimodalLM
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...policies.errors import EvaluatorError
from ...policies.runtime.prefix import PrefixStates
from ..prompts import image_placeholder
from .memo import Memo

if TYPE_CHECKING:
    from ...policies.apply import PolicyHandle
    from ..subject import Subject

LogLikelihood = tuple[float, bool]
# lm-eval's form of a request: the texts of prompt and answer, the token ids of the prompt, and those of the answer.
TokenRequest = tuple[tuple[str, str], list[int], list[int]]
# Where the prompt ends in each row that is fed to the model, by the row's token ids.
PromptEnds = dict[tuple[int, ...], int]


class TextModel(HFLM):
    """A language model.

    Args:
        subject: The loaded model.
        batch_size: Number of requests in a batch.
        memo: Cache of token ids and inputs.
        states: Hidden states of forwards that score given answers; None keeps none.
        more: lm-eval's arguments of `HFLM`.

    Attributes:
        handle: The policy that the model currently runs under.
        forward_seconds: Time spent inside the model; the caller resets it.
        rolling: True while whole texts are scored, without a prompt.
        ends: Where the prompt ends in the rows that are being scored.
    """

    def __init__(
        self, subject: "Subject", batch_size: int, memo: Memo, states: PrefixStates | None = None, **more: Any
    ) -> None:
        self.memo = memo
        self.states = PrefixStates(0) if states is None else states
        self.handle: PolicyHandle | None = None
        self.forward_seconds = 0.0
        self.rolling = False
        self.ends: PromptEnds = {}
        self._cached_for: tuple[Any, ...] | None = None
        self._log_likelihoods: dict[tuple[int, ...], tuple[list[Instance], list[LogLikelihood]]] = {}
        super().__init__(pretrained=subject.model, tokenizer=subject.processor, batch_size=batch_size, **more)

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a text."""
        key = ("tok_encode", string, args, tuple(sorted(kwargs.items())))
        return self.memo.get(key, lambda: HFLM.tok_encode(self, string, *args, **kwargs))

    def tok_batch_encode(self, strings: list[str], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Token ids and mask of padded texts, each of shape (batch, tokens)."""
        key = ("tok_batch_encode", tuple(strings), args, tuple(sorted(kwargs.items())))
        return self.memo.get(key, lambda: HFLM.tok_batch_encode(self, strings, *args, **kwargs))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        key = ("_encode_pair", context, continuation)
        return self.memo.get(key, lambda: HFLM._encode_pair(self, context, continuation))

    def log_likelihoods(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """`loglikelihood`, cached as long as the same policy is applied.

        The requests of a call are cached together, not one by one: other batches would round differently.
        """
        if self.handle is None:
            return self.loglikelihood(requests, disable_tqdm=disable_tqdm)
        policy = weakref.ref(self.handle), self.handle.steps()
        if policy != self._cached_for:
            self._cached_for, self._log_likelihoods = policy, {}
        key = tuple(map(id, requests))
        if key not in self._log_likelihoods:
            # The requests are kept alive, so that no others get the same ids.
            self._log_likelihoods[key] = requests, self.loglikelihood(requests, disable_tqdm=disable_tqdm)
        return self._log_likelihoods[key][1]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Sum of the log-probabilities of each text; all of its tokens count as prompt."""
        self.rolling = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.rolling = False

    def _loglikelihood_tokens(self, requests: list[TokenRequest], *args: Any, **kwargs: Any) -> list[LogLikelihood]:
        scored: dict[int, LogLikelihood] = {}
        for ends, indices in self._passes(requests):
            self.ends = ends
            part = super()._loglikelihood_tokens([requests[index] for index in indices], *args, **kwargs)
            scored.update(zip(indices, part, strict=True))
        self.ends = {}
        return [scored[index] for index in range(len(requests))]

    def _passes(self, requests: list[TokenRequest]) -> list[tuple[PromptEnds, list[int]]]:
        """Divide requests into passes in which equal rows have equal prompts: prompt ends, and places of the requests.

        Two requests may feed the same row with different parts of it as the prompt. Where the policy treats prompt and
        answer alike, one pass without prompt ends serves all requests.
        """
        single_pass: list[tuple[PromptEnds, list[int]]] = [({}, list(range(len(requests))))]
        if self.rolling:
            return single_pass
        passes: list[tuple[PromptEnds, list[int]]] = []
        for index, (_, context, answer) in enumerate(requests):
            row = tuple((context + answer)[-(self.max_length + 1) :][:-1])
            end = len(row) - len(answer) + 1
            fitting = next((part for part in passes if part[0].get(row, end) == end), None)
            if fitting is None:
                passes.append(fitting := ({}, []))
            fitting[0][row] = end
            fitting[1].append(index)
        return passes if len(passes) == 1 or self._policy_has_phases() else single_pass

    def _policy_has_phases(self) -> bool:
        return self.handle is not None and any(c.phase != "both" for c in self.handle.policy.layers.values())

    def _model_call(self, inps: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = inps.tolist()
        ends = [self._prompt_end(row) for row in rows] if self.ends else None
        batch = (str(rows), str(ends))
        with torch.no_grad(), self.timed(), self.scoring(batch, None if ends is None else torch.tensor(ends)):
            return self.model(inps, use_cache=False).logits

    def _prompt_end(self, row: list[int]) -> int:
        """Where the prompt ends in a row that lm-eval padded on the right with zeros; 0 may also be a token of it."""
        min_length = len(row)
        while min_length and row[min_length - 1] == 0:
            min_length -= 1
        return next(self.ends[fed] for n in range(min_length, len(row) + 1) if (fed := tuple(row[:n])) in self.ends)

    @contextmanager
    def scoring(self, batch: Hashable, ends: Tensor | None) -> Iterator[None]:
        """Prepare a forward that scores given answers: set the prompt ends, reuse hidden states of earlier policies.

        Without prompt ends, the answers would take part in selecting the image tokens by which they are predicted.

        Args:
            batch: Identifies the input; equal for equal inputs with equal ends.
            ends: One past the place of each row's last prompt token, shape (batch,); None where all is prompt.
        """
        if self.handle is None:
            yield
            return
        self.handle.prompt_ends = ends
        try:
            with self.states.reused(self.handle, batch):
                yield
        finally:
            self.handle.prompt_ends = None

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.timed():
            return super()._model_generate(*args, **kwargs)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of this context to `forward_seconds`."""
        start = self._now()
        yield
        self.forward_seconds += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def encode_prompt(self, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
        """The model's input for the prompt of one request, with its images where it has any."""
        ids, mask = self.tok_batch_encode([arguments[0]])
        return {"input_ids": ids, "attention_mask": mask}


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
        return dict(self.memo.get(key, lambda: dict(make(strings, images, *args, **kwargs)), pinned=images))

    def encode_prompt(self, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
        """The model's input for the prompt of one request, with its images where it has any."""
        if len(arguments) < 3:
            return super().encode_prompt(arguments)
        return self.tok_batch_multimodal_encode([arguments[0]], [arguments[2]["visual"]])

    def _model_multimodal_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.timed():
            return super()._model_multimodal_generate(*args, **kwargs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate an answer to each request."""
        generate = super().generate_until
        return run_separately(requests, *[lambda part: generate(part, disable_tqdm=disable_tqdm)] * 2)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """Sum of the log-probabilities of each request's answer, and whether greedy decoding would give it."""
        text_only = super().loglikelihood
        return run_separately(
            requests, lambda part: text_only(part, disable_tqdm=disable_tqdm), self._loglikelihood_with_images
        )

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


def with_answers(prompts: Mapping[str, Tensor], fed: Sequence[tuple[int, ...]], pad_id: int) -> dict[str, Tensor]:
    """Append token ids to each prompt of a batch, and pad on the right.

    Args:
        prompts: A padded batch; every tensor with the shape of its mask, (batch, tokens), has an entry for each token.
        fed: Token ids by row.
        pad_id: The token to pad with.
    """
    mask = prompts["attention_mask"].bool()
    inputs = dict(prompts)
    for key, value in prompts.items():
        if value.shape != mask.shape:
            continue
        rows = []
        for row, real, ids in zip(value, mask, fed, strict=True):
            more = list(ids) if key == "input_ids" else [int(key == "attention_mask")] * len(ids)
            rows.append(torch.cat([row[real], torch.tensor(more, dtype=row.dtype, device=row.device)]))
        filler = pad_id if key == "input_ids" else 0
        inputs[key] = pad_sequence(rows, batch_first=True, padding_value=filler)
    return inputs


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
