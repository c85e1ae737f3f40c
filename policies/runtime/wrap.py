"""One decoder layer under a policy: its sublayers composed anew, in place of its forward."""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..choice import LayerChoice
from ..errors import ModelError
from ..families.layers import DecoderLayer
from ..policy import TokenSelection
from ..scores.table import WITHOUT_ATTENTION
from .cache import cache_layer, find_cache, partial_layer, skip_all_tokens
from .calls import CallTracker, ForwardCall
from .narrow import narrow
from .partial import PartialLayer
from .patch import Patch
from .selection import AllOrNone, Selection
from .streams import run_concurrently
from .tokens import ALL_CLASSES, CLASSES, ForwardTokens, ImageTokens, TokenClasses, scope
from .watch import AttentionCall, recorded_attention

Tokens: TypeAlias = Selection | AllOrNone

NO_CLASSES: TokenClasses = frozenset()
ALL_OR_NONE = {True: AllOrNone.ALL, False: AllOrNone.NONE}


class Plan(NamedTuple):
    """Which tokens each sublayer of a layer processes in one forward.

    Attributes:
        attended: The tokens that the attention processes.
        fed: The tokens that the FFN processes.
        parallel: The tokens whose FFN reads the layer's input; a mask of shape (batch, tokens), or one flag for all.
    """

    attended: Tokens
    fed: Tokens
    parallel: bool | Tensor


