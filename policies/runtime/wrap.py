"""One decoder layer under a policy: its own sublayers put together anew, in place of its forward."""

from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..choice import LayerChoice
from ..errors import ModelError
from ..families.layers import DecoderLayer
from ..policy import TokenSelection
from .cache import PartialLayer, cache_layer, find_cache, partial_layer, pass_all_by
from .calls import Call, Calls
from .narrow import narrow
from .patch import Patch
from .streams import side_by_side
from .tokens import CLASSES, EVERYONE, Classes, Selection, Whole, scope
from .watch import Attention, watched

Tokens: TypeAlias = Selection | Whole
# Which tokens the attention processes, which the FFN, and of which the FFN reads the layer's input.
Plan: TypeAlias = tuple[Tokens, Tokens, bool | Tensor]

NOBODY: Classes = frozenset()
WHOLE = {True: Whole.ALL, False: Whole.NONE}


class WrappedLayer:
    """Runs a decoder layer by a choice.

    Args:
        layer: The layer, with its sublayers.
        choice: What it does, in canonical form.
        selection: How image tokens are ranked, and whether one that is left out comes back.
        scored: True where a later layer ranks its tokens by this layer's attention.

    Attributes:
        attends: The classes of tokens that the attention processes.
        feeds: The same of the FFN.
        beside: The classes whose FFN reads the layer's input.
        plans: By the class of tokens, the plan of a forward whose tokens are all of that class.
        phased: True where an answer is treated in another way than the text of a prompt.
        needs_ids: True where image tokens are treated in another way than text.
        slot: The number under which the layer stores in a cache.
        steady: The plan of every forward, where it is always the same; else None.
        calls: The forwards of the model, of which layers without a steady plan read theirs.
    """

    calls: Calls

    def __init__(self, layer: DecoderLayer, choice: LayerChoice, selection: TokenSelection, scored: bool) -> None:
        self.layer = layer
        self.choice = choice
        self.selection = selection
        self.scored = scored
        within = scope(choice)
        self.attends = EVERYONE - within if choice.attention == "skip" else EVERYONE
        self.feeds = EVERYONE - within if choice.ffn == "skip" else EVERYONE
        self.beside = within if choice.wiring == "parallel" else NOBODY
        self.plans: dict[str, Plan] = {
            name: (WHOLE[name in self.attends], WHOLE[name in self.feeds], name in self.beside) for name in CLASSES
        }
        images_differ = self.plans["image"] != self.plans["text"]
        self.phased = self.plans["answer"] != self.plans["text"]
        self.needs_ids = choice.token_ratio is not None or images_differ
        steady = not (self.needs_ids or self.phased or scored or selection.reselect == "once")
        self.steady = self.plans["text"] if steady else None
        self.slot = layer.slot
        self.patch = Patch(layer.module)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's forward."""
        hidden, arguments = self.named(args, kwargs)
        module: Any = self.layer.module
        checkpoints = module.training and getattr(module, "gradient_checkpointing", False)
        if checkpoints:
            # What is computed again in the backward pass must not be stored again; transformers' own layers do so too.
            arguments = {name: None if isinstance(value, Cache) else value for name, value in arguments.items()}
        cache = find_cache(arguments)
        call = self.calls.now if self.steady is None else None
        plan = self.steady or self.plan(hidden, call)
        attended, fed, beside = plan
        if attended is Whole.NONE:
            self.pass_by(hidden, cache)
        elif self.steady is None and (attended is not Whole.ALL or self.stores_part(cache)):
            arguments = narrow(self.layer, hidden, arguments, cache, attended)
        elif fed is Whole.ALL and beside is False:
            return self.dense(call, args, kwargs)
        if checkpoints:
            compose = partial(self.compose, arguments=arguments, plan=plan, call=call)
            return self.layer.sublayers.returned(module._gradient_checkpointing_func(compose, hidden))
        return self.layer.sublayers.returned(self.compose(hidden, arguments, plan, call))

    def dense(self, call: Call | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The untouched layer, watched where a later layer ranks its tokens by it."""
        prompt = None if call is None else call.prompt
        if prompt is None or not self.scored:
            return self.patch.original(*args, **kwargs)
        with watched(self.layer.sublayers.attention) as notes:
            output = self.patch.original(*args, **kwargs)
        prompt.look(self.seen(notes), Whole.ALL)
        return output

    def compose(self, hidden: Tensor, arguments: dict[str, Any], plan: Plan, call: Call | None) -> Tensor:
        """The layer from its sublayers: x' = x + A(N1 x); y = x' + F(N2 x'), each for its own tokens."""
        attended, fed, beside = plan
        if attended is fed is not Whole.NONE:
            # The tokens are gathered and put back once for both.
            part = cut(hidden, fed)
            return put_back(hidden, self.sublayers(part, arguments, fed, cut_flags(beside, fed), call), fed)
        middle = hidden
        if attended is not Whole.NONE:
            part = cut(hidden, attended)
            mixed = self.mix(self.layer.sublayers.normalise_shared(part), arguments, attended, call)
            middle = put_back(hidden, part + mixed, attended)
        if fed is Whole.NONE:
            return middle
        part, before = cut(middle, fed), cut(hidden, fed)
        given = self.ffn_input(before, part, cut_flags(beside, fed))
        return put_back(middle, part + self.layer.sublayers.feed(given, arguments), fed)

    def sublayers(
        self, x: Tensor, arguments: dict[str, Any], tokens: Tokens, beside: bool | Tensor, call: Call | None
    ) -> Tensor:
        """Both sublayers for the same tokens, at the same time where neither needs the other."""
        parts = self.layer.sublayers
        normed = parts.normalise_shared(x)
        if beside is True or parts.parallel:
            # The attention's norm serves both where they share it.
            given = normed if beside is True and self.choice.norm == "shared" else self.ffn_input(x, x, beside)
            attention, ffn = side_by_side(
                x, lambda: self.mix(normed, arguments, tokens, call), lambda: parts.feed(given, arguments)
            )
            return x + attention + ffn
        middle = x + self.mix(normed, arguments, tokens, call)
        return middle + parts.feed(self.ffn_input(x, middle, beside), arguments)

    def mix(self, normed: Tensor, arguments: dict[str, Any], tokens: Tokens, call: Call | None) -> Tensor:
        """The attention of its normalised input, watched where a later layer ranks its tokens by it."""
        parts, prompt = self.layer.sublayers, None if call is None else call.prompt
        if not self.scored or prompt is None:
            return parts.mix(normed, arguments)
        with watched(parts.attention) as notes:
            out = parts.mix(normed, arguments)
        prompt.look(self.seen(notes), tokens)
        return out

    def ffn_input(self, x: Tensor, middle: Tensor, beside: bool | Tensor) -> Tensor:
        """N2 x', or the norm of the layer's input for those that `beside` says."""
        parts = self.layer.sublayers
        norm = parts.normalise_shared if self.choice.norm == "shared" else parts.normalise
        if beside is True:
            return norm(x)
        own = parts.normalise(x if parts.parallel else middle)
        return own if beside is False else torch.where(beside[..., None], norm(x), own)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The hidden states, and all other arguments by name."""
        if len(args) == 1:
            return args[0], kwargs
        named = dict(zip(self.layer.parameters, args, strict=False)) | kwargs
        return named.pop("hidden_states"), named

    def pass_by(self, hidden: Tensor, cache: Cache | None) -> None:
        """Let the cache know that tokens passed which this layer stores nothing of."""
        if cache is None:
            return
        if not self.attends:
            pass_all_by(cache, self.slot, hidden.shape[1], hidden.device)
        else:
            partial_layer(cache, self.slot).pass_by(hidden.shape[1])

    def stores_part(self, cache: Cache | None) -> bool:
        """True where an earlier part of the sequence was cut for this layer."""
        return cache is not None and isinstance(cache_layer(cache, self.slot), PartialLayer)

    def plan(self, hidden: Tensor, call: Call | None) -> Plan:
        """Which tokens the layer processes in this forward, by their classes.

        Raises:
            ModelError: the layer was called past every model that has it, or the input ids were not seen, so the image
                tokens are unknown.
        """
        if call is None:
            raise self.unknown_tokens(hidden)
        plan = self.plan_of(hidden, call)
        call.note(self.layer.index, plan[0])
        return plan

    def plan_of(self, hidden: Tensor, call: Call) -> Plan:
        """See `plan`."""
        prompt, ratio = call.prompt, self.choice.token_ratio
        if prompt is None:
            if self.needs_ids and not call.known:
                raise self.unknown_tokens(hidden)
            return self.plans[call.only]
        if prompt.scores.shape != hidden.shape[:2]:
            raise self.unknown_tokens(hidden)
        images = prompt.left if ratio is None else prompt.choose(hidden, ratio, self.selection.score)
        prompt.processed = images
        if self.selection.reselect == "once":
            prompt.left = images
        attended, fed = prompt.select(self.attends, images), prompt.select(self.feeds, images)
        return attended, fed, prompt.of_classes(self.beside)

    def unknown_tokens(self, hidden: Tensor) -> ModelError:
        """The error of a forward whose input ids were not seen."""
        return ModelError(
            "this policy needs the input ids, to know which tokens are image tokens",
            [f"layer {self.layer.index} got hidden states of shape {tuple(hidden.shape)} without them"],
            "call the model that the policy was applied to, with `input_ids`",
        )

    def seen(self, notes: list[Attention]) -> Attention:
        """The attention that a watched layer computed.

        Raises:
            ModelError: it went past the table of attention functions that is watched.
        """
        if not notes:
            raise ModelError(
                "the attention of this model cannot be read to rank image tokens",
                [f"layer {self.layer.index} does not take its attention function from transformers' table"],
                "set `token_selection: {score: norm}` or `uniform`",
            )
        return notes[-1]


def cut(x: Tensor, tokens: Tokens) -> Tensor:
    """Some tokens of hidden states, shape (batch, kept, width)."""
    return tokens.cut(x, -2) if isinstance(tokens, Selection) else x


def cut_flags(flags: bool | Tensor, tokens: Tokens) -> bool | Tensor:
    """The flags of some tokens, shape (batch, kept)."""
    return tokens.cut(flags, -1) if isinstance(tokens, Selection) and isinstance(flags, Tensor) else flags


def put_back(whole: Tensor, part: Tensor, tokens: Tokens) -> Tensor:
    """Hidden states with some of their tokens replaced."""
    return tokens.put_back(whole, part) if isinstance(tokens, Selection) else part
