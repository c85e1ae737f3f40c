"""Running two consecutive layers on the same input.

With D what a layer adds to its input x, both sublayers and the layer's own other keys included, a pair computes
y = x + 1/2 (D_1(x) + D_2(x)), which is the mean of what the two layers return for x. The first layer returns x itself;
the second one, which the decoder calls with that, returns y. So each layer keeps its own place in the decoder: its
mask, its positions, its entry in the cache.
"""

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..families.anatomy import first
from ..runtime.layer.wrap import WrappedLayer
from ..runtime.tokens import ALL_CLASSES, CLASSES


class Pair:
    """Two consecutive layers that read the same input; tokens out of the choice's scope go through them in sequence.

    Args:
        begin: The first layer, whose choice has the wiring `pair`.
        end: The layer after it.
    """

    def __init__(self, begin: WrappedLayer, end: WrappedLayer) -> None:
        self.begin, self.end = begin, end
        # Between the two layers, what the first one computed and which tokens are paired.
        self._thread = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"begin": self.begin, "end": self.end}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _thread=threading.local())

    def install(self) -> None:
        """Let the two layers run as a pair; each is already wrapped, and removing its wrapper removes this too."""
        self.begin.patch.set(self.run_first)
        self.end.patch.set(self.run_second)

    def run_first(self, *args: Any, **kwargs: Any) -> Any:
        """Run the first layer; keeps what it computes, and returns its input for the tokens that are paired."""
        output = self.begin.entry(*args, **kwargs)
        x, computed = self.begin.split_arguments(args, kwargs)[0], first(output)
        paired = self._paired(x)
        self._thread.given = computed, paired
        if paired is not False:
            passed = x if paired is True else torch.where(paired[..., None], x, computed)
            output = (passed, *output[1:]) if isinstance(output, tuple) else passed
        return output

    def run_second(self, *args: Any, **kwargs: Any) -> Any:
        """Run the second layer; returns the mean of what both computed, for the tokens that are paired.

        Raises:
            ModelError: the first layer did not run before it.
        """
        given = getattr(self._thread, "given", None)
        if given is None:
            index = self.begin.layer.index
            reason = f"layer {index + 1} was called without layer {index}, with which it forms a pair"
            raise ModelError("a pair of layers runs together", [reason], "run the whole decoder")
        self._thread.given = None
        output = self.end.entry(*args, **kwargs)
        (computed, paired), own = given, first(output)
        if paired is False:
            return output
        mean = torch.add(own * 0.5, computed.to(own.device), alpha=0.5)
        if paired is not True:
            mean = torch.where(paired.to(own.device)[..., None], mean, own)
        return (mean, *output[1:]) if isinstance(output, tuple) else mean

    def _paired(self, hidden: Tensor) -> bool | Tensor:
        """The tokens that are paired: all of them, none, or a mask of shape (batch, tokens)."""
        classes, call = self.begin.roles.paired, self.begin.calls.current
        if classes == ALL_CLASSES:
            return True
        if call is None:
            raise self.begin.planner.unknown_tokens(hidden)
        if call.tokens is None:
            return call.single_class in classes
        counts = call.tokens.counts
        present = frozenset(name for name in CLASSES if any(counts[name]))
        inside = present & classes
        return call.tokens.union(inside) if frozenset() < inside < present else bool(inside)


def pairs_of(wrapped: Sequence[WrappedLayer]) -> list[Pair]:
    """The pairs among wrapped layers, of which the second layer of each pair is one."""
    return [Pair(begin, end) for begin, end in pairwise(wrapped) if begin.choice.wiring == "pair"]
