"""Hidden states kept from one policy to the next: where two policies begin alike, the beginning runs once.

For forwards without a cache, on batches that come again, such as those that score given answers. What a layer leaves
depends on the layers up to it alone, so what one policy left there is, bit for bit, what another would leave that makes
the same choices up to there.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .layers import DecoderLayer, decoder_layers
from .patch import Patch
from .tokens import Images

if TYPE_CHECKING:
    from .apply import PolicyHandle


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
        mask = None if self.left is None else self.left.mask
        return sum(tensor.nbytes for tensor in (self.hidden, self.scores, mask) if tensor is not None)


class PrefixStates:
    """States behind layers, by the batch and all choices up to there; those unused for longest go first.

    Args:
        max_bytes: What all of them may take together.

    Attributes:
        asked: Layers of all forwards so far.
        run: How many of them were computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.asked = 0
        self.run = 0
        self._bytes = 0
        self._states: OrderedDict[Hashable, State] = OrderedDict()

    @contextmanager
    def reused(self, handle: "PolicyHandle", batch: Hashable) -> Iterator[None]:
        """Let one forward begin behind the last layer whose state is known, and keep the states behind it.

        Args:
            handle: The policy; its model is called once in this context, without a cache.
            batch: Names the input, `handle.prompt_ends` among it; equal for equal inputs.
        """
        layers = decoder_layers(handle.model)
        keys = [(batch, *beginning) for beginning in handle.beginnings()]
        known = max((index for index, key in enumerate(keys) if key in self._states), default=-1)
        patches = [Patch(layer.module) for layer in layers]
        for layer, patch, key in zip(layers, patches, keys, strict=True):
            if layer.index < known:
                patch.set(self._passing(layer))
            elif layer.index == known:
                patch.set(self._resuming(handle, layer, self._states[key]))
                self._states.move_to_end(key)
            else:
                patch.set(self._keeping(handle, key, patch.original))
        try:
            yield
        finally:
            for patch in patches:
                patch.undo()
        self.asked += len(layers)
        self.run += len(layers) - 1 - known

    def _passing(self, layer: DecoderLayer) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return layer.sublayers.returned(hidden_states)

        return forward

    def _resuming(self, handle: "PolicyHandle", layer: DecoderLayer, state: State) -> Callable[..., Any]:
        def forward(*_: Any, **__: Any) -> Any:
            if handle.prompt is not None and state.scores is not None:
                handle.prompt.scores = state.scores
                handle.prompt.ranked = list(state.ranked)
                handle.prompt.left = state.left or handle.prompt.images
            return layer.sublayers.returned(state.hidden)

        return forward

    def _keeping(self, handle: "PolicyHandle", key: Hashable, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            hidden, prompt = output[0] if isinstance(output, tuple) else output, handle.prompt
            if prompt is None:
                self._keep(key, State(hidden))
            else:
                left = None if prompt.left is prompt.images else prompt.left
                self._keep(key, State(hidden, prompt.scores, tuple(prompt.ranked), left))
            return output

        return forward

    def _keep(self, key: Hashable, state: State) -> None:
        self._states[key] = state
        self._bytes += state.nbytes
        while self._bytes > self.max_bytes:
            _, oldest = self._states.popitem(last=False)
            self._bytes -= oldest.nbytes
