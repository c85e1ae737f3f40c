"""One decoder layer under a policy: its own sublayers put together anew, in place of its forward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .cache import PartialLayer, cache_layer, find_cache, partial_layer
from .errors import ModelError
from .layers import DecoderLayer
from .policy import LayerChoice
from .tokens import Prompt, Selection, watched

# Arguments of a layer that have an entry for each token, and the axis that runs over tokens.
PER_TOKEN = {"position_embeddings": -2, "position_ids": -1}


@dataclass
class Forward:
    """What the layers share during one forward of the model.

    Attributes:
        prompt: The images in the input; None where there are none.
        known: False where the model was entered past the hook that reads the input ids.
    """

    prompt: Prompt | None = None
    known: bool = False


class WrappedLayer:
    """Runs a decoder layer by a choice.

    Args:
        layer: The layer, with its sublayers.
        choice: What it does, in canonical form.
        score: How image tokens are ranked.
        scored: True where a later layer ranks its tokens by this layer's attention.
        shared: What the layers share during a forward.
    """

    def __init__(self, layer: DecoderLayer, choice: LayerChoice, score: str, scored: bool, shared: Forward) -> None:
        self.layer = layer
        self.choice = choice
        self.score = score
        self.scored = scored
        self.shared = shared
        # accelerate keeps the forward that it wraps with its hooks under this name.
        self.slot = "_old_forward" if hasattr(layer.module, "_hf_hook") else "forward"
        self.original = getattr(layer.module, self.slot)
        self.was_set = self.slot in vars(layer.module)
        self.run = self.skip_layer if choice.skips_layer else self.keep if choice.is_keep else self.compose

    def install(self) -> None:
        """Put this in place of the layer's forward. The module tree, its names and its hooks stay."""
        setattr(self.layer.module, self.slot, self.run)

    def uninstall(self) -> None:
        """Put the layer's forward back."""
        if self.was_set:
            setattr(self.layer.module, self.slot, self.original)
        else:
            delattr(self.layer.module, self.slot)

    def keep(self, *args: Any, **kwargs: Any) -> Any:
        """The untouched layer, watched for a later layer's token scores."""
        prompt = self.shared.prompt
        if prompt is None:
            return self.original(*args, **kwargs)
        with watched(self.layer.sublayers.attention) as notes:
            output = self.original(*args, **kwargs)
        prompt.look(notes[-1], None)
        return output

    def skip_layer(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer left out, y = x: nothing is computed and nothing stored."""
        hidden, arguments = self.named(args, kwargs)
        self.pass_by(arguments, hidden.shape[1])
        return hidden

    def compose(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer from its sublayers, on all tokens or on the chosen ones."""
        hidden, arguments = self.named(args, kwargs)
        selection = self.select(hidden)
        cache = find_cache(arguments)
        if self.choice.attention == "skip":
            self.pass_by(arguments, hidden.shape[1])
        elif selection is not None or (cache is not None and self.stores_part(cache)):
            arguments = self.narrow(hidden, arguments, cache, selection)
        if selection is None:
            return self.sublayers(hidden, arguments, selection)
        return selection.put_back(hidden, self.sublayers(selection.cut(hidden, -2), arguments, selection))

    def sublayers(self, x: Tensor, arguments: dict[str, Any], selection: Selection | None) -> Tensor:
        """What the choice leaves of x' = x + A(N1 x); y = x' + F(N2 x')."""
        parts, choice = self.layer.sublayers, self.choice
        if choice.attention == "skip":
            return x + parts.feed(x)
        attended = x + self.attend(x, arguments, selection)
        if choice.ffn == "skip":
            return attended
        return attended + parts.feed(x if parts.parallel or choice.wiring == "parallel" else attended)

    def attend(self, x: Tensor, arguments: dict[str, Any], selection: Selection | None) -> Tensor:
        """A(N1 x), watched where a later layer ranks its tokens by it."""
        parts, prompt = self.layer.sublayers, self.shared.prompt
        if not self.scored or prompt is None:
            return parts.attend(x, arguments)
        with watched(parts.attention) as notes:
            out = parts.attend(x, arguments)
        prompt.look(notes[-1], selection)
        return out

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The hidden states, and all other arguments by name."""
        named = dict(zip(self.layer.parameters, args, strict=False)) | kwargs
        return named.pop("hidden_states"), named

    def pass_by(self, arguments: dict[str, Any], count: int) -> None:
        """Let the cache know that tokens passed which this layer stores nothing of."""
        cache = find_cache(arguments)
        if cache is not None:
            partial_layer(cache, self.layer.index).pass_by(count)

    def stores_part(self, cache: Cache) -> bool:
        """True where an earlier part of the sequence was cut for this layer."""
        return isinstance(cache_layer(cache, self.layer.index), PartialLayer)

    def select(self, hidden: Tensor) -> Selection | None:
        """The tokens this layer processes; None for all.

        Raises:
            ModelError: nobody saw the input ids, so the image tokens are unknown.
        """
        ratio, prompt = self.choice.token_ratio, self.shared.prompt
        if ratio is None or (prompt is None and (self.shared.known or hidden.shape[1] == 1)):
            return None
        if prompt is None or prompt.image.shape != hidden.shape[:2]:
            raise ModelError(
                "a token ratio needs the input ids, to know which tokens are image tokens",
                [f"layer {self.layer.index} got hidden states of shape {tuple(hidden.shape)} without them"],
                "call the model that the policy was applied to, with `input_ids`",
            )
        return prompt.choose(hidden, ratio, self.score)

    def narrow(
        self, hidden: Tensor, arguments: dict[str, Any], cache: Cache | None, selection: Selection | None
    ) -> dict[str, Any]:
        """The arguments of the attention, cut to the tokens that this layer processes and has stored."""
        batch, count = hidden.shape[:2]
        stored = None if cache is None else partial_layer(cache, self.layer.index)
        index = None if selection is None else selection.index
        cut = dict(arguments)
        cut["attention_mask"] = self.mask(arguments.get("attention_mask"), hidden, stored, selection)
        if stored is not None:
            stored.announce(count, index, None if selection is None else selection.valid)
        if selection is not None:
            for name, axis in PER_TOKEN.items():
                value = arguments.get(name)
                if isinstance(value, Tensor):
                    cut[name] = selection.cut(value, axis)
                elif value is not None:
                    cut[name] = tuple(selection.cut(part, axis) for part in value)
        return cut

    def mask(
        self, mask: Tensor | None, hidden: Tensor, stored: PartialLayer | None, selection: Selection | None
    ) -> Tensor | None:
        """The attention mask between the processed tokens and what the layer has stored of the sequence with them.

        Args:
            mask: The model's own, for the whole sequence: None (causal) or of shape (batch, 1, queries, keys).
            hidden: What enters the layer, shape (batch, tokens, width).
            stored: The layer's cache before this call.
            selection: The processed tokens; None for all.
        """
        (batch, count), device = hidden.shape[:2], hidden.device
        past, first = (0, 0) if stored is None else (stored.seen, stored.get_mask_sizes(0)[1])
        implementation = self.implementation
        new = None if selection is None else selection.valid
        old = None if stored is None else stored.valid
        if mask is None and new is None and old is None and first == 0 and (count == 1 or past == 0):
            return None
        everything = torch.arange(count, device=device).expand(batch, -1)
        queries = everything if selection is None else selection.index
        before = everything[:, :0] if stored is None else stored.columns(batch, device)
        keys = torch.cat([before, queries + past], dim=1)
        real = torch.cat([filled(old, before), filled(new, queries)], dim=1) & (keys >= first)
        column = (keys - first).clamp_min(0)
        if mask is None:
            allowed = keys[:, None, :] <= (queries + past)[:, :, None]
        else:
            rows = mask[:, 0].expand(batch, -1, -1).gather(1, queries[..., None].expand(-1, -1, mask.shape[-1]))
            mask = rows.gather(2, column[:, None].expand(-1, queries.shape[1], -1))
            allowed = mask if mask.dtype == torch.bool else torch.ones_like(mask, dtype=torch.bool)
        # What fills up a shorter row as a query may see anything: its output is thrown away.
        allowed = allowed & real[:, None]
        if mask is None or mask.dtype == torch.bool:
            allowed = allowed[:, None]
            return allowed if implementation == "sdpa" else as_added(allowed, hidden.dtype)
        return torch.where(allowed, mask, torch.finfo(mask.dtype).min)[:, None]

    @property
    def implementation(self) -> str:
        """What computes the attention.

        Raises:
            ModelError: it takes other masks than ours.
        """
        config = getattr(self.layer.sublayers.attention, "config", None)
        name = getattr(config, "_attn_implementation", "sdpa")
        if name not in ("sdpa", "eager"):
            raise ModelError(
                f"a token ratio cannot run under {name}",
                [f"layer {self.layer.index} leaves tokens out, which is proven under sdpa and eager only"],
                'call `model.set_attn_implementation("sdpa")`',
            )
        return name


def as_added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of true and false as one that is added to the logits."""
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def filled(valid: Tensor | None, like: Tensor) -> Tensor:
    """A mask of validity, where None means that all entries are."""
    return torch.ones_like(like, dtype=torch.bool) if valid is None else valid