class WrappedLayer:
    """Runs a decoder layer as a choice says.

    Args:
        layer: The layer, with its sublayers.
        choice: What it does, in canonical form.
        selection: How image tokens are ranked, and whether a token that is left out comes back.
        records_attention: True where a later layer ranks image tokens by this layer's attention.

    Attributes:
        attends: The classes of tokens that the attention processes.
        feeds: The classes of tokens that the FFN processes.
        parallel: The classes of tokens whose FFN reads the layer's input.
        plans: By class, the plan of a forward whose tokens all belong to that class.
        treats_answers_apart: True where an answer is treated in another way than the text of a prompt.
        needs_ids: True where image tokens are treated in another way than text.
        slot: The number under which the layer stores in a cache.
        fixed_plan: The plan, where it is the same in every forward; else None.
        calls: The forwards of the model; a layer without a fixed plan reads the running one.
    """

    calls: CallTracker

    def __init__(
        self, layer: DecoderLayer, choice: LayerChoice, selection: TokenSelection, records_attention: bool
    ) -> None:
        self.layer = layer
        self.choice = choice
        self.selection = selection
        self.records_attention = records_attention
        in_scope = scope(choice)
        self.attends = ALL_CLASSES - in_scope if choice.attention == "skip" else ALL_CLASSES
        self.feeds = ALL_CLASSES - in_scope if choice.ffn == "skip" else ALL_CLASSES
        self.parallel = in_scope if choice.wiring == "parallel" else NO_CLASSES
        self.plans: dict[str, Plan] = {
            name: Plan(ALL_OR_NONE[name in self.attends], ALL_OR_NONE[name in self.feeds], name in self.parallel)
            for name in CLASSES
        }
        images_differ = self.plans["image"] != self.plans["text"]
        self.treats_answers_apart = self.plans["answer"] != self.plans["text"]
        self.needs_ids = choice.token_ratio is not None or images_differ
        varies = self.needs_ids or self.treats_answers_apart or records_attention or selection.reselect == "once"
        self.fixed_plan = None if varies else self.plans["text"]
        self.slot = layer.slot
        self.patch = Patch(layer.module)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; this replaces its forward."""
        hidden, arguments = self.split_arguments(args, kwargs)
        module: Any = self.layer.module
        checkpoints = module.training and getattr(module, "gradient_checkpointing", False)
        if checkpoints:
            # The backward pass runs the layer again and must not store again; transformers' layers drop the cache too.
            arguments = {name: None if isinstance(value, Cache) else value for name, value in arguments.items()}
        cache = find_cache(arguments)
        call = self.calls.current if self.fixed_plan is None else None
        plan = self.fixed_plan or self.plan(hidden, call)
        if plan.attended is AllOrNone.NONE:
            self.skip_in_cache(hidden, cache)
        elif self.fixed_plan is None and (plan.attended is not AllOrNone.ALL or self.has_partial_cache(cache)):
            arguments = narrow(self.layer, hidden, arguments, cache, plan.attended)
        elif plan.fed is AllOrNone.ALL and plan.parallel is False:
            return self.run_original(call, args, kwargs)
        if checkpoints:
            compose = partial(self.compose, arguments=arguments, plan=plan, call=call)
            return self.layer.sublayers.as_layer_output(module._gradient_checkpointing_func(compose, hidden))
        return self.layer.sublayers.as_layer_output(self.compose(hidden, arguments, plan, call))

    def run_original(self, call: ForwardCall | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer's own forward, and record its attention where a later layer ranks by it."""
        tokens = None if call is None else call.tokens
        if tokens is None or not self.records_attention:
            return self.patch.original(*args, **kwargs)
        with recorded_attention(self.layer.sublayers.attention) as attention_calls:
            output = self.patch.original(*args, **kwargs)
        tokens.record_attention(self.last_recorded(attention_calls), AllOrNone.ALL)
        return output

    def compose(self, hidden: Tensor, arguments: dict[str, Any], plan: Plan, call: ForwardCall | None) -> Tensor:
        """Compose the layer from its sublayers: x' = x + A(N1 x); y = x' + F(N2 x'), each for its own tokens."""
        attended, fed, parallel = plan
        if attended is fed is not AllOrNone.NONE:
            # One gather and one scatter serve both sublayers.
            part = cut(hidden, fed)
            return put_back(hidden, self.both_sublayers(part, arguments, fed, cut_flags(parallel, fed), call), fed)
        middle = hidden
        if attended is not AllOrNone.NONE:
            part = cut(hidden, attended)
            update = self.run_attention(self.layer.sublayers.attention_norm(part), arguments, attended, call)
            middle = put_back(hidden, part + update, attended)
        if fed is AllOrNone.NONE:
            return middle
        part, layer_input = cut(middle, fed), cut(hidden, fed)
        normed = self.ffn_input(layer_input, part, cut_flags(parallel, fed))
        return put_back(middle, part + self.layer.sublayers.run_ffn(normed, arguments), fed)

    def both_sublayers(
        self, x: Tensor, arguments: dict[str, Any], tokens: Tokens, parallel: bool | Tensor, call: ForwardCall | None
    ) -> Tensor:
        """Run both sublayers for the same tokens, concurrently where neither reads the other's output."""
        parts = self.layer.sublayers
        normed = parts.attention_norm(x)
        if parallel is True or parts.parallel:
            # Where the wiring shares the attention's norm, it is computed once.
            shared = parallel is True and self.choice.norm == "shared"
            ffn_input = normed if shared else self.ffn_input(x, x, parallel)
            attention, ffn = run_concurrently(
                x,
                lambda: self.run_attention(normed, arguments, tokens, call),
                lambda: parts.run_ffn(ffn_input, arguments),
            )
            return x + attention + ffn
        middle = x + self.run_attention(normed, arguments, tokens, call)
        return middle + parts.run_ffn(self.ffn_input(x, middle, parallel), arguments)

    def run_attention(
        self, normed: Tensor, arguments: dict[str, Any], tokens: Tokens, call: ForwardCall | None
    ) -> Tensor:
        """Run the attention on a normalised input, and record it where a later layer ranks by it."""
        parts, forward_tokens = self.layer.sublayers, None if call is None else call.tokens
        if not self.records_attention or forward_tokens is None:
            return parts.run_attention(normed, arguments)
        with recorded_attention(parts.attention) as attention_calls:
            out = parts.run_attention(normed, arguments)
        forward_tokens.record_attention(self.last_recorded(attention_calls), tokens)
        return out

    def ffn_input(self, x: Tensor, middle: Tensor, parallel: bool | Tensor) -> Tensor:
        """The normalised input of the FFN: N2 x', or for parallel tokens the norm of the layer's input x."""
        parts = self.layer.sublayers
        norm = parts.attention_norm if self.choice.norm == "shared" else parts.ffn_norm
        if parallel is True:
            return norm(x)
        own = parts.ffn_norm(x if parts.parallel else middle)
        return own if parallel is False else torch.where(parallel[..., None], norm(x), own)

    def split_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The hidden states, and all other arguments by name."""
        if len(args) == 1:
            return args[0], kwargs
        named = dict(zip(self.layer.parameters, args, strict=False)) | kwargs
        return named.pop("hidden_states"), named

    def skip_in_cache(self, hidden: Tensor, cache: Cache | None) -> None:
        """Tell the cache that tokens passed which this layer stores nothing of."""
        if cache is None:
            return
        if not self.attends:
            skip_all_tokens(cache, self.slot, hidden.shape[1], hidden.device)
        else:
            partial_layer(cache, self.slot).skip_tokens(hidden.shape[1])

    def has_partial_cache(self, cache: Cache | None) -> bool:
        """True where the layer processed only some tokens earlier in the sequence."""
        return cache is not None and isinstance(cache_layer(cache, self.slot), PartialLayer)

    def plan(self, hidden: Tensor, call: ForwardCall | None) -> Plan:
        """Decide which tokens the layer processes in this forward, and record it in the call.

        Raises:
            ModelError: the layer was called without any model that has it, or the input ids were not seen, so the
                image tokens are unknown.
        """
        if call is None:
            raise self.unknown_tokens(hidden)
        plan = self._plan_by_classes(hidden, call)
        call.record_attended(self.layer.index, plan.attended)
        return plan

    def _plan_by_classes(self, hidden: Tensor, call: ForwardCall) -> Plan:
        tokens, ratio = call.tokens, self.choice.token_ratio
        if tokens is None:
            if self.needs_ids and not call.images_known:
                raise self.unknown_tokens(hidden)
            return self.plans[call.single_class]
        if tokens.attention.shape != hidden.shape[:2]:
            raise self.unknown_tokens(hidden)
        images = self._choose_images(hidden, tokens, ratio)
        attended, fed = tokens.select(self.attends, images), tokens.select(self.feeds, images)
        return Plan(attended, fed, tokens.of_classes(self.parallel))

    def _choose_images(self, hidden: Tensor, tokens: ForwardTokens, ratio: float | None) -> ImageTokens:
        """The image tokens that the layer processes; with `reselect: once`, all others are removed for good."""
        score = self.selection.score
        images = tokens.remaining if ratio is None else tokens.choose_images(hidden, ratio, score)
        tokens.processed = images
        if self.selection.reselect == "once":
            tokens.remaining = images
        return images

    def unknown_tokens(self, hidden: Tensor) -> ModelError:
        """The error for a forward whose input ids were not seen."""
        return ModelError(
            "this policy needs the input ids, to know which tokens are image tokens",
            [f"layer {self.layer.index} got hidden states of shape {tuple(hidden.shape)} without them"],
            "call the model that the policy was applied to, with `input_ids`",
        )

    def last_recorded(self, calls: list[AttentionCall]) -> AttentionCall:
        """The recorded call of this layer's attention.

        Raises:
            ModelError: nothing was recorded: the attention does not use transformers' table of attention functions.
        """
        if not calls:
            first, *others = WITHOUT_ATTENTION
            raise ModelError(
                "the attention of this model cannot be read to rank image tokens",
                [f"layer {self.layer.index} does not take its attention function from transformers' table"],
                f"set `token_selection: {{score: {first}}}`{''.join(f' or `{name}`' for name in others)}",
            )
        return calls[-1]


def cut(x: Tensor, tokens: Tokens) -> Tensor:
    """Some tokens of hidden states, shape (batch, kept, width)."""
    return tokens.cut(x, -2) if isinstance(tokens, Selection) else x


def cut_flags(flags: bool | Tensor, tokens: Tokens) -> bool | Tensor:
    """The flags of some tokens, shape (batch, kept)."""
    return tokens.cut(flags, -1) if isinstance(tokens, Selection) and isinstance(flags, Tensor) else flags


def put_back(whole: Tensor, part: Tensor, tokens: Tokens) -> Tensor:
    """Hidden states with some of their tokens replaced."""
    return tokens.put_back(whole, part) if isinstance(tokens, Selection) else part
