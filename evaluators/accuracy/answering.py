"""lm-eval's requests in a search: as rows that hold a prompt with all of its answers, or that end one by one."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from transformers import GenerationConfig

from ..engine.budget import batches
from ..engine.generation import Generation, Row
from ..engine.packed import PackedBatch, questions_of, shortest_window
from ..engine.prompt import Prompt, encode
from .settled import UNSURE, Settled

if TYPE_CHECKING:
    from .text_model import TextModel

# What a model's own generation settings may say without changing its greedy answers.
HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_length", "max_new_tokens",
    "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "use_cache", "transformers_version",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
}  # fmt: skip
# So often, in tokens, is looked whether an answer is settled.
LOOK_EVERY = 4


@dataclass(frozen=True)
class Limits:
    """When an answer ends.

    Attributes:
        most: Tokens of an answer.
        until: Texts that end it.
        settled: Says of a text whether the task's filter can still take something else; None where it always can.
    """

    most: int
    until: tuple[str, ...]
    settled: Settled | None


class Ending:
    """Says whether an answer is over.

    Args:
        model: Decodes tokens.
        limits: When that is.
    """

    def __init__(self, model: "TextModel", limits: Limits) -> None:
        self._model, self._limits = model, limits
        ends = model.model.generation_config.eos_token_id
        self._ends = {model.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        # The model's own end is a token; as a text it only cuts the finished answer, as in lm-eval.
        eos = model.tok_decode(model.eot_token_id, skip_special_tokens=False)
        self._until = [text for text in limits.until if text and text != eos]
        # A token has at least one byte, so this many last tokens contain any text that ends the answer.
        self._num_decoded = 1 + max((len(text.encode()) for text in self._until), default=0)
        self._unsure = UNSURE + max((len(text) for text in limits.until), default=0)

    def __call__(self, row: Row) -> bool:
        """True where a row's answer ends with its newest token."""
        tokens = row.tokens
        if tokens[-1] in self._ends or len(tokens) >= self._limits.most:
            return True
        if self._until:
            tail = self._model.tok_decode(tokens[-self._num_decoded :], skip_special_tokens=False)
            if any(text in tail for text in self._until):
                return True
        if self._limits.settled is None or len(tokens) % LOOK_EVERY:
            return False
        text = self._model.tok_decode(tokens)[: -self._unsure]
        return any(end in text for end in self._until) or self._limits.settled(text)


def answered(model: "TextModel", requests: Sequence[Instance], settled: Mapping[str, Settled | None]) -> dict[int, str]:
    """The answers to requests that ask for greedy ones, by their places; all others are left out.

    Args:
        model: The model, under its policy.
        requests: Requests to generate.
        settled: By task, when its answers are settled.
    """
    key = ("answered", tuple(map(id, requests)), tuple(map(id, settled.values())))
    # The requests are kept alive, so that no others get the same ids.
    groups = model.memo.get(key, lambda: grouped(model, requests, settled), pinned=(requests, settled))
    found = {}
    for limits, members in groups:
        rows = [Row(prompt, length) for _, prompt, length in members]
        # No fewer than lm-eval would read together, which is what the user's batch size says.
        tokens = max(model.batch_tokens, model.batch_size * rows[0].num_prompt)
        Generation(model, Ending(model, limits)).run([*batches(rows, lambda row: row.num_prompt, tokens)])
        for row, (place, *_) in zip(rows, members, strict=True):
            found[place] = postprocess_generated_text(model.tok_decode(row.tokens), list(limits.until), None)
    return found


def grouped(
    model: "TextModel", requests: Sequence[Instance], settled: Mapping[str, Settled | None]
) -> list[tuple[Limits, list[tuple[int, Prompt, int]]]]:
    """The place, the prompt and its length of requests that ask for greedy answers, by their limits, longest first."""
    groups: dict[tuple[Limits, bool], list[tuple[int, Prompt, int]]] = defaultdict(list)
    for place, request in enumerate(requests):
        limits = limits_of(request, model, settled.get(str(request.task_name)))
        if limits is None:
            continue
        prompt = prompt_of(request, limits.most, model)
        length = model.prompt_length(prompt)
        if length + limits.most <= model.max_length:
            groups[limits, prompt.images is None].append((place, prompt, length))
    return [(limits, sorted(found, key=lambda member: -member[2])) for (limits, _), found in groups.items()]


def packed_batches(model: "TextModel", requests: Sequence[Instance]) -> list[PackedBatch]:
    """Log-likelihood requests in packed batches; those that fit in no row are left out."""
    asked = ((place, *prompt_and_answer(request, model)) for place, request in enumerate(requests) if request.args[0])
    questions = questions_of(
        ((place, prompt, answer) for place, prompt, answer in asked if answer),
        model.prompt_length,
        model.max_length,
        shortest_window(model.model),
        model.batch_tokens,
    )
    groups = [[one for one in questions if (one.prompt.images is None) is text] for text in (True, False)]
    return [
        PackedBatch.of(batch, encode([one.prompt for one in batch], model), model.tokenizer.pad_token_id)
        for group in groups
        for batch in batches(group, lambda question: question.tokens, model.batch_tokens)
    ]


def prompt_and_answer(request: Instance, model: "TextModel") -> tuple[Prompt, list[int]]:
    """The prompt of a log-likelihood request, and the token ids of its answer."""
    context, continuation, *more = request.args
    before, answer = model._encode_pair(context, continuation)
    if not more:
        return Prompt(tuple(before)), answer
    # `_encode_pair` moves spaces at the end of the prompt to the answer.
    return Prompt(tuple(before), context.rstrip(), tuple(more[0]["visual"])), answer


def limits_of(request: Instance, model: "TextModel", settled: Settled | None) -> Limits | None:
    """When the answer to a request ends; None where it is not the greedy one, or has more options."""
    given = normalize_gen_kwargs(request.args[1], model.max_gen_toks)
    eos = model.tok_decode(model.eot_token_id, skip_special_tokens=False)
    until = handle_stop_sequences(given.pop("until", None), eos=eos)
    most, plain = given.pop("max_gen_toks"), {"do_sample": False, "temperature": 0.0}
    if most < 1 or any(value != plain.get(name, ...) for name, value in given.items()):
        return None
    return Limits(most, tuple(until), settled)


def prompt_of(request: Instance, most: int, model: "TextModel") -> Prompt:
    """The prompt of a request to generate, of a text cut on its left so that the answer fits after it."""
    context = request.args[0]
    if len(request.args) > 2:
        return Prompt(tuple(model.tok_encode(context)), context, tuple(request.args[2]["visual"]))
    ids, _ = model.tok_batch_encode([context])
    return Prompt(tuple(ids[0].tolist()[-max(1, model.max_length - most) :]))


def decodes_plainly(config: GenerationConfig) -> bool:
    """True where a model's own generation settings leave greedy answers as they are, as penalties do not."""
    usual = vars(GenerationConfig())
    changed: dict[str, Any] = {
        name: value for name, value in vars(config).items() if name[0] != "_" and value != usual.get(name)
    }
    return changed.keys() <= HARMLESS
