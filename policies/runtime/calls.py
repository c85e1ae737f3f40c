"""The contract of the runtime, and the part of it that knows what one forward of a model is about.

A policy computes the same however its model is called, or the call is refused by name:

1. State of one call lives in a variable of the running thread (`CallTracker`) and in the call's cache, never on the
   model or on the handle. Threads share a model, and the policies of two models share nothing. The variable is a
   `threading.local` because torch.compile traces one, and no context variable; a forward never waits, so nothing else
   runs in its thread meanwhile.
2. Where a prompt ends is known, not guessed from a length of one. `generate` says how long its prompt is; forwards that
   bring the prompt in pieces, with the guesses of another model, or anew at each step are read by that length.
   The prompt of a draft, which is called again and again, is what it was first called with.
   `PolicyHandle.prompt_ends` says it for forwards outside `generate`. Without either, what goes into an empty cache, or
   into none, is prompt, and a single token after it is answer. Several tokens after it may be either, so they are
   refused under policies that treat an answer in another way.
3. A choice about image tokens ranks all images of a prompt together. So a prompt whose images come in several forwards
   of one `generate`, and several prompts packed into one row, are refused under it.
4. A mark on each layer names the handle, whichever object holds the layer, and stays while `dense()` lifts the policy.
   A model whose layers are marked takes no second policy.
5. A layer's number is its place in the list of layers. Its cache is at the number under which its attention stores.
6. The model that runs is the transformers model; its wrappers (torch.compile, PEFT) go on calling it.
7. Whatever a wrapped layer does stays visible: forward hooks, gradient checkpoints, one entry a layer in `attentions`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ..caches.cache import find_cache, tokens_seen
from ..errors import ModelError
from ..families.layers import argument_names
from ..windows.grids import SIZES, Grid, grids_by_row
from .attend import Split
from .patch import Patch
from .requests import (
    GenerateCall,
    Needs,
    is_empty,
    prompt_mask,
    refusal,
    refuse_options,
    refuse_packed,
    refuse_pieces,
)
from .selection import AllOrNone, Selection
from .tokens import ForwardTokens


@dataclass(eq=False)
class ForwardCall:
    """One forward of the model.

    Attributes:
        owner: The module that was entered first.
        single_class: Where `tokens` is None, the class of all tokens: `text` or `answer`.
        tokens: The tokens by class; None where all are of one class.
        images_known: False where the policy needs the image tokens, and the input ids were not seen.
        prompt: The tokens of the prompt, padding apart, shape (batch, tokens), where an adapter takes a mean over them
            in this forward; else None.
        unattended: Layers whose attention did not run.
        shortened: Layers whose attention ran for some tokens only, or for each one over some keys only.
        grids: The grids of each row's images; None where no image token sees through a window.
        neighbours: What image tokens see, by the window; layers share it.
        masks: Masks over what layers have cached, each with the model's mask and the places of the cached tokens.
    """

    owner: nn.Module
    single_class: str = "text"
    tokens: ForwardTokens | None = None
    images_known: bool = True
    prompt: Tensor | None = None
    unattended: set[int] = field(default_factory=set)
    shortened: set[int] = field(default_factory=set)
    grids: list[tuple[Grid, ...]] | None = None
    neighbours: dict[int, Any] = field(default_factory=dict)
    masks: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def count(self, hidden: Tensor) -> int:
        """How many tokens the forward has, whose hidden states, shape (batch, tokens, width), may be cut."""
        return hidden.shape[1] if self.tokens is None else self.tokens.recorded.shape[1]

    def record_attended(self, layer: int, attended: Selection | AllOrNone) -> None:
        """Record a layer that attends for fewer tokens than the dense model."""
        if attended is AllOrNone.NONE:
            self.unattended.add(layer)
        elif attended is not AllOrNone.ALL:
            self.shortened.add(layer)

    def record_split(self, layer: int, split: Split) -> None:
        """Record a layer whose tokens take part in its attention in different ways."""
        if split.asking is split.alone is AllOrNone.NONE:
            self.unattended.add(layer)
        elif split.asking is not AllOrNone.ALL:
            self.shortened.add(layer)


class CallTracker:
    """Tracks the calls of one model under a policy, apart for each thread.

    Args:
        model: The model.
        image_ids: The ids of the tokens that stand for image features.
        needs: What the policy needs to know.
    """

    def __init__(self, model: PreTrainedModel, image_ids: tuple[int, ...], needs: Needs) -> None:
        self._model = model
        self._image_ids = image_ids
        self._needs = needs
        self._generate = Patch(model, "generate") if hasattr(model, "generate") else None
        self._thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_thread"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._thread = threading.local()

    @property
    def current(self) -> ForwardCall | None:
        """The forward that is running in this thread."""
        return getattr(self._thread, "forward", None)

    @property
    def prompt_ends(self) -> Tensor | None:
        """See `PolicyHandle.prompt_ends`."""
        return getattr(self._thread, "prompt_ends", None)

    @prompt_ends.setter
    def prompt_ends(self, ends: Tensor | None) -> None:
        self._thread.prompt_ends = ends

    @property
    def image_tokens(self) -> int | None:
        """See `PolicyHandle.image_tokens`."""
        return getattr(self._thread, "image_tokens", None)

    @image_tokens.setter
    def image_tokens(self, count: int | None) -> None:
        self._thread.image_tokens = count

    def install(self) -> list[Any]:
        """Start to track the model; returns the hooks."""
        if self._generate is not None:
            self._generate.set(self.generate)
        hooks: list[Any] = []
        for model in entry_modules(self._model):
            hooks.append(model.register_forward_pre_hook(self.enter, with_kwargs=True))
            hooks.append(model.register_forward_hook(self.leave, always_call=True))
        return hooks

    def uninstall(self) -> None:
        """Restore `generate`; the caller removes the hooks."""
        if self._generate is not None:
            self._generate.undo()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's `generate`, and tell all its forwards how long the prompt is.

        Raises:
            ModelError: the model has no `generate`, an option hides where the prompt ends, or a draft evicts.
        """
        if self._generate is None:
            name = type(self._model).__name__
            raise ModelError(f"{name} cannot generate", ["it has no `generate`"], "load it with a class that has one")
        refuse_options(args, kwargs, self._model.generation_config)
        before, call = getattr(self._thread, "generate_call", None), GenerateCall.of(args, kwargs)
        if call.drafts and self._needs.evicts:
            reason = "a draft reads the end of its prompt again, when the evicted keys and values have left the cache"
            raise refusal("a draft with an eviction", reason, "leave `evict` and ratios with `phase: decode` out of it")
        self._thread.generate_call = call
        try:
            return self._generate.original(*args, **kwargs)
        finally:
            self._thread.generate_call = before

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the input of a forward; a forward pre-hook."""
        if self.current is not None:
            return
        given = dict(zip(argument_names(model), args, strict=False)) | kwargs if args else kwargs
        ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        tokens = ids if isinstance(ids, Tensor) else embeddings
        if isinstance(tokens, Tensor):
            self._thread.forward = self._read(model, tokens, given)

    def leave(self, model: nn.Module, *_: Any) -> None:
        """Forget a forward once it is over; a forward hook."""
        call = self.current
        if call is not None and call.owner is model:
            self._thread.forward = None

    def _read(self, model: nn.Module, tokens: Tensor, given: Mapping[str, Any]) -> ForwardCall:
        """Classify the tokens of a forward.

        Args:
            model: The module that was entered.
            tokens: The input ids (batch, tokens), or without them the embeddings (batch, tokens, width).
            given: All arguments by name.
        """
        count, cache = tokens.shape[1], find_cache(given)
        refuse_packed(given, cache, self._needs)
        end = self._prompt_end(count, cache)
        call = ForwardCall(model)
        if isinstance(end, int) and end <= 0:
            call.single_class = "answer"
            return call
        if self._needs.means and not self._is_cut_back(cache):
            refuse_pieces(end, count, cache)
            call.prompt = prompt_mask(tokens, given.get("attention_mask"), end)
        mixed = isinstance(end, Tensor) or end < count
        if not self._needs.images and not mixed:
            return call
        call.images_known = tokens.dim() == 2 or not self._needs.images
        if call.images_known:
            image, mask = self._image_mask(tokens), given.get("attention_mask")
            if self.image_tokens is not None and not mixed and self._needs.images:
                call.tokens = ForwardTokens.told(image, mask, self.image_tokens)
            else:
                call.tokens = ForwardTokens.read(image, mask, end if mixed else None)
            self._refuse_chunk(call.tokens, end, count, self._is_cut_back(cache))
            if self._needs.grids and call.tokens is not None and any(call.tokens.counts["image"]):
                call.grids = self._read_grids(call.tokens.counts["image"], given, cache)
        return call

    def _image_mask(self, tokens: Tensor) -> Tensor:
        """Which tokens stand for image features, shape (batch, tokens)."""
        if tokens.dim() > 2 or not self._needs.images or not self._image_ids:
            return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        # Compared one by one, because a CUDA graph captures no copy of the ids to the device.
        return reduce(torch.logical_or, (tokens == number for number in self._image_ids))

    def _read_grids(self, counts: list[int], given: Mapping[str, Any], cache: Cache | None) -> list[tuple[Grid, ...]]:
        """The grids of the images of a forward, of which each row has so many tokens.

        Raises:
            ModelError: the cache holds tokens of an earlier forward, or see `grids.grids_by_row`.
        """
        if cache is not None and not is_empty(cache, sum(counts)):
            reason = "an image token that sees through a window sees the text before it, which an earlier forward had"
            raise refusal("images after cached tokens", reason, "pass the whole prompt in one forward")
        running: GenerateCall | None = getattr(self._thread, "generate_call", None)
        if running is None or any(given.get(name) is not None for name in SIZES):
            return grids_by_row(self._model.config, given, counts)
        # Beams and several answers repeat each prompt.
        times = max(1, len(counts) // running.rows)
        grids = grids_by_row(self._model.config, running.inputs, counts[::times])
        return [row for row in grids for _ in range(times)]

    def _prompt_end(self, count: int, cache: Cache | None) -> int | Tensor:
        """One past the last prompt token, counted from the forward's first token.

        Args:
            count: Tokens of the forward.
            cache: Its cache.

        Returns:
            A number for all rows, or where `prompt_ends` is set one for each row, shape (batch,).

        Raises:
            ModelError: several tokens follow a prompt, and nothing says whether they are prompt or answer.
        """
        if self.prompt_ends is not None:
            return self.prompt_ends if cache is None else self.prompt_ends - tokens_seen(cache)
        running: GenerateCall | None = getattr(self._thread, "generate_call", None)
        if running is not None and running.owns(cache):
            return running.prompt_left(count, cache)
        if cache is None or is_empty(cache, count):
            return count
        if count > 1 and self._needs.phases:
            found = f"found {count} tokens after {tokens_seen(cache)} in the cache"
            raise ModelError(
                "tokens may be of the prompt or of an answer, which this policy treats differently",
                [f"{found}, and nothing says where the prompt ends"],
                "set `handle.prompt_ends` (one past the last prompt token of each row, cached ones counted), use "
                "`generate`, or feed an answer token by token",
            )
        return 0 if count == 1 else count

    def _is_cut_back(self, cache: Cache | None) -> bool:
        """True where a draft reads the end of its prompt again."""
        running: GenerateCall | None = getattr(self._thread, "generate_call", None)
        return running is not None and running.drafts and cache is not None and tokens_seen(cache) > 0

    def _refuse_chunk(self, tokens: ForwardTokens | None, end: int | Tensor, count: int, is_cut_back: bool) -> None:
        """Refuse a forward that has images and only a part of the prompt: image tokens are ranked over all of it.

        Raises:
            ModelError: more of the prompt is to come, or an earlier part was read before.
        """
        if tokens is None or not self._needs.ranks or not any(tokens.counts["image"]):
            return
        if is_cut_back:
            reason = "a token ratio ranks the image tokens of the whole prompt, and a draft reads its end again"
            raise refusal("a prompt that ends in an image token", reason, "end the prompt with text")
        if end > count if isinstance(end, int) else bool((end > count).any()):
            raise refusal(
                "prefill in chunks",
                "a token ratio ranks the image tokens of the whole prompt, and more of it is to come",
                "leave out `prefill_chunk_size`, or take chunks that have the images and what follows them",
            )


def entry_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules through which the decoder's layers can be run: the model, the decoder, and models between them."""
    decoder = model.get_decoder()
    models = (part for part in model.modules() if part is decoder or isinstance(part, PreTrainedModel))
    return [part for part in models if any(inner is decoder for inner in part.modules())]
