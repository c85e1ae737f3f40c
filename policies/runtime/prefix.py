"""Hidden states kept from one policy to the next: where two policies begin alike, the beginning runs once.

For forwards without a cache, on batches that come again, such as those that score given answers. What a layer leaves
depends on the layers up to it alone, so what one policy left there is, bit for bit, what another would leave that makes
the same choices up to there.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..families.layers import DecoderLayer, decoder_layers
from .patch import Patch
from .retention import PrefixTrie, Store
from .tokens import Images

if TYPE_CHECKING:
    from ..apply import PolicyHandle, Step


@dataclass(frozen=True)
class State:
    """What a layer left for those after it.

    Attributes:
        hidden: The hidden states, shape (batch, tokens, width).
        scores: The attention that tokens had got by then, shape (batch, tokens).
        ranked: Of each row, whether any image token had got some.
        left: The image tokens that were left by then; None where none was removed.
    """

    hidden: Tensor
    scores: Tensor | None = None
    ranked: tuple[bool, ...] = ()
    left: Images | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        ranks = None if self.left is None else self.left.ranks
        return sum(tensor.nbytes for tensor in (self.hidden, self.scores, ranks) if tensor is not None)


class PrefixStates:
    """States behind layers, by the batch and all choices up to there; those that save most are kept.

    Args:
        max_bytes: What all of them may take together; 0 keeps none, and every forward is left as it is.

    Attributes:
        asked: Layers of all forwards so far, without those that a policy skips.
        run: How many of them were computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.asked = 0
        self.run = 0
        self._beginnings = PrefixTrie()
        self._store: Store[State] = Store(max_bytes, self._beginnings)

    @contextmanager
    def reused(self, handle: "PolicyHandle", batch: Hashable) -> Iterator[None]:
        """Let one forward begin behind the last layer whose state is known, and keep states behind it.

        Args:
            handle: The policy; its model is called once in this context, without a cache.
            batch: Names the input, `handle.prompt_ends` among it; equal for equal inputs.
        """
        steps = handle.steps()
        if not self.max_bytes:
            yield
            self._count(steps, 0)
            return
        layers, path = decoder_layers(handle.model), self._beginnings.visit(steps)
        known, state = self._store.find(batch, path) or (-1, None)
        patches = [Patch(layer.module) for layer in layers]
        for layer, patch, node in zip(layers, patches, path, strict=True):
            if state is not None and layer.index <= known:
                patch.set(self._resuming(handle, layer, state if layer.index == known else None))
            else:
                patch.set(self._keeping(handle, batch, node, patch.original))
        try:
            yield
        finally:
            for patch in patches:
                patch.undo()
        self._count(steps, known + 1)

    def forget(self) -> None:
        """Drop all states, for batches that will not come again."""
        self._store.clear()

    def _count(self, steps: "list[Step]", first: int) -> None:
        self.asked += sum(step.computes for step in steps)
        self.run += sum(step.computes for step in steps[first:])

    def _resuming(self, handle: "PolicyHandle", layer: DecoderLayer, state: State | None) -> Callable[..., Any]:
        """A layer that hands on what it left before; without that, one of the layers above it, which nobody reads."""

        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            if state is None:
                return layer.sublayers.returned(hidden_states)
            if handle.prompt is not None and state.scores is not None:
                handle.prompt.scores = state.scores
                handle.prompt.ranked = list(state.ranked)
                handle.prompt.left = state.left or handle.prompt.images
            return layer.sublayers.returned(state.hidden)

        return forward

    def _keeping(
        self, handle: "PolicyHandle", batch: Hashable, node: int, original: Callable[..., Any]
    ) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            hidden, prompt = output[0] if isinstance(output, tuple) else output, handle.prompt
            if prompt is None:
                state = State(hidden)
            else:
                left = None if prompt.left is prompt.images else prompt.left
                state = State(hidden, prompt.scores, tuple(prompt.ranked), left)
            self._store.put(batch, node, state)
            return output

        return forward
