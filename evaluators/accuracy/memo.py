"""Remembering what does not depend on the policy, so that it is computed once a worker and not once a trial."""

import copy
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

FEATURES = "get_image_features"


class Memo:
    """Values by key, up to a number of bytes.

    When it is full it takes nothing more in, and drops nothing either: every trial asks in the same order, so dropping
    the oldest value would always drop the one that is asked for next.

    Args:
        budget_bytes: Tensors count in full, wherever they lie; numbers in lists as eight bytes.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._kept: dict[Hashable, tuple[Any, Any]] = {}

    def get(self, key: Hashable, make: Callable[[], Any], pinned: Any = None) -> Any:
        """The value of a key, made on first use.

        Args:
            key: Names the value.
            make: Makes it.
            pinned: Objects whose `id` is part of the key; they are kept alive, or another could get the same id.
        """
        if key in self._kept:
            return self._kept[key][0]
        value = make()
        size = size_in_bytes(value)
        if self.used_bytes + size <= self.budget_bytes:
            self._kept[key] = (value, pinned)
            self.used_bytes += size
        return value


def size_in_bytes(value: Any) -> int:
    """Bytes of the tensors and numbers in nested values."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(size_in_bytes(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(size_in_bytes(part) for part in value)
    return 8


def digest(value: Any) -> Hashable:
    """A key that is equal for equal content, of tensors too."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().reshape(-1).view(torch.uint8)
        # BLAKE2 hashes about a gigabyte a second, far faster than a vision tower turns those bytes into features.
        return value.shape, value.dtype, str(value.device), hashlib.blake2b(content.numpy().data).digest()
    if isinstance(value, Mapping):
        return tuple((key, digest(part)) for key, part in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(digest(part) for part in value)
    return repr(value)


@contextmanager
def cached_image_features(model: nn.Module, memo: Memo) -> Iterator[None]:
    """Compute the features of equal images once, as long as this lasts; the model is left as it was.

    Whole calls are remembered, not single images: how a batch is put together may change the last bits.
    """
    owners = [module for module in model.modules() if hasattr(type(module), FEATURES)]
    # A wrapper's method only hands on to the one inside, so the innermost owner sees every call.
    inner = [owner for owner in owners if not any(part in owners for part in owner.modules() if part is not owner)]
    with ExitStack() as stack:
        for owner in inner:
            stack.enter_context(_remembering(owner, memo))
        yield


@contextmanager
def _remembering(owner: nn.Module, memo: Memo) -> Iterator[None]:
    original = getattr(owner, FEATURES)
    before = vars(owner).get(FEATURES)

    # `generate` reads the signature to know which arguments to hand over; `wraps` keeps it visible.
    @functools.wraps(original)
    def features(*args: Any, **kwargs: Any) -> Any:
        key = (FEATURES, digest(args), digest(kwargs))
        return shallow(memo.get(key, lambda: slim(original(*args, **kwargs))))

    vars(owner)[FEATURES] = features
    try:
        yield
    finally:
        del vars(owner)[FEATURES]
        if before is not None:
            vars(owner)[FEATURES] = before


def slim(output: Any) -> Any:
    """The output without every layer's hidden states, which no decoder reads and which fill the memory."""
    if not isinstance(output, ModelOutput):
        return output
    unread = ("hidden_states", "attentions")
    return type(output)(**{key: value for key, value in output.items() if key not in unread})


def shallow(output: Any) -> Any:
    """A copy to hand out: `generate` sets fields of what it gets."""
    return type(output)(**output) if isinstance(output, ModelOutput) else copy.copy(output)
