"""lm-eval's model class around a loaded language model that runs under a policy.

It adds to lm-eval a cache of values that do not depend on the policy, the time spent inside the model, and prompts that
their answers share.
"""

import time
import weakref
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from ...policies.errors import EvaluatorError
from ...policies.runtime.prefix import PrefixStates
from ..engine.budget import best_tokens
from ..engine.generation import can_refill
from ..engine.packed import can_pack
from ..engine.packed import score as score_packed
from ..engine.prompt import Prompt
from .answering import answered, decodes_plainly, packed_batches
from .memo import Memo
from .settled import Settled
from .shared_prompts import can_share, prompts_to_share, score

if TYPE_CHECKING:
    from ...policies.apply import PolicyHandle
    from ..subject import Subject

LogLikelihood = tuple[float, bool]
# lm-eval's form of a request: the texts of prompt and answer, the token ids of the prompt, and those of the answer.
TokenRequest = tuple[tuple[str, str], list[int], list[int]]
TRIAL_LENGTH = 256  # tokens of the rows by which the size of a batch is found
# Where the prompt ends in each row that is fed to the model, by the row's token ids.
PromptEnds = dict[tuple[int, ...], int]


class TextModel(HFLM):
    """A language model.

    Args:
        subject: The loaded model.
        batch_size: Number of requests in a batch.
        memo: Cache of token ids and inputs.
        states: Hidden states of forwards that score given answers; None keeps none.
        batch_tokens: Number of tokens in a batch, where values may round differently; None finds it.
        more: lm-eval's arguments of `HFLM`.

    Attributes:
        handle: The policy that the model currently runs under.
        forward_seconds: Time spent inside the model; the caller resets it.
        rolling: True while whole texts are scored, without a prompt.
        ends: Where the prompt ends in the rows that are being scored.
        is_exact: True where every number has to be lm-eval's to the last bit. False in a search: there the answers to
            one prompt are scored together, in batches by tokens, and finished rows leave, which rounds differently.
        settled: By task, when no further text can change what is taken of a generated answer.
    """

    def __init__(
        self,
        subject: "Subject",
        batch_size: int,
        memo: Memo,
        states: PrefixStates | None = None,
        batch_tokens: int | None = None,
        **more: Any,
    ) -> None:
        self.memo = memo
        self.states = PrefixStates(0) if states is None else states
        self.handle: PolicyHandle | None = None
        self.forward_seconds = 0.0
        self.rolling = False
        self.ends: PromptEnds = {}
        self.is_exact = True
        self._batch_tokens = batch_tokens
        self._can_share = not subject.is_multimodal and can_share(subject.model)
        self._can_pack: bool | None = None
        self._can_refill: bool | None = None
        self.settled: Mapping[str, Settled | None] = {}
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

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[LogLikelihood]:
        """Sum of the log-probabilities of each request's answer, and whether greedy decoding would give it."""
        scored = {} if self.is_exact else self._score_packed(requests)
        others = [place for place in range(len(requests)) if place not in scored]
        if others:
            part = self._score_by_rows([requests[place] for place in others])
            scored.update(zip(others, part, strict=True))
        return [scored[place] for place in range(len(requests))]

    def _score_by_rows(self, requests: list[Instance]) -> list[LogLikelihood]:
        """`loglikelihood` with a row for each answer, as in lm-eval."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _score_packed(self, requests: list[Instance]) -> dict[int, LogLikelihood]:
        """The log-likelihoods of requests whose prompts can be shared, by the places of the requests."""
        if not self._packs():
            return {}
        key = ("packed", tuple(map(id, requests)), self.batch_tokens)
        # The requests are kept alive, so that no others get the same ids.
        packed = self.memo.get(key, lambda: packed_batches(self, requests), pinned=requests)
        try:
            return {place: value for batch in packed for place, value in score_packed(self, batch)}
        except torch.OutOfMemoryError:
            if self.batch_tokens <= max(batch.segments.shape[1] for batch in packed):
                raise
        self._batch_tokens = self.batch_tokens // 2
        torch.cuda.empty_cache()
        return self._score_packed(requests)

    def prompt_length(self, prompt: Prompt) -> int:
        """Number of tokens of a prompt, those of images included."""
        return len(prompt.ids)

    @property
    def batch_tokens(self) -> int:
        """Number of tokens in a batch, where values may round differently; found on first use."""
        if self._batch_tokens is None:
            with nullcontext() if self.handle is None else self.handle.dense():
                self._batch_tokens = best_tokens(self.model, min(self.max_length, TRIAL_LENGTH))
        return self._batch_tokens

    def _packs(self) -> bool:
        """True where the model can read packed rows, which is tried on first use."""
        if self._can_pack is None:
            with nullcontext() if self.handle is None else self.handle.dense():
                self._can_pack = can_pack(self.model)
        return self._can_pack

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Sum of the log-probabilities of each text; all of its tokens count as prompt.

        Raises:
            EvaluatorError: see `refuse_whole_texts`.
        """
        refuse_whole_texts(self.handle)
        self.rolling = True
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.rolling = False

    def _loglikelihood_tokens(self, requests: list[TokenRequest], *args: Any, **kwargs: Any) -> list[LogLikelihood]:
        shares = self._can_share and not self.is_exact and not self.rolling
        scored = dict(score(self, prompts_to_share(requests, self.max_length, self.batch_size))) if shares else {}
        others = [index for index in range(len(requests)) if index not in scored]
        for ends, indices in self._passes(requests, others) if others else ():
            self.ends = ends
            part = super()._loglikelihood_tokens([requests[index] for index in indices], *args, **kwargs)
            scored.update(zip(indices, part, strict=True))
        self.ends = {}
        return [scored[index] for index in range(len(requests))]

    def _passes(self, requests: list[TokenRequest], places: list[int]) -> list[tuple[PromptEnds, list[int]]]:
        """Divide requests into passes in which equal rows have equal prompts: prompt ends, and places of the requests.

        Two requests may feed the same row with different parts of it as the prompt. Where the policy treats prompt and
        answer alike, one pass without prompt ends serves all requests.
        """
        single_pass: list[tuple[PromptEnds, list[int]]] = [({}, places)]
        if self.rolling:
            return single_pass
        passes: list[tuple[PromptEnds, list[int]]] = []
        for index in places:
            _, context, answer = requests[index]
            row = tuple((context + answer)[-(self.max_length + 1) :][:-1])
            end = len(row) - len(answer) + 1
            fitting = next((part for part in passes if part[0].get(row, end) == end), None)
            if fitting is None:
                passes.append(fitting := ({}, []))
            fitting[0][row] = end
            fitting[1].append(index)
        return passes if len(passes) == 1 or self._policy_has_phases() else single_pass

    def _policy_has_phases(self) -> bool:
        return self.handle is not None and self.handle.needs.phases

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

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate an answer to each request."""
        found = {} if self.is_exact or not self._refills() else answered(self, requests, self.settled)
        others = [place for place in range(len(requests)) if place not in found]
        if others:
            part = self._generate_by_batches([requests[place] for place in others])
            found.update(zip(others, part, strict=True))
        return [found[place] for place in range(len(requests))]

    def _generate_by_batches(self, requests: list[Instance]) -> list[str]:
        """`generate_until` in lm-eval's batches, each until its last row has ended."""
        return super().generate_until(requests, disable_tqdm=True)

    def _refills(self) -> bool:
        """True where rows can leave a batch and others join it, which is tried on first use."""
        if self._can_refill is None:
            plain = decodes_plainly(self.model.generation_config) and self.think_end_token is None
            with nullcontext() if self.handle is None else self.handle.dense():
                self._can_refill = plain and can_refill(self)
        return self._can_refill

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


def refuse_whole_texts(handle: "PolicyHandle | None") -> None:
    """Refuse to score texts without a prompt under a policy with adapters in place of attentions.

    Raises:
        EvaluatorError: the policy has some, and they are not frozen.
    """
    if handle is not None and handle.needs.means:
        reason = "each token would be predicted from a mean over all tokens of the text, those after it included"
        hint = "freeze the adapters with `skipsearch recover --freeze`"
        raise EvaluatorError("a text without a prompt cannot be scored under adapters", [reason], hint)
