"""What a request says of its prompt, and the ways of asking that a policy does not stand; see `calls`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

from ..errors import ModelError
from .cache import seen


@dataclass(frozen=True)
class Needs:
    """What the layers of a policy need to know of a call.

    Attributes:
        phases: True where an answer is treated in another way than the text of a prompt.
        images: True where image tokens are treated in another way than text.
        ranks: True where image tokens are left out by their scores.
    """

    phases: bool
    images: bool
    ranks: bool


@dataclass(eq=False)
class Request:
    """One `generate` that is running.

    Attributes:
        end: One past the place of the last prompt token, padding and what the cache held before included.
        cache: The cache of its forwards; None before the first, and where there is none.
        done: True once the cache has the whole prompt.
    """

    end: int
    cache: Cache | None = None
    done: bool = False

    def owns(self, cache: Cache | None) -> bool:
        """True for the request's own forwards: guidance calls the model with another cache in between."""
        if self.cache is None:
            self.cache = cache
        return self.cache is cache

    def prompt_left(self, count: int, cache: Cache | None) -> int:
        """How many of the next tokens the prompt still has; `count` of them come now."""
        if self.done:
            return 0
        left = self.end - (0 if cache is None else seen(cache))
        self.done = cache is not None and left <= count
        return left


def refuse_options(args: Sequence[Any], kwargs: Mapping[str, Any], saved: Any) -> None:
    """Refuse options of `generate` that rewrite the prompt, or run a second one that nothing tells from it.

    Args:
        args: What `generate` is called with, by position: the input, and a configuration.
        kwargs: The same by name.
        saved: The model's own configuration, which holds where nothing is said.

    Raises:
        ModelError: naming the option.
    """
    config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)

    def option(name: str) -> Any:
        if name in kwargs:
            return kwargs[name]
        said = (getattr(config, name, None), getattr(saved, name, None))
        return next((value for value in said if value is not None), None)

    if option("token_healing"):
        raise refusal("token_healing", "it rewrites the end of the prompt", "leave out `token_healing`")
    if option("guidance_scale") not in (None, 1) and option("use_cache") is False:
        reason = "nothing tells the guided prompt from the unguided one"
        raise refusal("guidance_scale without a cache", reason, "leave out `use_cache=False`")


def is_empty(cache: Cache, count: int) -> bool:
    """True where nothing has passed a cache.

    The length of a static cache is on the device. While a CUDA graph is recorded it cannot be read; several tokens are
    a prompt then.
    """
    if cache.layers and isinstance(cache.layers[0], StaticLayer):
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return count > 1 or not cache.layers[0].is_initialized
        if torch.compiler.is_compiling() and count == 1:
            return not cache.layers[0].is_initialized
    return seen(cache) == 0


def prompt_length(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Tokens of the prompt that `generate` is called with, padding and what its cache holds included."""
    mask, embeddings = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    ids = next((ids for ids in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")) if ids is not None), None)
    for given in (embeddings, mask, ids):
        if isinstance(given, Tensor) and given.dim() > 1 and given.shape[1]:
            return given.shape[1]
    # Without an input it begins with one token.
    return 1


def refuse_packed(given: Mapping[str, Any], cache: Cache | None, needs: Needs) -> None:
    """Refuse several sequences in one row, where it cannot be told what is prompt and whose, and two-way attention.

    Raises:
        ModelError: they are packed by continuous batching, by lengths, or by positions that begin anew.
    """
    if type(given.get("cache")).__name__ == "PagedAttentionCache":
        reason = "continuous batching packs prompts and answers into one row, and does not say which token is which"
        raise refusal("continuous batching", reason, "use `generate`, or skip and parallel without phase and tokens")
    if given.get("is_causal") is False:
        raise refusal(
            "two-way attention", "a token sees those after it, which no policy knows", "leave out `is_causal`"
        )
    positions = given.get("position_ids")
    packed = given.get("cu_seq_lens_q") is not None or given.get("seq_idx") is not None
    if needs.ranks and isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] > 1:
        unmasked = given.get("attention_mask") is None and (cache is None or seen(cache) == 0)
        packed |= unmasked and bool((positions.diff(dim=1) != 1).any())
    if packed:
        reason = "several sequences are packed into one row, and nothing says where each prompt ends"
        raise refusal("packed sequences", reason, "pass them as rows of a padded batch")


def refusal(way: str, reason: str, hint: str) -> ModelError:
    """The error of a way of calling that a policy does not stand."""
    return ModelError(f"{way} cannot be used under this policy", [reason], hint)
