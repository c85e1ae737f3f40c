"""One decoder layer under a policy: what runs in the place of its forward."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from ...caches.cache import cache_layer, find_cache, shorter_layer, skip_all_tokens
from ...caches.partial import PartialLayer
from ...caches.static import ShortStaticLayer
from ...choice import LayerChoice, WidthSelection
from ...families.anatomy import first
from ...families.layers import DecoderLayer
from ...families.narrow_heads import NarrowHeads
from ...families.widths import NarrowFFN, NarrowSublayer
from ...scores.score import Record
from ...scores.token_selection import TokenSelection
from ...windows.attend import WindowedAttention
from ...windows.neighbours import Neighbours
from ..attend import LayerKeys, Tokens
from ..calls import CallTracker, ForwardCall
from ..heads.attention import HeadAttention
from ..narrow import narrow
from ..patch import Patch
from ..selection import AllOrNone, Selection
from ..watch import WatchedAttention, last_recorded
from .compose import Composition
from .planner import TokenPlanner
from .shorter import DENSE, Plan, cut_to_plan, is_read

FROM_ATTENTION: tuple[Record, ...] = ("attention", "key_norm")


class WrappedLayer:
    """Runs a decoder layer as a choice says.

    Args:
        layer: The layer, with its sublayers.
        choice: What it does, in canonical form.
        selection: How image tokens are ranked, and whether a token that is left out comes back.
        record: What this layer records for a later layer that ranks image tokens by it; None for nothing.
        width: How channels are ranked.

    Attributes:
        planner: What decides which tokens the layer processes in a forward.
        roles: What each group of tokens does.
        composition: The sublayers, composed anew.
        means: True where the layer takes a mean over the prompt.
        slot: The number under which the layer stores in a cache.
        calls: The forwards of the model; a layer without a fixed plan reads the running one.
        narrow: The FFN with a share of its channels; None where the choice has no such share.
        heads: The attention with a share of its heads; None where the choice has no such share.
        windowed: The attention of image tokens that see through a window; None where the choice has none.
        watch: What records the layer's attention; None where no later layer ranks image tokens by it.
        hands_to: The next layer, where it may get hidden states that are cut; else None.
    """

    calls: CallTracker
    hands_to: nn.Module | None = None
    means = False

    def __init__(
        self,
        layer: DecoderLayer,
        choice: LayerChoice,
        selection: TokenSelection,
        record: Record | None,
        width: WidthSelection,
    ) -> None:
        self.layer = layer
        self.choice = choice
        self.record = record
        self.planner = TokenPlanner(layer.index, choice, selection, record)
        self.roles = self.planner.roles
        self.slot = layer.slot
        ratio, share = choice.ffn_ratio, choice.head_ratio
        self.narrow = None if ratio is None else NarrowFFN(layer.sublayers, ratio, width.ranking)
        self.heads = None if share is None else NarrowHeads(layer.sublayers, share, width.ranking)
        self.composition = Composition(layer, choice, self.roles, self.narrow)
        self.head_attention = None if self.heads is None else HeadAttention(layer, self.heads, self.roles)
        self.patch = Patch(layer.module)
        attention = layer.sublayers.attention if self.heads is None else self.heads.kept
        self.windowed = None if choice.window is None else WindowedAttention(layer, attention)
        self.watch = WatchedAttention(attention) if record in FROM_ATTENTION else None

    @property
    def narrowed(self) -> list[NarrowSublayer]:
        """The sublayers of which a share runs."""
        return [part for part in (self.narrow, self.heads) if part is not None]

    def install(self) -> None:
        """Let the layer run as the choice says."""
        self.patch.set(self.entry)
        if self.watch is not None:
            self.watch.install()
        for part in self.narrowed:
            part.install()

    def uninstall(self) -> None:
        """Restore the layer."""
        self.patch.undo()
        if self.watch is not None:
            self.watch.uninstall()
        for part in self.narrowed:
            part.uninstall()

    @property
    def entry(self) -> Callable[..., Any]:
        """What stands in the place of the layer's forward."""
        return self.run_and_record_change if self.record == "change" else self.run

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; this replaces its forward."""
        call = None if self.planner.fixed_plan is not None else self.calls.current
        if call is not None and self.is_dense_step(call, args, kwargs):
            return self.patch.original(*args, **kwargs)
        hidden, arguments = self.split_arguments(args, kwargs)
        plan = self.planner.fixed_plan or self.plan(hidden, call)
        tokens = None if call is None else call.tokens
        if tokens is None:
            return self.run_plan(hidden, arguments, plan, call)
        if plan.merged is not None:
            hidden, tokens.shorter = plan.merged, None
        hidden, plan, selection = cut_to_plan(plan, tokens, hidden)
        output = self.run_plan(hidden, arguments, plan, call, selection)
        if tokens.shorter is None or (self.hands_to is not None and not is_read(self.layer.module, self.hands_to)):
            return output
        whole, tokens.shorter = tokens.whole(first(output)), None
        return (whole, *output[1:]) if isinstance(output, tuple) else whole

    def run_and_record_change(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer, and record how far it moved each token."""
        call = None if self.planner.fixed_plan is not None else self.calls.current
        if call is None or call.tokens is None:
            return self.run(*args, **kwargs)
        before = call.tokens.whole(self.split_arguments(args, kwargs)[0])
        output = self.run(*args, **kwargs)
        call.tokens.record_change(before, call.tokens.whole(first(output)))
        return output

    def is_dense_step(self, call: ForwardCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """True where the layer's own forward takes a step with the arguments as they are."""
        is_dense = self.heads is None and self.planner.plans["answer"] == DENSE
        if call.tokens is not None or call.single_class != "answer" or not is_dense:
            return False
        cache = find_cache(kwargs)
        if not args or cache is None or len(cache.layers) <= self.slot or kwargs.get("attention_mask") is not None:
            return False
        stored = cache.layers[self.slot]
        if isinstance(stored, PartialLayer):
            return bool(args[0].shape[1] == 1) and stored.announce_step()
        return not isinstance(stored, ShortStaticLayer)

    def run_plan(
        self,
        hidden: Tensor,
        arguments: dict[str, Any],
        plan: Plan,
        call: ForwardCall | None,
        selection: Selection | None = None,
    ) -> Any:
        """Run the layer as a plan says.

        Args:
            hidden: What enters it, shape (batch, tokens, width).
            arguments: What else it was called with.
            plan: Which of the tokens in `hidden` its parts process.
            call: The running forward; None for a fixed plan.
            selection: The tokens in `hidden`, where it is cut.
        """
        module: Any = self.layer.module
        checkpoints = module.training and getattr(module, "gradient_checkpointing", False)
        if checkpoints:
            # The backward pass runs the layer again and must not store again; transformers' layers drop the cache too.
            arguments = {name: None if isinstance(value, Cache) else value for name, value in arguments.items()}
        cache = find_cache(arguments)
        attended = plan.attended if selection is None or plan.attended is AllOrNone.NONE else selection
        attention = None
        if self.head_attention is not None:
            every_head = plan.all_heads if selection is None or plan.all_heads is AllOrNone.NONE else selection
            attention = self.head_attention.of_forward(hidden, arguments, attended, every_head, call)
        if plan.split is not None:
            pass  # The attention cuts its own arguments.
        elif attended is AllOrNone.NONE:
            self.skip_in_cache(hidden.shape[1] if call is None else call.count(hidden), hidden.device, cache)
        elif call is not None and (attended is not AllOrNone.ALL or self.has_partial_cache(cache)):
            arguments = narrow(self.layer, hidden, arguments, cache, attended, call)
        every = plan.attended is plan.fed is AllOrNone.ALL and plan.narrow is AllOrNone.NONE and plan.gates is None
        every = every and self.heads is None and self.neighbours(call) is None
        if plan.split is None and every and plan.parallel is False:
            return self.run_original(call, hidden, arguments, attended)
        attend = partial(self.run_attention, call=call, attention=attention)
        if checkpoints:
            compose = partial(self.composition.run, arguments=arguments, plan=plan, attend=attend, selection=selection)
            return self.layer.sublayers.as_layer_output(module._gradient_checkpointing_func(compose, hidden))
        return self.layer.sublayers.as_layer_output(self.composition.run(hidden, arguments, plan, attend, selection))

    def run_original(self, call: ForwardCall | None, hidden: Tensor, arguments: dict[str, Any], tokens: Tokens) -> Any:
        """Run the layer's own forward, and record its attention where a later layer ranks by it."""
        forward_tokens = None if call is None else call.tokens
        if forward_tokens is None or self.watch is None or self.record is None:
            return self.patch.original(hidden, **arguments)
        with self.watch.recorded() as attention_calls:
            output = self.patch.original(hidden, **arguments)
        static = self.has_static_cache(arguments)
        recorded = last_recorded(attention_calls, self.layer.index)
        forward_tokens.record_attention(recorded, self.record, tokens, tokens, static)
        return output

    def run_attention(
        self,
        normed: Tensor,
        arguments: dict[str, Any],
        queries: Tokens,
        keys: Tokens,
        call: ForwardCall | None,
        attention: Callable[..., Any] | None,
    ) -> Tensor:
        """Run the attention, or what is in its place, and record it where a later layer ranks by it."""
        parts, tokens, neighbours = self.layer.sublayers, None if call is None else call.tokens, self.neighbours(call)
        if self.windowed is not None and neighbours is not None:
            out, recorded = self.windowed.run(normed, arguments, neighbours)
        elif self.watch is None or tokens is None:
            return parts.run_attention(normed, arguments, attention)
        else:
            with self.watch.recorded() as attention_calls:
                out = parts.run_attention(normed, arguments, attention)
            recorded = last_recorded(attention_calls, self.layer.index)
        if self.watch is not None and self.record is not None and tokens is not None:
            tokens.record_attention(recorded, self.record, queries, keys, self.has_static_cache(arguments))
        return out

    def neighbours(self, call: ForwardCall | None) -> Neighbours | None:
        """What the tokens of a forward see in this layer; None where no image token sees through a window."""
        window = self.choice.window
        if window is None or call is None or call.tokens is None or call.grids is None:
            return None
        if window not in call.neighbours:
            call.neighbours[window] = Neighbours.of(call.tokens, call.grids, window)
        return call.neighbours[window]

    def split_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The hidden states, and all other arguments by name."""
        if len(args) == 1:
            return args[0], kwargs
        named = dict(zip(self.layer.parameters, args, strict=False)) | kwargs
        return named.pop("hidden_states"), named

    def skip_in_cache(self, count: int, device: torch.device, cache: Cache | None) -> None:
        """Tell the cache that tokens passed which this layer stores nothing of."""
        if cache is None:
            return
        if not self.roles.stores:
            skip_all_tokens(cache, self.slot, count, device)
        else:
            shorter_layer(cache, self.slot, device).skip_tokens(count)

    def has_static_cache(self, arguments: dict[str, Any]) -> bool:
        """True where the attention sees columns of a static cache, of which the last ones are empty."""
        cache = arguments.get(self.layer.sublayers.cache_name)
        cache = cache.cache if isinstance(cache, LayerKeys) else cache
        return isinstance(cache, Cache) and isinstance(cache_layer(cache, self.slot), StaticLayer)

    def has_partial_cache(self, cache: Cache | None) -> bool:
        """True where the layer processed only some tokens earlier in the sequence."""
        return cache is not None and isinstance(cache_layer(cache, self.slot), PartialLayer | ShortStaticLayer)

    def plan(self, hidden: Tensor, call: ForwardCall | None) -> Plan:
        """Decide which tokens the layer processes in this forward, and record it in the call.

        Raises:
            ModelError: the layer was called without any model that has it, or the input ids were not seen, so the
                image tokens are unknown.
        """
        if call is None:
            raise self.planner.unknown_tokens(hidden)
        plan = self.planner.plan(hidden, call)
        if self.neighbours(call) is not None:
            call.shortened.add(self.layer.index)
        elif plan.split is None:
            call.record_attended(self.layer.index, plan.attended)
        else:
            call.record_split(self.layer.index, plan.split)
        return plan
