"""A small continuous batch scheduler: requests join the running ones when others end, as in a server.

It runs on the model as it is, patched or not. Each step prefills the requests that have arrived, each by itself, joins
their caches to the batch, and decodes one token for every running request. A request waits for the step before it and
for the prefills before its own, and a prefill delays the running ones: that is what load costs, and what one stream
does not show.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ...policies.errors import EvaluatorError, ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel

# torch is imported where it is used, so that reading the options of a space does not need it.


@dataclass(eq=False)
class Request:
    """One request, and what came of it.

    Attributes:
        inputs: Its prompt, of batch 1 and without padding, on the model's device.
        new_tokens: How many tokens it asks for, at least two.
        arrived: When it arrived, in seconds.
        times: When each of its tokens was there.
        tokens: Its answer.
        delta: What the model adds to the places of its tokens; 0 for most models.
        logits: A list that takes the logits of each of its tokens, shape (vocabulary,); None keeps none.
    """

    inputs: Mapping[str, "Tensor"]
    new_tokens: int
    arrived: float = 0.0
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    delta: int = 0
    logits: "list[Tensor] | None" = None

    @property
    def length(self) -> int:
        """How many of its tokens a cache holds: all but the newest, which the next step brings."""
        return int(self.inputs["input_ids"].shape[1]) + len(self.tokens) - 1

    @property
    def is_done(self) -> bool:
        """True where its answer is whole."""
        return len(self.tokens) >= self.new_tokens


class Scheduler:
    """Answers requests, so many at a time, greedily.

    Args:
        model: The model.
        concurrency: How many requests are in the system; when one ends, the next arrives.
        clock: Returns seconds; it waits for the device.
    """

    def __init__(self, model: "PreTrainedModel", concurrency: int, clock: Callable[[], float]) -> None:
        self._model, self._concurrency, self._clock = model, concurrency, clock
        self._running: list[Request] = []
        self._cache: Cache | None = None

    def run(self, requests: Iterable[Request]) -> None:
        """Answer all requests, in their order.

        Raises:
            EvaluatorError: the caches of the model's requests cannot be joined.
        """
        import torch

        coming, arrived = deque(requests), deque[Request]()
        with torch.no_grad():
            while coming or self._running:
                while coming and len(arrived) + len(self._running) < self._concurrency:
                    coming[0].arrived = self._clock()
                    arrived.append(coming.popleft())
                while arrived:
                    self._start(arrived.popleft())
                self._step()

    def _start(self, request: Request) -> None:
        """Prefill a request, and let it join the running ones."""
        from ...policies.caches.join import joined, refuse_unjoinable

        output = prefill(self._model, request)
        self._keep([request], output.logits)
        cache = output.past_key_values
        try:
            refuse_unjoinable(cache)
        except ModelError as cause:
            raise EvaluatorError(cause.what, cause.details, "leave `load` out of latency") from None
        self._cache = cache if self._cache is None else joined(self._cache, cache, (len(self._running), 1))
        self._running.append(request)

    def _step(self) -> None:
        """Decode one token of every running request, and let those go whose answer is whole."""
        self._keep(self._running, decode(self._model, self._running, self._cache).logits)
        left = [place for place, request in enumerate(self._running) if not request.is_done]
        self._running, self._cache = left_in_batch(self._running, self._cache, left)

    def _keep(self, requests: Sequence[Request], logits: "Tensor") -> None:
        """Append the best next token of each request, from logits of shape (requests, tokens, vocabulary)."""
        tokens = logits[:, -1].argmax(-1).tolist()
        now = self._clock()
        for request, token in zip(requests, tokens, strict=True):
            request.tokens.append(token)
            request.times.append(now)
        for row, request in enumerate(requests):
            if request.logits is not None:
                request.logits.append(logits[row, -1].float().cpu())


def prefill(model: Any, request: Request) -> Any:
    """The output of a forward over the prompt of one request, with logits of its last token at least."""
    from transformers import DynamicCache

    forget_deltas(model)
    options: dict[str, Any] = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    cache = DynamicCache(config=model.config.get_text_config())
    output = model(**request.inputs, past_key_values=cache, use_cache=True, **options)
    deltas = rope_deltas(model)
    request.delta = 0 if deltas is None else int(deltas.flatten()[0])
    return output


def rope_deltas(model: Any) -> "Tensor | None":
    """The offset between the number of tokens and the next position, where image tokens share positions; else None."""
    found: Tensor | None = getattr(model.base_model, "rope_deltas", None)
    return found


def forget_deltas(model: Any) -> None:
    """Reset the offset of an earlier prompt with images; the model would use it for a prompt without images too."""
    if rope_deltas(model) is not None:
        model.base_model.rope_deltas = None


class Running(Protocol):
    """What a decode step needs to know of a request; see `Request`."""

    tokens: list[int]
    delta: int

    @property
    def length(self) -> int:
        """How many of its tokens the cache holds."""
        ...


R = TypeVar("R", bound=Running)


def left_in_batch(rows: Sequence[R], cache: "Cache | None", left: Sequence[int]) -> "tuple[list[R], Cache | None]":
    """The rows of a batch that go on, by their numbers, and their part of its cache; None where none goes on."""
    import torch

    from ...policies.caches.join import select_rows

    kept = [rows[number] for number in left]
    if not kept or cache is None:
        return kept, None
    if len(kept) < len(rows):
        select_rows(cache, torch.tensor(left), max(row.length for row in kept))
    return kept, cache


def decode(model: "PreTrainedModel", requests: Sequence[Running], cache: "Cache | None") -> Any:
    """The output of one decode step.

    Args:
        model: The model.
        requests: The running requests.
        cache: Their joined cache, aligned at the last token.
    """
    import torch

    device = model.device
    lengths = torch.tensor([request.length for request in requests], device=device)
    places = torch.arange(int(lengths.max()) + 1, device=device)
    mask = (places >= (lengths.max() - lengths)[:, None]).long()
    deltas = torch.tensor([request.delta for request in requests], device=device)
    tokens = torch.tensor([[request.tokens[-1]] for request in requests], device=device)
    return model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=(lengths + deltas)[:, None],
        past_key_values=cache,
        use_cache=True,
    )


def answered_alone(model: "PreTrainedModel", request: Request) -> "tuple[list[int], list[Tensor]]":
    """The tokens that `generate` answers a request with, and the logits of each, shape (vocabulary,)."""
    from ..prompts import generate

    forget_deltas(model)
    output = generate(model, dict(request.inputs), request.new_tokens, eos_token_id=None, output_logits=True)
    tokens: list[int] = output.sequences[0, request.inputs["input_ids"].shape[1] :].tolist()
    return tokens, [logits[0].float().cpu() for logits in output.logits]
