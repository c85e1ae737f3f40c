"""One decoder layer with an adapter in place of its attention."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..caches.cache import cache_layer, find_cache
from ..caches.partial import PartialLayer
from ..caches.static import SkippedStaticLayer
from ..families.layers import DecoderLayer
from ..families.widths import NarrowFFN
from ..runtime.attend import Attend
from ..runtime.layer.compose import Composition
from ..runtime.layer.shorter import Plan
from ..runtime.layer.wrap import WrappedLayer
from ..runtime.requests import unread_prompt
from ..runtime.selection import Selection
from .adapters import Adapter
from .folded import FoldedFFN, fold


class AdaptedLayer(WrappedLayer):
    """A layer that computes y = x + F(P(N2 x)), with the adapter P; see `adapters`.

    What the adapter needs of the prompt is in the layer's cache, which stores no keys and values. A frozen adapter
    needs nothing of the prompt, and is folded into the FFN where that permits it.

    Args:
        arguments: The arguments of `WrappedLayer`.
        adapter: The adapter.

    Attributes:
        active: False where a training runs the layer as it is.
    """

    active = True
    composition: "AdaptedComposition"

    def __init__(self, *arguments: Any, adapter: Adapter) -> None:
        super().__init__(*arguments)
        self.composition = AdaptedComposition(self.layer, self.slot, self.narrow, adapter)
        self.means = adapter.frozen is None
        if self.means:
            self.planner.fixed_plan, self.planner.treats_answers_apart = None, True

    def install(self) -> None:
        """Let the layer run with its adapter; the model has the weights that belong to the policy by now."""
        super().install()
        if not self.means:
            self.composition.fold()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer; this replaces its forward."""
        if not self.means:
            return super().run(*args, **kwargs)
        call = self.calls.current
        hidden, arguments = self.split_arguments(args, kwargs)
        if call is not None and call.tokens is not None:
            hidden, call.tokens.shorter = call.tokens.whole(hidden), None
        if not self.active:
            return self.patch.original(hidden, **arguments)
        plan = self.plan(hidden, call)
        prompt = None if call is None else call.prompt
        return self.run_plan(hidden, arguments, plan._replace(prompt=prompt), call)


class AdaptedComposition(Composition):
    """The FFN of a layer, with an adapter before it or folded into it.

    Args:
        layer: The layer.
        slot: The number under which it stores in a cache.
        narrow: Its FFN with a share of the channels; None where all of them run.
        adapter: The adapter.

    Attributes:
        folded: The FFN with a frozen adapter folded into it; None where it is not.
    """

    def __init__(self, layer: DecoderLayer, slot: int, narrow: NarrowFFN | None, adapter: Adapter) -> None:
        self._layer, self._slot, self._narrow, self._adapter = layer, slot, narrow, adapter
        self.folded: FoldedFFN | None = None

    def fold(self) -> None:
        """Fold a frozen adapter into the FFN, where that permits it."""
        if self.folded is None and self._narrow is None:
            with torch.inference_mode(False):
                self.folded = fold(self._layer.sublayers, self._adapter)

    def run(
        self, hidden: Tensor, arguments: dict[str, Any], plan: Plan, attend: Attend, selection: Selection | None
    ) -> Tensor:
        """The layer's output, shape (batch, tokens, width); see `Composition.run`."""
        parts = self._layer.sublayers
        normed = parts.ffn_norm(hidden)
        if self.folded is not None and not torch.is_grad_enabled():
            return hidden + parts.run_ffn(normed, arguments, self.folded.parts())
        adapted = self._adapter(normed, self._pooled(normed, find_cache(arguments), plan.prompt))
        narrow = None if self._narrow is None else self._narrow.parts()
        return hidden + parts.run_ffn(adapted, arguments, narrow)

    def _pooled(self, normed: Tensor, cache: Cache | None, prompt: Tensor | None) -> Tensor:
        """What the adapter needs of the prompt, shape (batch or 1, numbers): constants, or of the cache, or computed.

        Raises:
            ModelError: the tokens follow a prompt that the layer did not see.
        """
        if self._adapter.frozen is not None:
            return self._adapter.constants
        stored = None if cache is None else cache_layer(cache, self._slot)
        kept = stored.prompt if isinstance(stored, PartialLayer | SkippedStaticLayer) else None
        if kept is not None:
            return kept
        if prompt is None:
            raise unread_prompt(self._layer.index)
        found = self._adapter.pooled(normed, prompt.to(normed.device))
        if isinstance(stored, PartialLayer | SkippedStaticLayer):
            stored.remember(found)
        return found
