"""The contract of the runtime, and the part of it that knows what one call of a model is about.

A policy computes the same however its model is called, or the call is refused by name:

1. What belongs to one call lives with that call: in a variable of the running thread (`Calls`) and in the call's cache,
   never on the model or on the handle. Threads share a model, and one policy knows nothing of another model's. The
   variable is a `threading.local` because torch.compile traces one, and no context variable; a forward never waits, so
   nothing else runs in its thread meanwhile.
2. Where a prompt ends is known, not guessed from a length of one. `generate` says how long its prompt is, and forwards
   that bring it in pieces, with the guesses of another model, or anew at each step are read by that.
   `PolicyHandle.prompt_ends` says it for forwards that `generate` does not call. Without either, what goes into an
   empty cache, or into none, is prompt, and a single token after it is answer. Several tokens after it may be either,
   so they are refused under policies that treat an answer in another way.
3. A choice about image tokens ranks all images of a prompt together, so a prompt whose images come in several forwards
   of one `generate`, and several prompts packed into one row, are refused under it.
4. The claim on a layer lies on the layer, whichever object holds it, and stays while `dense()` lifts the policy. A
   model whose layers are claimed takes no second policy.
5. A layer's number is its place in the list of layers. Its cache is at the number under which its attention stores.
6. The model that runs is the transformers model; what wraps it (torch.compile, PEFT) goes on calling it.
7. Whatever a wrapped layer does stays visible: forward hooks, gradient checkpoints, one entry a layer in `attentions`.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ..errors import ModelError
from ..families.layers import argument_names
from .cache import find_cache, seen
from .patch import Patch
from .requests import Needs, Request, is_empty, prompt_length, refusal, refuse_options, refuse_packed
from .tokens import Prompt, Selection, Whole


@dataclass(eq=False)
class Call:
    """One forward of the model.

    Attributes:
        owner: The module that was entered first.
        only: Where all tokens are of one class and `prompt` is None, that class: `text` or `answer`.
        prompt: Which tokens are of an image or an answer.
        known: False where the image tokens are needed and the input ids were not seen.
        unattended: Layers whose attention did not run.
        shortened: Layers whose attention ran for some tokens only.
    """

    owner: nn.Module
    only: str = "text"
    prompt: Prompt | None = None
    known: bool = True
    unattended: set[int] = field(default_factory=set)
    shortened: set[int] = field(default_factory=set)

    def note(self, layer: int, attended: Selection | Whole) -> None:
        """Keep which layers attended less than the dense model."""
        if attended is Whole.NONE:
            self.unattended.add(layer)
        elif attended is not Whole.ALL:
            self.shortened.add(layer)


class Calls:
    """The calls of one model under a policy; each thread sees its own.

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
    def now(self) -> Call | None:
        """The forward that is running."""
        return getattr(self._thread, "call", None)

    @property
    def prompt_ends(self) -> Tensor | None:
        """See `PolicyHandle.prompt_ends`."""
        return getattr(self._thread, "prompt_ends", None)

    @prompt_ends.setter
    def prompt_ends(self, ends: Tensor | None) -> None:
        self._thread.prompt_ends = ends

    def install(self) -> list[Any]:
        """Begin to watch the model; returns the hooks."""
        if self._generate is not None:
            self._generate.set(self.generate)
        hooks: list[Any] = []
        for model in entrances(self._model):
            hooks.append(model.register_forward_pre_hook(self.enter, with_kwargs=True))
            hooks.append(model.register_forward_hook(self.leave, always_call=True))
        return hooks

    def uninstall(self) -> None:
        """Give `generate` back; the hooks are the caller's to remove."""
        if self._generate is not None:
            self._generate.undo()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `generate`, with its prompt known to all its forwards.

        Raises:
            ModelError: it is asked for in a way in which the prompt's end cannot be known.
        """
        assert self._generate is not None
        refuse_options(args, kwargs, self._model.generation_config)
        before = getattr(self._thread, "request", None)
        self._thread.request = Request(prompt_length(args, kwargs))
        try:
            return self._generate.original(*args, **kwargs)
        finally:
            self._thread.request = before

    def enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the input of a forward; a hook."""
        if self.now is not None:
            return
        given = dict(zip(argument_names(model), args, strict=False)) | kwargs if args else kwargs
        ids, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        tokens = ids if isinstance(ids, Tensor) else embeddings
        if isinstance(tokens, Tensor):
            self._thread.call = self._read(model, tokens, given)

    def leave(self, model: nn.Module, *_: Any) -> None:
        """Forget a forward; a hook."""
        call = self.now
        if call is not None and call.owner is model:
            self._thread.call = None

    def _read(self, model: nn.Module, tokens: Tensor, given: Mapping[str, Any]) -> Call:
        """Tell the classes of a forward's tokens.

        Args:
            model: The module that was entered.
            tokens: The input ids (batch, tokens), or where there are none the embeddings (batch, tokens, width).
            given: All arguments by name.
        """
        count, cache = tokens.shape[1], find_cache(given)
        refuse_packed(given, cache, self._needs)
        end = self._prompt_left(count, cache)
        call = Call(model)
        if isinstance(end, int) and end <= 0:
            call.only = "answer"
            return call
        mixed = isinstance(end, Tensor) or end < count
        if not self._needs.images and not mixed:
            return call
        call.known = tokens.dim() == 2 or not self._needs.images
        if call.known:
            image = self._images(tokens)
            call.prompt = Prompt.read(image, given.get("attention_mask"), end if mixed else None)
            self._refuse_part(call.prompt, end, count)
        return call

    def _images(self, tokens: Tensor) -> Tensor:
        """Which tokens stand for image features, shape (batch, tokens)."""
        if tokens.dim() > 2 or not self._needs.images:
            return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return torch.isin(tokens, torch.tensor(self._image_ids, device=tokens.device, dtype=tokens.dtype))

    def _prompt_left(self, count: int, cache: Cache | None) -> int | Tensor:
        """Where the prompt ends, counted from the forward's first token; by row, shape (batch,), where it was told.

        Args:
            count: Tokens of the forward.
            cache: Its cache.

        Raises:
            ModelError: several tokens follow a prompt, and nothing says what they are.
        """
        told = self.prompt_ends
        if told is not None:
            return told if cache is None else told - seen(cache)
        request: Request | None = getattr(self._thread, "request", None)
        if request is not None and request.owns(cache):
            return request.prompt_left(count, cache)
        if cache is None or is_empty(cache, count):
            return count
        if count > 1 and self._needs.phases:
            raise ModelError(
                "tokens may be of the prompt or of an answer, which this policy treats differently",
                [f"found {count} tokens after {seen(cache)} in the cache, and nothing says where the prompt ends"],
                "set `handle.prompt_ends` (one past the last prompt token of each row, cached ones counted), use "
                "`generate`, or feed an answer token by token",
            )
        return 0 if count == 1 else count

    def _refuse_part(self, prompt: Prompt | None, end: int | Tensor, count: int) -> None:
        """Refuse a part of a prompt that has images, where these are ranked among all of the prompt.

        Raises:
            ModelError: the forward has images, and more of the prompt is to come.
        """
        if prompt is None or not self._needs.ranks or not any(prompt.counts["image"]):
            return
        if end > count if isinstance(end, int) else bool((end > count).any()):
            raise refusal(
                "prefill in chunks",
                "a token ratio ranks the image tokens of the whole prompt, and more of it is to come",
                "leave out `prefill_chunk_size`, or take chunks that have the images and what follows them",
            )


def entrances(model: PreTrainedModel) -> list[nn.Module]:
    """The models through which the decoder's layers can be run: the whole, the decoder, and those between."""
    decoder = model.get_decoder()
    models = (part for part in model.modules() if part is decoder or isinstance(part, PreTrainedModel))
    return [part for part in models if any(inner is decoder for inner in part.modules())]
