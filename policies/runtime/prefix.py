"""Reusing hidden states between policies: where two policies share their first layers, these layers run once.

For forwards without a cache, on batches that repeat, such as those that score given answers. The output of a layer
depends on the layers up to it alone. So the state that one policy leaves there equals, bit for bit, the state of any
policy with the same choices up to there.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..families.layers import DecoderLayer, decoder_layers
from .images import ImageTokens
from .patch import Patch
from .retention import PrefixTrie, Store

if TYPE_CHECKING:
    from ..apply import LayerStep, PolicyHandle


@dataclass(frozen=True)
class State:
    """What a layer leaves for the layers after it.

    Attributes:
        hidden: The hidden states, shape (batch, tokens, width).
        recorded: What layers recorded for the score of image tokens, shape (batch, tokens).
        has_record: Whether something was recorded for each row.
        remaining: The image tokens that were not removed for good; None where none was removed.
        sizes: How many tokens each token stands for, shape (batch, tokens); None where none was merged.
    """

    hidden: Tensor
    recorded: Tensor | None = None
    has_record: tuple[bool, ...] = ()
    remaining: ImageTokens | None = None
    sizes: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ranks = None if self.remaining is None else self.remaining.ranks
        return sum(tensor.nbytes for tensor in (self.hidden, self.recorded, ranks, self.sizes) if tensor is not None)


class PrefixStates:
    """Hidden states by batch and by all choices up to a layer; the states that save most layers are kept.

    Args:
        max_bytes: What all states may take together; 0 keeps none and leaves every forward as it is.

    Attributes:
        asked: Layers of all forwards so far, without layers that a policy skips.
        run: How many of them were computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.asked = 0
        self.run = 0
        self._trie = PrefixTrie()
        self._store: Store[State] = Store(max_bytes, self._trie)

    @contextmanager
    def reused(self, handle: "PolicyHandle", batch: Hashable) -> Iterator[None]:
        """Let one forward start after the last layer whose state is kept, and keep the states after it.

        Args:
            handle: The policy; its model is called once in this context, without a cache.
            batch: Identifies the input, `handle.prompt_ends` included; equal for equal inputs.
        """
        steps = handle.steps()
        if not self.max_bytes:
            yield
            self._count(steps, 0)
            return
        layers, path = decoder_layers(handle.model), self._trie.visit(steps)
        last_known, state = self._store.find(batch, path) or (-1, None)
        patches = [Patch(layer.module) for layer in layers]
        for layer, patch, node in zip(layers, patches, path, strict=True):
            if state is not None and layer.index <= last_known:
                patch.set(self._resume(handle, layer, state if layer.index == last_known else None))
            elif steps[layer.index].choice.wiring != "pair":  # a pair cannot be resumed between its layers
                patch.set(self._run_and_keep(handle, batch, node, patch.original))
        try:
            yield
        finally:
            for patch in patches:
                patch.undo()
        self._count(steps, last_known + 1)

    @property
    def used_bytes(self) -> int:
        """What all kept states take together."""
        return self._store.used_bytes

    def forget(self) -> None:
        """Drop all states, once their batches will not come again."""
        self._store.clear()

    def _count(self, steps: "list[LayerStep]", first: int) -> None:
        self.asked += sum(step.computes for step in steps)
        self.run += sum(step.computes for step in steps[first:])

    def _resume(self, handle: "PolicyHandle", layer: DecoderLayer, state: State | None) -> Callable[..., Any]:
        """A forward that returns a kept state; given None, one that returns its input, which a later layer discards."""

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            if state is None:
                return layer.sublayers.as_layer_output(hidden_states)
            if handle.tokens is not None and state.recorded is not None:
                handle.tokens.recorded = state.recorded
                handle.tokens.has_record = list(state.has_record)
                handle.tokens.remaining = state.remaining or handle.tokens.images
                handle.tokens.sizes = state.sizes
            return layer.sublayers.as_layer_output(state.hidden)

        return forward

    def _run_and_keep(
        self, handle: "PolicyHandle", batch: Hashable, node: int, original: Callable[..., Any]
    ) -> Callable[..., Any]:
        """A forward that runs the layer and keeps the state after it."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            hidden, tokens = output[0] if isinstance(output, tuple) else output, handle.tokens
            if tokens is None:
                state = State(hidden)
            else:
                remaining = None if tokens.remaining is tokens.images else tokens.remaining
                state = State(tokens.whole(hidden), tokens.recorded, tuple(tokens.has_record), remaining, tokens.sizes)
            self._store.put(batch, node, state)
            return output

        return forward
