"""What a `generate` call says of its prompt, and the ways of calling that a policy does not support; see `calls`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

from ..caches.cache import find_cache, tokens_seen
from ..errors import ModelError

# The attribute of a draft's cache that holds where its prompt ends.
PROMPT_END = "_skipsearch_prompt_end"


@dataclass(frozen=True)
class Needs:
    """What a policy needs to know of a forward.

    Attributes:
        phases: True where an answer is treated in another way than the text of a prompt.
        images: True where image tokens are treated in another way than text.
        ranks: True where a token ratio ranks image tokens.
        evicts: True where keys and values of image tokens leave a cache after the prompt.
        grids: True where image tokens see through a window.
        means: True where an adapter takes a mean over the prompt.
    """

    phases: bool
    images: bool
    ranks: bool
    evicts: bool = False
    grids: bool = False
    means: bool = False


@dataclass(eq=False)
class GenerateCall:
    """A running call of `generate`.

    Attributes:
        end: One past the place of the last prompt token; padding and earlier tokens in the cache count.
        cache: The cache of its forwards; None before the first one, and where there is none.
        prompt_done: True once the cache holds the whole prompt.
        drafts: True where another model's `generate` calls, to draft tokens for it.
        inputs: What it was called with, by name; its forwards get the images without their sizes.
        rows: The number of prompts; each may be several rows of a forward.
    """

    end: int
    cache: Cache | None = None
    prompt_done: bool = False
    drafts: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 1

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "GenerateCall":
        """The call with these arguments.

        A draft is called again and again, each time with all tokens so far. Its prompt is what it was first called
        with; its cache remembers that.
        """
        drafts = bool(getattr(kwargs.get("generation_config"), "is_assistant", False))
        end = getattr(find_cache(kwargs), PROMPT_END, None) if drafts else None
        rows, length = prompt_shape(args, kwargs)
        return cls(length if end is None else end, drafts=drafts, inputs=kwargs, rows=rows)

    def owns(self, cache: Cache | None) -> bool:
        """True for a forward of this call; guidance runs forwards with another cache in between."""
        if self.cache is None:
            self.cache = cache
            if self.drafts and cache is not None:
                setattr(cache, PROMPT_END, self.end)
        return self.cache is cache

    def prompt_left(self, count: int, cache: Cache | None) -> int:
        """How many tokens of the prompt are still to come, the `count` tokens of this forward included."""
        if self.prompt_done:
            return 0
        left = self.end - (0 if cache is None else tokens_seen(cache))
        self.prompt_done = cache is not None and left <= count
        return left


def refuse_options(args: Sequence[Any], kwargs: Mapping[str, Any], saved: Any) -> None:
    """Refuse options of `generate` that rewrite the prompt, or run a second prompt that looks like the first.

    Args:
        args: Positional arguments of `generate`: the input, and a configuration.
        kwargs: Keyword arguments of `generate`.
        saved: The model's own generation configuration, which supplies what neither of them sets.

    Raises:
        ModelError: naming the option.
    """
    config = kwargs.get("generation_config", args[1] if len(args) > 1 else None)

    def option(name: str) -> Any:
        if name in kwargs:
            return kwargs[name]
        values = (getattr(config, name, None), getattr(saved, name, None))
        return next((value for value in values if value is not None), None)

    if option("token_healing"):
        raise refusal("token_healing", "it rewrites the end of the prompt", "leave out `token_healing`")
    if option("guidance_scale") not in (None, 1) and option("use_cache") is False:
        reason = "nothing tells the guided prompt from the unguided one"
        raise refusal("guidance_scale without a cache", reason, "leave out `use_cache=False`")


def is_empty(cache: Cache, count: int) -> bool:
    """True where no token has passed a cache yet.

    The length of a static cache lives on the device and cannot be read while a CUDA graph is captured; several tokens
    count as a prompt then.
    """
    if cache.layers and isinstance(cache.layers[0], StaticLayer):
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return count > 1 or not cache.layers[0].is_initialized
        if torch.compiler.is_compiling() and count == 1:
            return not cache.layers[0].is_initialized
    return tokens_seen(cache) == 0


def prompt_shape(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """The rows and the prompt tokens that `generate` is called with; padding and earlier tokens in its cache count."""
    mask, embeddings = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    ids = next((ids for ids in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")) if ids is not None), None)
    for given in (embeddings, mask, ids):
        if isinstance(given, Tensor) and given.dim() > 1 and given.shape[1]:
            return given.shape[0], given.shape[1]
    # Without an input, `generate` starts from one token.
    return 1, 1


def refuse_packed(given: Mapping[str, Any], cache: Cache | None, needs: Needs) -> None:
    """Refuse inputs that pack several sequences into one row, and two-way attention.

    In a packed row, nothing says where each prompt ends.

    Raises:
        ModelError: continuous batching, sequence lengths or position ids pack the row, or the attention is two-way.
    """
    if is_paged(given):
        reason = "continuous batching packs prompts and answers into one row, and does not say which token is which"
        raise refusal("continuous batching", reason, "use `generate`, or skip and parallel without phase and tokens")
    if given.get("is_causal") is False:
        reason = "policies are defined for tokens that see earlier tokens only"
        raise refusal("two-way attention", reason, "leave out `is_causal`")
    positions = given.get("position_ids")
    packed = given.get("cu_seq_lens_q") is not None or given.get("seq_idx") is not None
    if (
        (needs.ranks or needs.grids or needs.means)
        and isinstance(positions, Tensor)
        and positions.dim() == 2
        and positions.shape[1] > 1
    ):
        unmasked = given.get("attention_mask") is None and (cache is None or tokens_seen(cache) == 0)
        packed |= unmasked and bool((positions.diff(dim=1) != 1).any())
    if packed:
        reason = "several sequences are packed into one row, and nothing says where each prompt ends"
        raise refusal("packed sequences", reason, "pass them as rows of a padded batch")


def is_paged(given: Mapping[str, Any]) -> bool:
    """True for the arguments of a forward of continuous batching."""
    return type(given.get("cache")).__name__ == "PagedAttentionCache"


def refusal(feature: str, reason: str, hint: str) -> ModelError:
    """The error for a way of calling that a policy does not support."""
    return ModelError(f"{feature} cannot be used under this policy", [reason], hint)


def prompt_mask(tokens: Tensor, mask: Any, end: int | Tensor) -> Tensor | None:
    """Which tokens of a forward belong to the prompt, padding apart, shape (batch, tokens); None where none does.

    Args:
        tokens: The input ids (batch, tokens), or the embeddings (batch, tokens, width).
        mask: The attention mask, where the input has one.
        end: One past the last prompt token, of all rows or of each one, shape (batch,).

    Raises:
        ModelError: the mask does not say which tokens are padding.
    """
    (batch, count), device = tokens.shape[:2], tokens.device
    if not some_end(end, 1):
        return None
    real = real_tokens(mask, batch, count, device)
    places = torch.arange(count, device=device)
    return real & (places[None] < torch.as_tensor(end, device=device).reshape(-1, 1))


def real_tokens(mask: Any, batch: int, count: int, device: torch.device) -> Tensor:
    """Which tokens of a forward are no padding, shape (batch, tokens).

    Args:
        mask: None; shape (batch, tokens) with 0 for padding; or, as with static caches, the masks that layers get, of
            shape (batch, 1, queries, keys), alone or by the kind of layer.
        batch: The rows.
        count: The tokens of the forward.
        device: Where the tokens are.

    Raises:
        ModelError: the mask is of another kind.
    """
    if isinstance(mask, Mapping):
        mask = next((one for one in mask.values() if one is not None), None)
    if mask is None:
        return torch.ones(batch, count, dtype=torch.bool, device=device)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask[:, -count:].to(device).bool()
    if isinstance(mask, Tensor) and mask.dim() == 4:
        # Of a prompt in an empty cache, query i sees key i unless it is padding.
        own = mask[:, 0].diagonal(dim1=-2, dim2=-1)[:, :count].to(device)
        return (own if own.dtype == torch.bool else own == 0).expand(batch, -1)
    found = f"a {type(mask).__name__}" + (f" of {mask.dim()} dimensions" if isinstance(mask, Tensor) else "")
    reason = f"its layers take a mean over the prompt without padding, and {found} does not say where padding is"
    raise refusal("this attention mask", reason, "pass `attention_mask` of shape (batch, tokens)")


def refuse_pieces(end: int | Tensor, count: int, cache: Cache | None) -> None:
    """Refuse a forward that has only a part of a prompt, over all of which an adapter takes its mean.

    Args:
        end: One past the last prompt token, of all rows or of each one.
        count: The tokens of the forward.
        cache: Its cache.

    Raises:
        ModelError: more of the prompt is to come, or an earlier part was read before.
    """
    if not some_end(end, 1):
        return
    reason = None
    if some_end(end, count + 1):
        reason = "an adapter takes the mean over the whole prompt, and more of it is to come"
    elif cache is not None and not is_empty(cache, count):
        reason = "an adapter takes the mean over the whole prompt, and an earlier forward read a part of it"
    if reason is not None:
        hint = "pass the whole prompt in one forward, or freeze the adapters with `skipsearch recover --freeze`"
        raise refusal("a prompt in pieces", reason, hint)


def unread_prompt(layer: int) -> ModelError:
    """The error for a token after a prompt that an adapter did not see."""
    return ModelError(
        "an adapter in place of an attention needs the prompt",
        [f"layer {layer} got a token after it, with a cache that was filled without the policy"],
        "start from an empty cache, with the policy applied",
    )


def some_end(end: int | Tensor, least: int) -> bool:
    """True where the prompt of some row ends at that place or after it."""
    return bool((end >= least).any()) if isinstance(end, Tensor) else end >= least
